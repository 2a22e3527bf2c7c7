"""A process that trains trials, one after the other: TensorFlow is imported once for all of them.

Each line of its standard input is a job, each line of its standard output what came of it, in JSON. It ends
when its input does, whatever it is doing: a trial that is cut off goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError
from karpa_tf.recipe import About, find_recipe
from karpa_tf.reports.curves import read_scalars, tags_of
from karpa_tf.training.run_folder import RunFolder, locked


def main() -> None:
    """Trains what standard input asks for."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a training prints is none of ours
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        answers.write(json.dumps(train_trial(**jobs.get())) + "\n")
        answers.flush()


def train_trial(recipe: str, run: str, pause: int, monitor: str, lower: bool) -> dict[str, Any]:
    """Trains a run up to a length, and returns the best figure so far.

    Args:
        recipe: its name, or the folder of one of the user's own.
        run: its folder, with settings in it.
        pause: the length.
        monitor: the tag of the figure, as `tag_of` returns it.
        lower: whether small ones are the better ones.

    Returns:
        `{"value", "step"}`, or `{"reason"}` where it has failed, `{"stopped"}` after Ctrl-C, and where there
        is no such figure those that are `{"known"}`.
    """
    import keras

    from karpa_tf.reports.tensorboard import write_final
    from karpa_tf.training.loop import Paused

    folder = RunFolder(Path(run))
    keras.backend.clear_session()  # names of layers begin anew
    try:
        found = find_recipe(recipe)
        with locked(folder.path):
            found.load().start(folder.open_config(found.about.settings), folder, resume=True, pause=pause)
    except Paused:
        pass
    except KeyboardInterrupt:
        return {"stopped": True}
    except Exception as error:  # whatever it is, the search goes on without this trial
        reason = " ".join(str(error).split())[:300]
        return {"reason": reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"}
    curve = read_curve(folder, monitor)
    if not curve:
        tags = tags_of(folder.path / "validation") | tags_of(folder.path / "train")
        return {"known": sorted(tag for tag in tags if tag.startswith("epoch/"))}
    step = (min if lower else max)(curve, key=lambda step: curve[step])
    # The HParams tab shows the last value of a tag: this one is the best.
    write_final(folder.path, {f"best_{monitor.rsplit('/', 1)[-1]}": curve[step]}, max(curve))
    return {"value": curve[step], "step": step}


def tag_of(monitor: str, about: About) -> str:
    """Returns the tag of a figure of validation; of none that of the recipe's first chart."""
    if not monitor:
        return next(iter(about.charts.values()))[0]
    return monitor if "/" in monitor else f"epoch/{monitor}"


def read_curve(folder: RunFolder, tag: str) -> dict[int, float]:
    """Returns the values of a figure by their steps: on validation, or where there are none, in training."""
    places = [(part, name) for part in ("validation", "train") for name in (f"{folder.recipe}/{tag}", tag)]
    return next(filter(None, (read_scalars(folder.path / part, name) for part, name in places)), {})


if __name__ == "__main__":
    main()

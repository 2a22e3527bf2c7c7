"""Recommendations: from simulated clicks to a served ranking. docs/recommendations.md explains it.

`python examples/recommendations/run.py` prints each command as it runs it, and needs about a minute of CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import run, say, serving

HERE = Path(os.path.relpath(Path(__file__).parent))


def recommend(folder: Path, epochs: int | None, picture: Path) -> None:
    """Runs the example once."""
    steps, models, logs = HERE / "steps.py", folder / "savedmodels", ["--logs", folder / "logs"]
    length = ["--epochs", epochs] if epochs else []

    say("Simulated users click on real texts. Some users and some items are held out, to be new.")
    run("python", steps, "prepare", folder)

    say("Two towers and a re-ranker learn from the clicks.")
    run("karpa-tf", "train", "recommender", "--data", folder / "data", *length, *logs)

    say("The export gets the new items by their texts, without training.")
    items = ["--items", folder / "new_items.csv"]
    run("karpa-tf", "export", "recommender/1", *items, "--to", models, *logs)

    say("It is served, and asked for users of whom training has seen nothing.")
    with serving(models, "--access_log", "") as server:
        url = f"{server}/v1/models/recommender"
        run("python", steps, "new-users", url, folder)
        say("One of them: what is recommended to him, new items among it, and why.")
        run("python", steps, "show", url, folder)
    run("python", steps, "draw", folder, picture)


def main() -> None:
    """Runs the example in a folder."""
    parser = argparse.ArgumentParser(description="From simulated clicks to a served ranking.")
    parser.add_argument(
        "--folder", type=Path, default=Path("recommendations"), help="A new folder for all that it writes."
    )
    parser.add_argument("--epochs", type=int, help="Epochs of the towers; else those of the recipe.")
    parser.add_argument("--picture", type=Path, help="A .png; else why.png in the folder.")
    given = parser.parse_args()
    if given.folder.exists():
        sys.exit(f"{given.folder} is there already: take it away, or name another one with --folder.")
    begin = time.monotonic()
    recommend(given.folder, given.epochs, given.picture or given.folder / "why.png")
    print(f"\nThe example took {time.monotonic() - begin:.0f} seconds.")


if __name__ == "__main__":
    main()

"""A run, as a recipe gets it to train: its folder, its settings, and all that every training does alike."""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.recipe import UPDATES, About
from karpa_tf.reports.tensorboard import TensorBoard, write_end, write_final
from karpa_tf.reports.terminal import Progress
from karpa_tf.settings import RunSettings
from karpa_tf.training import runtime
from karpa_tf.training.ancestry import note_start
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.checkpoint import Checkpoints
from karpa_tf.training.loop import History, Paused, Stage, train
from karpa_tf.training.run_folder import RunFolder, open_run, resolve_init, write_json

if TYPE_CHECKING:
    from karpa_tf.data.sources import DataRecord
    from karpa_tf.recipe import Evaluation

S = TypeVar("S", bound=RunSettings)

# Where a run notes what its data was.
RECORD = "data.json"


class Run(InALine, Generic[S]):
    """A training of a recipe: it begins, fits one stage or several, and finishes.

    Args:
        folder: where everything is written.
        settings: of the recipe; `precision: auto` becomes definite.
        resume: go on from the newest checkpoint.
        pause: stop after so much of the length that the settings say, with a checkpoint and before the final
            figures; 0: train to the end.
        threads: that TensorFlow uses; None: as many as there are cores.
        about: the recipe, as TensorBoard shows it.

    Attributes:
        strategy: of tf.distribute, under whose scope models are to be made.
        chief: whether this process writes files and speaks; of several workers one.
        steps: of all stages so far.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: S,
        *,
        resume: bool = False,
        pause: int = 0,
        threads: int | None = None,
        about: About | None = None,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.resume = resume
        self.pause = pause
        self.about = about
        self.strategy = runtime.prepare(settings, threads)
        self.chief = runtime.is_chief(self.strategy)
        self.steps = 0
        self.history = History()
        self._best: BestWeights | None = None
        self._stages: list[str] = []
        self._tensorboard: TensorBoard | None = None
        self._checkpoints = Checkpoints(
            folder.checkpoints, keep=settings.keep_checkpoints, seconds=settings.checkpoint_seconds
        )
        self._state = self._checkpoints.newest_state() if resume else None
        # Beside the checkpoints, which are the same bits for the same steps.
        before = folder.environment.get("cpu_seconds", 0.0) if self._state else 0.0
        self._cpu_before = float(before) - time.process_time()

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the run so far, over all its threads and all times that it was resumed."""
        return self._cpu_before + time.process_time()

    def say(self, *lines: str) -> None:
        """Prints lines on standard error, those that are not empty; at one worker of several."""
        for line in filter(None, lines if self.chief else ()):
            print(line, file=sys.stderr, flush=True)

    def begin(self, record: DataRecord | None = None) -> None:
        """Writes the settings, and refuses to go on with other data than the run began with.

        Args:
            record: of the data, if there is any.

        Raises:
            UserError: the data is not what it was, or `init` names no run.
        """
        if self.resume and record and ((self.folder.assets / RECORD).exists() or self.folder.begun):
            check_data(self.folder, getattr(self.settings, "data", ""), record)
        resolve_init(self.settings, self.folder.path.parent.parent)
        if not self.chief:
            return
        if record:
            write_json(self.folder.assets / RECORD, dataclasses.asdict(record))
        facts = {"strategy": strategy} if (strategy := getattr(self.settings, "strategy", "")) else {}
        self.folder.write_environment(self.settings.seed, **facts)
        self.folder.write_config(self.settings)

    def write_asset(self, name: str, value: Any) -> None:
        """Writes JSON that evaluate and export need; at one worker of several.

        Args:
            name: of the file in `assets/`.
            value: what it holds.
        """
        if self.chief:
            write_json(self.folder.assets / name, value)

    def best_weights(self, monitor: str = "val_loss", **options: Any) -> BestWeights:
        """Returns the callback that keeps the weights of the best epoch in the run folder.

        Args:
            monitor: the figure that decides.
            options: further arguments of `BestWeights`.
        """
        return BestWeights(self.folder.best_weights, monitor, writes=self.chief, **options)

    @property
    def goes_on(self) -> bool:
        """Whether there is a checkpoint, whose weights a resumed run goes on with."""
        return self._state is not None

    def begin_with(self, model: Any, weights: Sequence[Any] | None = None) -> None:
        """Puts the best weights of the run that the setting `init` names into a model; none: nothing.

        Args:
            model: that is trained.
            weights: what was made of them, in the order of `model.weights`; None: they as they are.

        Raises:
            UserError: they do not fit.
        """
        if not (init := getattr(self.settings, "init", "")):
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Keras' own words on what does not fit
                if weights is None:
                    model.load_weights(open_run(init).best_weights)
                else:
                    model.set_weights(weights)
        except (OSError, ValueError, KeyError) as error:
            # Of shapes Keras says much that ends in the middle.
            said = " ".join(str(error).split())
            reason = "" if "could not be loaded" in said or "shape" in said else f" ({said[:150]})"
            raise UserError(
                f"--init: the weights of {init} do not fit{reason}; it must be a run of the same model and "
                "sizes, with as many outputs."
            ) from None

    def keep(self, model: Any) -> None:
        """Keeps the weights of a model that needs no training, as those of the best epoch are kept."""
        best = self.best_weights()
        best.set_model(model)
        best.on_train_end()
        if self.chief:
            self.folder.checkpoints.mkdir(exist_ok=True)  # the sign of a run that has begun

    def is_over(self, stage: str) -> bool:
        """Whether a resumed run had left that stage behind: its model need not be made again."""
        state = self._state
        behind = state and state.get("stage", "training") != stage and stage in state.get("finished", [stage])
        if behind and stage not in self._stages:
            self._stages.append(stage)  # the next checkpoints must know it too
        return stage in self._stages

    def fit(
        self,
        stage: Stage,
        *,
        best: BestWeights | None = None,
        callbacks: Sequence[Any] = (),
        shown: tuple[str, ...] = (),
        unit: str = "examples",
        units_per_step: int = 1,
        period: str = "epoch",
        lines_every: int = 1,
        **tensorboard: Any,
    ) -> History:
        """Trains a stage, with checkpoints, progress and TensorBoard; one that is over is passed by.

        Args:
            stage: what is trained, on what, and for how long.
            best: keeps the best weights; see `best_weights`.
            callbacks: further ones.
            shown: figures beside the loss that the terminal shows.
            unit: what the speed counts.
            units_per_step: how many of these a step has.
            period: the first word of a line in the terminal.
            lines_every: epochs between two lines.
            tensorboard: what else `TensorBoard` takes.

        Returns:
            The figures of each epoch.
        """
        if self.is_over(stage.name):
            return History()
        state, settings = self._state or {}, self.settings
        goes_on = bool(state) and state.get("stage", stage.name) == stage.name
        begin = state.get("begin", 0) if goes_on else self.steps
        about = self.about
        if stage.name == Stage.name:  # others have lengths of their own
            stage = dataclasses.replace(stage, pause=self.pause)
        if self.chief and not state and not self._stages and stage.step.model is not None:
            note_start(self.folder, stage.step.model.weights, getattr(settings, "init", ""))
        self._tensorboard = TensorBoard(
            self.folder.path,
            hparams=settings.shown(),
            recipe=self.folder.recipe,
            charts=about.charts if about else None,
            units_per_step=units_per_step,
            unit=unit,
            profile=settings.profile_steps() if hasattr(settings, "profile_steps") else None,
            histograms=settings.histograms,
            own_steps=about is not None and about.steps != UPDATES,
            stage=stage.name if stage.own_tags and stage.name != Stage.name else "",
            begin=begin,
            writes=self.chief,
            **tensorboard,
        )
        every: list[Any] = [*filter(None, [best]), *callbacks, self._tensorboard]
        if self.chief:
            progress = Progress(
                stage.steps,
                units_per_step=units_per_step,
                unit=unit,
                shown=shown,
                period=period,
                every=lines_every,
                begin=begin,
            )
            every.append(progress)
        history = train(
            stage,
            callbacks=every,
            checkpoints=self._checkpoints,
            resume=self.resume,
            begin=begin,
            finished=self._stages,
            saved=lambda: self.folder.note(cpu_seconds=round(self.cpu_seconds, 1)),
        )
        self.steps = history.steps
        self.history, self._best = history, best
        self._stages.append(stage.name)
        if best:
            self.say(best.early_stop(len(history), stage.epochs))
        return history

    @contextmanager
    def noting_its_end(self) -> Iterator[None]:
        """Notes in the run folder and in TensorBoard that a training has stopped or failed, and why."""
        try:
            yield
        except BaseException as error:
            # A run that is refused before it goes on stays what it was.
            if self.chief and self._tensorboard:
                step = self._tensorboard.clock
                said = f"stopped at step {step:,}"
                # What cannot be written, as on a full disk, must not hide the error.
                with suppress(Exception):
                    if not isinstance(error, KeyboardInterrupt):
                        said = f"failed at step {step:,}: {self.folder.note_failure(error)}"
                    write_end(self.folder.path, said, step, well=False)
            raise

    def finish(self, evaluate: Callable[[], Evaluation], **figures: float) -> dict[str, float]:
        """Evaluates what was kept, and writes the final figures; the other workers wait for that.

        Args:
            evaluate: returns the figures of the best weights.
            figures: further ones.

        Returns:
            The figures; of several workers at the chief alone.

        Raises:
            Paused: the run is to be paused, and its training has stopped early.
        """
        if self.pause:  # it has stopped early
            raise Paused
        metrics: dict[str, float] = {}
        if self.chief:
            evaluation = evaluate()
            counts: dict[str, Any] = {}
            validation: dict[str, float] = {}
            if best := self._best:
                kept = self.history[best.best_epoch - 1]
                validation = {f"validation_{k[4:]}": v for k, v in kept.items() if k[:4] == "val_"}
                counts = {
                    "best_epoch": best.best_epoch,
                    "steps": self.steps,
                    "graph_traces": self.history.graph_traces,
                }
            metrics = {**evaluation.metrics, **validation, **figures}
            self.folder.write_metrics(
                {**metrics, **counts, "baselines": evaluation.baselines, "facts": evaluation.facts}
            )
            self.folder.note(cpu_seconds=round(self.cpu_seconds, 1))
            write_final(self.folder.path, metrics, self.steps)
            write_end(self.folder.path, f"finished after {self.steps:,} steps", self.steps, well=True)
        runtime.wait_for_all(self.strategy)
        return metrics


def check_data(folder: RunFolder, source: str, now: DataRecord) -> None:
    """Raises a UserError that says what differs, if the data is not what the run was trained on."""
    try:
        then = folder.read_json(f"assets/{RECORD}")
        fingerprint, sizes, labels = then["fingerprint"], then.get("sizes", {}), then.get("labels", [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder.assets / RECORD} cannot be read ({error}); train again.") from None
    if fingerprint == now.fingerprint:
        return
    differs = []
    gone, new = (sorted(set(a) - set(b)) for a, b in ((labels, now.labels), (now.labels, labels)))
    if sizes and gone:
        differs.append(f"no {', '.join(gone[:5])} any more")
    if sizes and new:
        differs.append(f"new: {', '.join(new[:5])}")
    for split, size in sizes.items():
        if size != now.sizes.get(split):
            differs.append(f"{now.sizes.get(split, 0):,} instead of {size:,} in {split}")
    if not differs:
        differs = ["as many of them, but others or in another order" if sizes else "its contents differ"]
    raise UserError(
        f"{source} is not the data that {folder.path} was trained on ({'; '.join(differs)}): bring that data "
        f"back; or train a new run on this data, with --init {folder.path} to begin with these weights."
    )

"""What TensorBoard shows of a run. docs/tensorboard.md is the table of the tags.

Keras 3's own callback writes no op graph and no projector that TensorBoard can read, and restarts its
step at each `fit`; here the step is always that of the run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.lines import InALine

# A label a row, or columns of facts by name.
Labels = Sequence[str] | Mapping[str, Sequence[str]]

# A scalar every so many steps: a step is long enough that this costs nothing, and short runs still
# have a curve.
_EVERY = 10

# Histograms of the weights, unless all are asked for.
_FEW = 6


class TensorBoard(InALine, keras.callbacks.Callback):
    """Writes a run's events.

    Args:
        folder: the run folder; events go to `train/`, `validation/` and, for HParams, `hparams/`.
        hparams: the run's settings.
        recipe: the name of the recipe, if the run is of one.
        charts: its charts in the custom scalars, a title and its tags each; see `About`.
        units_per_step: what a step counts for the speed, e.g. tokens.
        unit: its name.
        texts: Markdown by tag, made anew after each epoch.
        images: makes images uint8 (height, width, 3) by tag, shown when training begins.
        pictures: makes such images anew after each epoch.
        example: features of one batch, to draw the op graph of the model with.
        graph: makes the op graph, where there is no Keras model to be drawn.
        embedding: the name of an Embedding layer to show in the projector, and its labels as
            `write_projector` takes them.
        projector: makes, at the end, another matrix (rows, width) to show there, and its labels.
        profile: first and last step that the profiler records, or None.
        tags: of figures by name, where they are not `batch/NAME` and `epoch/NAME`; what is not among them is
            not written.
        rates: tags of counts among the figures, of which the change in a second is written.
        every: steps between two points of a curve.
        weights: returns arrays by tag to write histograms of; by default the model's trainable weights.
        weights_every: epochs between two histograms.
        histograms: of which weights: `few` matrices, `all`, or `none`.
        own_steps: whether the steps are others than updates: all tags begin with the recipe's name then.
        stage: whose events these are, where a run has several: it begins the tags, too.
        begin: the step of the run at which the stage begins.
        writes: whether this process writes at all: the chief alone.
    """

    # The steps of the run so far; the loop sets it.
    clock = 0

    def __init__(
        self,
        folder: str | Path,
        *,
        hparams: Mapping[str, Any] | None = None,
        recipe: str = "",
        charts: Mapping[str, Sequence[str]] | None = None,
        units_per_step: int = 1,
        unit: str = "examples",
        texts: Mapping[str, Callable[[], str]] | None = None,
        images: Mapping[str, Callable[[], np.ndarray]] | None = None,
        pictures: Mapping[str, Callable[[], np.ndarray]] | None = None,
        example: Any = None,
        graph: Callable[[], Any] | None = None,
        embedding: tuple[str, Labels] | None = None,
        projector: Callable[[], tuple[Any, Labels]] | None = None,
        profile: tuple[int, int] | None = None,
        tags: Mapping[str, str] | None = None,
        rates: Mapping[str, str] | None = None,
        every: int = _EVERY,
        weights: Callable[[], Mapping[str, Any]] | None = None,
        weights_every: int = 1,
        histograms: str = "few",
        own_steps: bool = False,
        stage: str = "",
        begin: int = 0,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.hparams = dict(hparams or {})
        self.recipe = recipe
        self.charts = dict(charts or {})
        self.units_per_step = units_per_step
        self.unit = unit
        self.texts = dict(texts or {})
        self.images = dict(images or {})
        self.pictures = dict(pictures or {})
        self.example = example
        self.graph = graph
        self.embedding = embedding
        self.projector = projector
        self.profile = profile
        self.tags = tags
        self.rates = dict(rates or {})
        self.every = every
        self.weights = weights or self._model_weights
        self.weights_every = weights_every
        self.histograms = histograms
        self.prefix = (f"{recipe}/" if own_steps else "") + (f"{stage}/" if stage else "")
        # Written a second time under the recipe's name: a chart of the custom scalars chooses by tags alone.
        self._charted = {tag for tags in self.charts.values() for tag in tags if not self.prefix}
        self.begin = begin
        self.writes = writes
        self._counts: dict[str, float] = {}
        self._profiling = False
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    # Each writer makes its file when it first writes.
    def _write(self, name: str) -> Any:
        if name not in self._writers:
            self._writers[name] = tf.summary.create_file_writer(str(self.folder / name))
        return self._writers[name].as_default()

    def _tag(self, kind: str, name: str) -> str:
        tag = f"{kind}/{name}" if self.tags is None else self.tags.get(name, "")
        return tag and self.prefix + tag

    def _scalars(self, kind: str, figures: Mapping[str, float]) -> None:
        for name in figures:
            if tag := self._tag(kind, name):
                tf.summary.scalar(tag, figures[name], self.clock)
            if tag in self._charted:
                tf.summary.scalar(f"{self.recipe}/{tag}", figures[name], self.clock)

    def _model_weights(self) -> Mapping[str, Any]:
        variables = self.model.trainable_variables if self.model is not None else []
        return {f"weights/{variable.path}": variable.value for variable in variables}

    def _shown_weights(self) -> Mapping[str, Any]:
        """Returns those of the weights that get a histogram."""
        if self.histograms == "none":
            return {}
        every = self.weights()
        if self.histograms == "all":
            return every
        names = [name for name, value in every.items() if len(value.shape) > 1] or list(every)
        places = np.linspace(0, len(names) - 1, min(_FEW, len(names))).round().astype(int)
        return {names[place]: every[names[place]] for place in places}

    def on_resume(self, step: int | None) -> None:
        """Takes out what lies beyond the step at which the run goes on."""
        if self.writes:
            for name in ("train", "validation"):
                cut_events(self.folder / name, step)
            # Written anew: the run may have got more epochs, and ends another time.
            cut_events(self.folder / "hparams", None)

    def get_state(self) -> dict[str, Any]:
        """Writes out what a checkpoint is about to cover; there is no state of its own."""
        for writer in self._writers.values():
            writer.flush()
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes the `state` of a checkpoint, which is empty."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._time, self._time_step = time.perf_counter(), self.clock
        if not self.writes:
            return
        if self.hparams:
            with self._write("hparams"):
                write_hparams(self.hparams, f"{self.folder.parent.name}/{self.folder.name}")
                if self.charts:
                    write_layout(self.recipe, self.charts)
                # Not "running": that would stay of a process that is killed.
                begun = "resumed" if self.clock > self.begin else "begun"
                tf.summary.text("status", f"{begun} {time.strftime('%Y-%m-%d %H:%M')}", self.clock)
        if self.clock > self.begin:
            return  # a resumed run has these
        graph = self.graph
        if self.example is not None:
            forward = tf.function(lambda x: self.model(x, training=False), autograph=False)

            def graph() -> Any:
                return forward.get_concrete_function(self.example).graph

        if graph:
            with self._write("train"):
                tf.summary.graph(graph())
        for tag, make in self.images.items():
            with self._write("train"):
                tf.summary.image(tag, make()[None], self.clock)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        starts = self.profile[0] if self.profile and not self._profiling else None
        if self.writes and starts is not None and self.clock == starts:
            tf.profiler.experimental.start(str(self.folder / "train"))
            self._profiling = True

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if not self.writes:
            return
        if self._profiling and self.profile and self.clock >= self.profile[1]:
            self._stop_profiler()
        if self.clock % self.every:
            return
        now = time.perf_counter()
        seconds = now - self._time
        speed = (self.clock - self._time_step) * self.units_per_step / seconds
        self._time, self._time_step = now, self.clock
        with self._write("train"):
            self._scalars("batch", logs or {})
            for name, tag in self.rates.items():
                count, before = (logs or {})[name], self._counts.get(name)
                self._counts[name] = count
                if before is not None:
                    tf.summary.scalar(self.prefix + tag, (count - before) / seconds, self.clock)
            if getattr(self.model, "optimizer", None) is not None:
                rate = float(self.model.optimizer.learning_rate)
                tf.summary.scalar(f"{self.prefix}learning_rate", rate, self.clock)
            tf.summary.scalar(
                f"{self.prefix}speed/{self.unit.replace(' ', '_')}_per_second", speed, self.clock
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if not self.writes:
            return
        with self._write("train"):
            if epoch % self.weights_every == 0:
                for tag, value in self._shown_weights().items():
                    write_histogram(self.prefix + tag, value, self.clock)
            for tag, make in self.texts.items():
                tf.summary.text(self.prefix + tag, make(), self.clock)
            for tag, make_image in self.pictures.items():
                tf.summary.image(self.prefix + tag, make_image()[None], self.clock)
            if self.tags is None:
                self._scalars("epoch", {k: v for k, v in (logs or {}).items() if k[:4] != "val_"})
        validation = {k[4:]: v for k, v in (logs or {}).items() if k[:4] == "val_"}
        if validation:
            with self._write("validation"):
                self._scalars("batch", validation)
                if self.tags is None:
                    # Under both names, so that it lies on the chart of the steps as well.
                    self._scalars("epoch", validation)
        # The next speed leaves the validation out.
        self._time, self._time_step = time.perf_counter(), self.clock

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self._profiling:
            self._stop_profiler()
        if self.writes and self.embedding:
            layer, labels = self.embedding
            matrix = self.model.get_layer(layer).embeddings
            write_projector(self.folder / "train", matrix.numpy(), labels)
        if self.writes and self.projector:
            write_projector(self.folder / "train", *self.projector())
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _stop_profiler(self) -> None:
        tf.profiler.experimental.stop()
        self._profiling = False
        self.profile = None


def write_histogram(tag: str, values: Any, step: int, buckets: int = 30) -> None:
    """Writes a histogram into the default writer.

    What `tf.summary.histogram` writes; but that makes a one-hot vector of every value first, which for an
    embedding of 12 million numbers takes gigabytes and seconds.
    """
    from tensorboard.plugins.histogram import metadata

    values = tf.cast(tf.reshape(values, [-1]), tf.float32)
    low, high = float(tf.reduce_min(values)), float(tf.reduce_max(values))
    if low < high:
        counts = tf.histogram_fixed_width(values, [low, high], buckets).numpy()
        edges = np.linspace(low, high, buckets + 1)
    else:  # all alike
        counts, edges = np.array([values.shape[0]]), np.array([low, high])
    data = np.stack([edges[:-1], edges[1:], counts], axis=1)
    summary = metadata.create_summary_metadata(display_name=None, description=None)
    tf.summary.write(tag, data, step, summary)


def write_hparams(hparams: Mapping[str, Any], run: str) -> None:
    """Writes the settings of a run for the HParams tab, into the default writer.

    `run` names it there: by default TensorBoard shows a hash, and takes runs of equal settings for one.
    """
    from tensorboard.plugins.hparams import api as hp

    simple = {k: v for k, v in hparams.items() if isinstance(v, (bool, int, float, str))}
    hp.hparams(simple, trial_id=run)


def write_layout(recipe: str, charts: Mapping[str, Sequence[str]]) -> None:
    """Writes the charts of a recipe for the Custom Scalars tab, into the default writer.

    TensorBoard joins the layouts of all runs: a section a recipe, and each of its charts once.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    category = layout_pb2.Category(title=recipe)
    for title, tags in charts.items():
        content = layout_pb2.MultilineChartContent(tag=[re.escape(f"{recipe}/{tag}") + "$" for tag in tags])
        category.chart.add(title=title, multiline=content)
    layout = layout_pb2.Layout(category=[category])
    tf.summary.write(
        metadata.CONFIG_SUMMARY_TAG,
        tf.constant(layout.SerializeToString()),
        0,
        metadata.create_summary_metadata(),
    )


def write_end(folder: str | Path, ended: str, step: int, *, well: bool) -> None:
    """Writes how a run has ended, beside its settings: a text, and what the HParams tab filters by.

    Args:
        folder: of the run.
        ended: for people.
        step: at which.
        well: whether it was made to its end.
    """
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
    from tensorboard.plugins.hparams import metadata as hparams

    status = api_pb2.STATUS_SUCCESS if well else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    content = plugin_data_pb2.HParamsPluginData(session_end_info=end)
    with tf.summary.create_file_writer(str(Path(folder) / "hparams")).as_default():
        tf.summary.text("status", ended, step)
        tf.summary.write(hparams.SESSION_END_INFO_TAG, 0.0, step, hparams.create_summary_metadata(content))


def write_final(folder: str | Path, metrics: Mapping[str, float], step: int) -> None:
    """Writes the final metrics as `final/*` beside the settings of a run folder.

    In a folder of their own, because the HParams tab takes every scalar in and below the folder of the
    settings for a metric, and the curves' last points would come before these.
    """
    with tf.summary.create_file_writer(str(Path(folder) / "hparams")).as_default():
        for name, value in metrics.items():
            tf.summary.scalar(f"final/{name}", value, step)


def scalars_writer(folder: str | Path) -> Callable[[int, Mapping[str, float]], None]:
    """Returns what writes figures by tag under a step; they are on disk when it returns."""
    writer = tf.summary.create_file_writer(str(folder))

    def write(step: int, figures: Mapping[str, float]) -> None:
        with writer.as_default():
            for tag, value in figures.items():
                tf.summary.scalar(tag, value, step)
        writer.flush()

    return write


def write_projector(folder: str | Path, matrix: Any, labels: Labels) -> None:
    """Writes an embedding (rows, width) in the projector plugin's own form.

    Args:
        folder: where.
        matrix: the rows.
        labels: a label a row; or columns of facts by name, by each of which the plugin can colour the points.
    """
    from tensorboard.plugins import projector

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [[label] for label in labels]
    if isinstance(labels, Mapping):
        # The plugin takes the first line for names where there are columns, else for a label.
        names = list(labels) if len(labels) > 1 else []
        lines = [*filter(None, [names]), *map(list, zip(*labels.values(), strict=True))]
    text = "".join("\t".join(map(_tsv, line)) + "\n" for line in lines)
    (folder / "labels.tsv").write_text(text, encoding="utf-8")
    # TensorBoard reads TensorFlow's checkpoints, not Keras' files.
    checkpoint = tf.train.Checkpoint(embedding=tf.Variable(matrix))
    tf.train.CheckpointManager(checkpoint, str(folder), 1, checkpoint_name="embedding").save()
    config = projector.ProjectorConfig()
    config.embeddings.add(tensor_name="embedding/.ATTRIBUTES/VARIABLE_VALUE", metadata_path="labels.tsv")
    projector.visualize_embeddings(str(folder), config)


def _tsv(label: str) -> str:
    return " ".join(label.split()) or "·"


def cut_events(folder: str | Path, step: int | None) -> None:
    """Takes the events beyond `step` out of a folder's event files; all of them if it is None.

    A record that a killed process left unfinished ends its file.
    """
    from tensorflow.core.util import event_pb2

    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        kept = []
        if step is not None:
            try:
                for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                    event = event_pb2.Event.FromString(record)
                    if event.step <= step:
                        kept.append(record)
            except tf.errors.DataLossError:
                pass
        if not kept:
            path.unlink()
            continue
        # TensorBoard reads whatever has "tfevents" in its name.
        temporary = path.with_name(f".cut-{path.name.removeprefix('events.out.tfevents.')}")
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in kept:
                writer.write(record)
        temporary.replace(path)

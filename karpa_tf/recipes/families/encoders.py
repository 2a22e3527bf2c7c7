"""What the recipes that fine-tune a BERT share: how it is trained, opened and exported."""

from __future__ import annotations

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import keras
import numpy as np

from karpa_tf.data.batches import Batches
from karpa_tf.data.sources import DataRecord, Split
from karpa_tf.export.signature import Signature, stack
from karpa_tf.judging.costs import Costs
from karpa_tf.lines import InALine
from karpa_tf.recipe import EvaluateOptions, Evaluation, Exported, PredictOptions, Recipe
from karpa_tf.recipes.families import averages, certainty, common, ensembles, folds, starts
from karpa_tf.recipes.families.costs import ROWS, compare_signatures, is_pruned
from karpa_tf.recipes.families.int8 import compare_int8, int8_section, to_int8
from karpa_tf.recipes.families.pruned import remove_units
from karpa_tf.recipes.families.settings import BertSettings
from karpa_tf.reports.tables import format_table
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training.distillation import Distillation
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder, open_run
from karpa_tf.training.supervised import Adversary, SupervisedStep
from karpa_tf.wordpiece import WordPiece

# By how much an int8 export may differ from the model in Python. Activations are rounded to 127 steps of
# their largest value; where one lies between two steps, the last bit of float32 decides, and that shows in
# the fourth digit of the probabilities. Labels and tags must stay the same.
_INT8_TOLERANCE = 1e-3
# A text that an export is checked with beside some of the data's.
_ODD = "[MASK] Ça va, naïve O'Brien? 日本 🙂"


@dataclass(frozen=True, kw_only=True, repr=False)
class Examples(InALine):
    """Examples in batches; a recipe's own subclass has how to read what a model gives for them.

    Attributes:
        batches: of pieces, labels and weights.
        order: the rows in the order of the batches, -1 where one fills up; empty in training.
        note: what to say of how they were made.
    """

    batches: Batches
    order: np.ndarray
    note: str = ""

    def labelled(self, outputs: Outputs, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns labels int (n,) as places in `names`, and probabilities float32 (n, classes) for them."""
        raise NotImplementedError

    def right(self, outputs: Any, names: Sequence[str]) -> np.ndarray:
        """Returns bool (rows,): whether all of what a model says of a row is right."""
        raise NotImplementedError


S = TypeVar("S", bound=BertSettings)
# The examples of a split, and the same in batches.
P = TypeVar("P", bound=Sized)
E = TypeVar("E", bound=Examples)


class Data(Protocol[P]):
    """Examples by split, as `data.tables` and `data.tags` give them."""

    @property
    def splits(self) -> dict[Split, P]: ...

    @property
    def brings_test(self) -> bool: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def record(self) -> DataRecord: ...


@dataclass(frozen=True, repr=False)
class Task(InALine, Generic[S]):
    """What a model reads and gives.

    Attributes:
        config: of the run.
        names: labels or tags, in the order of the logits.
        wordpiece: cuts texts into pieces.
        architecture: arguments by which the encoder is built.
    """

    config: S
    names: list[str]
    wordpiece: WordPiece
    architecture: Mapping[str, Any]


class EncoderRecipe(Recipe[S], Generic[S, P, E]):
    """A recipe that fine-tunes a BERT on labelled text."""

    # The file of the labels in a run's assets.
    labels_file: ClassVar[str]
    # What examples and kinds are called in a line of progress.
    counted: ClassVar[tuple[str, str]]
    # The figure that says whether a run has learned, and the baseline that it must be better than.
    figure: ClassVar[str]
    baseline: ClassVar[str] = ""

    # --- What a recipe gives

    @abstractmethod
    def open_data(self, config: S) -> Data[P]:
        """Opens the data of a run, by split."""

    @abstractmethod
    def open_other(self, task: Task[S], source: str) -> tuple[P, Sequence[str]]:
        """Opens the data of `evaluate --data`; returns its examples and what to say of how they were read."""

    @abstractmethod
    def texts(self, part: P) -> list[str]:
        """Returns a text an example, to learn masked words from."""

    def vocabulary_texts(self, part: P) -> list[str]:
        """Returns the texts that a vocabulary is learned from."""
        return self.texts(part)

    @abstractmethod
    def kinds(self, names: Sequence[str], part: P) -> tuple[list[str], list[str]]:
        """Returns the kinds of what is to be found, and those in a part, each as often as it occurs."""

    @abstractmethod
    def batch(self, task: Task[S], part: P, training: bool = False) -> E:
        """Returns examples in batches: to train on, or else to evaluate."""

    @abstractmethod
    def build(self, task: Task[S], encoder: keras.Model) -> keras.Model:
        """Builds the model on its encoder."""

    @abstractmethod
    def metrics(self, task: Task[S], outputs: Outputs, examples: E) -> dict[str, float]:
        """Returns the figures of what a model gives for examples."""

    @abstractmethod
    def vectors(self, task: Task[S], model: keras.Model, part: P) -> tuple[np.ndarray, Labels]:
        """Returns vectors float32 (n, width) of a part's first texts or words, and what they are."""

    @abstractmethod
    def served(self, task: Task[S], model: keras.Model) -> Signature:
        """Returns what a model serves."""

    def served_beside(self, task: Task[S], model: keras.Model) -> dict[str, Signature]:
        """Returns what else a model serves, by the name of the signature."""
        return {}

    @abstractmethod
    def rows(self, part: P) -> list[dict[str, str]]:
        """Returns the rows of a part, as the signature takes them."""

    @abstractmethod
    def model_card(self, folder: RunFolder, task: Task[S], metrics: Mapping[str, Any], note: str) -> str:
        """Returns the model card, with a note on the quantization."""

    def labels(self, part: P) -> list[str]:
        """Returns the label of each example, of a classifier of texts."""
        return []

    def assets(self, task: Task[S]) -> dict[str, str]:
        """Returns the files of an export beside its vocabulary, by name."""
        return {"labels.txt": "".join(f"{' '.join(name.split())}\n" for name in task.names)}

    def check(self, config: S, names: Sequence[str], data: Data[P]) -> None:
        """Raises a UserError for data that the labels `names` are not those of, before training begins."""

    def rows_of_epoch(self, config: S, part: P) -> int:
        """Returns how many rows an epoch has, at least."""
        return len(part)

    def learns(self, config: S) -> bool:
        """Returns whether there is anything to train."""
        return True

    def teach(self, run: Run[S], task: Task[S], data: Data[P]) -> tuple[E, Distillation | None]:
        """Returns what is learned from in batches, and what the teacher says of it, where there is one."""
        return self.batch(task, data.splits["train"], training=True), None

    def make_step(self, task: Task[S], model: keras.Model, **more: Any) -> SupervisedStep:
        """Returns the step that trains a compiled model; `more` are further arguments of `SupervisedStep`."""
        config, adversary = task.config, None
        if config.adversarial:
            adversary = Adversary(model.get_layer("embeddings").tokens.embeddings, config.adversarial)
        metrics = {"accuracy": keras.metrics.sparse_categorical_accuracy}
        return SupervisedStep(model, metrics, accumulate=config.accumulate, adversary=adversary, **more)

    def compute(self, task: Task[S], model: keras.Model, data: Data[P]) -> Callable[[], None]:
        """Sets what of a model is computed and not trained, if there is any.

        Args:
            task: of the model.
            model: with the weights that it starts from.
            data: of the run.

        Returns:
            What is to be called before each evaluation, to compute it anew.
        """
        return lambda: None

    def fit_certainty(self, run: Run[S], splits: Mapping[Split, P]) -> None:
        """Fits on validation rows what is fitted to the best weights: how sure a run may be, for example."""

    def options_of_best(self, config: S) -> dict[str, Any]:
        """Returns how the best weights are chosen and kept: arguments of `BestWeights`."""
        return {"patience": config.patience, "trained_only": starts.adds_to_preset(config)}

    def monitor(self, config: S) -> str:
        """Returns the figure by which the best epoch is chosen."""
        return self.figure

    # --- Ensembles

    def reads(self, folder: RunFolder) -> dict[str, Any]:
        config: Any = folder.open_config(self.about.settings)
        names = ("sequence_length", "text_b", "pattern", "words")
        pieces = starts.read_start(folder).wordpiece
        vocabulary = (pieces.pieces, pieces.lowercase, pieces.options)
        return {"vocabulary": vocabulary, **{name: getattr(config, name, "") for name in names}}

    def member(self, folder: RunFolder) -> keras.Model:
        return self.open_model(folder)[1]

    def validation(self, folder: RunFolder) -> ensembles.Labelled:
        task, _ = self.open_task(folder)
        examples = self.batch(task, self.open_data(task.config).splits["validation"])
        return lambda model: examples.labelled(Outputs(model, examples.batches), task.names)

    # --- Averages

    def network(self, folder: RunFolder) -> keras.Model:
        return self._open(folder)[1]

    def rows_of(self, folder: RunFolder, model: keras.Model) -> averages.Rows:
        task, _ = self.open_task(folder)
        data = self.open_data(task.config)

        def figures(on: str) -> Callable[[], dict[str, float]]:
            if on in ("validation", "test"):
                part = data.splits["validation" if on == "validation" else _held_out(data)]
            else:
                part, _ = self.open_other(task, on)
            examples = self.batch(task, part)
            outputs = Outputs(model, examples.batches)
            return lambda: self.metrics(task, outputs, examples)

        return averages.Rows(data, figures)

    # --- Train

    def train(self, run: Run[S]) -> dict[str, float]:
        """Trains into a run folder and returns the final figures, those of the test split.

        A small BERT of its own may learn masked words first, a stage before the fine-tuning.
        """
        config, folder = run.settings, run.folder
        if getattr(config, "ensemble", ""):
            return ensembles.join(self, run)
        if getattr(config, "average", ""):
            return averages.average(self, run)
        starts.refuse_older(run)
        starts.resolve_preset(config, folder)
        kind = "scratch" if config.preset == "scratch" else config.method
        config.learning_rate = config.learning_rate or config.learning_rates[kind]
        data = self.open_data(config)
        known, held_out, test = (data.splits[split] for split in ("train", "validation", "test"))
        rows = self.rows_of_epoch(config, known)
        shrunk = folds.shrink_batch(config, rows, run.strategy.num_replicas_in_sync)
        names = common.labels_in_order(config, data.record.labels, folder.recipe)
        self.check(config, names, data)
        run.begin(dataclasses.replace(data.record, labels=names))
        start = starts.make_start(config, folder, self.vocabulary_texts(known))
        task = Task(config, names, start.wordpiece, start.architecture)
        kinds, found = self.kinds(task.names, test)
        examples, labels = self.counted
        run.say(
            *data.notes,
            f"{config.data}: {len(known):,} {examples} to learn from, {len(held_out):,} for validation, "
            f"{len(test):,} to test; {len(kinds)} {labels}; run {folder.path}",
            shrunk,
            folds.thin_test(config, len(test), found, kinds, data.brings_test),
        )
        learned, distillation = self.teach(run, task, data)
        run.say(learned.note)
        if run.chief:
            starts.save_start(start, folder)
        run.write_asset(self.labels_file, task.names)

        pretrained = starts.pretrain(run, start, self.texts(known), self.network)
        weights = self._pruned_weights(run, learned.batches)
        with run.strategy.scope():
            encoder = start.build_encoder(dropout=config.dropout, dtype=config.precision)
            model = self.build(task, encoder)
            if weights is not None or not (is_pruned(config) and run.goes_on):
                starts.put_weights(model, start, pretrained, run, weights, task.names, self.network)
            starts.apply_method(model, config)
            steps = config.epochs * learned.batches.steps_per_epoch
            optimizer = starts.make_optimizer(config, model, steps, config.learning_rate)
            model.compile(optimizer, SparseCrossEntropy())
        again = self.compute(task, model, data)
        if self.learns(config):
            run.say(starts.describe_training(config, model, learned.batches))
            self._fine_tune(run, task, model, learned.batches, held_out, again, distillation)
        else:
            run.keep(model)

        def evaluate() -> Evaluation:
            self.fit_certainty(run, data.splits)
            return self.evaluate(folder, self.about.evaluate(), run.steps)

        return run.finish(evaluate)

    def _pruned_weights(self, run: Run[S], batches: Batches) -> list[np.ndarray] | None:
        """Returns the weights that a run which prunes another one begins with; None: it does not."""
        config = run.settings
        if not (config.init and is_pruned(config)) or run.goes_on:
            return None
        model = self.network(open_run(config.init))  # adapters merged
        if config.sparsity:
            return model.get_weights()
        shares = {"heads": config.prune_heads, "neurons": config.prune_neurons}
        return remove_units(run, model, batches, shares)

    def _fine_tune(
        self,
        run: Run[S],
        task: Task[S],
        model: keras.Model,
        batches: Batches,
        held_out: P,
        again: Callable[[], None],
        distillation: Distillation | None,
    ) -> None:
        config, monitor = run.settings, self.monitor(run.settings)
        sparsity = common.make_sparsity(run, model, batches)
        step = self.make_step(task, model, sparsity=sparsity, distillation=distillation)
        options = self.options_of_best(config)
        if sparsity:
            options["after"] = sparsity.first_epoch(batches.steps_per_epoch)
        examples = self.batch(task, held_out)
        outputs = Outputs(model, examples.batches)
        features, _, _ = next(iter(batches.dataset(0, 1)))

        def validate() -> dict[str, float]:
            again()
            return self.metrics(task, outputs, examples)

        run.fit(
            Stage(step, batches, config.epochs, validation=validate),
            best=run.best_weights(f"val_{monitor}", mode="max", **options),
            shown=(*step.names[1:], monitor),
            units_per_step=batches.batch_size,
            example=features,
            projector=lambda: self.vectors(task, model, held_out),
        )

    # --- What a run has

    def open_model(self, folder: RunFolder) -> tuple[Task[S], keras.Model]:
        """Returns what a run reads and gives, and its model as it answers: the best weights, in float32."""
        task, model = self._open(folder)
        return task, certainty.put_on(model, folder)

    def open_asked(self, folder: RunFolder, options: Any) -> tuple[Task[S], keras.Model]:
        """Returns the same, as the options of `predict` or `export` want it."""
        return self.open_model(folder)

    def _open(self, folder: RunFolder) -> tuple[Task[S], keras.Model]:
        task, start = self.open_task(folder)
        if getattr(task.config, "ensemble", ""):
            return task, ensembles.open_ensemble(self, folder)
        return task, starts.open_trained(task.config, folder, start, partial(self.build, task))

    def open_task(self, folder: RunFolder) -> tuple[Task[S], starts.Start]:
        """Returns what a run reads and gives, and what its model starts from."""
        config: Any = folder.open_config(self.about.settings)
        names = common.read_labels(folder, self.labels_file)
        start = starts.read_start(folder)
        return Task(config, names, start.wordpiece, start.architecture), start

    def held_out(self, folder: RunFolder, task: Task[S], options: EvaluateOptions) -> tuple[P, P, str]:
        """Returns what a run is evaluated on, what it has learned from, and for people where that lies.

        It is the test split, or validation where there is none, or other data.
        """
        config = task.config
        data = self.open_data(config)
        check_data(folder, config.data, data.record)
        if options.data:
            part, notes = self.open_other(task, options.data)
            for note in notes:
                print(note, file=sys.stderr)
            return part, data.splits["train"], options.data
        split = _held_out(data)
        return data.splits[split], data.splits["train"], f"{config.data} ({split} split)"

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns what a run predicts with, and `export` writes: in float32."""
        return self.served(*self.open_asked(folder, options))

    def validation_rows(self, folder: RunFolder) -> tuple[dict[str, np.ndarray], list[str]]:
        task, model = self.open_model(folder)
        part = self.open_data(task.config).splits["validation"]
        return stack(self.rows(part), self.served(task, model).inputs), self.labels(part)

    def served_rows(self, folder: RunFolder, count: int) -> dict[str, np.ndarray]:
        """Returns held-out texts, evenly spaced."""
        task, model = self.open_model(folder)
        data = self.open_data(task.config)
        rows = self.rows(data.splits[_held_out(data)])
        return stack(rows[:: -(-len(rows) // count)], self.served(task, model).inputs)

    # --- Export

    def labelled_beside(
        self, task: Task[S], part: P
    ) -> dict[str, tuple[Mapping[str, np.ndarray], Sequence[str]]]:
        """Returns rows with their labels for signatures beside `serving_default`, as arrays by input."""
        return {}

    def export(self, folder: RunFolder, options: Any) -> Exported:
        """Writes the next version of a run's SavedModel."""
        task, model = self.open_asked(folder, options)
        metrics = common.learned_or_refuse(folder, self.figure, self.baseline, options.force)
        data = self.open_data(task.config)
        int8 = getattr(options, "quantize", "none") == "int8"
        costs = self._quantize(folder, task, model, data) if int8 else None
        rows = self.rows(data.splits["validation"])
        exported = common.export(
            folder,
            options,
            signature := self.served(task, model),
            self.served_beside(task, model),
            (stack(rows, signature.inputs), self.labels(data.splits["validation"])),
            self.labelled_beside(task, data.splits["validation"]),
            examples=[*rows[:4], dict.fromkeys(signature.inputs, _ODD)],
            assets={"vocab.txt": "\n".join(task.wordpiece.pieces) + "\n", **self.assets(task)},
            model_card=self.model_card(folder, task, metrics, int8_section(costs)),
            tolerance=_INT8_TOLERANCE if costs else 1e-5,
        )
        if costs:
            exported.lines += [*format_table(costs.table), f"({costs.how})", compare_int8(costs)]
            exported.more["costs"] = dataclasses.asdict(costs)
        return exported

    def _quantize(self, folder: RunFolder, task: Task[S], model: keras.Model, data: Data[P]) -> Costs:
        """Turns the matrices of a model into int8, by Keras' own layers; measures it beside float32."""
        part = data.splits[_held_out(data)]
        examples = self.batch(task, part)

        def score() -> float:
            return self.metrics(task, Outputs(model, examples.batches), examples)[self.figure]

        before = score()
        to_int8(model)
        after = score()
        _, plain = self.open_model(folder)
        signatures = {"float32": self.served(task, plain), "int8": self.served(task, model)}
        figures = {"float32": {self.figure: before}, "int8": {self.figure: after}}
        return compare_signatures(signatures, self.served_rows(folder, ROWS), figures)


def _held_out(data: Data[Any]) -> Split:
    return "test" if len(data.splits["test"]) else "validation"

"""`multi-task`: one BERT under several heads, from tables and CoNLL columns to one served model.

    karpa-tf train multi-task                                                      intents and slots
    karpa-tf train multi-task --data "intents=train.csv slots=train.conll"         your tasks
    karpa-tf train multi-task --data "topic=a.csv polarity=b.csv" --preset FOLDER  a pretrained BERT

What it reaches stands in the header of each YAML file beside this one, and in docs/multi-task.md. How it is
trained and exported: `families/encoders.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import keras
import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.models.bert_multi_task import build_bert_multi_task
from karpa_tf.recipe import Evaluation, ExplainOptions, Explanation, Exported
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.encoders import EncoderRecipe
from karpa_tf.recipes.families.settings import BertExportOptions
from karpa_tf.recipes.families.words import Claim, claims_of_tags, explain_words, words_of_tags
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.multi_task import MultiTaskStep
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.supervised import Adversary

from . import ABOUT, MultiTaskEvaluateOptions, MultiTaskSettings
from . import heads as of_head
from .answer import Answer
from .batches import JointExamples, MultiTask, batch_rows, reads_cases
from .card import model_card
from .data import Tasks, heads_of, open_others, open_tasks
from .joining import JointRows

# Peak of the learning rate of the weights of losses, which are few and have far to go.
_UNCERTAINTY_RATE = 1e-2
# Texts or words shown in the projector.
_PROJECTED = 1000


class MultiTaskRecipe(EncoderRecipe[MultiTaskSettings, JointRows, JointExamples]):
    """One BERT under several heads."""

    about = ABOUT
    labels_file = "labels.json"
    counted = ("texts", "labels")
    figure = "score"

    # --- Data

    def open_data(self, config: MultiTaskSettings) -> Tasks:
        return open_tasks(config)

    def open_other(self, task: MultiTask, source: str) -> tuple[JointRows, Sequence[str]]:
        return open_others(task.config, heads_of(task.names), source)

    def texts(self, part: JointRows) -> list[str]:
        return part.texts

    def kinds(self, names: Sequence[str], part: JointRows) -> tuple[list[str], list[str]]:
        """Returns labels of texts and types of words, with the names of their tasks."""
        every: list[str] = []
        found: list[str] = []
        for name, head in heads_of(names).items():
            truths = [truth for truth in part.truths[name] if truth is not None]
            if head.kind == "texts":
                every += [f"{name}: {label}" for label in head.names]
                found += [f"{name}: {label}" for label in truths]
            else:
                every += [f"{name}/{tag[2:]}" for tag in head.names if tag.startswith("B-")]
                found += [f"{name}/{tag[2:]}" for tag in chain(*truths) if tag.startswith("B-")]
        return every, found

    def batch(self, task: MultiTask, part: JointRows, training: bool = False) -> JointExamples:
        return batch_rows(task, part, training)

    # --- Model

    def build(self, task: MultiTask, encoder: keras.Model) -> keras.Model:
        config = task.config
        return build_bert_multi_task(
            encoder,
            {name: (head.kind, len(head.names)) for name, head in heads_of(task.names).items()},
            cases=reads_cases(task),
            pooling=config.pooling,
            dropout=config.dropout,
            uncertainty=config.weights == "uncertainty",
        )

    # --- Train

    def make_step(self, task: MultiTask, model: keras.Model, **more: Any) -> MultiTaskStep:
        config, learned = task.config, {}
        more.pop("distillation")
        if config.adversarial:
            more["adversary"] = Adversary(model.get_layer("embeddings").tokens.embeddings, config.adversarial)
        if config.weights == "uncertainty":
            learned = model.get_layer("uncertainty").log_variances
            factor = _UNCERTAINTY_RATE / config.learning_rate
            model.optimizer.rates |= {variable.path: factor for variable in learned.values()}
        return MultiTaskStep(model, config.fixed_weights(), learned, accumulate=config.accumulate, **more)

    def metrics(self, task: MultiTask, outputs: Iterable[Any], examples: JointExamples) -> dict[str, float]:
        """Returns the figures of each task, their score, and the share of rows where all is right."""
        heads, given = heads_of(task.names), list(outputs)
        found: dict[str, float] = {}
        scores, losses, right = [], [], {}
        for name, view in examples.heads.items():
            own = examples.of(given, name)
            figures = of_head.head_metrics(heads[name], view, own)
            scores.append(figures[of_head.FIGURES[heads[name].kind][0]])
            losses.append(figures["loss"])
            right[name] = view.right(own, heads[name].names)
            found |= of_head.named(name, figures)
        found = of_head.all_right(right, examples) | found
        return {"score": float(np.mean(scores)), **found, "loss": sum(losses)}

    def vectors(self, task: MultiTask, model: keras.Model, part: JointRows) -> tuple[np.ndarray, Labels]:
        """Returns the vectors of the first texts with a label; of words, where no task labels texts."""
        heads = heads_of(task.names)
        name = next((name for name, head in heads.items() if head.kind == "texts"), next(iter(heads)))
        shown = part.take(part.places(name)[:_PROJECTED])
        examples = self.batch(task, shown)
        layer = "pool" if heads[name].kind == "texts" else f"{name}_drop"
        view: Any = examples.heads[name]
        outputs = list(Outputs(keras.Model(model.input, model.get_layer(layer).output), examples.batches))
        if layer == "pool":
            labels = [str(label) for label in shown.truths[name]]
            return view.rows(outputs), {name: labels, "text": [text[:80] for text in shown.texts]}
        vectors = view.at_words(outputs)[:_PROJECTED].astype(np.float32)
        words = list(chain(*shown.words))[:_PROJECTED]
        return vectors, {name: list(chain(*view.tags))[:_PROJECTED], "word": words}

    # --- Evaluate

    def evaluate(
        self, folder: RunFolder, options: MultiTaskEvaluateOptions, step: int | None = None
    ) -> Evaluation:
        """Evaluates a run's best weights, each task beside what its own recipe is compared with."""
        runtime.use_threads()
        task, model = self.open_model(folder)
        rows, known, where = self.held_out(folder, task, options)
        examples, heads = self.batch(task, rows), heads_of(task.names)
        outputs = list(Outputs(model, examples.batches))
        compared: dict[str, dict[str, float]] = {}
        facts: dict[str, Any] = {"texts": len(rows)}
        printed: list[Sequence[str]] = []
        if options.beside:
            compared["single-task runs"], seen = of_head.beside(options.beside, folder, heads, rows, examples)
            facts |= {f"{name} texts that the single-task run learned from": n for name, n in seen.items()}
        for name, view in examples.heads.items():
            own, part = examples.of(outputs, name), rows.of(name)
            for other, figures in of_head.baselines(heads[name], known.of(name), part).items():
                compared.setdefault(other, {}).update(of_head.named(name, figures))
            if step is not None:
                of_head.write(folder.path / "validation" / name, step, heads[name], view, own, part)
            facts[f"{name} rows"] = len(part)
            printed += of_head.tables(name, heads[name], view, own)
        if examples.joint:
            facts["rows of all tasks"] = len(next(iter(examples.joint.values())))
        return Evaluation(
            data=where,
            metrics=self.metrics(task, outputs, examples),
            baselines=compared,
            facts=facts,
            tables=printed,
            by_row=lambda: of_head.figures_by_row(heads, examples, outputs, rows),
        )

    # --- Predict and explain

    def served(self, task: MultiTask, model: keras.Model) -> Signature:
        return self._answers(task, model)

    def served_beside(self, task: MultiTask, model: keras.Model) -> dict[str, Signature]:
        return {name: self._answers(task, model, name) for name in heads_of(task.names)}

    def _answers(self, task: MultiTask, model: keras.Model, alone: str = "") -> Signature:
        """Returns the signature of all tasks, or that of one alone."""

        def check(number: int, row: Mapping[str, Any]) -> None:
            if not str(row["text"]).strip():
                raise UserError(f"Row {number} has an empty text: there is nothing to say of it.")

        heads = {name: head for name, head in heads_of(task.names).items() if alone in ("", name)}
        length = task.config.sequence_length
        function = Answer(model, task.wordpiece, heads, length, reads_cases(task), prefix=not alone)
        names: dict[str, list[str]] = {}
        shown = []
        for name, head in heads.items():
            before = "" if alone else f"{name}_"
            words = ("tokens", "tags", "scores") if head.kind == "words" else ("label", "probabilities")
            shown.append(("" if alone else f"{name}: ") + " ".join(before + word for word in words))
            if head.kind == "texts":
                names[f"{before}probabilities"] = head.names
        return Signature(
            function, text_input(), variables=model.weights, check=check, names=names, shown=shown
        )

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        """Says what each word of texts adds to the probability of their labels, and of every tag but `O`."""
        task, model = self.open_model(folder)
        heads = heads_of(task.names)
        tagged = next((f"{name}_" for name, head in heads.items() if head.kind == "words"), "")

        def claims(outputs: Mapping[str, Any]) -> list[Claim]:
            found: list[Claim] = []
            for name, head in heads.items():
                if head.kind == "words":
                    found += claims_of_tags(outputs, f"{name}_")
                    continue
                label = outputs[f"{name}_label"]
                found.append(Claim(f"{name}: {label}", partial(_probability, name, head.names.index(label))))
            return found

        words_of = partial(words_of_tags, task=tagged) if tagged else None
        return explain_words(folder, self.served(task, model), inputs, claims, words_of=words_of)

    # --- Export

    def export(self, folder: RunFolder, options: BertExportOptions) -> Exported:
        """Writes the next version; refuses a run of which a task has not been learned."""
        for name, head in heads_of(common.read_labels(folder, self.labels_file)).items():
            figure, guessing = of_head.FIGURES[head.kind]
            if f"{name}_{figure}" in folder.final_metrics():
                common.learned_or_refuse(folder, f"{name}_{figure}", guessing, options.force)
        return super().export(folder, options)

    def labelled_beside(self, task: MultiTask, part: JointRows) -> dict[str, Any]:
        return of_head.labelled(heads_of(task.names), part)

    def rows(self, part: JointRows) -> list[dict[str, str]]:
        return [{"text": text} for text in part.texts]

    def model_card(self, folder: RunFolder, task: MultiTask, metrics: Mapping[str, Any], note: str) -> str:
        return model_card(folder, task, metrics, note)


def _probability(name: str, place: int, outputs: Mapping[str, Any], left_out: int) -> float:
    return float(outputs[f"{name}_probabilities"][place])

"""`mlm-gru`: a masked language model with a bidirectional GRU, from text to a served fill-mask.

    karpa-tf train mlm-gru --config quickstart        about two minutes on two cores
    karpa-tf train mlm-gru --data book.txt            at most six

What it reaches stands in the header of each YAML file beside this one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from karpa_tf.data.ngrams import NgramCounts, baselines
from karpa_tf.data.sources import open_corpus
from karpa_tf.data.text import Masking, TextData, fixed_batches, load_text, record_of, tokenize_corpus
from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.models import build_mlm_gru
from karpa_tf.recipe import EvaluateOptions, Evaluation, ExplainOptions, Explanation, Exported, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.words import explain_words
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Evaluator, evaluate
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.supervised import SupervisedStep
from karpa_tf.wordpiece import MASK, WordPiece

from . import ABOUT, MlmGruExportOptions, MlmGruPredictOptions, MlmGruSettings
from .fill_mask import SENTENCES, FillMask, claims
from .windows import loss_by_window

# --- Data and model -------------------------------------------------------------------------------


def load_data(config: MlmGruSettings, vocabulary: str | Path = "") -> TextData:
    return load_text(
        config.data,
        vocabulary=vocabulary or config.vocabulary,
        vocabulary_size=config.vocabulary_size,
        lowercase=config.lowercase,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        mask_rate=config.mask_rate,
        whole_word_masking=config.whole_word_masking,
        objective=config.objective,
        predict_rate=config.predict_rate,
        seed=config.seed,
    )


def build_model(
    config: MlmGruSettings,
    vocabulary_size: int,
    *,
    precision: str | None = None,
    frequencies: np.ndarray | None = None,
) -> keras.Model:
    return build_mlm_gru(
        vocabulary_size,
        embedding_size=config.embedding_size,
        units=config.units,
        objective=config.objective,
        dropout=config.dropout,
        frequencies=frequencies,
        dtype=precision or config.precision,
    )


def make_optimizer(config: MlmGruSettings, steps: int) -> AdamW:
    optimizer = AdamW(
        WarmupThenDecay(config.learning_rate, steps, config.warmup),
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm or None,
        use_ema=config.ema > 0,
        ema_momentum=config.ema or None,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def top5(labels: Any, logits: Any) -> Any:
    return keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, k=5)


TRAINING_METRICS = {"top1_accuracy": keras.metrics.sparse_categorical_accuracy}
METRICS = {**TRAINING_METRICS, "top5_accuracy": top5}


# --- The recipe -----------------------------------------------------------------------------------


class MlmGru(Recipe[MlmGruSettings]):
    """A masked language model."""

    about = ABOUT

    def train(self, run: Run[MlmGruSettings]) -> dict[str, float]:
        """Trains into a run folder and returns the final figures, those of the test split."""
        config, folder = run.settings, run.folder
        vocabulary = folder.assets / "vocab.txt"
        begun = vocabulary.exists()
        first = config.vocabulary or common.first_vocabulary("" if begun else config.init, config.lowercase)
        data = load_data(config, vocabulary if begun else first)
        run.begin(data.record)
        if run.chief and not begun:  # other workers may be reading it, to resume
            data.wordpiece.save(vocabulary)
        run.say(
            f"{config.data}: {data.splits['train'].size:,} pieces to learn from, "
            f"{len(data.wordpiece):,} in the vocabulary; {config.precision}, {runtime.usable_cores()} cores; "
            f"run {folder.path}"
        )
        with run.strategy.scope():
            frequencies = data.splits["train"].counts(len(data.wordpiece))
            model = build_model(config, len(data.wordpiece), frequencies=frequencies)
            common.same_vocabulary(config.init, data.wordpiece, "give --vocabulary {}/vocab.txt")
            run.begin_with(model)
            steps = config.epochs * data.train.steps_per_epoch
            model.compile(make_optimizer(config, steps), SparseCrossEntropy())
        step = SupervisedStep(model, TRAINING_METRICS, accumulate=config.accumulate)
        validation = Evaluator(model, data.validation, TRAINING_METRICS, run.strategy)
        fill = FillMask(model, data.wordpiece, config.sequence_length, top_k=5)
        features, _, _ = next(iter(data.validation.dataset(0, 1)))
        run.fit(
            Stage(step, data.train, config.epochs, validation=validation),
            best=run.best_weights(patience=config.patience),
            shown=("top1_accuracy",),
            unit="tokens",
            units_per_step=data.train.batch_size * config.sequence_length,
            texts={"fillings": lambda: fill.markdown(SENTENCES)},
            example=features,
            embedding=("embedding", data.wordpiece.pieces),
        )
        return run.finish(lambda: self.evaluate(folder, self.about.evaluate()))

    def evaluate(self, folder: RunFolder, options: EvaluateOptions, step: int | None = None) -> Evaluation:
        """Reads masked pieces of the test split, or of other data; so do two baselines of counts."""
        runtime.use_threads()
        config, wordpiece, model = open_model(folder)
        training = open_corpus(config.data)
        splits = tokenize_corpus(training, wordpiece)
        check_data(folder, config.data, record_of(training, splits))
        tested = splits["test"]
        if options.data:
            tested = tokenize_corpus(open_corpus(options.data).as_test(), wordpiece)["test"]
        if np.isin(tested.pieces, wordpiece.special_ids).all():
            raise UserError(
                f"The vocabulary of {folder.path} has no piece of {options.data}: nothing can be evaluated."
            )
        masking = Masking(wordpiece, config.mask_rate, config.whole_word_masking)
        batches = fixed_batches(tested, config.sequence_length, config.batch_size, masking, test=True)
        metrics = evaluate(model, batches, METRICS)
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
        special = np.zeros(len(wordpiece), bool)
        special[wordpiece.special_ids] = True
        counts = NgramCounts(splits["train"], len(wordpiece), ~special)
        return Evaluation(
            data=options.data or f"{config.data} (test split)",
            metrics=metrics,
            baselines=baselines(counts, batches.dataset()),
            facts={"vocabulary_size": len(wordpiece), "test_pieces": tested.size},
            by_row=lambda: {"loss": loss_by_window(model, batches, wordpiece)},
        )

    def signature(self, folder: RunFolder, options: MlmGruPredictOptions | MlmGruExportOptions) -> Signature:
        """Returns the fill-mask of a run, as `predict` calls it and `export` writes it: in float32."""
        config, wordpiece, model = open_model(folder, "float32")
        fill = FillMask(model, wordpiece, config.sequence_length, options.top_k)

        def check(number: int, row: Mapping[str, Any]) -> None:
            if MASK not in row["text"]:
                raise UserError(f'Text {number} has no {MASK} to fill. Received: "{row["text"][:80]}".')

        shown = ["filled_text", "top_tokens top_scores"]
        return Signature(fill, text_input(), variables=model.variables, check=check, shown=shown)

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        """Says what each word of texts adds to the probability of the best filling of every mask."""
        # A filling of the first twenty with the word may be further down without it: then it counts 0.
        many: Any = self.about.predict()
        many.top_k = 20
        return explain_words(folder, self.signature(folder, many), inputs, claims, keep=MASK)

    def export(self, folder: RunFolder, options: MlmGruExportOptions) -> Exported:
        """Writes the next version of `savedmodels/mlm-gru`."""
        metrics = common.learned_or_refuse(folder, "top1_accuracy", "unigram", options.force)
        return common.export(
            folder,
            options,
            self.signature(folder, options),
            examples=[{"text": sentence} for sentence in [*SENTENCES, f"{MASK} and {MASK}."]],
            assets={"vocab.txt": (folder.assets / "vocab.txt").read_text(encoding="utf-8")},
            model_card=model_card(folder, metrics, options.top_k),
        )


# --- What a run has -------------------------------------------------------------------------------


def open_model(folder: RunFolder, precision: str | None = None) -> tuple[MlmGruSettings, WordPiece, Any]:
    """Returns the settings, the vocabulary and the model of a run, with its best weights."""
    config = folder.open_config(MlmGruSettings)
    wordpiece = WordPiece.load(folder.assets / "vocab.txt", config.lowercase)
    model = build_model(config, len(wordpiece), precision=precision)
    common.load_weights(model, folder)
    model.compile(AdamW(), SparseCrossEntropy())
    return config, wordpiece, model


def model_card(folder: RunFolder, metrics: Mapping[str, Any], top_k: int) -> str:
    config = folder.read_config()
    return f"""# {folder.recipe}

Fills masks in text: Embedding -> Bidirectional GRU -> softmax over {metrics["facts"]["vocabulary_size"]}
pieces, trained on {config["data"]}.

- in: `text` string [n], with `[MASK]` in it
- out: `filled_text` string [n]; `top_tokens` string and `top_scores` float32, both [n, masks, {top_k}];
  `masks` int32 [n], how many of them are a text's own: what lies beyond is padding, which a server adds for
  the texts beside it

On the test split, at the same masked positions (`bigram` sees both true neighbours):

{metrics_table(metrics, ["loss", "perplexity", "top1_accuracy", "top5_accuracy"])}

It reads windows of {config["sequence_length"]} pieces around each mask, and has learned from that text alone:
expect little of other kinds of text.

{settings_list(config)}
"""

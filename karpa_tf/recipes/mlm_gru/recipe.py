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
import tensorflow as tf

from karpa_tf.data.ngrams import NgramCounts, baselines
from karpa_tf.data.sources import open_corpus
from karpa_tf.data.text import Masking, TextData, fixed_batches, load_text, record_of, tokenize_corpus
from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import describe, export_savedmodel
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.models import build_mlm_gru
from karpa_tf.recipe import EvaluateOptions, Evaluation, ExplainOptions, Explanation, Exported, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.words import Claim, explain_words
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Evaluator
from karpa_tf.training.evaluation import evaluate as evaluate_model
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.step import SupervisedStep
from karpa_tf.wordpiece import MASK, WordPiece

from . import ABOUT, MlmGruExportOptions, MlmGruPredictOptions, MlmGruSettings

# Sentences whose fillings TensorBoard shows as training goes.
SENTENCES = [
    "The [MASK] statement is used to define a function.",
    "If the argument is not given, it [MASK] to None.",
    "Return a new [MASK] object with the given name.",
    "It was the best of times, it was the [MASK] of times.",
]


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


# --- Train ----------------------------------------------------------------------------------------


def train(run: Run[MlmGruSettings]) -> dict[str, float]:
    """Trains into a run folder and returns the final figures, those of the test split."""
    config, folder = run.settings, run.folder
    vocabulary = folder.assets / "vocab.txt"
    known = vocabulary.exists()
    first = config.vocabulary or common.first_vocabulary(config.init if not known else "", config.lowercase)
    data = load_data(config, vocabulary if known else first)
    run.begin(data.record)
    if run.chief and not known:  # other workers may be reading it, to resume
        data.wordpiece.save(vocabulary)
    run.say(
        f"{config.data}: {data.splits['train'].size:,} pieces to learn from, "
        f"{len(data.wordpiece):,} in the vocabulary; {config.precision}, {runtime.usable_cores()} cores; "
        f"run {folder.path}"
    )
    with run.strategy.scope():
        frequencies = data.splits["train"].counts(len(data.wordpiece))
        model = build_model(config, len(data.wordpiece), frequencies=frequencies)
        if config.init:
            start_from(model, config.init, data.wordpiece)
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
    return run.finish(lambda: Evaluation(**evaluate(folder)))


def start_from(model: keras.Model, run: str, wordpiece: WordPiece) -> None:
    """Puts the best weights of another run into the model."""
    from karpa_tf.training.run_folder import open_run

    other = open_run(run)
    if WordPiece.load(other.assets / "vocab.txt").pieces != wordpiece.pieces:
        raise UserError(
            f"--init: {run} has another vocabulary; give --vocabulary {other.assets / 'vocab.txt'}."
        )
    load_weights(model, other)


# --- Evaluate -------------------------------------------------------------------------------------


def open_model(folder: RunFolder, precision: str | None = None) -> tuple[MlmGruSettings, WordPiece, Any]:
    """Returns the settings, the vocabulary and the model of a run, with its best weights."""
    config = folder.open_config(MlmGruSettings)
    wordpiece = WordPiece.load(folder.assets / "vocab.txt", config.lowercase)
    model = build_model(config, len(wordpiece), precision=precision)
    load_weights(model, folder)
    model.compile(AdamW(), SparseCrossEntropy())
    return config, wordpiece, model


def load_weights(model: keras.Model, folder: RunFolder) -> None:
    try:
        model.load_weights(folder.best_weights)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{folder.best_weights} cannot be read ({reason}); go on with `"
            f"{folder.resume_command}`, or train again."
        ) from None


def evaluate(folder: RunFolder, data: str | None = None) -> dict[str, Any]:
    """Judges a run's best weights on its test split, or on other data, beside two baselines of counts."""
    runtime.use_threads()
    config, wordpiece, model = open_model(folder)
    training = open_corpus(config.data)
    splits = tokenize_corpus(training, wordpiece)
    check_data(folder, config.data, record_of(training, splits))
    if data:
        tested = tokenize_corpus(open_corpus(data).as_test(), wordpiece)["test"]
    else:
        tested = splits["test"]
    if np.isin(tested.pieces, wordpiece.special_ids).all():
        raise UserError(f"The vocabulary of {folder.path} knows no piece of {data}: nothing can be judged.")
    batches = fixed_batches(
        tested,
        config.sequence_length,
        config.batch_size,
        Masking(wordpiece, config.mask_rate, config.whole_word_masking),
        test=True,
    )
    metrics = evaluate_model(model, batches, METRICS)
    metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
    special = np.zeros(len(wordpiece), bool)
    special[wordpiece.special_ids] = True
    counts = NgramCounts(splits["train"], len(wordpiece), ~special)
    return {
        "data": data or f"{config.data} (test split)",
        "metrics": metrics,
        "baselines": baselines(counts, batches.dataset()),
        "facts": {"vocabulary_size": len(wordpiece), "test_pieces": tested.size},
    }


# --- Fill masks -----------------------------------------------------------------------------------


class FillMask:
    """The served function: text with `[MASK]` in it to the best fillings, in graph ops alone.

    Args:
        model: reads windows of pieces.
        wordpiece: its vocabulary.
        sequence_length: pieces in a window; a longer text is read in a window around each mask.
        top_k: how many fillings to return.
    """

    def __init__(self, model: keras.Model, wordpiece: WordPiece, sequence_length: int, top_k: int) -> None:
        candidates = np.flatnonzero(wordpiece.fills_mask)
        if not 0 < top_k <= len(candidates):
            raise UserError(
                f"--top_k must lie between 1 and {len(candidates)}, the whole words of the vocabulary. "
                f"Received: {top_k}."
            )
        self.model = model
        self.wordpiece = wordpiece
        self.length = sequence_length
        self.top_k = top_k
        self._candidates = candidates.astype(np.int32)
        self._words = np.array(wordpiece.pieces, object)[candidates].tolist()

    def __call__(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Fills the masks.

        Args:
            text: string (n,).

        Returns:
            `filled_text` string (n,): each `[MASK]` replaced by its best filling; `top_tokens` string
            and `top_scores` float32, both (n, masks, top_k): whole words and signs, best first, with
            their probabilities; `masks` int32 (n,), how many a text has: "" and 0 lie beyond.
        """
        between = tf.strings.split(text, MASK)  # (n, masks + 1)
        last = tf.cast(tf.range(tf.size(between.flat_values)), tf.int64)
        last = tf.reduce_any(last[:, None] == between.row_splits[1:] - 1, axis=1)
        one = tf.cast(~last, tf.int64)  # masks behind each part: none behind a text's last
        masks = tf.reduce_sum(one)

        # All pieces of all texts in one row, the masks in their places.
        mask_ids = tf.fill([masks], self.wordpiece.mask_id)
        parts = tf.concat(
            [
                self.wordpiece.tokenize(between.flat_values),
                tf.RaggedTensor.from_row_lengths(mask_ids, one),
            ],
            axis=1,
        )
        pieces = parts.flat_values
        place = tf.boolean_mask(parts.row_splits[1:] - 1, ~last)
        texts = tf.gather(parts.row_splits, between.row_splits)
        row = tf.boolean_mask(between.value_rowids(), ~last)
        begin, end = tf.gather(texts, row), tf.gather(texts, row + 1)

        # A window around each mask.
        width = tf.minimum(tf.cast(self.length, tf.int64), tf.reduce_max(tf.concat([end - begin, [1]], 0)))
        start = tf.maximum(tf.minimum(place - width // 2, end - width), begin)
        index = start[:, None] + tf.range(width)
        inside = index < end[:, None]
        ids = tf.gather(pieces, tf.minimum(index, tf.size(pieces, tf.int64) - 1))
        logits = self.model(
            {
                "token_ids": tf.where(inside, ids, self.wordpiece.pad_id),
                "padding_mask": inside,
                "masked_positions": tf.cast(place - start, tf.int32)[:, None],
            },
            training=False,
        )
        scores = tf.gather(tf.nn.softmax(logits[:, 0]), self._candidates, axis=1)
        scores, best = tf.math.top_k(scores, self.top_k)
        tokens = tf.gather(tf.constant(self._words), best)

        # Back to a row a text.
        counts = between.row_lengths() - 1
        shape = [None, None, self.top_k]
        filling = tf.RaggedTensor.from_row_lengths(tokens[:, 0], one)
        filled = between.flat_values + tf.strings.reduce_join(filling, axis=-1)
        return {
            "filled_text": tf.strings.reduce_join(between.with_flat_values(filled), axis=-1),
            "top_tokens": tf.RaggedTensor.from_row_lengths(tokens, counts).to_tensor("", shape=shape),
            "top_scores": tf.RaggedTensor.from_row_lengths(scores, counts).to_tensor(0.0, shape=shape),
            "masks": tf.cast(counts, tf.int32),
        }

    def markdown(self, sentences: Sequence[str]) -> str:
        """Returns a table of sentences and their best fillings."""
        outputs = self(tf.constant(list(sentences)))
        lines = ["| text | fillings |", "|---|---|"]
        for sentence, tokens, scores in zip(
            sentences, outputs["top_tokens"].numpy(), outputs["top_scores"].numpy(), strict=True
        ):
            fillings = ", ".join(
                f"{token.decode()} {score:.2f}" for token, score in zip(tokens[0], scores[0], strict=True)
            )
            lines.append(f"| {sentence} | {fillings} |")
        return "\n".join(lines)


def signature(folder: RunFolder, top_k: int = 5) -> Signature:
    """Returns the fill-mask of a run, as `predict` calls it and `export` writes it: in float32."""
    config, wordpiece, model = open_model(folder, "float32")
    fill = FillMask(model, wordpiece, config.sequence_length, top_k)

    def check(number: int, row: Mapping[str, Any]) -> None:
        if MASK not in row["text"]:
            raise UserError(f'Text {number} has no {MASK} to fill. Received: "{row["text"][:80]}".')

    return Signature(
        fill,
        text_input(),
        variables=model.variables,
        check=check,
    )


def explain(folder: RunFolder, inputs: Sequence[str]) -> Explanation:
    """Says what each word of texts adds to the probability of the best filling of every mask."""

    def claims(outputs: Mapping[str, Any]) -> list[Claim]:
        def claim(mask: int, token: str) -> Claim:
            def score(other: Mapping[str, Any], _: int) -> float:
                scores = dict(zip(other["top_tokens"][mask], other["top_scores"][mask], strict=True))
                return scores.get(token, 0.0)

            return Claim(f"{MASK} {mask + 1} is {token}", score)

        return [claim(i, tokens[0]) for i, tokens in enumerate(outputs["top_tokens"]) if tokens[0]]

    # A filling that is among the first twenty with the word may be further down without it: then it counts 0.
    return explain_words(folder, signature(folder, top_k=20), inputs, claims, keep=MASK)


# --- Export ---------------------------------------------------------------------------------------


def export(
    folder: RunFolder, to: str | Path = "savedmodels", *, top_k: int = 5, force: bool = False
) -> dict[str, Any]:
    """Writes the next version of `savedmodels/mlm-gru` and returns its place and signatures."""
    metrics = common.finished_metrics(folder)
    baseline = metrics["baselines"]["unigram"]["top1_accuracy"]
    if metrics["top1_accuracy"] <= baseline and not force:
        raise UserError(
            f"{folder.path} has not learned its task: top-1 accuracy {metrics['top1_accuracy']:.3f}, and "
            f"always guessing the most frequent piece gives {baseline:.3f}; train longer, or --force."
        )
    signatures = {"serving_default": signature(folder, top_k)}
    path = export_savedmodel(
        signatures,
        to,
        folder.recipe,
        examples=[{"text": sentence} for sentence in [*SENTENCES, f"{MASK} and {MASK}."]],
        assets={"vocab.txt": (folder.assets / "vocab.txt").read_text(encoding="utf-8")},
        model_card=model_card(folder, metrics, top_k),
        force=force,
    )
    return {"savedmodel": str(path), "signatures": describe(signatures)}


def model_card(folder: RunFolder, metrics: dict[str, Any], top_k: int) -> str:
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

It reads windows of {config["sequence_length"]} pieces around each mask, and knows the text it was trained
on: expect little of other kinds of text.

{settings_list(folder.read_config())}
"""


# --- The recipe -----------------------------------------------------------------------------------


class MlmGru(Recipe[MlmGruSettings]):
    """A masked language model."""

    about = ABOUT

    def train(self, run: Run[MlmGruSettings]) -> dict[str, float]:
        return train(run)

    def evaluate(self, folder: RunFolder, options: EvaluateOptions) -> Evaluation:
        return Evaluation(**evaluate(folder, options.data or None))

    def signature(self, folder: RunFolder, options: MlmGruPredictOptions) -> Signature:
        return signature(folder, options.top_k)

    def export(self, folder: RunFolder, options: MlmGruExportOptions) -> Exported:
        return Exported.of(export(folder, options.to, top_k=options.top_k, force=options.force))

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        return explain(folder, inputs)

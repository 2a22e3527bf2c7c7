"""`bert-tagger`: a BERT that tags words (named entities, slots), from CoNLL columns to a served model.

    karpa-tf train bert-tagger                                       slots, a small BERT from scratch
    karpa-tf train bert-tagger --data train.conll --preset FOLDER    your sentences, a pretrained BERT

What it reaches stands in the header of each YAML file beside this one.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches
from karpa_tf.data.sequences import (
    dense_features,
    encode_words,
    letter_cases,
    pack_words,
    rows_of,
    sequence_batches,
    split_words,
)
from karpa_tf.data.sources import Split
from karpa_tf.data.tags import (
    OUTSIDE,
    Sentence,
    Tagged,
    open_tagged,
    open_test_sentences,
    shared_sentences,
)
from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import describe, export_savedmodel
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.judging.tagging import gazetteer_baseline, tag_metrics, type_table
from karpa_tf.models.bert import build_bert
from karpa_tf.models.bert_tagger import build_bert_tagger
from karpa_tf.recipe import (
    EvaluateOptions,
    Evaluation,
    ExplainOptions,
    Explanation,
    Exported,
    PredictOptions,
    Recipe,
)
from karpa_tf.recipes.families import common, encoders, folds
from karpa_tf.recipes.families.settings import BertExportOptions
from karpa_tf.recipes.families.words import Claim, explain_words
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.reports.tagging import format_type_table, write_tagging
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.wordpiece import WordPiece

from . import ABOUT, BertTaggerSettings

TRAINING_METRICS = {"accuracy": keras.metrics.sparse_categorical_accuracy}
_JUDGED_AT_ONCE = 32
_PROJECTED = 2000


# --- Data and model -------------------------------------------------------------------------------


def open_data(config: BertTaggerSettings) -> Tagged:
    tagged = open_tagged(config.data, **folds.held_out_shares(config), broken=config.broken)
    splits = folds.hold_out_fold(
        config,
        tagged.splits,
        tagged.brings_test,
        keys_and_types,
        lambda rows, index: [rows[i] for i in index],
    )
    return dataclasses.replace(tagged, splits=splits)


def keys_and_types(sentences: Sequence[Sentence]) -> tuple[list[Any], list[str]]:
    """Returns what tells sentences apart, and of each the type that is the rarest in all of them."""
    types = [{tag[2:] for tag in s.tags if tag != OUTSIDE} for s in sentences]
    counts = Counter(chain.from_iterable(types))
    rarest = [min(kinds, key=lambda kind: (counts[kind], kind), default="") for kinds in types]
    return [sentence.words for sentence in sentences], rarest


@dataclass(frozen=True)
class Coded:
    """Sentences in batches, and how to find their words in what a model says of them.

    Attributes:
        batches: labels and weights (batch, time) at the first pieces of the words.
        lengths: words of each sentence.
        row: the row of each word, all sentences' words one after the other.
        place: where in that row its first piece is.
        order: the rows in the order of the batches, -1 where one fills up.
    """

    batches: Batches
    lengths: list[int]
    row: np.ndarray
    place: np.ndarray
    order: np.ndarray


def make_batches(
    config: BertTaggerSettings,
    sentences: Sequence[Sentence],
    names: Sequence[str],
    wordpiece: WordPiece,
    *,
    training: bool,
) -> Coded:
    sequences, places = encode_words(wordpiece, [s.words for s in sentences], config.sequence_length)
    ids = {name: index for index, name in enumerate(names)}
    # A type that training never saw cannot be predicted; it still counts as missed.
    tags = np.array([ids.get(tag, 0) for sentence in sentences for tag in sentence.tags], np.int32)
    labels = np.zeros(len(sequences.token_ids), np.int32)
    weights = np.zeros(len(labels), np.float32)
    labels[places], weights[places] = tags, 1.0
    size = config.batch_size if training else _JUDGED_AT_ONCE
    batches = sequence_batches(
        sequences,
        labels,
        weights,
        wordpiece,
        batch_size=size,
        seed=config.seed if training else None,
        buckets=config.buckets,
        token_dropout=config.token_dropout,
    )
    row = np.searchsorted(sequences.offsets, places, side="right") - 1
    order = np.zeros(0, int) if training else rows_of(sequences, size)
    return Coded(batches, [len(s.words) for s in sentences], row, places - sequences.offsets[row], order)


def at_words(outputs: Outputs, coded: Coded) -> np.ndarray:
    """Returns what a model gives at the first piece of each word, float32 (words, ...)."""
    rows: dict[int, np.ndarray] = {}
    index = iter(coded.order.tolist())
    for batch, _, _ in outputs:
        rows.update(zip([next(index) for _ in batch], batch, strict=True))
    return np.stack([rows[row][place] for row, place in zip(coded.row, coded.place, strict=True)])


def sentences_of(words: Any, lengths: Sequence[int]) -> list[Any]:
    """Cuts what belongs to all words, one after the other, into sentences."""
    ends = np.cumsum(lengths)
    return [words[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def predict_tags(outputs: Outputs, coded: Coded, names: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
    """Returns tags in IOB2, a list a sentence, and the tags' probabilities float32 (words, tags)."""
    log_probabilities = tf.nn.log_softmax(at_words(outputs, coded))
    best = _decoder(tuple(names))(log_probabilities, tf.constant(coded.lengths, tf.int64)).numpy()
    return sentences_of([names[tag] for tag in best], coded.lengths), np.exp(log_probabilities)


@functools.cache
def _decoder(names: tuple[str, ...]) -> Any:
    """Returns `decode_tags` as a function that is traced once, however often a run is judged."""
    specs = [tf.TensorSpec([None, len(names)], tf.float32), tf.TensorSpec([None], tf.int64)]
    decode = functools.partial(decode_tags, names=names)
    return tf.function(decode, input_signature=specs, autograph=False)


def decode_tags(scores: tf.Tensor, lengths: tf.Tensor, names: Sequence[str]) -> tf.Tensor:
    """Finds each text's most probable tags among those that are valid IOB2 (Viterbi 1967), in graph ops.

    An `I-` may only stand behind a `B-` or `I-` of its type. Taking each word's best tag and mending what is
    invalid loses several points of strict F1.

    Args:
        scores: float32 (words, tags), logarithms of probabilities, all texts' words one after the other.
        lengths: int64 (texts,), words of each.
        names: the tags.

    Returns:
        int64 (words,), places in `names`.
    """
    never = -1e9
    allowed = [[not b.startswith("I-") or a[2:] == b[2:] for b in names] for a in names]
    change = tf.constant(np.where(allowed, 0.0, never), tf.float32)
    start = tf.constant([never if name.startswith("I-") else 0.0 for name in names])
    # Behind a text's end everything is O, which may stand behind any tag.
    outside = tf.constant([0.0 if name == OUTSIDE else never for name in names])
    ragged = tf.RaggedTensor.from_row_lengths(scores, lengths)
    dense = ragged.to_tensor(0.0)
    inside = tf.sequence_mask(lengths, tf.shape(dense)[1])
    dense = tf.where(inside[:, :, None], dense, outside)
    # Two words more, for tf.scan wants something to go over where all texts are empty.
    dense = tf.concat([dense, tf.tile(outside[None, None], [tf.size(lengths), 2, 1])], axis=1)
    dense = tf.transpose(dense, [1, 0, 2])

    def forward(best: tf.Tensor, score: tf.Tensor) -> tf.Tensor:
        return tf.reduce_max(best[:, :, None] + change, axis=1) + score

    first = dense[0] + start
    best = tf.concat([first[None], tf.scan(forward, dense[1:], first)], axis=0)
    into = tf.transpose(change)

    def backward(behind: tf.Tensor, best: tf.Tensor) -> tf.Tensor:
        return tf.argmax(best + tf.gather(into, behind), axis=1)

    tags = tf.scan(backward, best[:-1], tf.argmax(best[-1], axis=1), reverse=True)
    return tf.boolean_mask(tf.transpose(tags)[:, : tf.shape(inside)[1]], inside)


def build_on(
    config: BertTaggerSettings, names: Sequence[str], wordpiece: WordPiece
) -> Callable[[keras.Model], keras.Model]:
    """Returns what makes the tagger of an encoder."""
    return lambda encoder: build_bert_tagger(
        encoder, len(names), cases=wordpiece.lowercase, dropout=config.dropout
    )


# --- Train ----------------------------------------------------------------------------------------


def train(run: Run[BertTaggerSettings]) -> dict[str, float]:
    """Trains into a run folder and returns the final figures, those of the test split."""
    config, folder = run.settings, run.folder
    config.learning_rate = config.learning_rate or encoders.default_learning_rate(config)
    tagged = open_data(config)
    run.say(*tagged.notes)
    splits = tagged.splits
    names = tagged.record.labels
    shrunk = folds.shrink_batch(config, len(splits["train"]), run.strategy.num_replicas_in_sync)
    run.begin(tagged.record)
    texts = [" ".join(sentence.words) for sentence in splits["train"]]
    start = encoders.make_start(config, folder, texts)
    entities = [tag[2:] for sentence in splits["test"] for tag in sentence.tags if tag[:2] == "B-"]
    types = [name[2:] for name in names if name[:2] == "B-"]
    run.say(
        f"{config.data}: {len(splits['train']):,} sentences to learn from, {len(splits['validation']):,} for "
        f"validation, {len(splits['test']):,} to test; {len(names) // 2} types; run {folder.path}",
        shrunk,
        folds.thin_test(config, len(splits["test"]), entities, types, tagged.brings_test),
    )
    data = make_batches(config, splits["train"], names, start.wordpiece, training=True).batches
    held_out = make_batches(config, splits["validation"], names, start.wordpiece, training=False)
    if run.chief:
        encoders.save_start(start, folder)
    run.write_asset("tags.json", names)

    weights = encoders.pretrain(run, start, texts)
    with run.strategy.scope():
        encoder = build_bert(**start.architecture, dropout=config.dropout, dtype=config.precision)
        model = build_on(config, names, start.wordpiece)(encoder)
        encoders.put_weights(model, start, weights, config.init)
        encoders.apply_method(model, config)
    run.say(encoders.describe_training(config, model, data, start))

    outputs = Outputs(model, held_out.batches)
    true = [list(sentence.tags) for sentence in splits["validation"]]

    def validation() -> dict[str, float]:
        predicted, probabilities = predict_tags(outputs, held_out, names)
        return tag_metrics(true, predicted) | {"loss": _loss(probabilities, true, names)}

    encoded = keras.Model(model.input, model.get_layer("drop_output").output)

    def projector() -> tuple[np.ndarray, Labels]:
        vectors = at_words(Outputs(encoded, held_out.batches), held_out)[:_PROJECTED].astype(np.float32)
        words = [word for sentence in splits["validation"] for word in sentence.words]
        tags = list(chain.from_iterable(true))
        return vectors, {
            "tag": tags[:_PROJECTED],
            "type": [tag[2:] or OUTSIDE for tag in tags[:_PROJECTED]],
            "word": words[:_PROJECTED],
        }

    encoders.fine_tune(
        run,
        model,
        data,
        validation,
        monitor="f1_strict",
        metrics=TRAINING_METRICS,
        projector=projector,
    )
    return run.finish(lambda: Evaluation(**evaluate(folder, step=run.steps)))


def _loss(probabilities: np.ndarray, true: Sequence[Sequence[str]], names: Sequence[str]) -> float:
    """Mean negative log likelihood a word; of tags that the model has."""
    ids = {name: index for index, name in enumerate(names)}
    flat = [ids.get(tag, -1) for tag in chain.from_iterable(true)]
    known = [(row, tag) for row, tag in enumerate(flat) if tag >= 0]
    rows, tags = np.array(known).T
    return float(-np.log(np.maximum(probabilities[rows, tags], 1e-30)).mean())


# --- Evaluate -------------------------------------------------------------------------------------


def open_model(folder: RunFolder) -> tuple[BertTaggerSettings, list[str], encoders.Start, keras.Model]:
    """Returns the settings, tags, start and model of a run, with its best weights, in float32."""
    config = folder.open_config(BertTaggerSettings)
    names = common.read_labels(folder, "tags.json")
    start = encoders.read_start(folder)
    model = encoders.open_trained(config, folder, start, build_on(config, names, start.wordpiece))
    return config, names, start, model


def evaluate(folder: RunFolder, data: str | None = None, step: int | None = None) -> dict[str, Any]:
    """Judges a run's best weights on its test split, or on other data, beside a gazetteer.

    Args:
        folder: of the run.
        data: tagged sentences; None: the run's own test split, or validation where it has none.
        step: write what TensorBoard shows of the judgement under this step.
    """
    runtime.use_threads()
    config, names, start, model = open_model(folder)
    tagged = open_data(config)
    check_data(folder, config.data, tagged.record)
    if data:
        notes: list[str] = []
        sentences, where = open_test_sentences(data, config.broken, notes), data
        for note in notes:
            print(note, file=sys.stderr)
    else:
        split: Split = "test" if tagged.splits["test"] else "validation"
        sentences, where = tagged.splits[split], f"{config.data} ({split} split)"
    types = {tag[2:] for sentence in sentences for tag in sentence.tags if tag != OUTSIDE}
    unseen = sorted(types - {name[2:] for name in names})
    if data and unseen:
        raise UserError(
            f"{data} has entities of the type {', '.join(unseen)}, which training never saw. It knows: "
            f"{', '.join(sorted({name[2:] for name in names} - {''}))}."
        )
    coded = make_batches(config, sentences, names, start.wordpiece, training=False)
    predicted, probabilities = predict_tags(Outputs(model, coded.batches), coded, names)
    words = [sentence.words for sentence in sentences]
    true = [list(sentence.tags) for sentence in sentences]
    metrics = tag_metrics(true, predicted) | {"loss": _loss(probabilities, true, names)}
    known = tagged.splits["train"]
    if step is not None:
        scores = sentences_of(probabilities, coded.lengths)
        write_tagging(folder.path / "validation", step, words, true, predicted, scores, names)
    baseline = gazetteer_baseline([s.words for s in known], [s.tags for s in known], words, true)
    return {
        "data": where,
        "metrics": metrics,
        "baselines": {"gazetteer": baseline},
        "facts": {
            "sentences": len(sentences),
            "sentences that are in training": shared_sentences(known, sentences),
        },
        "tables": [format_type_table(type_table(true, predicted))],
    }


# --- Predict and export ---------------------------------------------------------------------------


class TagWords:
    """The served function: texts to words and their tags, in graph ops alone.

    Args:
        model: gives logits at every piece.
        wordpiece: its vocabulary.
        names: the tags, in the order of the logits.
        length: most pieces of a row; a longer text is read in several.
    """

    def __init__(self, model: keras.Model, wordpiece: WordPiece, names: Sequence[str], length: int) -> None:
        self.model = model
        self.wordpiece = wordpiece
        self.names = list(names)
        self.length = length

    def __call__(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Tags the words of texts.

        Args:
            text: string (n,).

        Returns:
            `tokens` and `tags` string, `scores` float32 (n, words): the words, their tags in IOB2 and the
            tags' probabilities; `words` int32 (n,), how many a text has: "" and 0 lie beyond.
        """
        words = split_words(text)
        token_ids, first = pack_words(self.wordpiece, words, length=self.length)
        features = dense_features(token_ids, None, self.wordpiece.pad_id)
        place = tf.stack([first.value_rowids(), tf.cast(first.flat_values, tf.int64)], axis=1)
        if self.wordpiece.lowercase:
            shape = tf.shape(features["token_ids"], tf.int64)
            features["case_ids"] = tf.scatter_nd(place, letter_cases(words.flat_values), shape)
        # A batch of empty texts has no row, and the model wants one.
        none = tf.cast(tf.equal(token_ids.nrows(), 0), tf.int32)
        features = {name: tf.pad(value, [[0, none], [0, none]]) for name, value in features.items()}
        logits = self.model(features, training=False)
        scores = tf.nn.log_softmax(tf.gather_nd(logits, place))
        tag = decode_tags(scores, words.row_lengths(), self.names)
        score = tf.exp(tf.gather(scores, tag, batch_dims=1))
        shape = [None, None]
        return {
            "tokens": words.to_tensor("", shape=shape),
            "tags": words.with_values(tf.gather(tf.constant(self.names), tag)).to_tensor("", shape=shape),
            "scores": words.with_values(score).to_tensor(0.0, shape=shape),
            "words": tf.cast(words.row_lengths(), tf.int32),
        }


def signature(folder: RunFolder) -> Signature:
    """Returns the tagger of a run, as `predict` calls it and `export` writes it: in float32."""
    config, names, start, model = open_model(folder)
    return _signature(config, names, start, model)


def _signature(
    config: BertTaggerSettings, names: Sequence[str], start: encoders.Start, model: keras.Model
) -> Signature:
    def check(number: int, row: Mapping[str, Any]) -> None:
        if not str(row["text"]).strip():
            raise UserError(f"Text {number} is empty: there is nothing to tag.")

    function = TagWords(model, start.wordpiece, names, config.sequence_length)
    shown = ["tokens tags scores"]
    return Signature(function, text_input(), variables=model.weights, check=check, shown=shown)


def explain(folder: RunFolder, inputs: Sequence[str]) -> dict[str, Any]:
    """Says what each word of texts adds to the probability of every tag that is not `O`."""

    def words_of(outputs: Mapping[str, Any]) -> list[str]:
        return [token for token in outputs["tokens"] if token]

    def claims(outputs: Mapping[str, Any]) -> list[Claim]:
        def claim(place: int, tag: str) -> Claim:
            def score(other: Mapping[str, Any], left_out: int) -> float:
                here = place - (0 <= left_out < place)
                found = left_out != place and here < len(other["tags"]) and other["tags"][here] == tag
                return other["scores"][here] if found else 0.0

            return Claim(f"{outputs['tokens'][place]}: {tag}", score)

        return [claim(i, tag) for i, tag in enumerate(outputs["tags"]) if tag not in ("", "O")]

    return explain_words(folder, signature(folder), inputs, claims, words_of=words_of)


def export(
    folder: RunFolder, to: str | Path = "savedmodels", *, quantize: str = "none", force: bool = False
) -> dict[str, Any]:
    """Writes the next version of `savedmodels/bert-tagger` and returns its place and signatures."""
    config, names, start, model = open_model(folder)
    metrics = common.learned_or_refuse(folder, "f1_strict", "", force)
    splits = open_data(config).splits
    loss = ""
    if quantize == "int8":
        held_out = splits["test"] or splits["validation"]

        def score(model: keras.Model) -> float:
            coded = make_batches(config, held_out, names, start.wordpiece, training=False)
            predicted, _ = predict_tags(Outputs(model, coded.batches), coded, names)
            return tag_metrics([list(s.tags) for s in held_out], predicted)["f1_strict"]

        before = score(model)
        encoders.quantize(model)
        loss = encoders.quantization_note("f1_strict", before, score(model), len(held_out))
    signatures = {"serving_default": _signature(config, names, start, model)}
    examples = [" ".join(sentence.words) for sentence in splits["validation"][:4]]
    path = export_savedmodel(
        signatures,
        to,
        folder.recipe,
        examples=[{"text": text} for text in [*examples, "Ça va, naïve O'Brien? 日本 🙂"]],
        assets={
            "vocab.txt": "\n".join(start.wordpiece.pieces) + "\n",
            "labels.txt": "".join(f"{name}\n" for name in names),
        },
        model_card=model_card(folder, config, names, metrics, loss),
        tolerance=encoders.export_tolerance(quantize),
        force=force,
    )
    return {"savedmodel": str(path), "signatures": describe(signatures)}


def model_card(
    folder: RunFolder,
    config: BertTaggerSettings,
    names: Sequence[str],
    metrics: dict[str, Any],
    quantization: str,
) -> str:
    types = ", ".join(sorted({name[2:] for name in names} - {""}))
    return f"""# {folder.recipe}

Tags words: {types}. Trained on {config.data}, from {config.preset}, method {config.method}.

- in: `text` string [n]
- out: `tokens`, `tags` string, `scores` float32, all [n, words]: words, tags in IOB2, their probabilities;
  `words` int32 [n], how many of them are a text's own: what lies beyond is padding, which a server adds for
  the texts beside it

On {metrics["facts"]["sentences"]} held-out sentences, by entities (strict: seqeval's strict mode, IOB2):

{metrics_table(metrics, ["f1_strict", "f1", "precision", "recall"])}
{quantization}
{settings_list(folder.read_config())}
"""


# --- The recipe -----------------------------------------------------------------------------------


class BertTagger(Recipe[BertTaggerSettings]):
    """A BERT that tags words."""

    about = ABOUT

    def train(self, run: Run[BertTaggerSettings]) -> dict[str, float]:
        return train(run)

    def evaluate(self, folder: RunFolder, options: EvaluateOptions) -> Evaluation:
        return Evaluation(**evaluate(folder, options.data or None))

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        return signature(folder)

    def export(self, folder: RunFolder, options: BertExportOptions) -> Exported:
        return Exported.of(export(folder, options.to, quantize=options.quantize, force=options.force))

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        return Explanation.of(explain(folder, inputs))

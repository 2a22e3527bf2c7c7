"""`bert-classifier` from few rows or none: fewshot, zeroshot, cloze, and the learning curve."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from karpa_tf.data.batches import BalancedOrder
from karpa_tf.data.tables import Rows, Table, draw_shots
from karpa_tf.errors import UserError
from karpa_tf.judging.classification import equal_frequencies, logistic_regression, softmax
from karpa_tf.models.cloze import Verbalizer
from karpa_tf.models.presets import load_preset
from karpa_tf.recipes.bert_classifier import BertClassifierSettings, few
from karpa_tf.recipes.bert_classifier.cloze import Patterns
from karpa_tf.recipes.bert_classifier.recipe import BertClassifier
from karpa_tf.recipes.families.encoders import Task
from karpa_tf.recipes.families.folds import learning_curve
from karpa_tf.training.contrastive import ContrastiveStep, supervised_contrastive
from karpa_tf.training.run_folder import RunFolder, create_run
from karpa_tf.wordpiece import learn_wordpiece
from tests.conftest import kill_in_the_middle, make_intents, write_csv

TINY = [
    *("--precision", "float32", "--buckets", "2", "--sequence_length", "32", "--dropout", "0.1"),
    *("--validation_share", "0.1", "--test_share", "0.1", "--learning_rate", "0.002"),
]
PATTERN = "{text} It is about [MASK]. | [MASK]: {text}"
WORDS = "music=song,music of;weather=weather,rain;timer=timer"


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with the head of a masked language model, in Hugging Face's form."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("preset")
    wordpiece = learn_wordpiece([text for text, _ in make_intents(300)], 300)
    rng, width, inner = np.random.default_rng(0), 32, 64
    tensors: dict[str, Any] = {}

    def dense(name: str, inputs: int, outputs: int) -> None:
        tensors[f"{name}.weight"] = rng.normal(0, 0.15, (outputs, inputs))
        tensors[f"{name}.bias"] = rng.normal(0, 0.05, outputs)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.ones(width), np.zeros(width)

    for kind, rows in (("word", len(wordpiece)), ("position", 64), ("token_type", 2)):
        scale = 0.3 if kind == "word" else 0.03
        tensors[f"bert.embeddings.{kind}_embeddings.weight"] = rng.normal(0, scale, (rows, width))
    norm("bert.embeddings.LayerNorm")
    at = "bert.encoder.layer.0."
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        dense(f"{at}attention.{name}", width, width)
    dense(f"{at}intermediate.dense", width, inner)
    dense(f"{at}output.dense", inner, width)
    norm(f"{at}attention.output.LayerNorm")
    norm(f"{at}output.LayerNorm")
    dense("cls.predictions.transform.dense", width, width)
    norm("cls.predictions.transform.LayerNorm")
    tensors["cls.predictions.bias"] = rng.normal(0, 0.5, len(wordpiece))
    save_file(
        {name: array.astype("float32") for name, array in tensors.items()}, folder / "model.safetensors"
    )
    sizes = {"vocab_size": len(wordpiece), "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"hidden_size": width, "intermediate_size": inner, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "layer_norm_eps": 1e-6, **sizes}))
    (folder / "vocab.txt").write_text("\n".join(wordpiece.pieces) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


@pytest.fixture(scope="module")
def learned(intents_file: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of method fewshot, and all its checkpoints; tests only read it."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("fewshot") / "logs"
    words = [*TINY, "--method", "fewshot", "--shots", 5, "--epochs", 2, "--deterministic"]
    kept = ["--checkpoint_seconds", 0, "--keep_checkpoints", 1000]
    every = ["--data", intents_file, "--preset", preset, *words, *kept, "--logs", logs]
    assert main(["train", "bert-classifier", *map(str, every)]) == 0
    return logs / "bert-classifier" / "1"


# --- fewshot


def test_it_learns_from_few_rows_and_the_words_of_the_labels(learned) -> None:
    metrics = json.loads((learned / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.8
    assert metrics["baselines"]["frozen encoder"]["accuracy"] > 0.4
    assert metrics["best_epoch"] == 2  # the last: validation rows decide nothing
    record = json.loads((learned / "assets" / "data.json").read_text())
    assert record["sizes"] == {"train": 3 * 5 + 3, "validation": 30, "test": 30}


def test_the_encoder_was_trained_and_the_head_belongs_to_it(learned, preset) -> None:
    task, model = BertClassifier().open_model(RunFolder(learned))
    table = BertClassifier().open_data(task.config)
    vectors = few.Embedded(task, few.vectors_of(model), table.splits["train"])
    np.testing.assert_allclose(np.linalg.norm(vectors(), axis=1), 1, atol=1e-5)
    kernel, bias = logistic_regression(vectors(), vectors.labels, 3)
    np.testing.assert_allclose(model.get_layer("logits").kernel, kernel, atol=0.02)
    np.testing.assert_allclose(model.get_layer("logits").bias, bias, atol=0.02)
    start = load_preset(str(preset)).weights["block_0/query/kernel"]
    assert np.abs(np.asarray(model.get_layer("block_0").query.kernel) - start).max() > 1e-3


def test_it_resumes_to_the_bit(learned, karpa, tmp_path) -> None:
    run = shutil.copytree(learned, tmp_path / "logs" / "bert-classifier" / "1")
    (run / "best.weights.h5").unlink()
    kill_in_the_middle(run)
    result = karpa("train", "bert-classifier", "--resume", run, "--json")
    assert result.status == 0, result.err
    before, after = (json.loads((path / "metrics.json").read_text()) for path in (learned, run))
    assert {**after, "graph_traces": 0} == {**before, "graph_traces": 0}
    one, two = (BertClassifier().open_model(RunFolder(path))[1].get_weights() for path in (learned, run))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_it_is_exported_and_explained_as_every_classifier(learned, karpa, tmp_path) -> None:
    result = karpa("export", learned, "--to", tmp_path, "--json")
    assert result.status == 0, result.err
    assert result.json["signatures"]["serving_default"] == {
        "inputs": {"text": "string [n]"},
        "outputs": {"label": "string [n]", "probabilities": "float32 [n, 3]"},
    }
    texts = ["please play a song by Ada", "is it raining"]
    served, ours = (karpa("predict", x, *texts, "--json").json for x in (result.json["savedmodel"], learned))
    for one, two in zip(served["predictions"], ours["predictions"], strict=True):
        assert one["label"] == two["label"]
        np.testing.assert_allclose(one["probabilities"], two["probabilities"], atol=1e-5)
    assert karpa("explain", learned, texts[0], "--json").json["explanations"][0]["words"]


def test_draws_are_by_the_seed_and_few_are_among_more() -> None:
    rows = Rows([str(i) for i in range(60)], None, ["ab"[i % 2] for i in range(60)])
    few_rows, more, other = (set(draw_shots(rows, k, s).texts) for k, s in ((3, 0), (10, 0), (3, 1)))
    assert len(few_rows) == 6 and few_rows < more and few_rows != other
    assert draw_shots(rows, 3, 0).texts == draw_shots(rows, 3, 0).texts
    with pytest.raises(UserError, match='intents has 30 rows of "a" to learn from'):
        draw_shots(rows, 31, 0, "intents")


def test_balanced_batches_have_two_rows_of_each_of_several_labels() -> None:
    labels = np.repeat(np.arange(10), [1, 5, 5, 5, 5, 5, 5, 5, 5, 40])
    lengths = np.arange(len(labels)) % 7 + 3
    order = BalancedOrder(labels, lengths, 10, [6, 9], seed=0, least=200)
    assert order.steps_per_epoch == 20
    for step in range(20):
        rows, width = order.batch(step)
        assert np.unique(labels[rows], return_counts=True)[1].tolist() == [2] * 5
        assert width == (6 if lengths[rows].max() <= 6 else 9)
    epoch = np.concatenate([order.batch(step)[0] for step in range(20)])
    assert np.bincount(labels[epoch]).tolist() == [20] * 10
    assert np.bincount(epoch, minlength=len(labels))[1:41].tolist() == [4] * 40  # all rows of a label in turn
    other = BalancedOrder(labels, lengths, 10, [6, 9], seed=0, least=200)
    np.testing.assert_array_equal(other.batch(33)[0], order.batch(33)[0])
    assert not np.array_equal(order.batch(33)[0], order.batch(13)[0])


def test_the_loss_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(7, 4)).astype("float32")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.array([0, 1, 0, 2, 1, 0, 0])
    expected = np.zeros(7)
    for i in range(7):
        others = [a for a in range(7) if a != i]
        total = sum(np.exp(vectors[i] @ vectors[a] / 0.1) for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        logs = [-np.log(np.exp(vectors[i] @ vectors[p] / 0.1) / total) for p in positives]
        expected[i] = np.mean(logs) if logs else 0.0  # row 3 is alone
    found = supervised_contrastive(tf.constant(labels), tf.constant(vectors), 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_contrastive_step_does_not_cut_its_batch() -> None:
    inputs = keras.Input([3])
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(UserError, match=r"compares all rows of a batch.* Received: 2 parts"):
        ContrastiveStep(model, model, accumulate=2)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_is_scikit_learns(classes) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(60, 5)).astype("float32"), np.arange(60) % classes
    kernel, bias = logistic_regression(vectors, labels, classes)
    theirs = LogisticRegression(C=100.0, max_iter=1000).fit(vectors, labels).predict_proba(vectors)
    np.testing.assert_allclose(softmax(vectors @ kernel + bias), theirs, atol=1e-3)


def test_labels_are_made_equally_frequent() -> None:
    logits = np.random.default_rng(0).normal([0, 1, 2, 3], size=(200, 4)).astype("float32")
    np.testing.assert_allclose(softmax(logits + equal_frequencies(logits)).mean(0), 0.25, atol=1e-3)


# --- zeroshot


def table_of(labels: list[str], rows: bool = True) -> Table:
    known = Rows(labels, None, labels)
    nothing = known.take([])
    return Table("data", {"train": known if rows else nothing, "validation": nothing, "test": known}, True)


def test_words_of_labels_are_read() -> None:
    labels = ["HassTurnOn", "card_arrival", "pending-top-up", "PIN_blocked", "7", "?"]
    assert few.label_words("", table_of(labels)) == {
        "7": ["7"],
        "?": ["?"],
        "HassTurnOn": ["Hass Turn On"],
        "PIN_blocked": ["PIN blocked"],
        "card_arrival": ["card arrival"],
        "pending-top-up": ["pending top up"],
    }
    config = BertClassifierSettings(method="fewshot", preset="x")
    assert few.rows_to_learn_from(config, table_of(["7", "card_arrival"])).splits["train"] == Rows(
        ["7", "card_arrival", "card arrival"], None, ["7", "card_arrival", "card_arrival"]
    )
    none = BertClassifierSettings(method="fewshot", preset="x", label_names="none")
    assert few.rows_to_learn_from(none, table_of(["a", "b"])) == table_of(["a", "b"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: one\n", 'has no words for the label "b".'),
        (
            "a: one\nb: two\nbb: three\n",
            'has the label "bb", which the data does not have; did you mean "b"?',
        ),
        ("a: one\nb:\n", 'has no words for "b".'),
        ("a: one\nb: []\n", 'has no words for "b".'),
        ("a one\n", "must hold one `label: words` a line."),
        ("a: [one\n", "cannot be read: "),
    ],
)
def test_words_that_are_wrong_are_one_sentence(tmp_path, text, says) -> None:
    path = tmp_path / "names.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        few.label_words(str(path), table_of(["a", "b"]))
    assert says in str(error.value) and str(error.value).startswith(f"label_names: {path} ")


def test_zero_shots_need_no_rows_and_give_the_cosines(preset, karpa, tmp_path) -> None:
    data, names = tmp_path / "data", tmp_path / "names.yaml"
    write_csv(data / "test.csv", make_intents(30, seed=5))
    words = {"music": ["play a song", "hear music"], "weather": "will it snow", "timer": "set a timer"}
    names.write_text(yaml.safe_dump(words))
    result = karpa(
        "train", "bert-classifier", "--data", data, "--preset", preset, "--method", "zeroshot", *TINY,
        "--label_names", names, "--logs", tmp_path / "logs", "--json",
    )  # fmt: skip
    assert result.status == 0, result.err
    run = tmp_path / "logs" / "bert-classifier" / "1"
    task, model = BertClassifier().open_model(RunFolder(run))
    texts = [
        "please play a song by Ada",
        *[text for several in words.values() for text in np.atleast_1d(several)],
    ]
    vectors = few.Embedded(task, few.vectors_of(model), Rows(texts, None, ["music"] * 5))()
    music = vectors[1] + vectors[2]
    expected = 20 * vectors[0] @ np.stack([music / np.linalg.norm(music), vectors[4], vectors[3]], axis=1)
    signature = BertClassifier().signature(RunFolder(run), None)
    (row,) = signature.predict([{"text": texts[0]}])
    np.testing.assert_allclose(row["probabilities"], softmax(expected[None])[0], atol=1e-4)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["facts"]["rows"] == 30 and result.json["metrics"]["accuracy"] == metrics["accuracy"]
    # Going on with it makes the same.
    assert (
        karpa("train", "bert-classifier", "--resume", run, "--json").json["metrics"] == result.json["metrics"]
    )


def test_zero_shots_are_calibrated_on_texts_without_their_labels(
    preset, intents_file, karpa, tmp_path
) -> None:
    result = karpa(
        "train", "bert-classifier", "--data", intents_file, "--preset", preset, "--method", "zeroshot", *TINY,
        "--logs", tmp_path,
    )  # fmt: skip
    assert result.status == 0, result.err
    recipe, run = BertClassifier(), RunFolder(tmp_path / "bert-classifier" / "1")
    held_out = recipe.open_data(run.open_config(BertClassifierSettings)).splits["validation"]
    rows = recipe.signature(run, None).predict([{"text": text} for text in held_out.texts])
    means = np.mean([row["probabilities"] for row in rows], axis=0)
    np.testing.assert_allclose(means, 1 / 3, atol=0.01)


# --- cloze


@dataclass
class Read:
    """Patterns of a tiny vocabulary."""

    patterns: Patterns
    wordpiece: Any


def patterns_of(
    pattern: str, words: str, names: list[str], architecture: dict[str, Any], length: int = 32
) -> Read:
    wordpiece = learn_wordpiece(["the cat ate fish . it was great good bad"] * 3, 60)
    config = BertClassifierSettings(
        method="cloze", preset="x", pattern=pattern, words=words, sequence_length=length
    )
    return Read(Patterns(Task(config, names, wordpiece, architecture)), wordpiece)


def test_patterns_put_as_many_masks_as_a_word_has_pieces() -> None:
    words = "pos=great,cat fish;neg=bad"
    read = patterns_of("{text} was [MASK]. | [MASK] {text}", words, ["neg", "pos"], {})
    lengths = sorted({len(word) for several in read.patterns.words for word in several})
    assert lengths[0] < lengths[-1] and len(read.patterns.variants) == 2 * len(lengths)
    features = read.patterns(tf.constant(["the cat", ""]))
    pieces = read.wordpiece.pieces

    def shown(row: int) -> str:
        ids = features["token_ids"][row][features["padding_mask"][row]]
        return " ".join(pieces[i] for i in ids.numpy()).replace(" ##", "")

    count = len(read.patterns.variants)
    first, last = "[MASK] " * lengths[0], "[MASK] " * lengths[-1]
    assert shown(0) == f"[CLS] the cat was {first}. [SEP]"
    assert shown(len(lengths) - 1) == f"[CLS] the cat was {last}. [SEP]"
    assert shown(len(lengths)) == f"[CLS] {first}the cat [SEP]"
    assert shown(count) == f"[CLS] was {first}. [SEP]"
    for row in range(2 * count):
        masks = np.flatnonzero(features["token_ids"][row] == read.wordpiece.mask_id)
        assert sorted(set(features["masked_positions"][row].numpy())) == masks.tolist()


def test_a_long_text_is_cut_and_the_pattern_is_not() -> None:
    read = patterns_of("{text} was [MASK].", "pos=great;neg=bad", ["neg", "pos"], {"units": 8})
    features = read.patterns(tf.constant(["cat " * 100]))
    ids = [i for i in features["token_ids"][-1].numpy() if i != read.wordpiece.pad_id]
    assert len(ids) == 32 and read.wordpiece.mask_id in ids
    with pytest.raises(UserError, match="leaves no room for a text"):
        patterns_of("the cat ate fish . it was {text} [MASK]", "pos=great;neg=bad", ["neg", "pos"], {}, 8)


def test_words_are_scored_by_all_their_pieces() -> None:
    words = [[[1], [2, 3]], [[4]], [[5, 6]]]
    logits = np.random.default_rng(0).normal(size=(2 * 2 * 2, 2, 7)).astype("float32")
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.zeros([2, 2, 3])
    for text in range(2):
        for pattern in range(2):
            one, two = logs[text * 4 + pattern * 2 : text * 4 + pattern * 2 + 2]
            first = np.exp([one[0, 1], (two[0, 2] + two[1, 3]) / 2]).mean()
            expected[text, pattern] = [np.log(first), one[0, 4], (two[0, 5] + two[1, 6]) / 2]
    layer = Verbalizer(words, patterns=2, dtype="float32")
    np.testing.assert_allclose(layer(logits), expected.mean(axis=1), rtol=1e-5)
    again = Verbalizer.from_config(layer.get_config())
    np.testing.assert_allclose(again(logits), layer(logits))


@pytest.fixture(scope="module")
def masked(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of mlm-gru that knows what animals eat, with words of several pieces; tests only read it."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("masked") / "logs"
    sizes = ["--units", 32, "--embedding_size", 24, "--sequence_length", 16, "--vocabulary_size", 110]
    rates = ["--learning_rate", 0.02, "--dropout", 0, "--ema", 0, "--predict_rate", 1, "--epochs", 4]
    every = [*sizes, *rates, "--batch_size", 16, "--precision", "float32", "--logs", logs]
    assert main(["train", "mlm-gru", "--data", str(text_file), *map(str, every)]) == 0
    return logs / "mlm-gru" / "1"


@pytest.mark.slow
def test_a_masked_model_of_ours_classifies_without_rows(masked, karpa, tmp_path) -> None:
    diet = {"cat": "fish", "dog": "bones", "cow": "grass", "bird": "seeds", "mouse": "cheese"}
    write_csv(tmp_path / "data" / "test.csv", [(f"the {animal}", food) for animal, food in diet.items()])
    words = ";".join(f"{food}={food}" for food in diet.values())
    pattern = "On day bab1 {text} ate [MASK] in the barn. | On day fel2 {text} ate [MASK] in the house."
    result = karpa(
        "train", "bert-classifier", "--data", tmp_path / "data", "--preset", masked, "--method", "cloze",
        "--pattern", pattern, "--words", words, "--precision", "float32", "--logs", tmp_path / "logs",
        "--json",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert result.json["metrics"]["accuracy"] == 1.0
    run = RunFolder(tmp_path / "logs" / "bert-classifier" / "1")
    pieces = Patterns(BertClassifier().open_model(run)[0]).words
    assert len({len(word) for several in pieces for word in several}) > 1  # words of several pieces
    exported = karpa("export", run.path, "--to", tmp_path / "models", "--json")
    assert exported.status == 0, exported.err
    served, ours = (
        karpa("predict", path, "the cow", "--json").json["predictions"][0]
        for path in (exported.json["savedmodel"], run.path)
    )
    assert served["label"] == ours["label"] == "grass"
    np.testing.assert_allclose(served["probabilities"], ours["probabilities"], atol=1e-5)
    refused = karpa("export", run.path, "--to", tmp_path / "models", "--quantize", "int8")
    assert refused.status == 2 and "quantize int8 does not go with method cloze" in refused.err


@pytest.fixture(scope="module")
def filled(intents_file: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of method cloze on a few rows, and all its checkpoints; tests only read it."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("cloze") / "logs"
    words = [*TINY, "--method", "cloze", "--shots", 5, "--epochs", 1, "--deterministic", "--batch_size", 32]
    words += ["--pattern", PATTERN, "--words", WORDS, "--checkpoint_seconds", 0, "--keep_checkpoints", 1000]
    every = ["--data", intents_file, "--preset", preset, *words, "--logs", logs]
    assert main(["train", "bert-classifier", *map(str, every)]) == 0
    return logs / "bert-classifier" / "1"


def test_a_bert_with_a_head_learns_from_few_rows(filled, karpa, tmp_path) -> None:
    metrics = json.loads((filled / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.6 and "frozen encoder" not in metrics["baselines"]
    run = shutil.copytree(filled, tmp_path / "logs" / "bert-classifier" / "1")
    kill_in_the_middle(run)
    resumed = karpa("train", "bert-classifier", "--resume", run, "--json")
    assert resumed.status == 0, resumed.err
    assert resumed.json["metrics"] == {name: metrics[name] for name in resumed.json["metrics"]}


def test_the_head_of_a_preset_is_read_and_an_empty_text_says_nothing(preset, intents_file) -> None:
    config = BertClassifierSettings(method="cloze", preset=str(preset), pattern=PATTERN, words=WORDS)
    start = load_preset(str(preset))
    recipe, task = (
        BertClassifier(),
        Task(config, ["music", "timer", "weather"], start.wordpiece, start.architecture),
    )
    from karpa_tf.models.bert import build_bert

    model = recipe.build(task, build_bert(**start.architecture))
    start.assign(model)
    head = model.get_layer("masked_head")
    np.testing.assert_array_equal(head.transform.kernel, start.head["transform/kernel"])
    np.testing.assert_array_equal(head.bias, start.head["bias"])
    empty = Patterns(task)(tf.constant([""]))
    before = np.asarray(model(empty))[0]
    assert np.ptp(before) > 0.01
    recipe.compute(task, model, SimpleNamespace(splits={}))  # type: ignore[arg-type]
    np.testing.assert_allclose(np.ptp(np.asarray(model(empty))[0]), 0, atol=1e-5)


# --- The learning curve


class Reaches:
    """A recipe whose runs reach what a table says."""

    about = SimpleNamespace(figure="accuracy")

    def __init__(self, table: dict[tuple[str, int], float]) -> None:
        self.table = table
        self.started: list[tuple[str, int]] = []

    def start(self, settings: Any, folder: RunFolder, *, resume: bool) -> None:
        run = settings.method, settings.shots
        self.started.append(run)
        folder.checkpoints.mkdir(exist_ok=True)
        folder.write_config(settings)
        folder.write_metrics({"accuracy": self.table[run]})


def test_a_learning_curve_says_from_where_on_full_is_better(tmp_path, capsys, karpa) -> None:
    config = BertClassifierSettings(method="fewshot", preset="x", curve="all,1,10")
    reached = {("fewshot", 1): 0.6, ("fewshot", 10): 0.8, ("fewshot", 0): 0.9}
    recipe = Reaches({**reached, ("full", 1): 0.7, ("full", 10): 0.75, ("full", 0): 0.95})
    folder = create_run(tmp_path, "bert-classifier", ["train", "bert-classifier"])
    metrics = learning_curve(recipe, config, folder, resume=False)  # type: ignore[arg-type]
    assert metrics == {
        "fewshot_1": 0.6, "full_1": 0.7, "fewshot_10": 0.8, "full_10": 0.75,
        "fewshot_all": 0.9, "full_all": 0.95,
    }  # fmt: skip
    assert recipe.started == [(m, k) for k in (1, 10, 0) for m in ("fewshot", "full")]
    said = capsys.readouterr().err
    assert "full is better than fewshot from shots all on." in said
    assert "shots 10     0.8000   0.7500" in said
    # What is finished is not trained again.
    assert learning_curve(recipe, config, folder, resume=True) == metrics  # type: ignore[arg-type]
    assert len(recipe.started) == 6
    result = karpa("evaluate", folder.path)
    assert result.status == 2 and "is a learning curve, and holds no model" in result.err
    recipe.table |= {("full", 1): 0.5, ("full", 10): 0.85}
    other = create_run(tmp_path, "bert-classifier", ["train", "bert-classifier"])
    assert learning_curve(recipe, config, other, resume=False)["full_wins_from"] == 10  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_learning_curve_is_trained(intents_file, preset, karpa, tmp_path) -> None:
    result = karpa(
        "train", "bert-classifier", "--data", intents_file, "--preset", preset, "--method", "fewshot", *TINY,
        "--curve", "2,5", "--epochs", 1, "--logs", tmp_path, "--json",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert {"fewshot_2", "full_2", "fewshot_5", "full_5"} <= set(result.json["metrics"])
    assert "full is" in result.err


# --- Wrong input


CLOZE = ["--method", "cloze", "--preset", "PRESET"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "fewshot"], "method fewshot needs a preset"),
        (["--method", "fewshot", "--preset", "PRESET", "--shots", "500"], "shots may be so many at most"),
        (
            ["--method", "zeroshot", "--preset", "PRESET", "--shots", "5"],
            "shots does not go with method zeroshot",
        ),
        (["--method", "zeroshot", "--preset", "PRESET", "--label_names", "none"], "label_names none"),
        (
            ["--method", "zeroshot", "--preset", "PRESET", "--label_names", "gone.yaml"],
            "gone.yaml cannot be read",
        ),
        (["--pattern", "{text} [MASK]"], "pattern and words go with method cloze"),
        (CLOZE, "method cloze needs a pattern and words"),
        ([*CLOZE, "--pattern", "{text} was", "--words", WORDS], "A pattern has one {text} and one [MASK]"),
        ([*CLOZE, "--pattern", "It [MASK].", "--words", WORDS], "Received: 'It [MASK].'."),
        ([*CLOZE, "--pattern", PATTERN, "--words", "music"], "words are 'label=word,word;label=word'"),
        ([*CLOZE, "--pattern", PATTERN, "--words", f"{WORDS};musik=a"], 'words has the label "musik", which'),
        (
            [*CLOZE, "--pattern", PATTERN, "--words", "music=a;timer=b"],
            'has no words for the label "weather"',
        ),
        (
            [*CLOZE, "--pattern", PATTERN, "--words", f"{WORDS},日本"],
            'the vocabulary has no pieces for "日本"',
        ),
        (
            [*CLOZE, "--pattern", PATTERN, "--words", WORDS, "--adversarial", "1"],
            "adversarial does not go with",
        ),
        (["--curve", "1,2"], "curve compares method fewshot, lora or head with full"),
        (["--method", "fewshot", "--preset", "PRESET", "--curve", "5"], "curve takes two numbers of shots"),
        (["--method", "fewshot", "--preset", "PRESET", "--curve", "0,5"], "curve takes two numbers of shots"),
        (["--method", "fewshot", "--preset", "PRESET", "--accumulate", "2"], "compares all rows of a batch"),
    ],
)
def test_wrong_input_is_one_sentence(intents_file, preset, karpa, tmp_path, flags, says) -> None:
    flags = [str(preset) if flag == "PRESET" else flag for flag in flags]
    result = karpa(
        "train", "bert-classifier", "--data", intents_file, *TINY, *flags, "--logs", tmp_path / "logs"
    )
    assert result.status == 2
    assert says in result.err and "Traceback" not in result.err
    assert not (tmp_path / "logs").exists()


def test_a_preset_is_what_its_method_needs(preset, trained, intents_file, karpa, tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    bare = shutil.copytree(preset, tmp_path / "bare")
    found = load_file(bare / "model.safetensors")
    save_file(
        {name: x for name, x in found.items() if not name.startswith("cls")}, bare / "model.safetensors"
    )
    common = ["train", "bert-classifier", "--data", intents_file, "--logs", tmp_path / "logs"]
    cloze = ["--method", "cloze", "--pattern", PATTERN, "--words", WORDS]
    result = karpa(*common, "--preset", bare, *cloze)
    assert result.status == 2 and "brings no head of one (cls.predictions)" in result.err
    result = karpa(*common, "--preset", trained)
    assert result.status == 2 and "a run of mlm-gru goes with method cloze" in result.err

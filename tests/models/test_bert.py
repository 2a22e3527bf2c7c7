"""The encoder against keras-hub's, its hand-made passes against plain formulas, and the models on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.models.bert import Dropout, LayerNorm, build_bert, gelu
from karpa_tf.models.bert_classifier import build_bert_classifier
from karpa_tf.models.bert_masked_lm import build_bert_masked_lm
from karpa_tf.models.bert_tagger import CASES, build_bert_tagger
from karpa_tf.models.presets import load_preset

WORDS, WIDTH, POSITIONS = 30, 8, 16
LENGTHS = (7, 4, 2, 1)


def tiny(**changes: Any) -> keras.Model:
    sizes = {"layers": 2, "heads": 2, "width": WIDTH, "intermediate": 12, "positions": POSITIONS}
    return build_bert(WORDS, **{**sizes, **changes})


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Weights that leave no part of the model without an effect, as fresh ones do."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        centre = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(rng.normal(centre, 0.4, weight.shape))
    return model


def inputs(width: int = max(LENGTHS)) -> dict[str, np.ndarray]:
    """Rows of several lengths, of two segments each."""
    mask = np.arange(width) < np.array(LENGTHS)[:, None]
    ids = np.random.default_rng(1).integers(5, 20, (len(LENGTHS), max(LENGTHS)))
    token_ids = np.zeros(mask.shape, np.int32)
    token_ids[:, : ids.shape[1]] = ids * mask[:, : ids.shape[1]]
    segments = (np.arange(width) >= np.array(LENGTHS)[:, None] // 2) & mask
    return {"token_ids": token_ids, "segment_ids": segments.astype(np.int32), "padding_mask": mask}


@pytest.fixture(scope="module")
def encoder() -> keras.Model:
    """Tests only read it."""
    return randomize(tiny())


# --- The encoder ----------------------------------------------------------------------------------


def test_it_equals_keras_hub(tmp_path) -> None:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(WORDS, 2, 2, WIDTH, 12, max_sequence_length=POSITIONS)
    randomize(backbone).save_to_preset(str(tmp_path))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    keras_hub.models.BertTokenizer(pieces).save_to_preset(str(tmp_path))
    preset = load_preset(str(tmp_path))
    model = build_bert_classifier(build_bert(**preset.architecture), 3, pooling="cls")
    preset.assign(model)
    parts = keras.Model(model.input, [model.get_layer("block_1").output, model.get_layer("pooled").output])
    expected = backbone(inputs())
    outputs, pooled = parts(inputs())
    np.testing.assert_allclose(outputs, expected["sequence_output"], atol=1e-5)
    np.testing.assert_allclose(pooled, expected["pooled_output"], atol=1e-5)
    # The formula does make a difference that this comparison would see.
    exact = build_bert(**{**preset.architecture, "activation": "gelu"})
    preset.assign(exact)
    assert np.abs(exact(inputs()) - expected["sequence_output"]).max() > 1e-5


def test_padding_changes_nothing(encoder) -> None:
    x = inputs()
    expected = encoder(x).numpy()
    wide = inputs(POSITIONS)
    np.testing.assert_allclose(
        encoder(wide).numpy()[:, :7][x["padding_mask"]], expected[x["padding_mask"]], atol=1e-6
    )
    other = {**x, "token_ids": np.where(x["padding_mask"], x["token_ids"], 9).astype(np.int32)}
    np.testing.assert_array_equal(encoder(other).numpy()[x["padding_mask"]], expected[x["padding_mask"]])
    for row, length in enumerate(LENGTHS):
        alone = {name: value[row : row + 1, :length] for name, value in x.items()}
        np.testing.assert_allclose(encoder(alone)[0], expected[row, :length], atol=1e-6)


def test_a_row_without_a_piece_is_finite(encoder) -> None:
    x = inputs()
    x["padding_mask"][1] = False
    assert np.isfinite(encoder(x)).all()


def test_one_graph_of_unknown_width_equals_those_of_known_widths(encoder) -> None:
    specs = {name: tf.TensorSpec([None, None], value.dtype) for name, value in inputs().items()}
    unknown = tf.function(encoder, input_signature=[specs], autograph=False)
    for width in (7, 10, POSITIONS):
        x = {name: tf.constant(value) for name, value in inputs(width).items()}
        known = tf.function(encoder, autograph=False).get_concrete_function(x)
        assert known.structured_outputs.shape == (len(LENGTHS), width, WIDTH)
        np.testing.assert_allclose(unknown(x), known(x), atol=1e-6)
    assert unknown.experimental_get_tracing_count() == 1


@pytest.mark.usefixtures("bfloat16")
def test_mixed_precision_is_close(encoder) -> None:
    mixed = tiny(dtype="mixed_bfloat16")
    mixed.set_weights(encoder.get_weights())
    assert {w.dtype for w in mixed.weights} == {"float32"}
    mask = inputs()["padding_mask"]
    towards = np.random.default_rng(2).normal(size=(*mask.shape, WIDTH)) * mask[..., None]
    results = []
    for model in (encoder, mixed):
        with tf.GradientTape() as tape:
            outputs = model(inputs())
            loss = tf.reduce_sum(tf.cast(outputs, "float32") * towards)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        results.append((outputs, [tf.convert_to_tensor(g) for g in gradients]))
    (expected, gradients), (outputs, low) = results
    assert outputs.dtype == tf.bfloat16
    error = np.abs(tf.cast(outputs, "float32") - expected)[mask]
    assert error.mean() < 0.02 and error.max() < 0.15
    for value, other in zip(low, gradients, strict=True):
        assert value.dtype == tf.float32
        # The true gradient of a key's bias is zero: what is seen of it is rounding.
        assert tf.norm(value - other) < 0.06 * tf.norm(other) + 0.06


def test_settings_that_make_no_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width must be a multiple of heads\. Received: width=8, heads=3"):
        tiny(heads=3)
    with pytest.raises(ValueError, match=r"activation must be gelu or gelu_approximate\. Received: relu"):
        tiny(activation="relu")
    with pytest.raises(ValueError, match=r"dropout must be .* less than 1\. Received: 1\.0"):
        tiny(dropout=1.0)


# --- Passes by hand -------------------------------------------------------------------------------


def value_and_gradients(function: Callable[..., Any], arguments: list[Any], towards: Any) -> list[Any]:
    tensors = [tf.convert_to_tensor(a) for a in arguments]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
        loss = tf.reduce_sum(value * tf.cast(towards, value.dtype))
    return [value, *tape.gradient(loss, tensors)]


def test_layer_norm_and_its_gradient() -> None:
    rng = np.random.default_rng(3)
    arrays = [rng.normal(3.0, 2.0, (4, 5, WIDTH)), rng.normal(1.0, 0.5, WIDTH), rng.normal(size=WIDTH)]
    arrays[0][0, 0] = 1e-3 * rng.normal(size=WIDTH)  # where epsilon counts
    towards = rng.normal(size=(4, 5, WIDTH))
    epsilon = 1e-5
    layer = LayerNorm(epsilon)
    layer.build((None, None, WIDTH))

    def ours(x, gamma, beta):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = layer(x)
            loss = tf.reduce_sum(value * tf.cast(towards, "float32"))
        return [value, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])]

    def plain(x, gamma, beta):
        mean = tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean((x - mean) ** 2, axis=-1, keepdims=True)
        return (x - mean) / tf.sqrt(variance + epsilon) * gamma + beta

    layer.set_weights(arrays[1:])
    results = ours(*(tf.constant(a, tf.float32) for a in arrays))
    for value, expected in zip(results, value_and_gradients(plain, arrays, towards), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value / scale, expected / scale, atol=1e-5)


@pytest.mark.usefixtures("bfloat16")
def test_gelu_is_the_exact_one_and_so_is_its_gradient() -> None:
    x = np.linspace(-7, 7, 211).reshape(1, 211, 1)
    towards = np.random.default_rng(4).normal(size=x.shape)

    def plain(x):
        return x * 0.5 * (1.0 + tf.math.erf(x / np.sqrt(2.0)))

    expected = value_and_gradients(plain, [x], towards)
    for value, other in zip(value_and_gradients(gelu, [x.astype("float32")], towards), expected, strict=True):
        assert value.dtype == tf.float32 and value.shape == x.shape
        np.testing.assert_allclose(value, other, atol=1e-6)
    assert np.abs(keras.activations.gelu(x, approximate=True) - expected[0]).max() > 1e-4
    for value, other in zip(
        value_and_gradients(gelu, [tf.cast(x, "bfloat16")], towards), expected, strict=True
    ):
        assert value.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(value, "float32"), other, atol=0.02, rtol=0.01)


@pytest.fixture
def seeded() -> Iterator[None]:
    keras.utils.set_random_seed(5)
    yield


@pytest.mark.parametrize(
    ("rate", "dropped"), [(0.1, 26 / 256), (0.5, 128 / 256), (0.001, 0.0), (0.9999, 255 / 256)]
)
def test_dropout_drops_its_share_and_scales_the_rest(seeded, rate, dropped) -> None:
    x = tf.ones([400, 500])
    y = Dropout(rate)(x, training=True).numpy()
    assert (y == 0).mean() == pytest.approx(dropped, abs=5 * np.sqrt(0.25 / y.size))
    assert set(np.unique(y)) - {0.0} == {np.float32(1 / (1 - dropped))}
    # No row or column is spared: what a mask of bytes in the wrong order would look like.
    if dropped == 0.5:
        for axis in (0, 1):
            assert (y == 0).mean(axis=axis).std() < 1.2 * 0.5 / np.sqrt(y.shape[axis])


def test_dropout_is_off_in_inference_and_at_rate_zero() -> None:
    x = tf.random.normal([3, 5])
    np.testing.assert_array_equal(Dropout(0.5)(x), x)
    np.testing.assert_array_equal(Dropout(0.5)(x, training=False), x)
    np.testing.assert_array_equal(Dropout(0.0)(x, training=True), x)
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"Received: {rate}"):
            Dropout(rate)


def test_dropout_follows_from_the_state_of_its_seed(seeded) -> None:
    one, other = Dropout(0.5), Dropout(0.5)
    x = tf.ones([8, 16])
    start = np.asarray(one.seed_generator.state)
    first, second = one(x, training=True).numpy(), one(x, training=True).numpy()
    assert (first != second).any(), "another mask at each call"
    one.seed_generator.state.assign(start)
    np.testing.assert_array_equal(one(x, training=True), first)
    np.testing.assert_array_equal(one(x, training=True), second)
    assert (other(x, training=True).numpy() != first).any(), "layers differ"
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(Dropout(0.5)(x, training=True), first)


def test_dropout_of_shapes_that_are_not_known_beforehand(seeded) -> None:
    layer = Dropout(0.3)
    start = np.asarray(layer.seed_generator.state)
    unknown = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, None, 3])], autograph=False
    )
    for shape in [(1, 1, 3), (1, 2, 3), (5, 1, 3), (2, 2, 3), (11, 7, 3), (0, 4, 3)]:
        x = tf.random.normal(shape)
        layer.seed_generator.state.assign(start)
        value = unknown(x)
        layer.seed_generator.state.assign(start)
        np.testing.assert_array_equal(value, layer(x, training=True))
    assert (unknown(tf.ones([11, 7, 3])).numpy() == 0).any()


def test_the_gradient_of_dropout_is_its_mask(seeded) -> None:
    x = tf.random.normal([6, 7])
    layer = Dropout(0.5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    np.testing.assert_array_equal(tape.gradient(y, x), np.where(y == 0, 0.0, 2.0))


def test_every_dropout_of_an_encoder_has_a_seed_of_its_own(seeded) -> None:
    model = tiny(dropout=0.5)
    seeds = [int(v[0]) for v in model.variables if "seed" in v.path]
    assert len(set(seeds)) == len(seeds) == 1 + 2 * 3
    assert (model(inputs(), training=True).numpy() != model(inputs()).numpy()).any()


# --- Models on it ---------------------------------------------------------------------------------

BUILDERS = {
    "encoder": lambda bert: bert,
    "mean": lambda bert: build_bert_classifier(bert, 3),
    "cls": lambda bert: build_bert_classifier(bert, 3, pooling="cls"),
    "tagger": lambda bert: build_bert_tagger(bert, 5),
    "cases": lambda bert: build_bert_tagger(bert, 5, cases=True),
    "masked": build_bert_masked_lm,
}


def features(kind: str) -> dict[str, np.ndarray]:
    x = inputs()
    if kind == "cases":
        x["case_ids"] = (np.arange(28).reshape(4, 7) % CASES).astype(np.int32)
    if kind == "masked":
        del x["segment_ids"]
        x["masked_positions"] = np.array([[0, 3], [1, 2], [1, 0], [0, 0]], np.int32)
    return x


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("mean", (4, 3)),
        ("cls", (4, 3)),
        ("tagger", (4, 7, 5)),
        ("cases", (4, 7, 5)),
        ("masked", (4, 2, WORDS)),
    ],
)
def test_outputs_are_float32_logits(kind, shape, dtype) -> None:
    model = BUILDERS[kind](tiny(layers=1, dtype=dtype))
    assert [n for n, m in zip(model.output.shape, shape, strict=True) if n not in (None, m)] == []
    for training in (False, True):
        outputs = model(features(kind), training=training)
        assert outputs.shape == shape and outputs.dtype == tf.float32 == tf.as_dtype(model.output.dtype)
        assert np.isfinite(outputs).all()


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_config_is_whole_and_weights_come_back(kind, tmp_path) -> None:
    settings = {"layers": 1, "dropout": 0.2, "epsilon": 1e-3, "activation": "gelu_approximate"}
    model = randomize(BUILDERS[kind](tiny(**settings)))
    expected = model(features(kind)).numpy()
    config = json.dumps(model.get_config())
    again = type(model).from_config(json.loads(config))
    assert json.dumps(again.get_config()) == config
    assert [w.shape for w in again.weights] == [w.shape for w in model.weights]
    model.save_weights(tmp_path / "a.weights.h5")
    assert np.abs(again(features(kind)) - expected).max() > 1e-3
    again.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(again(features(kind)), expected)


def test_pooling(encoder) -> None:
    x = inputs()
    outputs = encoder(x).numpy()
    means = np.stack([outputs[row, :length].mean(axis=0) for row, length in enumerate(LENGTHS)])
    for kind, expected in (("mean", means), ("cls", outputs[:, 0])):
        model = build_bert_classifier(encoder, 3, pooling=kind)
        pool = keras.Model(model.input, model.get_layer("pool").output)
        np.testing.assert_allclose(pool(x), expected, atol=1e-6)
    x["padding_mask"][0] = False  # a row that fills up a batch
    assert np.isfinite(build_bert_classifier(encoder, 3)(x)).all()
    with pytest.raises(ValueError, match=r"pooling must be mean or cls\. Received: max"):
        build_bert_classifier(encoder, 3, pooling="max")


def test_cases_start_without_an_effect_and_are_learned(encoder) -> None:
    keras.utils.set_random_seed(6)
    plain = build_bert_tagger(encoder, 5)
    model = build_bert_tagger(encoder, 5, cases=True)
    model.get_layer("logits").set_weights(plain.get_layer("logits").get_weights())
    np.testing.assert_allclose(model(features("cases")), plain(inputs()), atol=1e-6)
    table = model.get_layer("case_embedding").embeddings
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(features("cases"))[:, 0] ** 2)
    assert np.abs(tf.convert_to_tensor(tape.gradient(loss, table.value))).max() > 0


def test_the_masked_lm_has_one_table_for_both_ends(encoder, tmp_path) -> None:
    model = build_bert_masked_lm(encoder)
    tables = [w for w in model.weights if tuple(w.shape) == (WORDS, WIDTH)]
    assert [id(w) for w in tables] == [id(encoder.get_layer("embeddings").tokens.embeddings)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(features("masked"))[..., 3])
    gradient = tf.convert_to_tensor(tape.gradient(loss, tables[0].value)).numpy()
    used = np.unique(inputs()["token_ids"])
    assert np.abs(gradient[used[used > 0]]).max(axis=1).min() > 0, "the way in"
    assert 3 not in used and np.abs(gradient[3]).max() > 0, "the way out"
    # It stays one when the model is made again from a file.
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert len([w for w in again.weights if tuple(w.shape) == (WORDS, WIDTH)]) == 1
    np.testing.assert_array_equal(again(features("masked")), model(features("masked")))


def test_masked_logits_are_those_of_their_positions(encoder) -> None:
    model = build_bert_masked_lm(encoder)
    x = features("masked")
    every = model({**x, "masked_positions": np.tile(np.arange(7, dtype=np.int32), (4, 1))}).numpy()
    expected = np.take_along_axis(every, x["masked_positions"][..., None], axis=1)
    np.testing.assert_allclose(model(x), expected, atol=1e-6)

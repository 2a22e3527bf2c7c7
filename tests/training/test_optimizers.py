"""Tests of the fused AdamW against Keras' own."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.training.optimizers import SGD, AdamW, rows_with_gradient


def _variables():
    rng = np.random.default_rng(0)
    shapes = {"kernel": (7, 5), "bias": (5,), "table": (11, 3)}
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name) for name, shape in shapes.items()
    ]


def _gradients(step):
    rng = np.random.default_rng(step + 1)
    return [tf.constant(rng.normal(size=v.shape).astype("float32")) for v in _variables()]


def _train(optimizer, variables, steps, start=0):
    @tf.function
    def apply(gradients):
        optimizer.apply(gradients, variables)

    for step in range(start, start + steps):
        apply(_gradients(step))


def _schedule():
    return keras.optimizers.schedules.CosineDecay(0.0, decay_steps=6, warmup_steps=3, warmup_target=0.01)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.01},
        {"learning_rate": _schedule(), "weight_decay": 0.1},
        {"learning_rate": 0.01, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-4},
        {"learning_rate": 0.01, "global_clipnorm": 0.5},
        {"learning_rate": 0.01, "global_clipnorm": 100.0},
        {"learning_rate": 0.01, "clipnorm": 0.5},
        {"learning_rate": 0.01, "amsgrad": True},
        {"learning_rate": 0.01, "use_ema": True, "ema_overwrite_frequency": 4},
        {"learning_rate": 0.01, "gradient_accumulation_steps": 3},
        {"learning_rate": 0.01, "loss_scale_factor": 8.0},
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_equals_keras(arguments):
    results = []
    for kind in (AdamW, keras.optimizers.AdamW):
        optimizer, variables = kind(**arguments), _variables()
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(variables)
        _train(optimizer, variables, 8)
        results.append((variables, optimizer.variables))
    for ours, theirs in zip(results[0][0] + results[0][1], results[1][0] + results[1][1], strict=True):
        assert ours.path.split("/")[-1] == theirs.path.split("/")[-1]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def _sparse(index, dense):
    """A sparse gradient of the same effect, most of whose rows come in two parts."""
    rows = tf.concat([index, index[::-1]], 0)
    values = tf.concat([tf.gather(dense, index) * 0.25, tf.gather(dense, index[::-1]) * 0.75], 0)
    return tf.IndexedSlices(values, rows, tf.constant(dense.shape))


@pytest.mark.parametrize("clip", [None, 0.5])
def test_repeated_rows_equal_the_dense_gradient(clip):
    results = []
    for sparse in (True, False, True):
        optimizer = AdamW(0.01, global_clipnorm=clip, loss_scale_factor=2.0)
        table = _variables()[2]
        optimizer.build([table])
        for step in range(4):
            rows = tf.constant([1, 4, 5, 9])
            dense = tf.scatter_nd(rows[:, None], tf.gather(_gradients(step)[2], rows), tf.constant([11, 3]))
            optimizer.apply([_sparse(rows, dense) if sparse else dense])
        results.append([v.numpy() for v in [table, *optimizer.variables]])
    for sparse, dense, again in zip(*results, strict=True):
        np.testing.assert_allclose(sparse, dense, atol=1e-6)
        np.testing.assert_array_equal(sparse, again)


def test_embedding_with_repeated_tokens():
    tokens = np.array([[1, 1, 2], [1, 3, 2]])
    results = []
    for one_hot in (False, True):
        keras.utils.set_random_seed(5)
        layer, optimizer = keras.layers.Embedding(5, 4), AdamW(0.1)
        layer.build()
        for _ in range(3):
            with tf.GradientTape() as tape:
                table = layer.embeddings.value
                rows = tf.one_hot(tokens, 5) @ table if one_hot else layer(tokens)
                loss = tf.reduce_sum(rows**3)
            optimizer.apply(tape.gradient(loss, [table]), [layer.embeddings])
        results.append(layer.embeddings.numpy())
    np.testing.assert_allclose(*results, atol=1e-6)


def test_checkpoint_and_config(tmp_path):
    optimizer, variables = AdamW(_schedule(), weight_decay=0.1), _variables()
    optimizer.build(variables)
    _train(optimizer, variables, 3)
    path = tf.train.Checkpoint(optimizer=optimizer, variables=[v.value for v in variables]).save(
        str(tmp_path / "checkpoint")
    )
    _train(optimizer, variables, 3, start=3)

    config = keras.optimizers.serialize(optimizer)
    restored, others = keras.optimizers.deserialize(config), _variables()
    assert type(restored) is AdamW
    restored.build(others)
    tf.train.Checkpoint(optimizer=restored, variables=[v.value for v in others]).restore(
        path
    ).assert_existing_objects_matched()
    assert int(restored.iterations) == 3
    _train(restored, others, 3, start=3)
    assert int(restored.iterations) == 6
    for value, other in zip(variables + optimizer.variables, others + restored.variables, strict=True):
        np.testing.assert_array_equal(value, other)


def test_under_a_distribution_strategy():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        variables, optimizer = _variables(), AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0)
        optimizer.build(variables)

    @tf.function
    def step(gradients):
        strategy.run(lambda g: optimizer.apply(g, variables), args=(gradients,))

    others, alone = _variables(), AdamW(0.01, weight_decay=0.1, global_clipnorm=1.0)
    for i in range(3):
        step(_gradients(i))
        alone.apply(_gradients(i), others)
    for value, other in zip(variables, others, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-6)


def test_fit():
    model = keras.Sequential([keras.layers.Embedding(9, 4), keras.layers.Dense(9)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(AdamW(0.05, global_clipnorm=1.0), loss)
    tokens = np.arange(72).reshape(8, 9) % 9
    losses = model.fit(tokens, tokens, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2


# --- Lazy: only the rows of a batch ---------------------------------------------------------------


def _run(optimizer, variables, gradients, compiled=False):
    """Applies one list of gradients after the other; returns values and moments."""
    optimizer.build(variables)

    def apply(each):
        optimizer.apply(each, variables)

    if compiled:
        apply = tf.function(apply)
    for each in gradients:
        apply(each)
    return [v.numpy() for v in [*variables, *optimizer.variables]]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weight_decay": 0.1},
        {"global_clipnorm": 0.5},
        {"global_clipnorm": 100.0},
        {"clipnorm": 0.5},
        {"clipvalue": 0.3},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"rates": {"table": 0.3, "bias": 0.5}, "weight_decay": 0.1},
    ],
    ids=str,
)
def test_lazy_equals_the_dense_adam_where_every_row_is_touched(arguments):
    results = []
    for lazy in (True, False):
        _, bias, table = _variables()
        steps = []
        for step in range(4):
            _, dense_bias, dense = _gradients(step)
            steps.append([dense_bias, _sparse(tf.range(11), dense) if lazy else dense])
        results.append(_run(AdamW(0.01, lazy=lazy, **arguments), [bias, table], steps, compiled=True))
    for lazy, dense in zip(*results, strict=True):
        np.testing.assert_allclose(lazy, dense, atol=1e-6)


# Rows of a table that each of some steps uses, most of them more than once.
_USED = [[1, 4, 4, 9], [4, 0, 4, 4], [1, 1], [9, 4, 1]]


def _lookups():
    """Gradients of a bias and of the rows `_USED` of a table."""
    rng = np.random.default_rng(3)
    for rows in _USED:
        bias = rng.normal(size=5).astype("float32")
        values = rng.normal(size=(len(rows), 3)).astype("float32")
        yield bias, np.array(rows, np.int32), values


def _slices(rows, values):
    return tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant([11, 3]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lazy_is_adam_on_the_rows_of_a_batch(decay, clip, dtype):
    rate, beta_1, beta_2, epsilon = 0.01, 0.9, 0.999, 1e-7
    _, bias, table = (keras.Variable(v.numpy(), dtype=dtype, name=v.name) for v in _variables())
    value, m, v = table.numpy().astype("float64"), np.zeros((11, 3)), np.zeros((11, 3))
    optimizer = AdamW(rate, weight_decay=decay, global_clipnorm=clip, lazy=True)
    steps = [[tf.constant(b, dtype), _slices(r, x.astype(dtype))] for b, r, x in _lookups()]
    result = _run(optimizer, [bias, table], steps)
    for step, (other, rows, values) in enumerate(_lookups(), start=1):
        gradient = np.zeros((11, 3))
        np.add.at(gradient, rows, values)
        if clip:
            norm = np.sqrt((gradient**2).sum() + (other.astype("float64") ** 2).sum())
            gradient *= clip / max(norm, clip)
        some = np.unique(rows)
        m[some] = beta_1 * m[some] + (1 - beta_1) * gradient[some]
        v[some] = beta_2 * v[some] + (1 - beta_2) * gradient[some] ** 2
        mean, square = m[some] / (1 - beta_1**step), v[some] / (1 - beta_2**step)
        value[some] = value[some] * (1 - rate * decay) - rate * mean / (np.sqrt(square) + epsilon)
    np.testing.assert_allclose(result[1], value, atol=2e-6)
    by_name = dict(zip([x.path for x in optimizer.variables], result[2:], strict=True))
    (first,) = (x for name, x in by_name.items() if "table" in name and "momentum" in name)
    (second,) = (x for name, x in by_name.items() if "table" in name and "velocity" in name)
    np.testing.assert_allclose(first, m, atol=1e-6)
    np.testing.assert_allclose(second, v, atol=1e-6)
    unused = sorted(set(range(11)) - {row for rows in _USED for row in rows})
    np.testing.assert_array_equal(result[1][unused], _variables()[2].numpy()[unused])
    assert not first[unused].any() and not second[unused].any()


def test_lazy_clips_by_the_norm_that_the_dense_gradient_has():
    results = []
    for lazy in (True, False):
        _, bias, table = _variables()
        steps = []
        for other, rows, values in _lookups():
            table_gradient = _slices(rows, values)
            steps.append(
                [tf.constant(other), table_gradient if lazy else tf.convert_to_tensor(table_gradient)]
            )
        results.append(_run(AdamW(0.01, global_clipnorm=1.0, lazy=lazy), [bias, table], steps)[0])
    np.testing.assert_allclose(*results, atol=1e-6)
    alone = _run(AdamW(0.01, global_clipnorm=1.0), [_variables()[1]], [[s[0]] for s in steps])[0]
    assert np.abs(alone - results[0]).max() > 1e-4, "the table's part of the norm does count"


@pytest.mark.parametrize("dense", [False, True])
def test_rows_whose_gradient_is_zero_are_left_alone(dense):
    table = _variables()[2]
    before = table.numpy()
    values = np.array([[1.0, -2.0, 3.0], [1.0, 1.0, 1.0], [-1.0, 2.0, -3.0]], "float32")
    gradient = _slices([2, 5, 2], values)  # those of row 2 add up to nothing
    if dense:
        gradient = rows_with_gradient(tf.convert_to_tensor(gradient))
        assert gradient.indices.numpy().tolist() == [5]
    after = _run(AdamW(0.01, weight_decay=0.1, lazy=True), [table], [[gradient]])[0]
    changed = np.flatnonzero((after != before).any(axis=1))
    assert changed.tolist() == [5]
    np.testing.assert_allclose(after[5], before[5] * (1 - 0.01 * 0.1) - 0.01, atol=1e-6)


def test_lazy_of_a_batch_that_uses_no_row():
    table = _variables()[2]
    before = table.numpy()
    empty = tf.IndexedSlices(tf.zeros([0, 3]), tf.zeros([0], tf.int32), tf.constant([11, 3]))
    optimizer = AdamW(0.01, weight_decay=0.1, lazy=True, global_clipnorm=1.0)
    np.testing.assert_array_equal(_run(optimizer, [table], [[empty]])[0], before)


@pytest.mark.parametrize(
    "arguments", [{"amsgrad": True}, {"loss_scale_factor": 8.0}, {"gradient_accumulation_steps": 2}], ids=str
)
def test_what_lazy_does_not_go_with(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"lazy does not go with {name}"):
        AdamW(0.01, lazy=True, **arguments)


# --- Rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("rate", [0.01, "schedule"])
def test_a_rate_scales_the_update_and_the_decay(rate, lazy):
    factors = {"kernel": 0.5, "table": 0.25, "of another model": 9.0}
    rate = _schedule() if rate == "schedule" else rate

    def gradients(step, names):
        rows = tf.constant([1, 4, 9])
        kernel, bias, dense = _gradients(step)
        table = _sparse(rows, tf.scatter_nd(rows[:, None], tf.gather(dense, rows), tf.constant([11, 3])))
        return [{"kernel": kernel, "bias": bias, "table": table}[name] for name in names]

    names = ["kernel", "bias", "table"]
    optimizer = AdamW(rate, weight_decay=0.1, rates=factors, lazy=lazy)
    together = _run(optimizer, _variables(), [gradients(step, names) for step in range(5)])
    for index, name in enumerate(names):
        factor = factors.get(name, 1.0)
        own = _Scaled(rate, factor) if callable(rate) else rate * factor
        alone = AdamW(own, weight_decay=0.1, lazy=lazy)
        expected = _run(alone, [_variables()[index]], [gradients(step, [name]) for step in range(5)])[0]
        np.testing.assert_allclose(together[index], expected, atol=1e-7)
        assert np.abs(expected - _variables()[index].numpy()).max() > 1e-3


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule, factor):
        self.schedule, self.factor = schedule, factor

    def __call__(self, step):
        return self.schedule(step) * self.factor


def test_decay_leaves_out_what_it_is_told_to_whatever_its_rate():
    optimizer = AdamW(0.01, weight_decay=0.5, rates={"bias": 0.5, "kernel": 0.5})
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    zero = [tf.zeros(v.shape) for v in _variables()]
    kernel, bias, table, *_ = _run(optimizer, _variables(), [zero])
    start = [v.numpy() for v in _variables()]
    np.testing.assert_array_equal(bias, start[1])
    np.testing.assert_allclose(kernel, start[0] * (1 - 0.01 * 0.5 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(table, start[2] * (1 - 0.01 * 0.5), rtol=1e-6)


def test_lazy_and_rates_go_through_a_config():
    optimizer = AdamW(0.02, weight_decay=0.3, lazy=True, rates={"block_0/query/kernel": 0.5})
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(config)
    assert type(again) is AdamW and again.get_config() == optimizer.get_config()
    assert again.lazy is True and again.rates == {"block_0/query/kernel": 0.5}
    assert type(again.get_config()["rates"]) is dict
    plain = AdamW.from_config(keras.optimizers.AdamW(0.02).get_config())
    assert plain.lazy is False and plain.rates == {}


# --- SGD


def test_sgd_is_nesterovs_with_the_penalty_in_the_gradient() -> None:
    weight = keras.Variable([1.0, -2.0], name="weight")
    optimizer = SGD(0.1, 0.8, weight_decay=0.5)
    optimizer.build([weight])
    expected, speed = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(4):
        gradient = np.array([0.3, 0.1]) * (step + 1)
        slope = gradient + 0.5 * expected
        speed = 0.8 * speed - 0.1 * slope
        expected = expected + 0.8 * speed - 0.1 * slope
        optimizer.apply([tf.constant(gradient, tf.float32)])
        np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_sgd_gives_variables_rates_of_their_own_and_the_same_decay() -> None:
    fast, slow = keras.Variable([1.0], name="bias"), keras.Variable([1.0], name="kernel")
    optimizer = SGD(0.01, 0.0, weight_decay=0.5, rates={fast.path: 10.0})
    optimizer.build([fast, slow])
    optimizer.apply([tf.zeros(1), tf.zeros(1)])
    np.testing.assert_allclose(fast, slow, rtol=1e-6)
    optimizer.apply([tf.ones(1), tf.ones(1)])
    assert float(fast[0]) == pytest.approx(float(slow[0]) - 0.09, abs=1e-5)


def test_sgd_meets_its_slow_weights_every_five_steps_and_at_the_end() -> None:
    weight = keras.Variable([1.0, -2.0], name="weight")
    optimizer = SGD(0.1, 0.0, lookahead=12)
    optimizer.build([weight])

    @tf.function
    def apply() -> None:
        optimizer.apply([tf.constant([1.0, -0.5])])

    fast, slow = np.array([1.0, -2.0]), np.array([1.0, -2.0])
    for step in range(1, 13):
        apply()
        fast = fast - 0.1 * np.array([1.0, -0.5])
        if step in (5, 10, 12):
            kept = 0.95**5 * (step / 12) ** 3
            fast = slow = kept * slow + (1 - kept) * fast
        np.testing.assert_allclose(weight, fast, rtol=1e-5)
    names = [v.path.split("/")[-1] for v in optimizer.variables]
    assert "weight_slow" in names  # so that checkpoints hold them


def test_sgd_survives_a_round_trip() -> None:
    optimizer = keras.optimizers.deserialize(
        keras.optimizers.serialize(SGD(0.1, weight_decay=0.2, rates={"a": 2.0}, lookahead=7))
    )
    assert isinstance(optimizer, SGD) and optimizer.l2 == 0.2 and optimizer.rates == {"a": 2.0}
    assert optimizer.lookahead == 7

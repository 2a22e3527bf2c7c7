"""`fit` with models, losses and data that are not the recipes': it trains them as it says, or refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.batches import array_batches, from_dataset
from karpa_tf.errors import UserError
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.checkpoint import Checkpoints
from karpa_tf.training.evaluation import Evaluator, evaluate
from karpa_tf.training.fitting import fit
from karpa_tf.training.optimizers import AdamW
from tests.training.helpers import make_batches

WEIGHTED = "mean_with_sample_weight"


def layers() -> list[keras.layers.Layer]:
    return [
        keras.layers.Embedding(10, 8),
        keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.01)),
    ]


def make_model(loss: object = None, **compiled: object) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input([6], dtype="int32"), *layers()])
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=WEIGHTED)
    model.compile(AdamW(0.01), loss, **compiled)
    return model


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean"),
        cross_entropy,
    ],
    ids=["default", "mean", "function"],
)
def test_rows_of_no_weight_do_not_count_whatever_the_loss_divides_by(loss) -> None:
    """Half of the weights are 0, and the last batch is not full."""
    right, ours = make_model(), make_model(loss)
    assert evaluate(ours, make_batches()) == pytest.approx(evaluate(right, make_batches()), rel=1e-5)
    histories = [fit(model, make_batches(), epochs=2) for model in (right, ours)]
    assert histories[1][-1] == pytest.approx(histories[0][-1], rel=1e-5)
    for a, b in zip(ours.get_weights(), right.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_loss_is_that_of_float64_arithmetic() -> None:
    model, batches = make_model(cross_entropy), make_batches(seed=None)
    total, weight = 0.0, 0.0
    for rows, labels, weights in batches.dataset():
        logits = model(rows).numpy().astype(np.float64)
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        each = -np.take_along_axis(log_p, labels.numpy()[..., None], -1)[..., 0]
        total += float((each * weights.numpy()).sum())
        weight += float(weights.numpy().sum())
    penalty = 0.01 * float((np.asarray(model.layers[-1].kernel, np.float64) ** 2).sum())
    assert evaluate(model, batches)["loss"] == pytest.approx(total / weight + penalty, rel=1e-5)


def test_evaluate_takes_a_dataset_and_traces_no_graph_for_each_width() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 10, (4, width)).astype(np.int32) for width in (6, 3, 5, 2, 4, 6)]
    spec = tf.TensorSpec([4, None], tf.int32)
    parts = tf.data.Dataset.from_generator(
        lambda: zip(rows, rows, strict=True), output_signature=(spec, spec)
    )
    dataset = parts.apply(tf.data.experimental.assert_cardinality(len(rows)))
    model = keras.Sequential([keras.Input([None], dtype="int32"), keras.layers.Embedding(10, 10)])
    model.compile(AdamW(0.01), cross_entropy)
    each = [float(tf.reduce_mean(cross_entropy(x, model(x)))) for x in rows]
    assert evaluate(model, dataset)["loss"] == pytest.approx(np.mean(each), rel=1e-5)
    evaluator = Evaluator(model, from_dataset(dataset), {}, tf.distribute.get_strategy())
    assert evaluator()["loss"] == evaluator()["loss"]
    assert evaluator._step.experimental_get_tracing_count() <= 2


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return {}


class OwnLoss(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        values = cross_entropy(y, y_pred) * sample_weight
        return tf.reduce_sum(values) / tf.reduce_sum(sample_weight)


def compiled(kind: type[keras.Model], **words: object) -> keras.Model:
    keras.utils.set_random_seed(3)
    model = kind([keras.Input([6], dtype="int32"), keras.layers.Embedding(10, 8), keras.layers.Dense(10)])
    model.compile(AdamW(0.01), **words)
    return model


def test_a_loss_of_the_models_own_is_used() -> None:
    own = compiled(OwnLoss)
    plain = compiled(keras.Sequential, loss=cross_entropy)
    assert fit(own, make_batches())[0] == pytest.approx(fit(plain, make_batches())[0], rel=1e-5)
    with pytest.raises(UserError, match="under a compute_loss of its own"):
        fit(compiled(OwnLoss, loss=cross_entropy), make_batches())


def masked() -> keras.Model:
    model = keras.Sequential(
        [keras.Input([6], dtype="int32"), keras.layers.Embedding(10, 8, mask_zero=True), *layers()[1:]]
    )
    model.compile(AdamW(), cross_entropy)
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_model(metrics=["accuracy"]), r"does not read compile\(metrics=...\)"),
        (lambda: make_model(weighted_metrics=["accuracy"]), r"does not read compile\(metrics=...\)"),
        (lambda: compiled(OwnStep, loss="mse"), "OwnStep has a train_step of its own"),
        (lambda: make_model(keras.losses.MeanSquaredError(reduction="sum")), "Received: sum"),
        (lambda: make_model(keras.losses.MeanSquaredError(reduction=None)), "Received: "),
        (lambda: keras.Sequential(layers()), "is not compiled"),
        (masked, "carries a Keras mask"),
    ],
)
def test_what_fit_would_not_do_is_refused_before_the_first_step(make, said, tmp_path) -> None:
    model = make()
    with pytest.raises(UserError, match=said):
        fit(model, make_batches(), checkpoints=Checkpoints(tmp_path / "checkpoints"))
    assert not (tmp_path / "checkpoints").exists()


def test_arguments_of_fit_and_evaluate_that_make_no_sense(tmp_path) -> None:
    with pytest.raises(UserError, match="resume=True goes with checkpoints=FOLDER"):
        fit(make_model(), make_batches(), resume=True)
    for call in (fit, evaluate):
        with pytest.raises(UserError, match="metrics are functions of labels and outputs by name"):
            call(make_model(), make_batches(), metrics=[keras.metrics.sparse_categorical_accuracy])
        with pytest.raises(UserError, match="is not compiled"):
            call(keras.Sequential(layers()), make_batches())


def test_checkpoints_may_be_a_folders_name(tmp_path) -> None:
    folder = tmp_path / "checkpoints"
    fit(make_model(), make_batches(), checkpoints=str(folder))
    history = fit(make_model(), make_batches(), checkpoints=folder, epochs=2, resume=True)
    assert len(history) == 2 and list(folder.glob("step-*.npz"))


def test_mixed_float16_is_refused_for_its_scaled_losses() -> None:
    model = make_model()
    model.compile(keras.optimizers.LossScaleOptimizer(AdamW()), cross_entropy)
    with pytest.raises(UserError, match="mixed_bfloat16"):
        fit(model, make_batches())


@pytest.mark.parametrize(
    "callback", [BestWeights("x.weights.h5", "val_los"), keras.callbacks.EarlyStopping("lss")]
)
def test_a_misspelt_monitor_is_an_error_before_the_first_step(callback) -> None:
    model = make_model()
    with pytest.raises(UserError, match=r'monitors ".*"; did you mean "'):
        fit(model, make_batches(), validation=make_batches(), callbacks=[callback])
    with pytest.raises(UserError, match=r'monitors ".*"; did you mean ".*There is: loss, val_loss, val_f1'):
        fit(model, make_batches(), validation=lambda: {"loss": 0.0, "f1": 1.0}, callbacks=[callback])
    assert int(model.optimizer.iterations) == 0


def make_dataset(weights: bool) -> tf.data.Dataset:
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 10, (45, 6)).astype(np.int32)
    parts = (rows, np.roll(rows, 1, axis=1)) + ((np.ones(rows.shape, np.float32),) if weights else ())
    return tf.data.Dataset.from_tensor_slices(parts).batch(8)


def test_a_model_without_an_input_shape_is_trained_as_well() -> None:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(layers())
    model.compile(keras.optimizers.SGD(0.5), cross_entropy)
    before = fit(model, make_dataset(False))[0]["loss"]
    assert model.trainable_variables and fit(model, make_dataset(False), epochs=3)[-1]["loss"] < before


def test_an_output_without_a_loss_is_left_as_it_is() -> None:
    keras.utils.set_random_seed(3)
    ids = keras.Input([6], dtype="int32")
    x = keras.layers.Embedding(10, 8)(ids)
    model = keras.Model(ids, {"a": keras.layers.Dense(10)(x), "b": keras.layers.Dense(1, name="b")(x)})
    model.compile(keras.optimizers.SGD(0.1), {"a": cross_entropy})
    kernel = model.get_layer("b").kernel.numpy()
    data = make_dataset(False).map(lambda rows, labels: (rows, {"a": labels, "b": labels[..., None]}))
    history = fit(model, data, epochs=2)
    assert history[1]["loss"] < history[0]["loss"]
    np.testing.assert_array_equal(model.get_layer("b").kernel, kernel)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"metrics": {"a": keras.metrics.SparseCategoricalAccuracy()}}, "add up by themselves"),
        ({"metrics": {"a": "accuracy"}}, "Received: {'a': 'accuracy'}"),
        ({"metrics": ["accuracy"]}, "Received: .'accuracy'."),
        ({"metrics": {"loss": cross_entropy}}, "give the metric another name"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1. Received: 0"),
        ({"epochs": 1.5}, "Received: 1.5"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"validation": lambda: 3}, "returns figures by name. Received: int"),
        ({"callbacks": [keras.callbacks.EarlyStopping()]}, 'monitors "val_loss"'),
    ],
)
def test_words_that_make_no_sense_are_one_sentence(words, said) -> None:
    with pytest.raises(UserError, match=said):
        fit(make_model(), make_batches(), **words)


def test_a_folder_is_not_trained_into_twice_and_epochs_do_not_shrink(tmp_path) -> None:
    def again(model: keras.Model, epochs: int, batch_size: int = 8, resume: bool = True) -> list:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        data = make_batches(batch_size=batch_size)
        return fit(model, data, epochs=epochs, checkpoints=checkpoints, resume=resume)

    again(make_model(), 2, resume=False)
    before = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    for model, epochs, batch_size, resume, said in (
        (make_model(), 1, 8, False, "resume=True goes on with it"),
        (make_model(), 1, 8, True, "epochs may only grow: 2 are made. Received: 1"),
        (make_model(), 3, 4, True, "with steps_per_epoch 6"),
    ):
        with pytest.raises(UserError, match=said):
            again(model, epochs, batch_size, resume)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == before
    sgd = make_model()
    sgd.compile(keras.optimizers.Lion(0.01), sgd.loss)
    with pytest.raises(UserError, match=r"optimizer AdamW|belongs to another model"):
        again(sgd, 3)
    assert len(again(make_model(), 3)) == 3


def test_a_callback_of_keras_that_keeps_no_state_is_said(tmp_path) -> None:
    words = {"checkpoints": Checkpoints(tmp_path), "callbacks": [keras.callbacks.EarlyStopping("loss")]}
    fit(make_model(), make_batches(), **words)
    with pytest.warns(UserWarning, match="EarlyStopping begins anew"):
        fit(make_model(), make_batches(), epochs=2, resume=True, **words)


@pytest.mark.parametrize("weights", [False, True])
def test_a_dataset_trains_as_keras_does(weights: bool) -> None:
    ours, theirs = make_model(cross_entropy), make_model(cross_entropy)
    dataset = make_dataset(weights)
    metrics = {"accuracy": keras.metrics.sparse_categorical_accuracy}
    history = fit(ours, dataset, validation=dataset, epochs=3, metrics=metrics)
    theirs.fit(dataset, epochs=3, verbose=0)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    labels = np.concatenate([batch[1] for batch in dataset])
    hits = theirs.predict(dataset.map(lambda x, *_: x), verbose=0).argmax(-1) == labels
    assert history[-1]["val_accuracy"] == pytest.approx(hits.mean(), abs=1e-6)


def test_a_dataset_says_that_it_does_not_resume_exactly(tmp_path) -> None:
    model = make_model()
    with pytest.warns(UserWarning, match="does not say which batch"):
        fit(model, make_dataset(True), checkpoints=Checkpoints(tmp_path / "checkpoints"))
    again = make_model()
    with pytest.warns(UserWarning, match="does not say which batch"):
        history = fit(
            again,
            make_dataset(True),
            epochs=2,
            checkpoints=Checkpoints(tmp_path / "checkpoints"),
            resume=True,
        )
    assert len(history) == 2 and int(again.optimizer.iterations) == 12


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tf.data.Dataset.from_tensor_slices((np.zeros((4, 6)), np.zeros(4))).batch(2).repeat(), "how many"),
        (tf.data.Dataset.from_tensor_slices(np.zeros((4, 6), np.int32)).batch(2), "Received: TensorSpec"),
        (np.zeros((4, 6)), "Received: ndarray"),
        (None, "Received: NoneType"),
    ],
)
def test_data_that_is_none_is_one_sentence(data, said) -> None:
    with pytest.raises(UserError, match=said):
        fit(make_model(), data)


class Subclass(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dense = layers()

    def call(self, ids, training=False):
        return self.dense(self.embedding(ids))


def test_a_subclass_keeps_its_best_weights(tmp_path) -> None:
    model = Subclass()
    model.compile(AdamW(0.01), cross_entropy)
    best = BestWeights(tmp_path / "best.weights.h5")
    fit(model, make_batches(), validation=make_batches(), epochs=2, callbacks=[best])
    other = Subclass()
    other(np.zeros((1, 6), np.int32))
    other.load_weights(tmp_path / "best.weights.h5")
    for a, b in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def automatic(units: int = 8) -> keras.Model:
    """Its layers get the next numbers of the process: dense_4, dense_5 and so on."""
    model = keras.Sequential([keras.Input([6]), keras.layers.Dense(units), keras.layers.Dense(1)])
    model.compile(AdamW(0.01), keras.losses.MeanSquaredError())
    return model


def test_a_run_goes_on_in_one_process_whatever_keras_calls_its_layers(tmp_path) -> None:
    rng = np.random.default_rng(0)
    data = tf.data.Dataset.from_tensor_slices((rng.normal(size=(16, 6)), rng.normal(size=(16, 1)))).batch(4)
    for epochs in (1, 2, 3):
        model = automatic()
        with pytest.warns(UserWarning):
            fit(model, data, epochs=epochs, checkpoints=Checkpoints(tmp_path / "checkpoints"), resume=True)
        assert int(model.optimizer.iterations) == 4 * epochs
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"its variable 1 is .*kernel \(6, 8\)"):
        fit(automatic(9), data, epochs=4, checkpoints=Checkpoints(tmp_path / "checkpoints"), resume=True)


def test_two_trainings_do_not_share_a_folder(tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    fit(make_model(), make_batches(), checkpoints=checkpoints)
    held = Checkpoints(tmp_path / "checkpoints")
    held.begin()
    with pytest.raises(UserError, match="trained into by another process"):
        fit(make_model(), make_batches(), epochs=2, checkpoints=checkpoints, resume=True)
    held.release()
    fit(make_model(), make_batches(), epochs=2, checkpoints=checkpoints, resume=True)


def test_a_training_that_was_refused_holds_no_folder(tmp_path) -> None:
    """A notebook keeps the error, and with it all that `fit` had."""
    fit(make_model(), make_batches(), checkpoints=Checkpoints(tmp_path))
    misspelt = [keras.callbacks.EarlyStopping("lss")]
    with pytest.raises(UserError) as kept:
        fit(
            make_model(),
            make_batches(),
            epochs=2,
            callbacks=misspelt,
            checkpoints=Checkpoints(tmp_path),
            resume=True,
        )
    again = fit(make_model(), make_batches(), epochs=2, checkpoints=Checkpoints(tmp_path), resume=True)
    assert len(again) == 2 and "monitors" in str(kept.value)


class TwoInputs(keras.Model):
    """A subclass that reads two arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (keras.layers.Dense(4) for _ in range(3))

    def call(self, features, training=False):
        return self.head(self.first(features["a"]) * self.second(features["b"]))


def two_inputs(epochs: int, checkpoints: Checkpoints, best: BestWeights, resume: bool = False) -> TwoInputs:
    random = np.random.default_rng(1)
    features = {
        name: random.normal(size=(24, size)).astype(np.float32) for name, size in (("a", 3), ("b", 5))
    }
    labels = random.normal(size=(24, 4)).astype(np.float32)
    data = array_batches(features, labels, batch_size=8, seed=0)
    keras.utils.set_random_seed(2)
    model = TwoInputs()
    model.compile(AdamW(0.01), "mse")
    words = {"validation": data, "callbacks": [best], "checkpoints": checkpoints, "resume": resume}
    fit(model, data, epochs=epochs, **words)
    return model


def test_a_subclass_of_two_inputs_resumes_and_keeps_its_best_weights(tmp_path) -> None:
    def parts(name: str) -> tuple[Checkpoints, BestWeights]:
        return Checkpoints(tmp_path / name), BestWeights(tmp_path / f"{name}.weights.h5")

    whole = two_inputs(4, *parts("whole"))
    two_inputs(2, *parts("part"))
    again = two_inputs(4, *parts("part"), resume=True)
    kept = TwoInputs()
    kept({"a": np.zeros((1, 3)), "b": np.zeros((1, 5))})
    kept.load_weights(tmp_path / "part.weights.h5")
    for a, b, c in zip(whole.get_weights(), again.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)  # the last epoch is the best here

"""What each algorithm's gradient is a gradient of; adaptation, its masks, and what is served of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.meta.adapt import support_losses, task_losses
from karpa_tf.meta.algorithm import Algorithm
from karpa_tf.meta.anil import ANIL
from karpa_tf.meta.imaml import IMAML, conjugate_gradient
from karpa_tf.meta.maml import MAML
from karpa_tf.meta.protonet import ProtoNet
from karpa_tf.meta.reptile import Reptile
from karpa_tf.meta.sinusoids import Sinusoids
from karpa_tf.meta.step import MetaStep
from karpa_tf.meta.tasks import TaskBatch, task_batches
from karpa_tf.models import build_few_shot_cnn, build_sinusoid_mlp
from karpa_tf.models.image_layers import FrameInk
from karpa_tf.training import SGD, AdamW, Checkpoints, Stage, train
from tests.meta.helpers import WAYS, assign, call_with, make_dense, make_images, make_tasks
from tests.training.helpers import StopAt

SHAPE = (6, 6, 2)


def slopes(algorithm: Algorithm, batch: TaskBatch) -> tuple[float, float]:
    """The derivative of the loss in a random direction: the algorithm's, and by finite differences."""
    rng = np.random.default_rng(1)
    variables = algorithm.variables
    start = [np.array(v) for v in variables]
    direction = [rng.normal(size=v.shape) for v in variables]
    gradients, _ = algorithm.gradients(batch)
    inner = sum(float(np.sum(g * d)) for g, d in zip(gradients, direction, strict=True))
    step, losses = 1e-5, []
    for side in (step, -step):
        assign(variables, [a + side * d for a, d in zip(start, direction, strict=True)])
        losses.append(float(algorithm.gradients(batch)[1]["loss"]))
    assign(variables, start)
    return inner, (losses[0] - losses[1]) / (2 * step)


def of_one_task(batch: TaskBatch, task: int) -> TaskBatch:
    return TaskBatch(*(x[task : task + 1] for x in batch))


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: MAML(make_dense(), inner_rate=0.4, inner_steps=3), (5,)),
        (lambda: MAML(make_dense(), inner_rate=0.4, inner_steps=2, learn_rates=True), (5,)),
        (lambda: MAML(make_images(), inner_rate=0.2, inner_steps=2), SHAPE),
        (lambda: MAML(make_images(norm="batch"), inner_rate=0.2, transductive=True), SHAPE),
        (lambda: ANIL(make_images(), inner_rate=0.2, inner_steps=2), SHAPE),
        (lambda: ANIL(make_dense(), inner_rate=0.4, inner_steps=3, learn_rates=True), (5,)),
        (lambda: ProtoNet(make_dense(2), ways=WAYS), (5,)),
    ],
    ids=["maml", "maml-rates", "maml-images", "maml-transductive", "anil-images", "anil-rates", "protonet"],
)
def test_the_gradient_is_that_of_the_query_loss_after_adaptation(make: Any, shape: tuple) -> None:
    ours, differences = slopes(make(), make_tasks(shape=shape))
    assert ours == pytest.approx(differences, rel=1e-5) and abs(ours) > 1e-3


def test_a_first_order_gradient_fails_that_test() -> None:
    ours, differences = slopes(
        MAML(make_dense(), inner_rate=0.4, inner_steps=3, first_order=True), make_tasks()
    )
    assert ours != pytest.approx(differences, rel=0.01)


def test_maml_of_a_regression() -> None:
    data = TaskBatch(*map(tf.constant, Sinusoids().sample(np.random.default_rng(0), 3, shots=4, queries=5)))
    batch = TaskBatch(*(tf.cast(x, tf.float64) for x in data))
    model = keras.Sequential(
        [keras.Input([1], dtype="float64"), *(keras.layers.Dense(n, "tanh", dtype="float64") for n in (4, 1))]
    )
    ours, differences = slopes(MAML(model, inner_rate=0.1, inner_steps=2), batch)
    assert ours == pytest.approx(differences, rel=1e-5) and abs(ours) > 1e-3


def adapted(model: keras.Model, batch: TaskBatch, rate: float, steps: int) -> list[list[tf.Tensor]]:
    """Gradient descent on each task by itself, with Keras' own functional call."""
    found = []
    for x, y in zip(batch.support, batch.support_labels, strict=True):
        weights = [tf.convert_to_tensor(v.value) for v in model.trainable_variables]
        for _ in range(steps):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = keras.losses.sparse_categorical_crossentropy(
                    y, call_with(model, weights, x), from_logits=True
                )
                loss = tf.reduce_mean(loss)
            weights = [w - rate * g for w, g in zip(weights, tape.gradient(loss, weights), strict=True)]
        found.append(weights)
    return found


def test_the_first_orders_gradient_is_that_of_the_query_loss_at_the_adapted_weights() -> None:
    model, batch = make_dense(), make_tasks()
    ours, figures = MAML(model, inner_rate=0.4, inner_steps=3, first_order=True).gradients(batch)
    expected, losses = [], []
    for task, weights in enumerate(adapted(model, batch, 0.4, 3)):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits = call_with(model, weights, batch.query[task])
            loss = tf.reduce_mean(
                keras.losses.sparse_categorical_crossentropy(
                    batch.query_labels[task], logits, from_logits=True
                )
            )
        expected.append(tape.gradient(loss, weights))
        losses.append(float(loss))
    assert float(figures["loss"]) == pytest.approx(np.mean(losses), rel=1e-10)
    for number, gradient in enumerate(ours):
        np.testing.assert_allclose(gradient, np.mean([e[number] for e in expected], axis=0), atol=1e-12)


def test_reptiles_direction_is_where_gradient_descent_leads() -> None:
    """Algorithm 2 with Keras' own optimizer, on a task at a time; k steps see every k-th row each."""
    model, batch, rate, steps = make_dense(), make_tasks(rows=6, queries=6), 0.2, 3
    ours, _ = Reptile(model, inner_rate=rate, inner_steps=steps).gradients(batch)
    start = [np.array(v) for v in model.trainable_variables]
    ends = []
    for x, y, more, labels in zip(
        *(t.numpy() for t in (batch[0], batch[1], batch[2], batch[3])), strict=True
    ):
        rows, answers = np.concatenate([x, more]), np.concatenate([y, labels])
        assign(model.trainable_variables, start)
        model.compile(
            keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        for step in range(steps):
            model.train_on_batch(rows[step::steps], answers[step::steps])
        ends.append([np.array(v) for v in model.trainable_variables])
    for number, direction in enumerate(ours):
        mean = np.mean([end[number] for end in ends], axis=0)
        # Keras keeps its rate in float32.
        np.testing.assert_allclose(direction, (start[number] - mean) / rate, atol=1e-6)


def test_reptile_of_one_step_is_the_gradient_of_the_mean_loss() -> None:
    model, batch = make_dense(), make_tasks()
    ours, _ = Reptile(model, inner_rate=0.3, inner_steps=1).gradients(batch)
    x, y = (tf.concat([a, b], 1) for a, b in ((batch[0], batch[2]), (batch[1], batch[3])))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(task_losses(tf.reshape(model(tf.reshape(x, [-1, 5])), [2, -1, WAYS]), y))
    for a, b in zip(ours, tape.gradient(loss, [v.value for v in model.trainable_variables]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


# --- Implicit MAML --------------------------------------------------------------------------------


def test_conjugate_gradient_solves_every_tasks_system() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, 6, 6))
    matrices = roots @ roots.transpose(0, 2, 1) + np.eye(6)
    right = rng.normal(size=(3, 6))
    parts = [tf.constant(right[:, :2]), tf.constant(right[:, 2:].reshape(3, 2, 2))]

    def product(p: Any) -> list[tf.Tensor]:
        flat = tf.concat([tf.reshape(x, [3, -1]) for x in p], 1)
        image = tf.linalg.matvec(matrices, flat)
        return [image[:, :2], tf.reshape(image[:, 2:], [3, 2, 2])]

    found = np.concatenate([np.reshape(x, (3, -1)) for x in conjugate_gradient(product, parts, 12)], 1)
    np.testing.assert_allclose(found, np.linalg.solve(matrices, right[..., None])[..., 0], atol=1e-8)
    early = np.concatenate([np.reshape(x, (3, -1)) for x in conjugate_gradient(product, parts, 2)], 1)
    assert not np.allclose(found, early, atol=1e-3)


def test_the_implicit_gradient_is_the_exact_solution_with_the_hessian() -> None:
    """Equation 6, with the whole Hessian by Jacobians, at the weights where the inner loop ends."""
    model, batch, pull = make_dense(), make_tasks(), 3.0
    imaml = IMAML(model, inner_rate=0.05, inner_steps=20, pull=pull, cg_steps=60)
    ours, _ = imaml.gradients(batch)
    sizes = [int(np.prod(v.shape)) for v in model.trainable_variables]
    start = tf.concat([tf.reshape(v.value, [-1]) for v in model.trainable_variables], 0)

    def loss(flat: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        parts = zip(tf.split(flat, sizes), model.trainable_variables, strict=True)
        logits = call_with(model, [tf.reshape(part, v.shape) for part, v in parts], x)
        return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))

    solved = []
    for task in range(2):
        flat = start
        for _ in range(20):
            with tf.GradientTape() as tape:
                tape.watch(flat)
                value = loss(flat, batch.support[task], batch.support_labels[task])
                value += pull / 2 * tf.reduce_sum(tf.square(flat - start))
            flat -= 0.05 * tape.gradient(value, flat)
        with tf.GradientTape() as outer:
            outer.watch(flat)
            with tf.GradientTape() as inner:
                inner.watch(flat)
                value = loss(flat, batch.support[task], batch.support_labels[task])
            slope = inner.gradient(value, flat)
        hessian = outer.jacobian(slope, flat)
        with tf.GradientTape() as tape:
            tape.watch(flat)
            value = loss(flat, batch.query[task], batch.query_labels[task])
        v = tape.gradient(value, flat)
        solved.append(np.linalg.solve(np.eye(sum(sizes)) + hessian / pull, v))
    flat_ours = np.concatenate([np.reshape(g, -1) for g in ours])
    np.testing.assert_allclose(flat_ours, np.mean(solved, axis=0), atol=1e-9)


def test_the_implicit_gradient_is_that_of_the_query_loss_where_the_inner_loop_has_converged() -> None:
    ours, differences = slopes(
        IMAML(make_dense(), inner_rate=0.15, inner_steps=150, pull=3.0, cg_steps=30), make_tasks()
    )
    assert ours == pytest.approx(differences, rel=1e-5) and abs(ours) > 1e-3


# --- A batch of tasks, and what one call answers -----------------------------------------------------


def algorithms(make: Any = make_dense) -> list[Any]:
    return [
        MAML(make(), inner_rate=0.4, inner_steps=2),
        MAML(make(), inner_rate=0.4, inner_steps=2, first_order=True),
        ANIL(make(), inner_rate=0.4, inner_steps=2),
        Reptile(make(), inner_rate=0.4, inner_steps=2),
        IMAML(make(), inner_rate=0.1, inner_steps=5),
        ProtoNet(make(), ways=WAYS),
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_batch_of_tasks_is_the_mean_of_its_tasks(number: int) -> None:
    algorithm, batch = algorithms()[number], make_tasks(tasks=3)
    whole, figures = algorithm.gradients(batch)
    alone = [algorithm.gradients(of_one_task(batch, task)) for task in range(3)]
    for index, gradient in enumerate(whole):
        np.testing.assert_allclose(gradient, np.mean([g[index] for g, _ in alone], axis=0), atol=1e-12)
    for name, value in figures.items():
        assert float(value) == pytest.approx(np.mean([float(found[name]) for _, found in alone]))
    assert set(figures) == {"loss", "accuracy"}


def test_one_call_answers_after_every_number_of_steps() -> None:
    model, batch = make_dense(), make_tasks()
    maml = MAML(model, inner_rate=0.4)
    found = maml.predict(*batch[:3], steps=[0, 1, 3])
    assert found.shape == (3, 2, 4, WAYS)
    np.testing.assert_allclose(found[0], [model(x) for x in batch.query])
    for place, steps in ((1, 1), (2, 3)):
        for task, weights in enumerate(adapted(model, batch, 0.4, steps)):
            np.testing.assert_allclose(
                found[place, task], call_with(model, weights, batch.query[task]), atol=1e-10
            )
        np.testing.assert_allclose(maml.predict(*batch[:3], steps=[steps])[0], found[place], atol=1e-12)


@pytest.mark.parametrize("number", range(6))
def test_rows_of_no_weight_and_absent_classes_change_nothing(number: int) -> None:
    """The second task has two classes of the three, and rows of padding that say otherwise."""
    algorithm = algorithms()[number]
    support, _, query, _ = make_tasks(rows=5)
    labels = tf.constant([[0, 1, 2, 1, 0], [1, 0, 1, 2, 2]])
    weights = tf.constant([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = algorithm.predict(support, labels, query, steps=[0, 2], row_weights=weights)
    np.testing.assert_allclose(
        found[:, :1], algorithm.predict(support[:1], labels[:1], query[:1], steps=[0, 2])
    )
    probabilities = tf.nn.softmax(found).numpy()
    assert probabilities[:, 1, :, 2].max() < 1e-6 and probabilities[:, 0, :, 2].min() > 1e-6
    without = algorithm.predict(
        support[1:, :3], labels[1:, :3], query[1:], steps=[0, 2], row_weights=tf.ones([1, 3])
    )
    np.testing.assert_allclose(probabilities[:, 1], tf.nn.softmax(without)[:, 0], atol=1e-12)


@pytest.mark.parametrize("number", range(6))
def test_a_query_is_answered_as_if_alone(number: int) -> None:
    algorithm, batch = algorithms()[number], make_tasks()
    whole = algorithm.predict(*batch[:3])
    for row in range(4):
        alone = algorithm.predict(batch.support, batch.support_labels, batch.query[:, row : row + 1])
        np.testing.assert_allclose(whole[:, :, row : row + 1], alone, atol=1e-12)


# --- What is served, and what is trained ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["maml", "protonet"])
def test_a_savedmodel_learns_tasks_of_any_size(kind: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    maml = MAML(build_few_shot_cnn((8, 8), 3, filters=4, blocks=2), inner_rate=0.1, learn_rates=True)
    proto = ProtoNet(build_few_shot_cnn((8, 8), filters=4, blocks=2), ways=3)
    algorithm: Any = maml if kind == "maml" else proto
    shapes = [([None, None, 8, 8], "float32"), ([None, None], "int32"), ([None, None, 8, 8], "float32")]

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec(*s) for s in (*shapes, ([None, None], "float32"))]
    )
    def serve(support: Any, labels: Any, query: Any, weights: Any) -> Any:
        return algorithm.predict(support, labels, query, steps=[0, 3], row_weights=weights, portable=True)

    module = tf.Module()
    module.served, module.held = serve, [v.value for v in algorithm.learner.variables]
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for tasks, rows, queries in ((1, 3, 1), (4, 7, 2)):
        data = make_tasks(tasks, rows, queries, (8, 8))
        batch = tf.cast(data[0], tf.float32), data[1], tf.cast(data[2], tf.float32)
        ours = algorithm.predict(*batch, steps=[0, 3])
        np.testing.assert_allclose(loaded.served(*batch, tf.ones([tasks, rows])), ours, atol=1e-4)
    graph = serve.get_concrete_function().graph.as_graph_def()
    kinds = {node.op for f in graph.library.function for node in f.node_def} | {
        node.op for node in graph.node
    }
    assert not {op for op in kinds if "Assign" in op or "PyFunc" in op}


def make_step(seed: int = 0) -> MetaStep:
    keras.utils.set_random_seed(seed)
    algorithm = MAML(build_sinusoid_mlp(units=(8, 8)), inner_steps=2, learn_rates=True)
    return MetaStep(algorithm, AdamW(0.01, weight_decay=0.0))


def test_training_learns_is_traced_once_and_resumes_to_the_bit(tmp_path: Path) -> None:
    batches = task_batches(Sinusoids(), meta_batch=4, shots=5, queries=5, seed=0, steps_per_epoch=20)
    whole = make_step()
    history = train(Stage(whole, batches, 4))
    assert history.graph_traces == 1 and set(history[0]) == {"loss"}
    assert history[-1]["loss"] < history[0]["loss"]
    with pytest.raises(KeyboardInterrupt):
        train(Stage(make_step(), batches, 4), callbacks=[StopAt(33)], checkpoints=Checkpoints(tmp_path))
    again = make_step(seed=1)
    resumed = train(Stage(again, batches, 4), checkpoints=Checkpoints(tmp_path), resume=True)
    assert list(resumed) == list(history)
    assert len(whole.variables) == len({id(v) for v in whole.variables})
    for a, b in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_learned_rates_are_saved_with_the_weights(tmp_path: Path) -> None:
    step = make_step()
    for variable in step.algorithm.variables:
        variable.assign_add(tf.ones(variable.shape))
    step.model.optimizer = None
    step.model.save_weights(tmp_path / "best.weights.h5")
    again = make_step(seed=3).algorithm
    again.learner.optimizer = None
    again.learner.load_weights(tmp_path / "best.weights.h5")
    for a, b in zip(step.algorithm.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(tf.reduce_mean(again.rates[0])) == pytest.approx(1.01)


@pytest.mark.parametrize("number", range(6))
def test_every_algorithm_lowers_its_loss(number: int) -> None:
    keras.utils.set_random_seed(0)
    algorithm = algorithms(lambda: make_dense(dtype="float32"))[number]
    batch = TaskBatch(
        *(tf.cast(x, tf.float32) if x.dtype == tf.float64 else x for x in make_tasks(queries=3))
    )
    # The query rows are the support rows: something that can be learned.
    batch = TaskBatch(batch[0], batch[1], batch[0], batch[1])
    step = MetaStep(algorithm, SGD(0.1))
    losses = [step(batch)["loss"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert step.traces == 1


# --- What makes no sense ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: ANIL(keras.Sequential([keras.Input([5]), keras.layers.Dense(3)])),
            "two layers with weights",
        ),
        (lambda: Reptile(make_dense(), learn_rates=True), "reptile has no gradient for rates"),
        (lambda: IMAML(make_dense(), learn_rates=True), "imaml has no gradient for rates"),
        (lambda: MAML(make_dense(), inner_steps=0), "inner_steps must be 1 at least. Received: 0"),
        (lambda: IMAML(make_dense(), pull=0.0), "imaml needs a pull above 0. Received: 0.0"),
        (lambda: MAML(make_dense()).predict(*make_tasks()[:3], steps=[5, 1]), r"rising. Received: \[5, 1\]"),
        (lambda: build_few_shot_cnn((7, 7), 5, blocks=3, downsampling="pooling"), "8 x 8 at least"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


def test_the_support_loss_is_the_mean_over_rows_of_weight() -> None:
    batch, model = make_tasks(), make_dense()
    functional = MAML(model).functional
    weights = functional.tile(2)
    some = tf.constant([[1.0, 1, 0]] * 2)
    found = support_losses(functional, weights, batch.support, batch.support_labels, some)
    for task in range(2):
        logits = np.asarray(model(batch.support[task]))[:2, :2]
        losses = np.log(np.exp(logits).sum(1)) - logits[[0, 1], [0, 1]]
        assert float(found[task]) == pytest.approx(losses.mean())
    assert sum(len(step.shape) for step in weights) == sum(len(v.shape) + 1 for v in functional.variables)


@pytest.mark.parametrize(
    ("downsampling", "normalization"), [("strides", "example"), ("pooling", "none"), ("strides", "batch")]
)
def test_the_networks(downsampling: Any, normalization: Any) -> None:
    kinds = {"downsampling": downsampling, "normalization": normalization}
    model = build_few_shot_cnn((28, 28), 5, filters=8, **kinds)
    assert model.output.shape == (None, 5)
    embedding = build_few_shot_cnn((28, 28, 1), filters=8, **kinds)
    assert embedding.output.shape == (None, 32 if downsampling == "strides" else 8)
    assert build_sinusoid_mlp(3, 2).count_params() == 3 * 40 + 40 + 40 * 40 + 40 + 82
    assert build_sinusoid_mlp(3, 0).output.shape == (None, 40)


def test_ink_is_framed_wherever_and_however_large_it_is() -> None:
    layer = FrameInk()
    letter = np.zeros((28, 28, 1), np.float32)
    letter[4:24, 6] = letter[14, 6:18] = 1
    moved, small = np.roll(letter, (3, 5), (0, 1)), np.zeros_like(letter)
    small[10:20, 15] = small[15, 15:21] = 0.6
    empty, line = np.zeros_like(letter), np.zeros_like(letter)
    line[10, 3:9] = 1
    framed = np.asarray(layer(np.stack([letter, moved, small, empty, line])))
    np.testing.assert_allclose(framed[0], framed[1], atol=1e-4)
    ink = [np.argwhere(image[..., 0] > 0.3) for image in (*framed[:3], framed[4])]
    heights, widths = zip(*(np.ptp(places, axis=0) + 1 for places in ink), strict=True)
    assert abs(heights[0] - heights[2]) <= 2 and abs(widths[0] - widths[2]) <= 2
    assert heights[3] < 0.5 * widths[3], "a line stays a line"
    assert not framed[3].any()
    # Each image is framed by itself, and in any precision.
    np.testing.assert_array_equal(framed[2], np.asarray(layer(small[None]))[0])
    assert build_few_shot_cnn((28, 28), 5, filters=4, frame=True).output.shape == (None, 5)
    with pytest.raises(UserError, match="of one channel"):
        build_few_shot_cnn((28, 28, 3), 5, frame=True)

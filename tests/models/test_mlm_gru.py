from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.models import build_mlm_gru
from karpa_tf.training.losses import SparseCrossEntropy


def inputs(rows: int = 3, length: int = 7, positions: int = 7) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "token_ids": rng.integers(5, 20, (rows, length)).astype(np.int32),
        "padding_mask": np.arange(length) < np.array([length, 4, 2])[:rows, None],
        "masked_positions": np.tile(np.arange(positions, dtype=np.int32), (rows, 1)),
    }


def build(objective: str, dtype: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(1)
    return build_mlm_gru(20, embedding_size=8, units=6, objective=objective, dropout=0.3, dtype=dtype)


def test_with_every_a_prediction_does_not_see_its_own_piece() -> None:
    model = build("every")
    x = inputs()
    before = model(x).numpy()
    for place in range(7):
        changed = {**x, "token_ids": x["token_ids"].copy()}
        changed["token_ids"][:, place] = 1
        after = model(changed).numpy()
        np.testing.assert_array_equal(after[:, place], before[:, place])
        seen = [p for p in range(7) if p != place]
        assert (after[0, seen] != before[0, seen]).any(axis=-1).all(), "and sees all the others"


def test_with_masked_a_prediction_reads_its_own_place() -> None:
    model = build("masked")
    x = inputs()
    changed = {**x, "token_ids": x["token_ids"].copy()}
    changed["token_ids"][:, 1] = 1
    assert (model(changed).numpy()[:, 1] != model(x).numpy()[:, 1]).any()


@pytest.mark.parametrize("objective", ["every", "masked"])
def test_padding_changes_nothing(objective) -> None:
    model = build(objective)
    x = inputs()
    short = {
        "token_ids": x["token_ids"][1:2, :4],
        "padding_mask": x["padding_mask"][1:2, :4],
        "masked_positions": x["masked_positions"][1:2, :4],
    }
    np.testing.assert_allclose(model(x)[1, :4], model(short)[0], atol=1e-6)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("objective", ["every", "masked"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_it_trains_under_plain_keras_fit(objective, dtype) -> None:
    model = build(objective, dtype)
    model.compile("adam", SparseCrossEntropy())
    x = inputs()
    labels = x["token_ids"]
    history = model.fit(x, labels, sample_weight=x["padding_mask"].astype(np.float32), epochs=8, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert model(x).dtype == tf.float32
    assert all(w.dtype == "float32" for w in model.weights if "seed" not in w.path)


@pytest.mark.parametrize("objective", ["every", "masked"])
def test_a_saved_model_file_loads_again(objective, tmp_path) -> None:
    model = build(objective)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(inputs()), model(inputs()), atol=1e-6)


def test_it_starts_from_the_frequencies() -> None:
    frequencies = np.arange(20.0) ** 2
    model = build_mlm_gru(20, embedding_size=8, units=6, frequencies=frequencies)
    expected = np.log((frequencies + 0.5) / (frequencies + 0.5).sum())
    np.testing.assert_allclose(model.get_layer("logits").bias.numpy(), expected, rtol=1e-5)

"""What is trained with adapters, that they are merged to the letter, and what is kept of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.models.bert import DENSE_LAYERS, build_bert
from karpa_tf.models.bert_classifier import build_bert_classifier
from karpa_tf.models.bert_tagger import CASES, build_bert_tagger
from karpa_tf.models.lora import enable_lora, freeze_encoder, merge_lora
from karpa_tf.training.callbacks import load_trained, save_trained
from karpa_tf.training.optimizers import AdamW

RANK = 2


def build(dtype: str = "float32", pooling: Any = "cls") -> keras.Model:
    """A classifier of one seed: always the same weights."""
    keras.utils.set_random_seed(1)
    bert = build_bert(30, layers=2, heads=2, width=8, intermediate=12, positions=8, dropout=0.0, dtype=dtype)
    return build_bert_classifier(bert, 3, pooling=pooling, dropout=0.0)


def inputs() -> dict[str, np.ndarray]:
    mask = np.arange(6) < np.array([6, 3, 1])[:, None]
    ids = np.random.default_rng(2).integers(5, 30, (3, 6)) * mask
    return {"token_ids": ids.astype(np.int32), "segment_ids": 0 * ids.astype(np.int32), "padding_mask": mask}


def train(model: keras.Model, steps: int = 4) -> None:
    variables = model.trainable_variables
    optimizer = AdamW(0.05, weight_decay=0.01, lazy=True)
    optimizer.build(variables)
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(inputs(), training=True) - tf.constant([[1.0, -2.0, 3.0]])) ** 2)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)


@pytest.fixture(scope="module")
def adapted() -> keras.Model:
    """A model with trained adapters; tests only read it."""
    model = build()
    enable_lora(model, RANK)
    train(model)
    return model


def trained_names(model: keras.Model) -> set[str]:
    return {v.path for v in model.trainable_variables}


HEAD = {f"{layer}/{kind}" for layer in ("pooled", "logits") for kind in ("kernel", "bias")}


@pytest.mark.parametrize("targets", [DENSE_LAYERS, ("query", "value"), ("output",), ()])
def test_adapters_the_biases_beside_them_and_the_head_are_trained(targets) -> None:
    model = build()
    before = model(inputs()).numpy()
    enable_lora(model, RANK, targets)
    parts = ("bias", "lora_kernel_a", "lora_kernel_b")
    assert trained_names(model) == HEAD | {
        f"block_{block}/{target}/{part}" for block in (0, 1) for target in targets for part in parts
    }
    assert len(model.trainable_variables) == len(trained_names(model)), "each has a path of its own"
    np.testing.assert_array_equal(model(inputs()), before)


def test_only_what_is_to_be_trained_moves(adapted) -> None:
    before = {v.path: np.asarray(v) for v in build().weights}
    trained = trained_names(adapted)
    assert len(trained) == 2 * 6 * 3 + 4
    for variable in adapted.weights:
        if "lora" not in variable.path:
            same = np.array_equal(variable, before[variable.path])
            assert same == (variable.path not in trained), variable.path
        elif variable.path.endswith("lora_kernel_b"):
            assert np.abs(variable).max() > 0.01, variable.path


def test_a_target_that_is_none_is_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match=r"targets must be among query, .* Received: attention\."):
        enable_lora(model, RANK, ["query", "attention"])
    assert len(model.trainable_variables) == len(model.weights), "and nothing was frozen"


def test_a_model_like_minilm_trains_less_than_three_percent() -> None:
    bert = build_bert(30_522, layers=6, heads=12, width=384, intermediate=1536)
    model = build_bert_classifier(bert, 77)
    enable_lora(model, 8)
    every = sum(int(np.prod(v.shape)) for v in model.weights)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    adapters = 6 * 8 * (4 * (384 + 384) + 2 * (384 + 1536))
    assert trained == adapters + 6 * (5 * 384 + 1536) + 384 * 77 + 77
    assert trained < 0.03 * every


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_freezing_leaves_the_head_alone(pooling) -> None:
    model = build(pooling=pooling)
    freeze_encoder(model)
    assert trained_names(model) == (HEAD if pooling == "cls" else {"logits/kernel", "logits/bias"})


def test_a_merged_model_gives_the_same(adapted) -> None:
    plain = build()
    names = [w.path for w in plain.weights]
    assert np.abs(plain(inputs()) - adapted(inputs())).max() > 0.1
    merge_lora(adapted, plain)
    np.testing.assert_allclose(plain(inputs()), adapted(inputs()), atol=1e-5)
    assert [w.path for w in plain.weights] == names
    merge_lora(adapted, plain)  # once more adds nothing
    np.testing.assert_allclose(plain(inputs()), adapted(inputs()), atol=1e-5)


@pytest.mark.usefixtures("bfloat16")
def test_merging_does_not_round_to_bfloat16(adapted, tmp_path) -> None:
    save_trained(adapted, tmp_path / "a.h5")
    mixed, plain, exact = build("mixed_bfloat16"), build(), build()
    enable_lora(mixed, RANK)
    load_trained(mixed, tmp_path / "a.h5")
    merge_lora(mixed, plain)
    merge_lora(adapted, exact)
    for value, expected in zip(plain.get_weights(), exact.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_tagger_is_merged_with_its_cases() -> None:
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        bert = build_bert(30, layers=1, heads=2, width=8, intermediate=12, positions=8)
        models.append(build_bert_tagger(bert, 4, cases=True))
    model, plain = models
    enable_lora(model, RANK)
    assert "case_embedding/embeddings" in trained_names(model)
    for seed, variable in enumerate(model.trainable_variables):
        variable.assign(keras.random.normal(variable.shape, stddev=0.3, seed=seed))
    merge_lora(model, plain)
    x = {**inputs(), "case_ids": inputs()["token_ids"] % CASES}
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)


# --- What is kept ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(adapted: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "trained.weights.h5"
    save_trained(adapted, path)
    return path


def test_what_was_trained_comes_back_exactly(adapted, file) -> None:
    model = build()
    enable_lora(model, RANK)
    load_trained(model, file)
    np.testing.assert_array_equal(model(inputs()), adapted(inputs()))
    for value, expected in zip(model.get_weights(), adapted.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_the_file_holds_nothing_else(adapted, file) -> None:
    with h5py.File(file) as opened:
        names: set[str] = set()
        opened.visititems(lambda name, item: names.add(name) if isinstance(item, h5py.Dataset) else None)
    assert names == trained_names(adapted)
    assert not any("token_embedding" in name or name.endswith("/query/kernel") for name in names)


@pytest.mark.parametrize(
    ("rank", "targets", "odd"),
    [
        (RANK, ("query",), "block_0/attention_output/bias"),
        (RANK + 1, DENSE_LAYERS, "block_0/attention_output/lora_kernel_a"),
        (None, (), "block_0/attention_output/bias"),
    ],
)
def test_the_file_of_another_method_is_refused_whole(rank, targets, odd, file) -> None:
    model = build()
    if rank:
        enable_lora(model, rank, targets)
    else:
        freeze_encoder(model)
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"holds other variables than the model trains, e.g. {odd}$"):
        load_trained(model, file)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_file_of_something_else_is_refused(adapted, tmp_path) -> None:
    adapted.save_weights(tmp_path / "whole.weights.h5")
    with pytest.raises(ValueError, match="holds other variables"):
        load_trained(adapted, tmp_path / "whole.weights.h5")
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(OSError):
        load_trained(adapted, tmp_path / "text.h5")

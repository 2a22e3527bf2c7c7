"""Pretrained BERTs so small that tests can write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.wordpiece import SPECIAL

PIECES = [*SPECIAL, "cat", "dog", "##s", "eats"]
WIDTH, INTERMEDIATE, POSITIONS, ROWS = 8, 12, 16, 11
CONFIG = {
    "model_type": "bert",
    "vocab_size": ROWS,  # two rows to spare
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": WIDTH,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


def tensors(
    layers: int = 1, prefix: str = "bert.", norm: tuple[str, str] = ("weight", "bias")
) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names; `norm`: what it calls gamma and beta."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (ROWS, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "pooler.dense.weight": (WIDTH, WIDTH),
        "pooler.dense.bias": (WIDTH,),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(layers):
        at = f"encoder.layer.{number}."
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        dense = {f"attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
        dense |= {"attention.output.dense": (WIDTH, WIDTH), "intermediate.dense": (INTERMEDIATE, WIDTH)}
        for name, shape in {**dense, "output.dense": (WIDTH, INTERMEDIATE)}.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.{kind}": (WIDTH,) for kind in norm}
    return {f"{prefix}{name}": rng.normal(0, 0.4, shape).astype("float32") for name, shape in shapes.items()}


def write_folder(folder: Path, *, weights: dict[str, np.ndarray] | None = None, **files: Any) -> Path:
    """A folder in Hugging Face's form.

    Args:
        folder: where.
        weights: under Hugging Face's names.
        **files: text or JSON of further files, by name with `_` for `.`; None: not there.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights or tensors(), folder / "model.safetensors")
    contents = {
        "config_json": CONFIG,
        "vocab_txt": "\n".join(PIECES) + "\n",
        "tokenizer_config_json": {"do_lower_case": True},
        **files,
    }
    for name, content in contents.items():
        if content is not None:
            stem, _, suffix = name.rpartition("_")
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return folder

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
    layers: int = 1,
    prefix: str = "bert.",
    norm: tuple[str, str] = ("weight", "bias"),
    sizes: tuple[int, int, int, int] = (ROWS, WIDTH, INTERMEDIATE, POSITIONS),
    scale: float = 0.4,
) -> dict[str, np.ndarray]:
    """Random weights under Hugging Face's names; `norm`: what it calls gamma and beta."""
    rng = np.random.default_rng(0)
    rows, width, intermediate, positions = sizes
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (rows, width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(layers):
        at = f"encoder.layer.{number}."
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        dense = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        dense |= {"attention.output.dense": (width, width), "intermediate.dense": (intermediate, width)}
        for name, shape in {**dense, "output.dense": (width, intermediate)}.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.{kind}": (width,) for kind in norm}
    return {
        f"{prefix}{name}": rng.normal(0, scale, shape).astype("float32") for name, shape in shapes.items()
    }


def write_reader(folder: Path, vocabulary: Path) -> Path:
    """A BERT of random weights that reads with a vocabulary, of a file with a piece a line."""
    pieces = vocabulary.read_text(encoding="utf-8")
    rows, width, intermediate, positions = len(pieces.split("\n")) - 1, 32, 64, 64
    sizes = {"hidden_size": width, "intermediate_size": intermediate, "vocab_size": rows}
    config = {**CONFIG, **sizes, "max_position_embeddings": positions}
    norm = ("weight", "bias")
    weights = tensors(norm=norm, sizes=(rows, width, intermediate, positions), scale=0.1)
    for name in weights:
        if name.endswith("LayerNorm.weight"):
            weights[name] += 1
    return write_folder(folder, weights=weights, config_json=config, vocab_txt=pieces)


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

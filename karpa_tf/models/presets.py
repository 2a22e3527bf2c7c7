"""Pretrained BERTs: keras-hub's names and folders, Hugging Face's folders and `hf://`."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.models.bert import DENSE_LAYERS, TransformerBlock

_OFFLINE = "without a network give a local folder with --preset, or --preset scratch"


@dataclass(frozen=True)
class Preset:
    """A pretrained encoder.

    Attributes:
        architecture: arguments of `build_bert`, all but `dropout` and `dtype`.
        vocabulary: the pieces in the order of their ids.
        lowercase: whether it reads text in lower case, without accents.
        weights: the arrays, by name.
    """

    architecture: dict[str, Any]
    vocabulary: list[str]
    lowercase: bool
    weights: dict[str, np.ndarray]

    @property
    def fingerprint(self) -> str:
        """Hash of the weights: LoRA's small file is of use on these alone."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.weights[name]).tobytes())
        return digest.hexdigest()

    def assign(self, model: keras.Model) -> None:
        """Puts the weights into a model that was built with `architecture`."""
        for name, variable in encoder_variables(model).items():
            if name.startswith("pooled/") and name not in self.weights:
                continue  # a checkpoint without a pooler: it starts afresh
            variable.assign(np.reshape(self.weights[name], variable.shape))


def load_preset(name: str) -> Preset:
    """Reads a pretrained BERT.

    Args:
        name: one of keras-hub's presets, `hf://USER/MODEL`, or a folder in the form of keras-hub or of
            Hugging Face (config.json, model.safetensors, and vocab.txt or tokenizer.json).

    Raises:
        UserError: there is no such preset, it cannot be downloaded, a file is missing or damaged, or it
            is no BERT.
    """
    import keras_hub

    known = list(keras_hub.models.BertBackbone.presets)
    if name.startswith("hf://"):
        folder = _download(name.removeprefix("hf://"))
    elif Path(name).is_dir():
        folder = Path(name)
    elif name in known or name.startswith("kaggle://"):
        return _load_hub(name)
    else:
        what = "folder" if "/" in name or name.startswith(".") else "preset or folder"
        hint = did_you_mean(name, known, "; give a folder, a preset's name, hf://USER/MODEL, or scratch.")
        raise UserError(f'There is no {what} "{name}"{hint}')
    config = _json(folder / "config.json")
    if "registered_name" in config or "class_name" in config:
        if config.get("class_name") != "BertBackbone":
            raise UserError(
                f'{folder} holds no BERT: config.json must have "class_name": "BertBackbone". '
                f"Received: {config.get('class_name')}."
            )
        for file in ("tokenizer.json", "model.weights.h5"):
            _must_exist(folder, file)
        return _load_hub(str(folder))
    return _load_folder(folder, config)


# --- Hugging Face's form --------------------------------------------------------------------------


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        files = ["config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json"]
        return Path(snapshot_download(repository, allow_patterns=files))
    except Exception as error:  # whatever its HTTP library raises
        raise UserError(
            f"hf://{repository} could not be downloaded ({_reason(error)}); {_OFFLINE}."
        ) from None


def _load_folder(folder: Path, config: dict[str, Any]) -> Preset:
    kind = config.get("model_type")
    if kind != "bert":
        raise UserError(
            f'{folder} holds no BERT: config.json must have "model_type": "bert". Received: {kind}.'
        )
    activations = {"gelu": "gelu", "gelu_new": "gelu_approximate", "gelu_pytorch_tanh": "gelu_approximate"}
    activation = config.get("hidden_act", "gelu")
    if activation not in activations:
        raise UserError(
            f"{folder}: only {', '.join(activations)} are known as hidden_act. Received: {activation}."
        )
    _must_exist(folder, "model.safetensors")
    vocabulary, lowercase = _vocabulary(folder)
    try:
        architecture = {
            "layers": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "width": config["hidden_size"],
            "intermediate": config["intermediate_size"],
            "positions": config["max_position_embeddings"],
            "segments": config.get("type_vocab_size", 2),
            "activation": activations[activation],
            "epsilon": float(config.get("layer_norm_eps", 1e-12)),
        }
        rows = config["vocab_size"]
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} is damaged: it lacks {error}.") from None
    return _preset(
        str(folder), architecture, vocabulary, lowercase, rows, _read_weights(folder, architecture)
    )


# Our names of a block's parts, and Hugging Face's.
_PARTS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def _read_weights(folder: Path, architecture: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reads model.safetensors; keras-hub's reader wants a pooler, which many checkpoints lack."""
    from safetensors.tensorflow import load_file

    path = folder / "model.safetensors"
    try:
        # Task checkpoints put "bert." before the encoder's names; float16 and bfloat16 become float32.
        tensors = {name.removeprefix("bert."): tensor for name, tensor in load_file(path).items()}
    except Exception as error:  # a damaged file raises whatever its reader does
        raise UserError(f"{path} cannot be read ({_reason(error)}); bring back the whole file.") from None

    def read(name: str, older: str = "") -> np.ndarray:
        # Old checkpoints call a layer norm's parts gamma and beta.
        found = tensors.get(name, tensors.get(older))
        if found is None:
            raise UserError(
                f"{path} lacks {name}, which config.json speaks of: bring back the file that is damaged."
            )
        return np.asarray(found).astype(np.float32)

    def norm(ours: str, theirs: str) -> dict[str, np.ndarray]:
        return {
            f"{ours}/gamma": read(f"{theirs}.weight", f"{theirs}.gamma"),
            f"{ours}/beta": read(f"{theirs}.bias", f"{theirs}.beta"),
        }

    def dense(ours: str, theirs: str) -> dict[str, np.ndarray]:
        return {f"{ours}/kernel": read(f"{theirs}.weight").T, f"{ours}/bias": read(f"{theirs}.bias")}

    weights = {
        "token_embedding": read("embeddings.word_embeddings.weight"),
        "position_embedding": read("embeddings.position_embeddings.weight"),
        "segment_embedding": read("embeddings.token_type_embeddings.weight"),
        **norm("norm", "embeddings.LayerNorm"),
    }
    for number in range(architecture["layers"]):
        for ours, theirs in _PARTS.items():
            names = f"block_{number}/{ours}", f"encoder.layer.{number}.{theirs}"
            weights |= norm(*names) if ours.endswith("norm") else dense(*names)
    if "pooler.dense.weight" in tensors:
        weights |= dense("pooled", "pooler.dense")
    return weights


def _vocabulary(folder: Path) -> tuple[list[str], bool]:
    settings = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    tokenizer = _json(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else {}
    if (folder / "vocab.txt").exists():
        from karpa_tf.data.vocabulary import WordPiece

        pieces = WordPiece.load(folder / "vocab.txt").pieces
    else:
        model = tokenizer.get("model") or {}
        ids = model.get("vocab")
        if model.get("type", "WordPiece") != "WordPiece" or not isinstance(ids, dict):
            raise UserError(
                f"{folder} lacks a vocabulary: neither vocab.txt nor a WordPiece tokenizer.json is there."
            )
        by_id = {index: piece for piece, index in ids.items()}
        pieces = [by_id.get(index, "") for index in range(len(ids))]
        if not all(pieces):
            raise UserError(f"{folder / 'tokenizer.json'} is damaged: its ids are not 0 to {len(ids) - 1}.")
    lowercase = settings.get("do_lower_case")
    if lowercase is None:
        lowercase = (tokenizer.get("normalizer") or {}).get("lowercase")
    if lowercase is None:
        # Nothing says so but the pieces themselves: one with a capital is of a cased model.
        lowercase = all(piece == piece.lower() for piece in pieces if not piece.startswith("["))
    return pieces, bool(lowercase)


# --- keras-hub's form -----------------------------------------------------------------------------


def _load_hub(name: str) -> Preset:
    import keras_hub

    backbone = _from_preset(keras_hub.models.BertBackbone, name)
    tokenizer = _from_preset(keras_hub.models.BertTokenizer, name)
    architecture = {**_architecture(backbone), "activation": "gelu_approximate", "epsilon": 1e-12}
    pieces, lowercase = tokenizer.get_vocabulary(), bool(tokenizer.lowercase)
    return _preset(name, architecture, pieces, lowercase, backbone.vocabulary_size, _hub_weights(backbone))


def _from_preset(kind: Any, name: str) -> Any:
    try:
        return kind.from_preset(name)
    except Exception as error:  # a damaged file raises whatever its reader does
        what = "cannot be read" if Path(name).is_dir() else "could not be downloaded"
        mend = "bring back the file that is damaged or missing" if Path(name).is_dir() else _OFFLINE
        raise UserError(f"The preset {name} {what} ({_reason(error)}); {mend}.") from None


def _architecture(backbone: Any) -> dict[str, Any]:
    return {
        "layers": backbone.num_layers,
        "heads": backbone.num_heads,
        "width": backbone.hidden_dim,
        "intermediate": backbone.intermediate_dim,
        "positions": backbone.max_sequence_length,
        "segments": backbone.num_segments,
    }


def _preset(
    name: str,
    architecture: dict[str, Any],
    vocabulary: list[str],
    lowercase: bool,
    rows: int,
    weights: dict[str, np.ndarray],
) -> Preset:
    width = architecture["width"]
    expected = {
        "token_embedding": (rows, width),
        "position_embedding": (architecture["positions"], width),
        "segment_embedding": (architecture["segments"], width),
        **{
            f"block_{number}/intermediate/kernel": (width, architecture["intermediate"])
            for number in range(architecture["layers"])
        },
    }
    for part, shape in expected.items():
        if weights[part].shape != shape:
            raise UserError(
                f"{name}: config.json and the weights do not fit: {part} should be {shape}. "
                f"Received: {weights[part].shape}."
            )
    if len(vocabulary) > rows:
        raise UserError(
            f"{name}: the vocabulary has {len(vocabulary):,} pieces, and the weights have "
            f"{rows:,}; they do not belong together."
        )
    # Some checkpoints have rows to spare beyond their vocabulary.
    architecture["vocabulary_size"] = rows
    return Preset(architecture, list(vocabulary), lowercase, weights)


# --- Weights by name ------------------------------------------------------------------------------


def encoder_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the variables of the encoder in a model, and of the pooler if it has one, by name."""
    embeddings = model.get_layer("embeddings")
    named = {
        "token_embedding": embeddings.tokens.embeddings,
        "position_embedding": embeddings.positions.embeddings,
        "segment_embedding": embeddings.segments.embeddings,
        "norm/gamma": embeddings.norm.gamma,
        "norm/beta": embeddings.norm.beta,
    }
    for block in blocks(model):
        for name in DENSE_LAYERS:
            layer = block.dense_layer(name)
            named[f"{block.name}/{name}/kernel"] = layer._kernel
            named[f"{block.name}/{name}/bias"] = layer.bias
        for norm in (block.attention_norm, block.output_norm):
            named[f"{block.name}/{norm.name}/gamma"] = norm.gamma
            named[f"{block.name}/{norm.name}/beta"] = norm.beta
    for layer in model.layers:
        if layer.name == "pooled":
            named["pooled/kernel"], named["pooled/bias"] = layer.kernel, layer.bias
    return named


def blocks(model: keras.Model) -> Sequence[TransformerBlock]:
    """Returns the transformer blocks of a model, first to last."""
    return [layer for layer in model.layers if isinstance(layer, TransformerBlock)]


def _hub_weights(backbone: Any) -> dict[str, np.ndarray]:
    norm = backbone.embeddings_layer_norm
    found = {
        "token_embedding": backbone.token_embedding.embeddings,
        "position_embedding": backbone.position_embedding.position_embeddings,
        "segment_embedding": backbone.segment_embedding.embeddings,
        "norm/gamma": norm.gamma,
        "norm/beta": norm.beta,
        "pooled/kernel": backbone.pooled_dense.kernel,
        "pooled/bias": backbone.pooled_dense.bias,
    }
    # keras-hub's block has no public names for its parts; their paths are its file format.
    parts = {
        "query": "self_attention_layer/query",
        "key": "self_attention_layer/key",
        "value": "self_attention_layer/value",
        "attention_output": "self_attention_layer/attention_output",
        "intermediate": "feedforward_intermediate_dense",
        "output": "feedforward_output_dense",
        "attention_norm": "self_attention_layer_norm",
        "output_norm": "feedforward_layer_norm",
    }
    for number, layer in enumerate(backbone.transformer_layers):
        by_path = {v.path.split("/", 1)[1]: v for v in layer.weights}
        for ours, theirs in parts.items():
            for kind in ("gamma", "beta") if ours.endswith("norm") else ("kernel", "bias"):
                found[f"block_{number}/{ours}/{kind}"] = by_path[f"{theirs}/{kind}"]
    return {name: np.asarray(variable) for name, variable in found.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no preset: it lacks {path.name}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {_reason(error)}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object.")
    return value


def _must_exist(folder: Path, file: str) -> None:
    if not (folder / file).is_file():
        raise UserError(f"{folder} is no whole preset: it lacks {file}.")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 150, placeholder=' ...')}"

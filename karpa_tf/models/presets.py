"""Pretrained BERTs: keras-hub's names and folders, Hugging Face's folders and `hf://`."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from karpa_tf import private
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine
from karpa_tf.models.bert import DENSE_LAYERS, TransformerBlock
from karpa_tf.models.preset_tokenizer import read_object, read_tokenizer, reason
from karpa_tf.wordpiece import WordPiece

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHER_WEIGHTS = ("pytorch_model*.bin", "tf_model.h5", "flax_model.msgpack", "*.ckpt*", "*.bin", "*.pt")
# Settings of config.json that may have these values alone, the first one if they are not there.
_ONLY: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
}
_OFFLINE = "without a network give a local folder with --preset, or --preset scratch"


@dataclass(frozen=True, repr=False)
class Preset(InALine):
    """A pretrained encoder.

    Attributes:
        architecture: arguments of `build_bert`, all but `dropout` and `dtype`.
        vocabulary: the pieces in the order of their ids.
        lowercase: whether it reads text in lower case.
        weights: the arrays, by name.
        tokenization: how else it reads text, where that is not as usual: options of `WordPiece`.
        head: the arrays of its masked language model's head, by name; empty: it brings none.
    """

    architecture: dict[str, Any]
    vocabulary: list[str]
    lowercase: bool
    weights: dict[str, np.ndarray]
    tokenization: dict[str, Any] = field(default_factory=dict)
    head: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def wordpiece(self) -> WordPiece:
        """What cuts texts into its pieces."""
        return WordPiece(self.vocabulary, self.lowercase, **self.tokenization)

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
        for layer in model.layers:
            if layer.name == "masked_head" and self.head:
                layer.set_weights([self.head[variable.path.split("/", 1)[1]] for variable in layer.weights])


def load_preset(name: str) -> Preset:
    """Reads a pretrained BERT.

    Args:
        name: one of keras-hub's presets, `hf://USER/MODEL`, or a folder in the form of keras-hub or of
            Hugging Face (config.json, model.safetensors or its parts, and vocab.txt or tokenizer.json).

    Returns:
        Its architecture, vocabulary and weights, in memory.

    Raises:
        UserError: there is no such preset, it cannot be downloaded, a file is missing or damaged, it is no
            BERT, or it reads text or attends in a way that is not built here.
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
    config = read_object(folder / "config.json")
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
        files = ["config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
        weights = [_WEIGHTS, _INDEX, "model-*.safetensors"]
        return Path(snapshot_download(repository, allow_patterns=[*files, *weights]))
    except Exception as error:  # whatever its HTTP library raises
        raise UserError(f"hf://{repository} could not be downloaded ({reason(error)}); {_OFFLINE}.") from None


def _load_folder(folder: Path, config: dict[str, Any]) -> Preset:
    kind = config.get("model_type", "bert" if _looks_like_bert(config) else None)
    if kind != "bert":
        raise UserError(
            f'{folder} holds no BERT: config.json must have "model_type": "bert". Received: {kind}.'
        )
    for name, known in _ONLY.items():
        if config.get(name, known[0]) not in known:
            raise UserError(
                f"{folder} is a BERT of a kind that is not built here: config.json must have {name} "
                f"{json.dumps(known[0])}. Received: {textwrap.shorten(json.dumps(config[name]), 80)}."
            )
    activations = {"gelu": "gelu", "gelu_new": "gelu_approximate", "gelu_pytorch_tanh": "gelu_approximate"}
    activation = config.get("hidden_act", "gelu")
    if activation not in activations:
        raise UserError(
            f"{folder}: only {', '.join(activations)} are known as hidden_act. Received: {activation}."
        )
    files = _weight_files(folder)
    vocabulary, lowercase, tokenization = read_tokenizer(folder)
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
    weights, head = _read_weights(files, architecture)
    return _preset(str(folder), architecture, vocabulary, lowercase, rows, weights, tokenization, head)


def _looks_like_bert(config: Mapping[str, Any]) -> bool:
    """Whether a config.json that is older than `model_type` describes a BERT."""
    sizes = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"}
    kinds = config.get("architectures") or ["Bert"]
    return sizes <= set(config) and all(str(kind).startswith("Bert") for kind in kinds)


def _weight_files(folder: Path) -> list[Path]:
    """Returns the files that hold the weights: model.safetensors, or the parts that its index names."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        parts = read_object(folder / _INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise UserError(f"{folder / _INDEX} is damaged: it has no weight_map.")
        names = sorted({str(name) for name in parts.values()})
        for name in names:
            _must_exist(folder, name)
        return [folder / name for name in names]
    others = [path.name for end in _OTHER_WEIGHTS for path in sorted(folder.glob(end))]
    if others:
        raise UserError(
            f"{folder} has its weights in {others[0]} alone, and {_WEIGHTS} is read. Where torch and "
            'transformers are installed, this writes it: python -c "from transformers import AutoModel as M; '
            f"M.from_pretrained('{folder}').save_pretrained('{folder}')\"."
        )
    _must_exist(folder, _WEIGHTS)
    return []


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


def _read_weights(
    files: Sequence[Path], architecture: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads .safetensors files: an encoder's arrays, and those of the masked language model's head, if any.

    keras-hub's reader wants a pooler, which many checkpoints lack.
    """
    from safetensors.tensorflow import load_file

    tensors: dict[str, Any] = {}
    for path in files:
        try:
            # Task checkpoints put "bert." before the encoder's names; float16 and bfloat16 become float32.
            tensors |= {name.removeprefix("bert."): tensor for name, tensor in load_file(path).items()}
        except Exception as error:  # a damaged file raises whatever its reader does
            raise UserError(f"{path} cannot be read ({reason(error)}); bring back the whole file.") from None

    def read(name: str, older: str = "") -> np.ndarray:
        # Old checkpoints call a layer norm's parts gamma and beta.
        found = tensors.get(name, tensors.get(older))
        if found is None:
            raise UserError(
                f"{path} lacks {name}, which config.json speaks of: bring back the file that is damaged."
            )
        if not found.dtype.is_floating:
            raise UserError(
                f"{path} holds {name} in {found.dtype.name}: quantized weights are not read; give the model "
                "they were made of."
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
    head: dict[str, np.ndarray] = {}
    at, decoder = "cls.predictions", tensors.get("cls.predictions.decoder.weight")
    tied = decoder is None or np.array_equal(np.asarray(decoder), weights["token_embedding"])
    if f"{at}.transform.dense.weight" in tensors and tied:
        head = dense("transform", f"{at}.transform.dense") | norm("norm", f"{at}.transform.LayerNorm")
        head["bias"] = read(f"{at}.bias", f"{at}.decoder.bias")
    return weights, head


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
        raise UserError(f"The preset {name} {what} ({reason(error)}); {mend}.") from None


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
    tokenization: dict[str, Any] | None = None,
    head: dict[str, np.ndarray] | None = None,
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
    return Preset(architecture, list(vocabulary), lowercase, weights, dict(tokenization or {}), head or {})


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
            named[f"{block.name}/{name}/kernel"] = private.kernel(layer)
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


def _must_exist(folder: Path, file: str) -> None:
    if not (folder / file).is_file():
        raise UserError(f"{folder} is no whole preset: it lacks {file}.")

"""How a folder of a Hugging Face model says that text is read: its pieces, case, accents, added tokens."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError
from karpa_tf.wordpiece import SPECIAL, WordPiece

# Tokenizers that read text as BERT's does.
_TOKENIZERS = (
    *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer", "PreTrainedTokenizer"),
    "TokenizersBackend",
)


def read_tokenizer(folder: Path) -> tuple[list[str], bool, dict[str, Any]]:
    """Returns the pieces, whether text is read in lower case, and further options of `WordPiece`."""
    settings, tokenizer = (
        read_object(folder / name) if (folder / name).exists() else {}
        for name in ("tokenizer_config.json", "tokenizer.json")
    )
    if (folder / "vocab.txt").exists():
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
    reading = {**_normalizer(folder, tokenizer), **_reading(folder, settings)}
    _check_tokenizer(folder, tokenizer)
    lowercase = reading.pop("lowercase", None)
    if lowercase is None:
        # Nothing says so but the pieces themselves: one with a capital is of a cased model.
        lowercase = all(piece == piece.lower() for piece in pieces if not piece.startswith("["))
    pieces, reading["added"] = _with_added(folder, pieces, settings, tokenizer)
    return pieces, bool(lowercase), WordPiece(pieces, bool(lowercase), **reading).options


def _reading(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tokenizer_config.json says of how text is read."""
    path = folder / "tokenizer_config.json"
    kind = settings.get("tokenizer_class") or "BertTokenizer"
    if str(kind).removesuffix("Fast") not in _TOKENIZERS:
        raise _unread(path, "tokenizer_class", kind)
    for name, usual in (("do_basic_tokenize", True), ("never_split", None)):
        if (settings.get(name) or usual) != usual or settings.get(name) is (not usual):
            raise _unread(path, name, settings[name])
    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "split_ideographs",
    }
    return {ours: settings[name] for name, ours in names.items() if settings.get(name) is not None}


def _normalizer(folder: Path, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tokenizer.json says of how text is read."""
    path = folder / "tokenizer.json"
    if "normalizer" not in tokenizer:
        return {}
    parts = list(_normalizers(tokenizer["normalizer"]))
    kinds = [part.get("type", "BertNormalizer") for part in parts]
    for kind in kinds:
        if kind not in ("BertNormalizer", "Lowercase", "NFD", "StripAccents"):
            raise _unread(path, "normalizer", kind)
    if "BertNormalizer" not in kinds:
        if "NFD" in kinds and "StripAccents" not in kinds:
            raise _unread(path, "normalizer", "NFD")
        strips = "StripAccents" in kinds
        return {"lowercase": "Lowercase" in kinds, "strip_accents": strips, "split_ideographs": False}
    if len(kinds) > 1:
        raise _unread(path, "normalizer", ", ".join(kinds))
    (bert,) = parts
    if not bert.get("clean_text", True):
        raise _unread(path, "clean_text", False)
    names = {
        "lowercase": "lowercase",
        "strip_accents": "strip_accents",
        "handle_chinese_chars": "split_ideographs",
    }
    return {ours: bert[name] for name, ours in names.items() if bert.get(name) is not None}


def _normalizers(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, dict) and value.get("type") == "Sequence":
        for part in value.get("normalizers") or []:
            yield from _normalizers(part)
    elif isinstance(value, dict):
        yield value


def _check_tokenizer(folder: Path, tokenizer: Mapping[str, Any]) -> None:
    """Raises a UserError for what tokenizer.json may ask beside its normalizer and cannot get here."""
    before = (tokenizer.get("pre_tokenizer") or {}).get("type", "BertPreTokenizer")
    model = tokenizer.get("model") or {}
    found = {
        "pre_tokenizer": (before, "BertPreTokenizer"),
        "unk_token": (model.get("unk_token", "[UNK]"), "[UNK]"),
        "continuing_subword_prefix": (model.get("continuing_subword_prefix", "##"), "##"),
        "max_input_chars_per_word": (model.get("max_input_chars_per_word", 100), 100),
    }
    for name, (value, usual) in found.items():
        if value != usual:
            raise _unread(folder / "tokenizer.json", name, value)


def _unread(path: Path, name: str, value: Any) -> UserError:
    said = textwrap.shorten(json.dumps(value, ensure_ascii=False), 80)
    return UserError(
        f"{path} asks for a way of reading text that is not built here, and with another one the model would "
        f"see other pieces than it was trained on: {name}. Received: {said}."
    )


def _with_added(
    folder: Path, pieces: Sequence[str], settings: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> tuple[list[str], dict[str, bool]]:
    """Returns the pieces with those that were added later, and which ones are found as `WordPiece` says."""
    later: dict[str, dict[str, Any]] = {}
    if (folder / "added_tokens.json").exists():
        later |= {content: {"id": i} for content, i in read_object(folder / "added_tokens.json").items()}
    decoder = settings.get("added_tokens_decoder") or {}
    later |= {token["content"]: {**token, "id": int(i)} for i, token in decoder.items()}
    later |= {token["content"]: token for token in tokenizer.get("added_tokens") or []}
    result, added = list(pieces), {}
    for content, token in sorted(later.items(), key=lambda item: item[1]["id"]):
        place = token["id"]
        if place == len(result):
            result.append(content)
        elif place > len(result) or result[place] != content:
            has = f'has "{result[place]}"' if place < len(result) else f"ends at {len(result) - 1}"
            raise UserError(
                f'{folder}: the added token "{content}" has the number {place}, where the vocabulary {has}; '
                "bring back the files that belong together."
            )
        if content in SPECIAL:
            continue  # a text that holds [SEP] says nothing to the model here
        if token.get("single_word"):
            raise _unread(folder, "single_word of an added token", content)
        added[content] = not token.get("normalized", not token.get("special", False))
    return result, added


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file is not there, or holds no such.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} is no preset: it lacks {path.name}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object.")
    return value


def reason(error: Exception) -> str:
    """Returns an exception as a short text, for a sentence."""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 150, placeholder=' ...')}"

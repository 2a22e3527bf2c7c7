"""Rows in and out of `predict`: words of the command line, standard input, .txt, .csv, .jsonl."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.training.run_folder import writing


def read(words: Sequence[str], path: str, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a dict a row, with a value for each input of a signature.

    Args:
        words: what was typed, a row each.
        path: a .txt (a row a line), .csv or .jsonl file (a column an input); or empty.
        inputs: the signature's inputs by name.

    Raises:
        UserError: no rows, a file that cannot be read, or a row that lacks an input.
    """
    if words and path:
        raise UserError("Give inputs as words or with --input, not both.")
    if path:
        rows = _read_file(Path(path), list(inputs))
    else:
        lines = words or [line.rstrip("\r\n") for line in sys.stdin]
        rows = [_from_line(line, list(inputs)) for line in lines if line.strip()]
    if not rows:
        raise UserError(f"There is nothing to predict in {path or 'the input'}: no rows.")
    return rows


def _read_file(path: Path, inputs: list[str]) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix in (".csv", ".tsv"):
                reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
                _check_columns(path, list(reader.fieldnames or []), inputs)
                return [{name: row[name] for name in inputs} for row in reader]
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in file if line.strip()]
                for row in rows:
                    _check_columns(path, list(row), inputs)
                return [{name: row[name] for name in inputs} for row in rows]
            if path.suffix == ".txt":
                return [_from_line(line.rstrip("\r\n"), inputs) for line in file if line.strip()]
    except OSError as error:
        raise UserError(f"--input: {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(f"--input: {path} cannot be read: {' '.join(str(error).split())}.") from None
    raise UserError(f"--input takes a .txt, .csv or .jsonl file. Received: {path}.")


def _check_columns(path: Path, columns: list[str], inputs: list[str]) -> None:
    for name in inputs:
        if name not in columns:
            raise UserError(
                f'{path} has no column "{name}"{did_you_mean(name, columns)} It has: {", ".join(columns)}.'
            )


def _from_line(line: str, inputs: list[str]) -> dict[str, Any]:
    if len(inputs) == 1 and inputs[0] == "text":
        return {"text": line}
    if len(inputs) == 1 and inputs[0] == "image" and not line.lstrip().startswith(("[", "{")):
        return {"image": line}  # the path of a file; the signature reads it
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if len(inputs) == 1 and row is not None and not isinstance(row, dict):
        row = {inputs[0]: row}
    if not isinstance(row, dict) or not set(inputs) <= set(row):
        raise UserError(f"A row is one JSON object with {', '.join(inputs)}. Received: {line[:80]}.")
    return {name: row[name] for name in inputs}


def write(path: str, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
    """Writes a row of inputs and outputs each to a .csv or .jsonl file, whole or not at all.

    Raises:
        UserError: another kind of file, or one that cannot be written.
    """
    target = Path(path)
    if target.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--output takes a .csv or .jsonl file. Received: {path}.")
    temporary = target.with_name(f".{target.name}.tmp")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                merged = [{**row, **result} for row, result in zip(inputs, outputs, strict=True)]
                if target.suffix == ".jsonl":
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in merged)
                else:
                    writer = csv.DictWriter(file, list(merged[0]))
                    writer.writeheader()
                    writer.writerows(
                        {
                            k: v if isinstance(v, (str, int, float)) else json.dumps(v, ensure_ascii=False)
                            for k, v in row.items()
                        }
                        for row in merged
                    )
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def format(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields lines for people: a row's inputs, its one-value outputs, then lists with their scores."""
    for row, result in zip(inputs, outputs, strict=True):
        # An image that is no file is written as nested lists: too much for a line.
        yield "  ".join(str(value) if len(str(value)) < 2000 else "[...]" for value in row.values())
        if "label" in result and "probabilities" in result:
            yield f"  {result['label']}  {max(result['probabilities']):.3f}"
            continue
        for name, value in result.items():
            if name == "top_tokens":
                for tokens, scores in zip(value, result["top_scores"], strict=True):
                    pairs = [f"{t} {s:.3f}" for t, s in zip(tokens, scores, strict=True) if t]
                    if pairs:
                        yield "    " + "  ".join(pairs)
            elif name == "tokens":
                for token, tag, score in zip(value, result["tags"], result["scores"], strict=True):
                    if token:
                        yield f"  {token}\t{tag}\t{score:.3f}"
            elif name not in ("top_scores", "tags", "scores"):
                yield f"  {value}"

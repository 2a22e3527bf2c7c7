"""Whether each row of a signature is answered as if alone: run alone, and in batches, and compared.

Imports no TensorFlow and nothing of this package: `verify` uses it, in the process that loads what was
exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

# Sizes of the batches, beside that of all examples. Kernels change their ways with the size.
_SIZES = (2, 3, 8, 17)
# Of the rows that differ, so many are named.
_NAMED = 3


def compare(
    run: Callable[[Arrays], Arrays],
    inputs: Arrays,
    open_inputs: Mapping[str, Sequence[int]],
    open_outputs: Mapping[str, Sequence[int]],
    tolerance: float,
) -> dict[str, Any]:
    """Runs a signature on each row alone and on batches, and says what it saw.

    Args:
        run: the signature.
        inputs: an array an input, with a row an example.
        open_inputs, open_outputs: by name the axes, behind the first, of which the signature names no size.
        tolerance: of floating-point outputs, relative and absolute.

    Returns:
        `rowwise`: each row was answered as if alone. `reason`: why, or why not. `lengths`: by output, the
        output that says how wide its rows are. `differs`: sentences that name rows whose answers differ.
        `batches`: the sizes.
    """
    rows = len(next(iter(inputs.values())))
    alone = [run(_take(inputs, [row])) for row in range(rows)]
    batches = [(chosen, run(_take(inputs, chosen))) for chosen in _batches(inputs, rows)]
    report: dict[str, Any] = {
        "rowwise": False,
        "examples": rows,
        "batches": [len(chosen) for chosen, _ in batches],
        "lengths": {},
        "differs": [],
    }
    lengths = {}
    for name in open_outputs:
        if list(open_outputs[name]) == [1] and (length := _length_of(name, alone, batches)):
            lengths[name] = length
    unknown = set()
    for chosen, outputs in batches:
        for place, row in enumerate(chosen):
            for name, value in outputs.items():
                single = alone[row][name]
                if value.ndim == 0 or len(value) != len(chosen) or single.ndim == 0 or len(single) != 1:
                    return report | {"reason": f'the output "{name}" has no rows'}
                own, other = single[0, ...], value[place, ...]
                if own.shape != other.shape:
                    if name not in lengths:
                        unknown.add(name)
                    common = tuple(slice(min(a, b)) for a, b in zip(own.shape, other.shape, strict=False))
                    own, other = own[common], other[common]
                if not _equal(own, other, tolerance):
                    report["differs"].append(
                        f'example {row} answers "{name}" {_short(own, other)} alone and '
                        f"{_short(other, own)} beside {_others(chosen, place)}"
                    )
    if report["differs"]:
        report["differs"] = list(dict.fromkeys(report["differs"]))[:_NAMED]
        return report | {"reason": f"its rows depend on each other: {report['differs'][0]}"}
    if unknown:
        name = sorted(unknown)[0]
        return report | {
            "reason": f'the width of "{name}" follows from the neighbours, and no output says how wide '
            "a row is"
        }
    if len({_key(inputs, row) for row in range(rows)}) < 2:
        return report | {"reason": "only one example was there, which shows nothing"}
    for name in open_outputs:
        if name not in lengths and not _follows(run, name, inputs, open_inputs, open_outputs[name]):
            return report | {"reason": f'nothing says what the width of "{name}" depends on'}
    sizes = ", ".join(str(size) for size in sorted({1, *report["batches"]}))
    return report | {
        "rowwise": True,
        "lengths": lengths,
        "reason": f"at export {rows} examples were answered alike alone and in batches ({sizes} rows)",
    }


def _take(inputs: Arrays, rows: Sequence[int]) -> Arrays:
    return {name: array[list(rows)] for name, array in inputs.items()}


def _key(inputs: Arrays, row: int) -> bytes:
    return b"|".join(
        repr(array[row, ...].tolist()).encode() if array.dtype == object else array[row, ...].tobytes()
        for array in inputs.values()
    )


def _batches(inputs: Arrays, rows: int) -> list[list[int]]:
    """Rows in a shuffled order: of several sizes, and the shortest, the longest and both together."""
    rng = np.random.default_rng(0)

    def size(row: int) -> int:
        return len(_key(inputs, row))

    short, *_, long = sorted(range(rows), key=size) if rows > 1 else [0, 0]
    chosen = [[short, short], [long, long], [short, long, short]]
    chosen += [rng.integers(0, rows, count).tolist() for count in _SIZES]
    return [*chosen, rng.permutation(rows).tolist()]


def _equal(own: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    if own.dtype.kind not in "fc":
        return bool(np.array_equal(own, other))
    return bool(np.allclose(other, own, rtol=tolerance, atol=tolerance, equal_nan=True))


def _short(value: np.ndarray, other: np.ndarray) -> str:
    """The first value that differs."""
    flat, others = np.atleast_1d(value).ravel(), np.atleast_1d(other).ravel()
    different = np.flatnonzero(flat != others)
    item = flat[different[0] if len(different) else 0]
    return repr(item.item() if isinstance(item, np.generic) else item)[:60]


def _others(chosen: Sequence[int], place: int) -> str:
    rest = sorted({*chosen[:place], *chosen[place + 1 :]})
    return f"example{'s' * (len(rest) > 1)} {', '.join(map(str, rest))}"


def _length_of(name: str, alone: list[Arrays], batches: list[tuple[list[int], Arrays]]) -> str | None:
    """Returns the output that says how wide each row of another one is, in every run."""
    widths = [outputs[name].shape[1] for outputs in alone if outputs[name].ndim > 1]
    if len(widths) < len(alone) or len(set(widths)) < 2:
        return None  # nothing varies, so that anything could be it

    def is_width(length: str, outputs: Arrays) -> bool:
        value = outputs[length]
        rows = outputs[name]
        fits = value.dtype.kind == "i" and value.ndim == 1 and rows.ndim > 1 and len(value) == len(rows)
        return fits and rows.shape[1] == int(value.max(initial=0))

    runs = [*alone, *(outputs for _, outputs in batches)]
    found = [
        other for other in alone[0] if other != name and all(is_width(other, outputs) for outputs in runs)
    ]
    return found[0] if found else None


def _follows(
    run: Callable[[Arrays], Arrays],
    name: str,
    inputs: Arrays,
    open_inputs: Mapping[str, Sequence[int]],
    axes: Sequence[int],
) -> bool:
    """Whether the sizes of an output's open axes are those of some input's, cut to several sizes."""
    sizes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    numeric = {key: axes for key, axes in open_inputs.items() if axes}
    for part in (1.0, 0.75, 0.5):
        cut = dict(inputs)
        for key, open_axes in numeric.items():
            slices = [slice(None)] * inputs[key].ndim
            for axis in open_axes:
                slices[axis] = slice(max(int(inputs[key].shape[axis] * part), 1))
            cut[key] = inputs[key][tuple(slices)]
        try:
            output = run(cut)[name]
        except Exception:  # it does not take every size; then nothing is shown
            return False
        given = tuple(cut[key].shape[axis] for key, open_axes in numeric.items() for axis in open_axes)
        sizes.append((given, tuple(output.shape[axis] for axis in axes)))
    columns = range(len(sizes[0][0]))
    return bool(sizes[0][0]) and all(
        any(
            len({given[column] for given, _ in sizes}) > 1
            and all(given[column] == got[axis] for given, got in sizes)
            for column in columns
        )
        for axis in range(len(axes))
    )

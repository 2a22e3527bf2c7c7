"""Rows of the run that another one begins with, to be learned from again (Robins 1995, rehearsal)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from karpa_tf.data.sources import SPLITS, Split
from karpa_tf.errors import UserError
from karpa_tf.recipe import recipe_of
from karpa_tf.training.run import check_data
from karpa_tf.training.run_folder import open_run

# Which rows are drawn is part of the data: it does not change with a run's seed.
_SEED = 23

Part = TypeVar("Part")
Data = TypeVar("Data", bound=Any)


def rehearse(
    open_data: Callable[[Any], Data],
    config: Any,
    data: Data,
    groups: Callable[[Part], tuple[Sequence[Any], Sequence[str]]],
    take: Callable[[Part, Sequence[int]], Part],
    join: Callable[[Part, Part], Part],
) -> Data:
    """Returns data with a share of another run's training rows, and all that that one holds out.

    A row that either of both holds out is not learned from. Rows that the other run has learned from are not
    held out here: it would be no test.

    Args:
        open_data: returns the data of settings, by split.
        config: of the run; with `rehearse` 0 the data stays as it is.
        data: of the run, with `splits` and `notes`.
        groups: rows to their keys (rows of one key are the same) and labels.
        take: some of the rows.
        join: rows, and others behind them.

    Raises:
        UserError: the other run is not there, its data is not what it was, or is not redacted as this is.
    """
    if not config.rehearse:
        return data
    run = config.rehearse_from or config.init
    try:
        folder = open_run(run)
    except UserError:
        raise UserError(f"There is no run {run}, whose rows are rehearsed: bring it back.") from None
    settings = folder.open_config(recipe_of(folder).about.settings)
    if getattr(config, "redact", False) and not getattr(settings, "redact", False):
        raise UserError(
            f"rehearse: {folder.path} has read its texts without redact, and this run is to have none such; "
            "train that one with redact first."
        )
    try:
        other = open_data(settings)
        check_data(folder, getattr(settings, "data", ""), other.record)
    except UserError as error:
        raise UserError(f"The rows of {folder.path}, which are rehearsed: {error}") from None
    keys: dict[str, dict[Split, Sequence[Any]]] = {}
    for name, splits in (("new", data.splits), ("old", other.splits)):
        keys[name] = {split: list(map(_hashable, groups(splits[split])[0])) for split in SPLITS}
    learned = set(keys["old"]["train"])
    held: set[Any] = set()
    found: dict[Split, Part] = {}
    left_out = 0
    for split in ("test", "validation"):
        parts = []
        for name, splits in (("new", data.splits), ("old", other.splits)):
            places = []
            for place, key in enumerate(keys[name][split]):
                if name == "new" and key in learned:
                    left_out += 1
                elif key not in held:
                    places.append(place)
            parts.append(take(splits[split], places))
            held.update(keys[name][split][place] for place in places)
        found[split] = join(*parts)
    own = [place for place, key in enumerate(keys["new"]["train"]) if key not in held]
    mine = {keys["new"]["train"][place] for place in own}
    drawn = _share(groups(other.splits["train"])[1], config.rehearse)
    again = [i for i in drawn if keys["old"]["train"][i] not in held and keys["old"]["train"][i] not in mine]
    found["train"] = join(take(data.splits["train"], own), take(other.splits["train"], again))
    notes = [f"{len(again):,} rows of {folder.path} are learned from again beside {len(own):,} new ones"]
    dropped = len(keys["new"]["train"]) - len(own)
    if dropped or left_out:
        notes.append(
            f"{dropped:,} new rows are among those that are held out, and are not learned from; {left_out:,} "
            f"were held out and {folder.path} has learned from them: they test nothing"
        )
    return dataclasses.replace(
        data, splits={split: found[split] for split in SPLITS}, notes=[*data.notes, *notes]
    )


def _share(labels: Sequence[str], share: float) -> list[int]:
    """Returns the places of a share of each label's rows, one at least."""
    rng, every = np.random.default_rng(_SEED), np.array(labels)
    drawn = [
        rng.permutation(places)[: math.ceil(round(share * len(places), 6))]
        for places in (np.flatnonzero(every == label) for label in sorted(set(labels)))
    ]
    return sorted(np.concatenate(drawn).tolist()) if drawn else []


def _hashable(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key

"""The runs that there are: a row each, chosen, sorted, shown, tagged and deleted."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.recipe import find_recipe, recipe_name
from karpa_tf.reports.tables import columns, lower_is_better
from karpa_tf.settings import BOOLEANS
from karpa_tf.training.run_folder import RunFolder, locked, numbered, open_run, recipes_in

# What may stand between a name and a value in `--where`.
_OPERATORS = ("<=", ">=", "!=", "==", "=", "<", ">")


def list_runs(logs: str | Path, recipe: str = "") -> list[dict[str, Any]]:
    """Returns a row a run: `{"run", "recipe", "config", "metrics", "status"}`, and `group` if it has one.

    And where they are known `tags`, `cpu_seconds` of the training, `cpu_s_1000_rows` of its export.

    The status is `running`, `finished`, `stopped`, or `failed` or `damaged`, with a `reason`.

    Args:
        logs: the folder of all runs.
        recipe: only those of this one, by its name or the path of its folder; or one run, as `open_run` takes
            it; empty: all.

    Raises:
        UserError: there is no such recipe or run.
    """
    one = None
    if "/" in recipe and not (Path(recipe) / "recipe.py").is_file():
        one = open_run(recipe, logs).path.resolve()
        logs, recipe = one.parent.parent, one.parent.name
    recipes = recipes_in(logs)
    own = (Path(recipe) / "recipe.py").is_file()  # which may have no run yet
    recipe = recipe_name(recipe)
    if recipe and recipe not in recipes and not own:
        find_recipe(recipe)
    rows = []
    for name in [recipe] if recipe else recipes:
        for path in numbered(Path(logs) / name):
            if one and path.resolve() != one:
                continue
            if not (path / "config.yaml").is_file() and not RunFolder(path).begun:
                continue  # it has not begun yet
            row: dict[str, Any] = {"run": str(path), "recipe": name, "config": {}, "metrics": {}}
            try:
                folder = RunFolder(path)
                row["config"] = folder.read_config()
                row["metrics"] = folder.read_metrics() or {}
                row |= _status(folder, finished=bool(row["metrics"]))
                if folder.group:
                    row["group"] = f"{name}/{folder.group}"
                if folder.tags:
                    row["tags"] = folder.tags
                environment = folder.environment
                for cost in ("cpu_seconds", "cpu_s_1000_rows"):
                    if cost in environment:
                        row[cost] = environment[cost]
            except UserError as error:
                row |= {"status": "damaged", "reason": str(error)}
            rows.append(row)
    return rows


def _status(folder: RunFolder, finished: bool) -> dict[str, str]:
    if folder.is_being_trained:
        return {"status": "running"}
    if finished:
        return {"status": "finished"}
    if reason := folder.environment.get("failed", ""):
        return {"status": "failed", "reason": reason}
    return {"status": "stopped"}


def format_runs(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of a table: the settings in which runs of a recipe differ, and their figures."""
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        every = [row for row in rows if row["recipe"] == recipe]
        mine = [row for row in every if row["status"] != "damaged"]
        fields = dict.fromkeys(key for row in mine for key in row["config"])
        differing = [key for key in fields if len({repr(row["config"].get(key)) for row in mine}) > 1]
        figures = list(
            dict.fromkeys(key for row in mine for key, v in row["metrics"].items() if isinstance(v, float))
        )
        costs = {"cpu_seconds": "cpu s", "cpu_s_1000_rows": "cpu s/1,000 rows"}
        costs = {key: title for key, title in costs.items() if any(key in row for row in mine)}
        tagged = ["tags"] if any(row.get("tags") for row in mine) else []
        table = [["run", "status", *tagged, *differing, *figures, *costs.values()]]
        for row in mine:
            config = [str(row["config"].get(key, "")) for key in differing]
            numbers = [f"{row['metrics'][key]:.4g}" if key in row["metrics"] else "" for key in figures]
            spent = [f"{row[key]:.4g}" if key in row else "" for key in costs]
            tags = [",".join(row.get("tags", []))] if tagged else []
            table.append([row["run"], row["status"], *tags, *config, *numbers, *spent])
        yield from columns(table)
        for row in every:
            if "reason" in row:
                yield f"{row['run']}  {row['status']}: {row['reason']}"


# --- Choosing and sorting -------------------------------------------------------------------------


def select(rows: Sequence[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """Returns the rows for which all of some conditions hold.

    Args:
        rows: as `list_runs` returns them.
        where: `NAME=VALUE` words, also with != < <= > >=; names are settings, figures, `status`, `recipe`,
            `group`, `tags` (which holds where one of the tags is the value), and costs.

    Raises:
        UserError: a word is no condition, or no run has such a name.
    """
    for word in re.sub(rf"\s*({'|'.join(_OPERATORS)})\s*", r"\1", where).split():
        match = re.fullmatch(rf"([^<>=!]+)({'|'.join(_OPERATORS)})(.*)", word)
        if not match:
            raise UserError(
                f'--where takes NAME=VALUE, also with != < <= > >=, as "seed=0". Received: {word}.'
            )
        name, operator, value = match.groups()
        operator = "=" if operator == "==" else operator
        _check_name("--where", name, rows)
        found = [_value_of(row, name) for row in rows]
        if any(_is_number(x) for x in found) and _number(value) is None and value not in BOOLEANS:
            raise UserError(f"--where: {name} is a number. Received: {value}.")
        rows = [row for row, own in zip(rows, found, strict=True) if _holds(own, operator, value)]
    return list(rows)


def sort(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns the rows by a figure, the best first, or by a setting, rising; those without it come last.

    Args:
        rows: as `list_runs` returns them.
        name: of the figure or setting.

    Raises:
        UserError: no run has such a name.
    """
    _check_name("--sort", name, rows)

    def key(row: Mapping[str, Any]) -> tuple[bool, Any]:
        value = _value_of(row, name)
        if value is None or value != value:  # NaN
            return True, 0.0
        best_first = name in row["metrics"] and not lower_is_better(name)
        return False, -value if best_first else value

    values = [_value_of(row, name) for row in rows]
    if not all(value is None or isinstance(value, (int, float)) for value in values):
        return sorted(rows, key=lambda row: (_value_of(row, name) is None, str(_value_of(row, name))))
    return sorted(rows, key=key)


def _check_name(option: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    known = {key for row in rows for key in (*row, *row["config"], *row["metrics"])}
    known |= {"group", "tags"}
    known -= {"config", "metrics", "reason"}
    if rows and name not in known:
        raise UserError(f'{option}: no run has "{name}"{did_you_mean(name, known)}')


def _value_of(row: Mapping[str, Any], name: str) -> Any:
    for place in (row["metrics"], row["config"], row):
        if name in place and not isinstance(place[name], dict):
            value = place[name]
            # As `units: "64"`: a text for the sake of `64,64`.
            number = _number(value) if isinstance(value, str) else None
            return value if number is None else number
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _holds(found: Any, operator: str, value: str) -> bool:
    if isinstance(found, list):  # tags
        return (value in found) == (operator == "=")
    if found is None:
        return operator == "!="
    if _is_number(found):
        if (wanted := _number(value)) is None:
            return operator == "!="
        tests = {"<": found < wanted, "<=": found <= wanted, ">": found > wanted, ">=": found >= wanted}
        return tests.get(operator, (found == wanted) == (operator == "="))
    shown = str(found).lower() if isinstance(found, bool) else str(found)
    if operator in ("=", "!="):
        return (shown == value) == (operator == "=")
    return {"<": shown < value, "<=": shown <= value, ">": shown > value, ">=": shown >= value}[operator]


# --- Deleting and tagging -------------------------------------------------------------------------


def heirs(folder: RunFolder, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the runs whose settings name a run: as their start, teacher, member or source.

    Args:
        folder: of the run.
        rows: of all runs.
    """
    path = str(folder.path.resolve())
    fields = ("init", "teacher", "ensemble", "average", "rehearse_from")
    return [
        row["run"]
        for row in rows
        if any(path in str(row["config"].get(field, "")).split(",") for field in fields)
    ]


def remove(folders: Sequence[RunFolder]) -> None:
    """Deletes runs; all of them, or where one is being trained none.

    Args:
        folders: of the runs.

    Raises:
        UserError: one of them is being trained.
    """
    for folder in folders:
        if folder.is_being_trained:
            raise UserError(f"{folder.path} is being trained; stop that first. Nothing was deleted.")
    for folder in folders:
        # Out of sight first: what is half deleted must look like no run.
        aside = folder.path.with_name(f".deleting-{folder.path.name}")
        with locked(folder.path):
            folder.path.rename(aside)
        shutil.rmtree(aside)


def tag(folders: Sequence[RunFolder], words: Sequence[str], *, off: bool = False) -> None:
    """Puts words on runs, or takes them off.

    Args:
        folders: of the runs.
        words: to put on.
        off: take them off.

    Raises:
        UserError: a word cannot be one, or a run has not the one that is to be taken off.
    """
    for word in words:
        if not re.fullmatch(r"[^\s,=<>!]+", word):
            raise UserError(f"A tag is one word, without commas, = and <>. Received: {word!r}.")
        for folder in folders if off else ():
            if word not in folder.tags:
                raise UserError(f"{folder.path} has no tag {word}{did_you_mean(word, folder.tags)}")
    for folder in folders:
        kept = [word for word in folder.tags if word not in words]
        folder.write_tags(kept if off else [*kept, *dict.fromkeys(words)])

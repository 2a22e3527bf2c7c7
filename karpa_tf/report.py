"""`karpa-tf report`: all that there is to know of a run, in one file of HTML that needs nothing else."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.judging.by_row import ByRow
from karpa_tf.recipe import About, Evaluation, Recipe
from karpa_tf.reports import html
from karpa_tf.reports.curves import read_images, read_scalars
from karpa_tf.reports.model_card import energy
from karpa_tf.settings import CountOrNone, Fields, option, types_of
from karpa_tf.training.run_folder import RunFolder

# Rows that are shown of the worst answers, states of a table of values, and pictures of TensorBoard.
_WORST, _STATES, _PICTURES = 20, 64, 12
# Pictures of a film, of which each is a part of the page.
_FRAMES = 120


@dataclass(kw_only=True)
class ReportOptions(Fields):
    """The flags of `karpa-tf report`."""

    html: str = option("", "The file to write. (default: report.html in the run's folder)")
    data: str = option("", "Other data than the run's own held-out split.")
    groups: str = option("", "A further column of the table: figures by group; bert-classifier's.")
    attack: str = option("fgsm", "Of images: the attack whose figure is shown beside; none: leave it out.")
    explain: CountOrNone = option(3, "Worst rows that are explained; 0: none.")
    to: str = option("savedmodels", "Where models live, for the size and the speed of the export.")


def report_page(recipe: Recipe[Any], folder: RunFolder, options: ReportOptions) -> str:
    """Evaluates a run and returns its report as a page of HTML.

    Args:
        recipe: of the run.
        folder: of the run, which has ended.
        options: of the command.

    Raises:
        UserError: the run has not ended, or what `evaluate` raises.
    """
    metrics = folder.final_metrics()
    about = recipe.about
    evaluation = recipe.evaluate(folder, _evaluate_options(about, options))
    judged = evaluation.by_row()
    parts = [
        html.paragraph(f"{about.summary}. The run {folder.path}, evaluated on {evaluation.data}."),
        html.section("Figures", *_figures(evaluation, judged)),
        html.section("Data", *_data(folder)),
        html.section("Settings", *_settings(folder, about)),
        html.section("Curves", *_curves(folder, about)),
        html.section("Held-out rows", *_tables(evaluation)),
        html.section("Worst answers", *_worst(judged)),
        html.section("Explanations", *_explanations(recipe, folder, judged, options.explain)),
        html.section("Pictures", *_pictures(recipe, folder)),
        html.section("Values of states", *_values(folder)),
        html.section("What it costs", *_costs(folder, metrics, Path(options.to))),
        html.section("Where it was made", *_origin(folder)),
    ]
    return html.page(f"{folder.recipe}/{folder.path.resolve().name}", filter(None, parts))


def _evaluate_options(about: About, options: ReportOptions) -> Any:
    """Returns the options of `evaluate` that a recipe takes."""
    taken = types_of(about.evaluate)
    if options.groups and "groups" not in taken:
        raise UserError("--groups does not go with this run: its rows have no further columns.")
    given = {"data": options.data, "groups": options.groups, "attack": options.attack}
    return about.evaluate(**{name: value for name, value in given.items() if name in taken})


def _figures(evaluation: Evaluation, judged: Mapping[str, ByRow]) -> Iterator[str]:
    names = list(
        dict.fromkeys([*evaluation.metrics, *(n for row in evaluation.baselines.values() for n in row)])
    )
    rows = [
        [name, *(row.get(figure, "") for figure in names)]
        for name, row in {"this run": evaluation.metrics, **evaluation.baselines}.items()
    ]
    yield html.table(["", *names], rows)
    for figure, by_row in judged.items():
        low, high = by_row.interval()
        yield html.paragraph(
            f"{figure} {by_row.figure:.4g}, 95 % interval {low:.4g} to {high:.4g} (bootstrap over "
            f"{len(by_row.rows):,} rows)."
        )
    yield html.facts(
        {name: value for name, value in evaluation.facts.items() if not isinstance(value, (dict, list))}
    )


def _data(folder: RunFolder) -> Iterator[str]:
    path = folder.assets / "data.json"
    if not path.is_file():
        return
    record = json.loads(path.read_text(encoding="utf-8"))
    yield html.facts(
        {
            "data": folder.read_config().get("data", ""),
            **{f"{split} rows": f"{size:,}" for split, size in record.get("sizes", {}).items()},
            **({"labels": ", ".join(record["labels"])} if record.get("labels") else {}),
            "fingerprint": record.get("fingerprint", ""),
        }
    )


def _settings(folder: RunFolder, about: About) -> Iterator[str]:
    defaults = {field.name: field.default for field in dataclasses.fields(about.settings)}
    values = folder.read_config()
    own = [[name, value] for name, value in values.items() if value != defaults.get(name)]
    others = [[name, value] for name, value in values.items() if value == defaults.get(name)]
    yield html.paragraph("Those that are not the defaults:") if own else ""
    yield html.table(["setting", "value"], own)
    inner = html.table(["setting", "value"], others)
    yield f"<details><summary>{len(others)} settings at their defaults</summary>{inner}</details>"


def _curves(folder: RunFolder, about: About) -> Iterator[str]:
    for title, tags in about.charts.items():
        series = {}
        for tag in tags:
            for part in ("train", "validation"):
                found = read_scalars(folder.path / part, tag) or read_scalars(
                    folder.path / part, f"{folder.recipe}/{tag}"
                )
                if found:
                    series[f"{tag.rsplit('/', 1)[-1]} ({part})" if len(tags) > 1 else part] = found
        yield html.curves(title, dict(list(series.items())[:4]), about.steps)


def _tables(evaluation: Evaluation) -> Iterator[str]:
    for lines in evaluation.tables:
        yield html.code("\n".join(lines))


def _worst(judged: Mapping[str, ByRow]) -> Iterator[str]:
    for figure, by_row in judged.items():
        places = by_row.worst(_WORST)
        rows = []
        for place in places:
            own = by_row.take(places[places == place])
            rows.append(
                [
                    own.rows[0],
                    own.truth[0] if own.truth else "",
                    own.answers[0] if own.answers else f"{own.figure:.4g}",
                    float(own.likelihoods[0]) if len(own.likelihoods) else "",
                ]
            )
        if len(judged) > 1:
            yield html.paragraph(f"{figure}:")
        yield html.table(["row", "truth", "answer", "probability of the truth"], rows)


def _explanations(
    recipe: Recipe[Any], folder: RunFolder, judged: Mapping[str, ByRow], count: int
) -> Iterator[str]:
    options = recipe.about.explain
    if options is None or not count:
        return
    inputs: list[str] = []
    kinds = [given.kind for given in recipe.about.inputs(folder.read_config()).values()]
    if kinds in (["text"], ["image"]):
        for by_row in judged.values():
            places = by_row.worst(count)  # where all is right, the first ones
            inputs += [by_row.rows[place] for place in (places if len(places) else range(len(by_row.rows)))]
    if not inputs:
        return
    found = recipe.explain(folder, inputs[:count], options())
    yield html.code("\n".join(found.lines))
    for row in found.explanations:
        if "file" in row:
            yield html.picture(Path(row["file"]), row["input"])


def _pictures(recipe: Recipe[Any], folder: RunFolder) -> Iterator[str]:
    for file in sorted(folder.path.glob("*.png")):
        yield html.picture(file, file.stem.replace("_", " "))
    shown: dict[str, bytes] = {}
    for part in ("validation", "train"):
        shown |= read_images(folder.path / part)
    own = {file.stem for file in folder.path.glob("*.png")}
    tags = [tag for tag in shown if tag.rsplit("/", 1)[-1].removesuffix("_grid") not in own]
    for tag in tags[:_PICTURES]:
        yield html.drawing(shown[tag], tag.rsplit("/", 1)[-1].replace("_", " "))
    if recipe.about.play is not None:
        with tempfile.TemporaryDirectory() as aside:
            film = Path(aside) / "film.gif"
            try:
                played = recipe.play(folder, recipe.about.play(gif=str(film), frames=_FRAMES))
            except UserError as error:  # an environment that draws nothing
                yield html.paragraph(str(error), "note")
            else:
                yield html.picture(film, f"an episode of return {played.returns[0]:g}")


def _values(folder: RunFolder) -> Iterator[str]:
    path = folder.assets / "q_values.npy"
    if not path.is_file():
        return
    values = np.load(path, allow_pickle=False)
    shown = values[:_STATES]
    header = ["state", *(f"action {number}" for number in range(values.shape[1])), "taken"]
    yield html.table(
        header, [[number, *map(float, row), int(row.argmax())] for number, row in enumerate(shown)]
    )
    if len(values) > len(shown):
        yield html.paragraph(f"{len(values) - len(shown):,} further states are left out.", "note")


def _costs(folder: RunFolder, metrics: Mapping[str, Any], to: Path) -> Iterator[str]:
    environment = folder.environment
    facts = {}
    if seconds := environment.get("cpu_seconds"):
        facts["training"] = f"{seconds:,.1f} s of processor time; {energy(seconds)}"
    if seconds := environment.get("cpu_s_1000_rows"):
        facts["1,000 predictions"] = (
            f"{seconds:.3g} s of processor time, in requests of {environment['rows_a_request']} rows; "
            f"{energy(seconds)}"
        )
    versions = [path for path in (to / folder.recipe).glob("*") if path.name.isdecimal()]
    if versions:
        newest = max(versions, key=lambda path: int(path.name))
        size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
        facts["newest export"] = f"{newest}, {size:,} bytes (of whichever run of {folder.recipe})"
    yield html.facts(facts)
    if costs := metrics.get("costs"):
        names = list(dict.fromkeys(name for row in costs["table"].values() for name in row))
        rows = [[name, *(row.get(key, "") for key in names)] for name, row in costs["table"].items()]
        yield html.table(["", *names], rows)
        yield html.paragraph(f"How: {costs['how']}.", "note")


def _origin(folder: RunFolder) -> Iterator[str]:
    command = folder.path / "command.txt"
    if command.is_file():
        yield html.code(command.read_text(encoding="utf-8").strip())
    environment = folder.environment
    versions = environment.get("versions", {})
    yield html.facts(
        {
            "seed": environment.get("seed", ""),
            "python": environment.get("python", ""),
            "platform": environment.get("platform", ""),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
            **({"commit": environment["commit"]} if environment.get("commit") else {}),
            **({"tags": ", ".join(folder.tags)} if folder.tags else {}),
        }
    )

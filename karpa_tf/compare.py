"""`karpa-tf compare`: runs on the same held-out rows, in pairs, so that "better" is a claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.recipe import Evaluation
from karpa_tf.reports.tables import columns
from karpa_tf.settings import Count, Fields, Seed, option

if TYPE_CHECKING:
    from karpa_tf.training.run_folder import RunFolder

# Probability below which a difference is a claim.
_CLAIM = 0.05


@dataclass(kw_only=True)
class CompareOptions(Fields):
    """The flags of `karpa-tf compare`."""

    data: str = option("", "Other data than the runs' own held-out split.")
    rows: Count = option(10, "Rows to show on which the runs disagree.")
    html: str = option("", "Write the comparison as a page of HTML, to this file.")
    seed: Seed = option(0, "Seed of the bootstrap.")


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(InALine):
    """What several runs make of the same rows.

    Attributes:
        runs: their folders, the first of which is what the others are compared with.
        data: what they were evaluated on.
        settings: those that differ, by name a value a run.
        figures: of each run, `{"figure", "low", "high"}` by the figure's name.
        others: further figures of each run.
        pairs: by the figure's name a row for each run but the first: `run`, and the fields of `by_row.Pair`
            with `claim`, whether the difference is one (Holm's correction over the runs).
        disagree: by the figure's name the rows that are made most differently: `row`, `truth`, `answers`.
    """

    runs: list[str]
    data: str
    settings: dict[str, list[Any]]
    figures: list[dict[str, dict[str, float]]]
    others: list[dict[str, float]]
    pairs: dict[str, list[dict[str, Any]]]
    disagree: dict[str, list[dict[str, Any]]]


def compare_runs(
    folders: Sequence[RunFolder],
    evaluate: Callable[[RunFolder], Evaluation],
    options: CompareOptions,
) -> Comparison:
    """Evaluates runs and compares each with the first one.

    Args:
        folders: of the runs, two at least.
        evaluate: evaluates one of them.
        options: of the command.

    Raises:
        UserError: they have no rows in common: other tasks, or other data.
    """
    from karpa_tf.judging import by_row

    found = [evaluate(folder) for folder in folders]
    names = [str(folder.path) for folder in folders]
    judged = [evaluation.by_row() for evaluation in found]
    shared = [name for name in judged[0] if all(name in other for other in judged)]
    if not shared:
        have = "; ".join(
            f"{name} has {', '.join(own) or 'none'}" for name, own in zip(names, judged, strict=True)
        )
        raise UserError(
            f"These runs have no figure by row in common, so they are of different tasks: {have}."
        )
    pairs: dict[str, list[dict[str, Any]]] = {}
    disagree: dict[str, list[dict[str, Any]]] = {}
    for figure in shared:
        mine = [own[figure] for own in judged]
        for name, evaluation, other in zip(names[1:], found[1:], mine[1:], strict=True):
            if list(other.rows) != list(mine[0].rows) or list(other.truth) != list(mine[0].truth):
                raise UserError(
                    f"{names[0]} and {name} are not judged on the same rows: {len(mine[0].rows):,} of "
                    f"{found[0].data}, and {len(other.rows):,} of {evaluation.data}; give both the same with "
                    "--data."
                )
        compared = [by_row.compare(mine[0], other, options.seed) for other in mine[1:]]
        ps = by_row.adjusted([pair.p for pair in compared])
        pairs[figure] = [
            {"run": name, **dataclasses.asdict(pair), "p_adjusted": p, "claim": p < _CLAIM}
            for name, pair, p in zip(names[1:], compared, ps, strict=True)
        ]
        places = by_row.apart(mine[0], mine[-1] if len(mine) == 2 else _worst(mine), options.rows)
        disagree[figure] = [
            {
                "row": mine[0].rows[place],
                "truth": mine[0].truth[place] if mine[0].truth else "",
                "answers": [own.answers[place] if own.answers else "" for own in mine],
            }
            for place in places
        ]
    figures = []
    for own in judged:
        row = {}
        for figure in shared:
            low, high = own[figure].interval(options.seed)
            row[figure] = {"figure": own[figure].figure, "low": low, "high": high}
        figures.append(row)
    configs = [folder.read_config() for folder in folders]
    return Comparison(
        runs=names,
        data=found[0].data,
        settings={
            key: [config.get(key, "") for config in configs]
            for key in dict.fromkeys(key for config in configs for key in config)
            if len({repr(config.get(key)) for config in configs}) > 1
        },
        figures=figures,
        others=[
            {name: value for name, value in evaluation.metrics.items() if name not in shared}
            for evaluation in found
        ],
        pairs=pairs,
        disagree=disagree,
    )


def _worst(every: Sequence[Any]) -> Any:
    """Returns the run, of several, that makes most rows otherwise than the first one."""
    first = every[0]
    return max(every[1:], key=lambda other: float(abs(other.numerators - first.numerators).sum()))


def format_comparison(found: Comparison) -> Iterator[str]:
    """Yields the lines of a comparison."""
    yield f"on {found.data}"
    if found.settings:
        rows = [[name, *map(str, values)] for name, values in found.settings.items()]
        yield from columns([["setting", *found.runs], *rows])
        yield ""
    for figure, pairs in found.pairs.items():
        reached = [[run, *_interval(own[figure])] for run, own in zip(found.runs, found.figures, strict=True)]
        yield from columns([["run", figure, "95 % interval"], *reached])
        for pair in pairs:
            yield sentence(figure, found.runs[0], pair)
        if found.disagree[figure]:
            yield "rows that they make differently, worst first:"
            for row in found.disagree[figure]:
                answers = "; ".join(
                    f"{run}: {answer}" for run, answer in zip(found.runs, row["answers"], strict=True)
                )
                truth = f" [{row['truth']}]" if row["truth"] else ""
                yield f"  {str(row['row'])[:100]}{truth}  {answers}"
        yield ""


def _interval(own: Mapping[str, float]) -> tuple[str, str]:
    return f"{own['figure']:.4g}", f"{own['low']:.4g} to {own['high']:.4g}"


def sentence(figure: str, first: str, pair: Mapping[str, Any]) -> str:
    """Returns what a pair of runs says, in a sentence."""
    apart = f"{pair['difference']:+.4g} ({pair['low']:+.4g} to {pair['high']:+.4g})"
    how = f"{pair['test']}, p {pair['p_adjusted']:.3g}"
    if pair["only_first"] is not None:
        alone = (
            f"{pair['only_first']} rows right in {first} alone, {pair['only_second']} in {pair['run']} alone"
        )
        how = f"{how}; {alone}"
    claim = "a difference" if pair["claim"] else "no difference that these rows can show"
    return f"{pair['run']} against {first}: {figure} {apart}: {claim} ({how})"


def comparison_page(found: Comparison) -> str:
    """Returns a comparison as a page of HTML."""
    from karpa_tf.reports import html

    parts = [html.paragraph(f"On {found.data}.")]
    parts.append(
        html.section(
            "Settings that differ",
            html.table(["setting", *found.runs], [[k, *v] for k, v in found.settings.items()]),
        )
    )
    for figure, pairs in found.pairs.items():
        rows = [
            [run, own[figure]["figure"], f"{own[figure]['low']:.4g} to {own[figure]['high']:.4g}"]
            for run, own in zip(found.runs, found.figures, strict=True)
        ]
        shown = [[row["row"], row["truth"], *row["answers"]] for row in found.disagree[figure]]
        parts.append(
            html.section(
                figure,
                html.table(["run", figure, "95 % interval"], rows),
                *(html.paragraph(sentence(figure, found.runs[0], pair)) for pair in pairs),
                html.paragraph("Rows that they make differently, worst first:") if shown else "",
                html.table(["row", "truth", *found.runs], shown),
            )
        )
    names = list(dict.fromkeys(name for own in found.others for name in own))
    rows = [
        [run, *(own.get(name, "") for name in names)]
        for run, own in zip(found.runs, found.others, strict=True)
    ]
    parts.append(html.section("Further figures", html.table(["run", *names], rows) if names else ""))
    return html.page(f"{' and '.join(found.runs)} compared", parts)

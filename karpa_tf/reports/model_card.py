"""Parts of a model card, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from karpa_tf.reports.tables import figure


def metrics_table(metrics: Mapping[str, Any], names: Sequence[str], what: str = "model") -> str:
    """Returns a Markdown table of a model's (or policy's) figures and its baselines'."""
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in {f"this {what}": metrics, **metrics["baselines"]}.items():
        cells = [f"{row[key]:.4g}" if key in row else "" for key in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs_section(costs: Mapping[str, Any] | None, title: str = "Costs", lines: Sequence[str] = ()) -> str:
    """Returns a section with a table of costs; "" where there are none.

    Args:
        costs: `judging.costs.Costs` as a dict.
        title: of the section.
        lines: what to say above the table.
    """
    if not costs:
        return ""
    table = costs["table"]
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    rows = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in table.items():
        rows.append(f"| {name} | {' | '.join(figure(row[key]) if key in row else '' for key in names)} |")
    said = ["\n".join(lines), ""] if lines else []
    return "\n".join(["", f"## {title}", "", *said, *rows, "", f"How: {costs['how']}.", ""])


# What a busy core draws, from a laptop's to an old server's with its share of the rest; nothing here
# measures it.
WATTS = (5.0, 15.0)


def energy(cpu_seconds: float) -> str:
    """Returns what so much processor time may have taken, as a range between two assumed powers.

    Args:
        cpu_seconds: over all threads.
    """
    low, high = (watts * cpu_seconds / 3600 for watts in WATTS)
    return f"{low:.2g} to {high:.2g} Wh, if a busy core draws {WATTS[0]:g} to {WATTS[1]:g} W (not measured)"


def training_cost(environment: Mapping[str, Any]) -> str:
    """Returns a line on what the training of a run took; "" where that was not noted.

    Args:
        environment: the run's environment.json.
    """
    seconds = environment.get("cpu_seconds")
    return f"\nTraining took {seconds:,.0f} s of processor time: {energy(seconds)}.\n" if seconds else ""


def origin_section(settings: Mapping[str, Any]) -> str:
    """Returns lines on the runs that a run with such settings comes of; "" of most runs."""
    if ensemble := settings.get("ensemble"):
        members, how = ensemble.split(","), settings.get("weights")
        mean = "weighted mean, with a temperature," if how == "validation" else "mean"
        return (
            f"\nAn ensemble of {len(members)} runs: `probabilities` are the {mean} of theirs, and "
            "`disagreement` float32 is the\ngeneralized Jensen-Shannon divergence of theirs in nats: 0 where "
            f"all say the same, {math.log(len(members)):.3g} at most.\n"
        )
    if average := settings.get("average"):
        return (
            f"\nIts weights are the mean of the weights of {len(average.split(','))} runs, {average}; the "
            "shares stand in the run's assets/average.json.\n"
        )
    if teacher := settings.get("teacher"):
        share, temperature = settings.get("teacher_share"), settings.get("temperature")
        return (
            f"\nDistilled from {teacher}: {share:g} of the loss is the teacher's, at temperature "
            f"{temperature:g}.\n"
        )
    return ""


def redaction_section(settings: Mapping[str, Any]) -> str:
    """Returns lines on the personal data that a run with such settings has not read; "" of most runs."""
    if not settings.get("redact"):
        return ""
    return (
        "\nTrained and evaluated on texts in which [EMAIL], [IBAN], [CARD] and [PHONE] stand for such data.\n"
        "The served function takes texts as they come: give them to `karpa_tf.privacy.redact` first, so\n"
        "that it reads what it knows.\n"
    )


def settings_list(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a run as a Markdown code block."""
    lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
    return f"Settings of the run:\n\n{lines}"

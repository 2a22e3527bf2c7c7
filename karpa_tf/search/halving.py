"""Which trial is trained next: asynchronous successive halving, as a function of what is known.

Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (1810.05934), algorithm 2 (ASHA).
There the order in which workers end decides; here job k knows the results of the jobs before
k - parallel + 1, however long they took. So a search that is repeated, or killed and resumed, makes the same
jobs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine


@dataclass(frozen=True, repr=False)
class Job(InALine):
    """A trial that is trained up to a rung.

    Attributes:
        trial: its number, from 0.
        rung: its index.
        value: the figure that it has reached; None: it is not known, or it has failed.
    """

    trial: int
    rung: int
    value: float | None = None


def lengths(length: int, trials: int, factor: int, rungs: int = 0) -> list[int]:
    """Returns the lengths of a training at which trials are compared, rising to the whole one.

    Args:
        length: of a training in full.
        trials: how many there are.
        factor: between a rung and the next.
        rungs: how many; 0: as many as leave a trial for the last one, and a step of 1 for the first.

    Raises:
        UserError: the training is too short for so many.
    """
    most = 1 + min(_whole_log(trials, factor), _whole_log(length, factor))
    if rungs and rungs - 1 > _whole_log(length, factor):
        raise UserError(
            f"--rungs {rungs} with --factor {factor} takes a training of {factor ** (rungs - 1)} at least. "
            f"Received: {length}."
        )
    return [max(1, length // factor**k) for k in reversed(range(rungs or most))]


def _whole_log(number: int, base: int) -> int:
    power = 0
    while base ** (power + 1) <= number:
        power += 1
    return power


def next_job(
    known: Sequence[Job], begun: Sequence[Job], trials: int, rungs: int, factor: int, *, lower: bool
) -> Job | None:
    """Returns what is to be trained next, or None while nothing can be said.

    Args:
        known: jobs that have ended.
        begun: all jobs so far.
        trials: how many there are in all.
        rungs: how many lengths there are.
        factor: one in so many is promoted.
        lower: whether small values are the better ones.
    """
    taken = {(job.trial, job.rung) for job in begun}
    for rung in reversed(range(rungs - 1)):
        mine = [
            job for job in known if job.rung == rung and job.value is not None and math.isfinite(job.value)
        ]
        ended = sum(job.rung == rung for job in known)
        ranked = sorted(mine, key=lambda job: ((job.value or 0.0) * (1 if lower else -1), job.trial))
        for job in ranked[: ended // factor]:
            if (job.trial, rung + 1) not in taken:
                return Job(job.trial, rung + 1)
    new = 1 + max((job.trial for job in begun), default=-1)
    return Job(new, 0) if new < trials else None

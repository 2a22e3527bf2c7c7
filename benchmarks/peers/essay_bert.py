"""BERT fine-tuning in TensorFlow the essay's way, as a peer to compare with.

Every sentence is padded to 128 pieces, each batch is tokenized in a Python loop when its turn comes, and
the train step is an eager GradientTape: [CLS] -> Dense softmax, Adam, float32, no tf.function. An epoch
ends with a second pass over the training rows, in the same way, for their loss and accuracy.

A fair peer: the same folder, rows, batch size and threads as karpa_tf's side, and keras-hub's own backbone
and tokenizer. What is on the clock is what an epoch of that loop costs, second pass included, over a
bounded number of steps (eager steps all cost the same) after one that warms up. Uses nothing of
karpa_tf; keras-hub must be installed. The last line is one JSON object.

    python essay_bert.py FOLDER train.csv --batch-size 32 --steps 8
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np
import tensorflow as tf

LENGTH = 128


def build_model(folder: str, classes: int) -> keras.Model:
    """The folder's BERT with a softmax over the classes at [CLS]."""
    backbone = keras_hub.models.BertBackbone.from_preset(folder)
    cls = backbone.output["sequence_output"][:, 0]
    return keras.Model(backbone.input, keras.layers.Dense(classes, activation="softmax")(cls))


def tokenize(tokenizer: keras_hub.tokenizers.Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    """[CLS] pieces [SEP], padded to 128."""
    ids = np.full((len(texts), LENGTH), tokenizer.pad_token_id, "int32")
    for row, pieces in zip(ids, tokenizer(texts), strict=True):
        sentence = [tokenizer.cls_token_id, *pieces[: LENGTH - 2], tokenizer.sep_token_id]
        row[: len(sentence)] = sentence
    return {
        "token_ids": ids,
        "segment_ids": np.zeros_like(ids),
        "padding_mask": ids != tokenizer.pad_token_id,
    }


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Examples per second of an epoch of so many steps."""
    with open(arguments.train_csv, encoding="utf-8-sig", newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
    keras.utils.set_random_seed(arguments.seed)
    labels = sorted({label for _, label in rows})
    order = np.random.default_rng(arguments.seed).permutation(len(rows))
    size = arguments.batch_size
    batches = [
        [rows[index] for index in order[number * size : (number + 1) * size]]
        for number in range(arguments.steps)
    ]
    assert all(len(batch) == size for batch in batches), "More steps than an epoch has whole batches."

    model = build_model(arguments.folder, len(labels))
    tokenizer = keras_hub.models.BertTokenizer.from_preset(arguments.folder, strip_accents=True)
    optimizer = keras.optimizers.Adam(arguments.learning_rate)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy()

    def prepared(batch: list[tuple[str, str]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        texts, names = zip(*batch, strict=True)
        return tokenize(tokenizer, list(texts)), np.array([labels.index(name) for name in names])

    def train(batch: list[tuple[str, str]]) -> None:
        x, y = prepared(batch)
        with tf.GradientTape() as tape:
            loss = cross_entropy(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    def evaluate(batch: list[tuple[str, str]]) -> tuple[float, float]:
        x, y = prepared(batch)
        probabilities = model(x, training=False)
        return float(cross_entropy(y, probabilities)), float(np.mean(np.argmax(probabilities, -1) == y))

    train(batches[0])
    evaluate(batches[0])
    best, best_training = float("inf"), float("inf")
    for _ in range(arguments.repetitions):
        start = time.perf_counter()
        for batch in batches:
            train(batch)
        trained = time.perf_counter()
        results = [evaluate(batch) for batch in batches]
        best = min(best, time.perf_counter() - start)
        best_training = min(best_training, trained - start)
    loss, accuracy = np.mean(results, axis=0)
    examples = size * arguments.steps
    return {
        "examples_per_second": examples / best,
        "training_alone_examples_per_second": examples / best_training,
        "train_loss": float(loss),
        "train_accuracy": float(accuracy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="BERT in Hugging Face's form.")
    parser.add_argument("train_csv", type=Path, help="A file with the columns text,label.")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=1, help="Best of so many epochs of these steps.")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    print(json.dumps(measure(arguments)))


if __name__ == "__main__":
    main()

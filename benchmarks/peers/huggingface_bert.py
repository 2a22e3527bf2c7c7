"""A BERT classifier in Hugging Face transformers on PyTorch, as a peer to compare with.

* train: `Trainer` fine-tunes a local BERT folder on a CSV with the columns `text,label`, each batch padded
  to its own longest sentence. Only the training epochs are on the clock: loading, tokenization (all of it
  beforehand) and evaluation are not, nor are checkpoints, reports or a progress bar, for there are none.
* predict: rows per second of `pipeline("text-classification", top_k=None)` for batches of 1, 8 and 64, best
  round of several. Every batch is a call of its own, as for a server that answers requests.

A fair peer: the same weights, rows, batch size, epochs, threads and longest sentence as karpa_tf's side,
and AdamW as Trainer comes with it (fused). `--bf16` is Trainer's own switch (autocast); the benchmark
takes the faster of the two. Needs no network, and uses nothing of karpa_tf, for it runs in an environment
of its own. The last line is one JSON object.

    python huggingface_bert.py train FOLDER train.csv test.csv --batch-size 32 --epochs 1 [--save OTHER]
    python huggingface_bert.py predict OTHER test.csv --rows 192
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from pathlib import Path

# Both are read when transformers is imported: no look at the hub, no advice.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

BATCH_SIZES = (1, 8, 64)


class EpochClock(TrainerCallback):
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_, **__) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, *_, **__) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def read_rows(path: Path) -> list[tuple[str, str]]:
    """The (text, label) of every row; a file without labels gives empty ones."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [(row["text"], row.get("label", "")) for row in csv.DictReader(file)]


def spread(rows: list, most: int) -> list:
    """At most so many rows, evenly spaced, for files are often sorted by class; 0 stands for all."""
    if not 0 < most < len(rows):
        return rows
    return [rows[number * len(rows) // most] for number in range(most)]


def load(folder: Path, labels: list[str] | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The folder's model, with a fresh head for these labels if they are given, and its tokenizer."""
    config = AutoConfig.from_pretrained(folder)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    # transformers 5 would otherwise keep the type of the file, and train in it.
    model = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def train(arguments: argparse.Namespace) -> dict[str, float | list[float]]:
    """Fine-tunes; returns the speed of the epochs, and loss and accuracy on the test file."""
    everything, test_rows = read_rows(arguments.train_csv), read_rows(arguments.test_csv)
    train_rows, test_rows = spread(everything, arguments.rows), spread(test_rows, arguments.test_rows)
    labels = sorted({label for _, label in everything})
    # Trainer seeds itself, but only after the head has been made.
    set_seed(arguments.seed)
    model, tokenizer = load(arguments.folder, labels)

    def examples(rows: list[tuple[str, str]]) -> list[dict]:
        encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=arguments.length)
        index = model.config.label2id
        return [
            {**{name: values[number] for name, values in encoded.items()}, "labels": index[label]}
            for number, (_, label) in enumerate(rows)
        ]

    clock = EpochClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=arguments.batch_size,
                per_device_eval_batch_size=64,
                num_train_epochs=arguments.epochs,
                learning_rate=arguments.learning_rate,
                # Below 1 it is a share of the steps.
                warmup_steps=0.1,
                weight_decay=0.01,
                seed=arguments.seed,
                bf16=arguments.bf16,
                use_cpu=True,
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=examples(train_rows),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[clock],
        )
        train_loss = trainer.train().training_loss
        test = trainer.predict(examples(test_rows))
    if arguments.save:
        model.save_pretrained(arguments.save)
        tokenizer.save_pretrained(arguments.save)
    speeds = [len(train_rows) / seconds for seconds in clock.seconds]
    return {
        "examples_per_second": max(speeds),
        "examples_per_second_by_epoch": speeds,
        "train_loss": train_loss,
        "loss": test.metrics["test_loss"],
        "accuracy": float((test.predictions.argmax(-1) == test.label_ids).mean()),
    }


def predict(arguments: argparse.Namespace) -> dict[str, float]:
    """Rows per second of the pipeline, by batch size."""
    texts = [text for text, _ in spread(read_rows(arguments.csv), arguments.rows)]
    fresh = [f"LABEL_{index}" for index in range(arguments.classes)] if arguments.classes else None
    model, tokenizer = load(arguments.folder, fresh)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)

    def answer(size: int) -> float:
        """Seconds for all texts."""
        start = time.perf_counter()
        for first in range(0, len(texts), size):
            classify(
                texts[first : first + size], batch_size=size, truncation=True, max_length=arguments.length
            )
        return time.perf_counter() - start

    for size in BATCH_SIZES:
        answer(size)
    # The batch sizes in turn, so that a busy moment of the machine does not fall on one of them.
    best = dict.fromkeys(BATCH_SIZES, float("inf"))
    for _ in range(arguments.rounds):
        for size in BATCH_SIZES:
            best[size] = min(best[size], answer(size))
    return {f"rows_per_second_{size}": len(texts) / seconds for size, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)

    verb = verbs.add_parser("train", help="Fine-tune and evaluate.")
    verb.set_defaults(run=train)
    verb.add_argument("folder", type=Path, help="BERT in Hugging Face's form.")
    verb.add_argument("train_csv", type=Path)
    verb.add_argument("test_csv", type=Path)
    verb.add_argument("--batch-size", type=int, default=32)
    verb.add_argument("--epochs", type=int, default=1)
    verb.add_argument("--learning-rate", type=float, default=1e-4)
    verb.add_argument("--rows", type=int, default=0, help="Train on so many rows; 0: on all.")
    verb.add_argument("--test-rows", type=int, default=0, help="Evaluate on so many rows; 0: on all.")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--bf16", action="store_true", help="Under bfloat16 autocast.")
    verb.add_argument("--save", type=Path, help="Where to put the fine-tuned model.")

    verb = verbs.add_parser("predict", help="Time the pipeline.")
    verb.set_defaults(run=predict)
    verb.add_argument("folder", type=Path, help="What `train --save` has left, or BERT without a head.")
    verb.add_argument("csv", type=Path, help="A file with the column text.")
    verb.add_argument("--rows", type=int, default=192, help="Classify so many rows; 0: all.")
    verb.add_argument("--rounds", type=int, default=3)
    verb.add_argument("--classes", type=int, help="Give a BERT without a head a fresh one.")

    for verb in verbs.choices.values():
        verb.add_argument("--length", type=int, default=128, help="Longer texts are cut to so many pieces.")
        verb.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    print(json.dumps(arguments.run(arguments)))


if __name__ == "__main__":
    main()

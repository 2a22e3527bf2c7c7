"""Customer service: known or not, the answer, and what a person adds. docs/customer-service.md explains it.

`python examples/customer-service/run.py` prints each command as it runs it, and needs about three minutes
on two cores. With `--stay` the chat page is there until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import free_port, run, running, say, serving, wait_for

HERE = Path(os.path.relpath(Path(__file__).parent))
LOOP = HERE.parent / "loop" / "steps.py"
# A small BERT, from nothing; it says what it does not know.
SIZES = ["--layers", "2", "--width", "128", "--heads", "2"]
UNKNOWN = ["--unknown_rate", "0.05", "--batch_size", "16"]
# Questions before a person looks.
BEFORE = 500


def service(folder: Path, data: Path | None, preset: str, epochs: int, stay: bool) -> None:
    """Runs the example once."""
    models, log, logs = folder / "savedmodels", folder / "requests.jsonl", ["--logs", folder / "logs"]
    steps, model = HERE / "steps.py", ["--preset", preset] if preset else SIZES
    train = ["karpa-tf", "train", "bert-classifier", *model, *UNKNOWN, "--epochs", epochs, *logs]

    say("The data: questions with their intents, and an answer for each intent (simulated).")
    run("python", *([steps, "prepare", data, folder] if data else [LOOP, "prepare", folder]))
    run("python", steps, "entries", folder)

    say("A classifier that says what it does not know, and a retriever that finds answers.")
    run(*train, "--data", folder / "first")
    run("karpa-tf", "export", "bert-classifier/1", "--to", models, *logs)
    tables = ["--data", folder / "questions", "--entries", folder / "entries.csv"]
    run("karpa-tf", "train", "retriever", *tables, *model, *(["--method", "none"] if preset else []), *logs)
    run("karpa-tf", "export", "retriever/1", "--to", models, *logs)

    say("One server has both, and a chat page is before it. Customers (recorded questions) ask.")
    port = free_port()
    with contextlib.ExitStack() as running_now:
        words = [models, "--request_log", log, "--access_log", ""]
        server = running_now.enter_context(serving(*words))
        page = ["python", HERE / "chat.py", server, "--port", port]
        running_now.enter_context(running(*page, ready="Chat"))
        chat = f"http://127.0.0.1:{port}"
        run("python", steps, "ask", chat, folder, "--last", BEFORE)

        say("What the classifier knows least of goes to a person, whom a file of labels stands for.")
        run("python", LOOP, "texts", log, folder / "texts.csv")
        predicted = folder / "predicted.jsonl"
        asked = ["--input", folder / "texts.csv", "--output", predicted]
        run("karpa-tf", "predict", models / "bert-classifier" / "1", *asked)
        run("python", LOOP, "unsure", predicted, folder / "to_label.csv", "--most", 150)
        learned = folder / "labelled.csv"
        run("python", LOOP, "label", folder / "to_label.csv", folder / "answers.csv", learned)

        say("The retriever gets the person's rows as entries, without training; the classifier learns them.")
        run("python", steps, "more", folder)
        new = ["--entries", folder / "entries_2.csv"]
        run("karpa-tf", "export", "retriever/1", *new, "--to", models, *logs)
        run(*train, "--data", learned, "--init", "bert-classifier/1", "--rehearse", 0.5)
        run("karpa-tf", "export", "bert-classifier/2", "--to", models, *logs)

        say("The server has taken over both. The questions that came later, again.")
        for name in ("retriever", "bert-classifier"):
            wait_for(f"{server}/v1/models/{name}", 2, "AVAILABLE")
        run("python", steps, "ask", chat, folder, "--first", BEFORE)
        if stay:
            print(f"\nThe chat page is at {chat}/ until Ctrl-C.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


def main() -> None:
    """Runs the example in a folder."""
    parser = argparse.ArgumentParser(description="Intents, what is unknown, and answers behind one server.")
    parser.add_argument(
        "--folder", type=Path, default=Path("customer-service"), help="A new folder for all that it writes."
    )
    parser.add_argument("--data", type=Path, help="A folder of train.csv and test.csv with text and label.")
    parser.add_argument("--preset", default="", help="A pretrained BERT, for both models.")
    parser.add_argument("--epochs", type=int, default=6, help="Epochs of each training of the classifier.")
    parser.add_argument("--stay", action="store_true", help="Leave the chat page on in the end.")
    given = parser.parse_args()
    if given.folder.exists():
        sys.exit(f"{given.folder} is there already: take it away, or name another one with --folder.")
    begin = time.monotonic()
    service(given.folder, given.data, given.preset, given.epochs, given.stay)
    print(f"\nThe example took {time.monotonic() - begin:.0f} seconds.")


if __name__ == "__main__":
    main()

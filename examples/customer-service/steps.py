"""The steps of the example that are no verb of karpa-tf and none of examples/loop/steps.py.

Each is a command: `python examples/customer-service/steps.py entries FOLDER` and so on; run.py runs them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import read_table, write_table

# Simulated: nobody makes this smart home. What its customers are told, by intent.
ANSWERS = {
    "HassCancelTimer": "Say the timer's name and 'cancel', or tap the bin beside it in the app.",
    "HassIncreaseTimer": "Say how much time to add, or tap + beside the timer in the app.",
    "HassLightSet": "Say a colour or a brightness in percent, or move the slider of the light in the app.",
    "HassMediaSearchAndPlay": "Name the song, the artist or the film, and the player that is to play it.",
    "HassSetVolume": "Say a number from 0 to 100 percent, or use the keys of the player.",
    "HassStartTimer": "Say for how long, and perhaps a name: 'a pizza timer for ten minutes'.",
    "HassTurnOff": "Say the name of the device or the room and 'off', or tap its switch in the app.",
    "HassTurnOn": "Say the name of the device or the room and 'on', or tap its switch in the app.",
    "HassGetWeather": "Add a weather service in the settings of the app; then ask for any place.",
}
# Of other data every so many labels is one that version 1 does not know, by the alphabet.
_NEW = 11


def answer_of(label: str) -> str:
    """Returns the answer to an intent: a sentence of `ANSWERS`, or one made of the label's words."""
    return ANSWERS.get(label, f"Help page: {label.replace('_', ' ').strip()}.")


def prepare(data: Path, folder: Path, seed: int = 0) -> None:
    """Writes what `prepare` of examples/loop/steps.py does, from a folder of train.csv and test.csv.

    Every second training row of a known label is learned from, and 750 of the others are the traffic. Of each
    eleventh label nothing is learned; its questions come from the 251st on.

    Args:
        data: the folder; columns text and label.
        folder: that it goes to.
        seed: of the order.
    """
    train, test = (read_table(data / f"{split}.csv") for split in ("train", "test"))
    new = set(sorted({row["label"] for row in train})[::_NEW])
    random = np.random.default_rng(seed)
    rows = [(train[place]["text"], train[place]["label"]) for place in random.permutation(len(train))]
    known = [row for row in rows if row[1] not in new]
    asked, late = known[1::2][:750], [row for row in rows if row[1] in new][:100]
    learned, held = known[::2], [(row["text"], row["label"]) for row in test if row["label"] not in new]
    write_table(folder / "first" / "train.csv", ["text", "label"], learned[len(learned) // 10 :])
    write_table(folder / "first" / "validation.csv", ["text", "label"], learned[: len(learned) // 10])
    write_table(folder / "first" / "test.csv", ["text", "label"], held)
    later = asked[250:] + late
    traffic = asked[:250] + [later[place] for place in random.permutation(len(later))]
    write_table(folder / "answers.csv", ["text", "label"], traffic)
    with (folder / "traffic.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"client": "", "text": text}) + "\n" for text, _ in traffic)
    print(f"{len(learned)} rows to learn from; {len(traffic)} questions, {len(late)} of new labels")


def entries(folder: Path) -> None:
    """Writes the retriever's tables: entries.csv of the training rows, and questions/ of all, with answers.

    Args:
        folder: where first/ lies.
    """
    for split in ("train", "validation", "test"):
        rows = read_table(folder / "first" / f"{split}.csv")
        table = [(row["text"], answer_of(row["label"])) for row in rows]
        write_table(folder / "questions" / f"{split}.csv", ["text", "answer"], table)
    known = read_table(folder / "questions" / "train.csv")
    numbered = [(f"first-{n}", row["text"], row["answer"]) for n, row in enumerate(known, 1)]
    write_table(folder / "entries.csv", ["entry", "text", "answer"], numbered)
    print(f"{len(numbered)} entries, {len({row['answer'] for row in known})} answers")


def more(folder: Path) -> None:
    """Writes entries_2.csv: the entries, and behind them the labelled questions with their answers.

    Args:
        folder: where entries.csv and labelled.csv lie.
    """
    old = [tuple(row.values()) for row in read_table(folder / "entries.csv")]
    labelled = read_table(folder / "labelled.csv")
    new = [(f"asked-{n}", row["text"], answer_of(row["label"])) for n, row in enumerate(labelled, 1)]
    write_table(folder / "entries_2.csv", ["entry", "text", "answer"], [*old, *new])
    print(f"{len(old)} entries and {len(new)} new ones")


def ask(chat: str, folder: Path, first: int, last: int) -> Counter[tuple[bool, str]]:
    """Asks recorded questions through the chat, and says how often the answer was right.

    Args:
        chat: its address.
        folder: where answers.csv and first/ lie.
        first: of the questions, from 0.
        last: the one after the last; 0: all.

    Returns:
        How often what version 1 has learned (True) or has not got the right answer, a wrong one, or a person.
    """
    known = {row["label"] for row in read_table(folder / "first" / "train.csv")}
    found = Counter[tuple[bool, str]]()
    for row in read_table(folder / "answers.csv")[first : last or None]:
        body = json.dumps({"text": row["text"]}).encode()
        request = Request(f"{chat}/ask", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            said: dict[str, Any] = json.load(response)
        right = said["reply"] == answer_of(row["label"])
        found[row["label"] in known, "person" if not said["known"] else "right" if right else "wrong"] += 1
    for old, what in ((True, "of intents of version 1"), (False, "of what came later")):
        counts = {kind: found[old, kind] for kind in ("right", "wrong", "person")}
        if sum(counts.values()):
            print(
                f"{sum(counts.values())} questions {what}: {counts['right']} answered right, "
                f"{counts['wrong']} wrong, {counts['person']} passed on to a person"
            )
    return found


def main() -> None:
    """Runs a step."""
    parser = argparse.ArgumentParser(description="The steps of the example that are no verb of karpa-tf.")
    steps = parser.add_subparsers(dest="step", required=True)
    for name, words in (
        ("prepare", ["data", "folder"]),
        ("entries", ["folder"]),
        ("more", ["folder"]),
        ("ask", ["chat", "folder"]),
    ):
        step = steps.add_parser(name)
        for word in words:
            step.add_argument(word, type=str if word == "chat" else Path)
        if name == "ask":
            step.add_argument("--first", type=int, default=0)
            step.add_argument("--last", type=int, default=0)
    given = vars(parser.parse_args())
    {"prepare": prepare, "entries": entries, "more": more, "ask": ask}[given.pop("step")](**given)


if __name__ == "__main__":
    main()

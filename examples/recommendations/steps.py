"""The steps of the recommendations that are no verb of karpa-tf: clicks, requests, a picture.

Each is a command: `python examples/recommendations/steps.py prepare FOLDER` and so on; run.py has the order.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import read_table, write_table

# Held out from training: users, and items that have been clicked on so often at least.
NEW_USERS, NEW_ITEMS, CLICKED = 60, 25, 20
SHOWN = 10


def prepare(folder: Path) -> None:
    """Writes simulated clicks, without those of some users and on some items, which are to be new.

    Args:
        folder: for `data/`, `new_items.csv`, `new_users.csv` and the clicks on new items, `new_clicks.csv`.
    """
    from karpa_tf.data.clicks import simulated_clicks

    clicks = simulated_clicks()
    items, rng = clicks.items, np.random.default_rng(0)
    often = np.flatnonzero(np.bincount(clicks.places, minlength=len(items)) >= CLICKED)
    new = set(rng.choice(often, NEW_ITEMS, replace=False).tolist())
    rows = list(zip(items.ids, items.texts, items.genres, strict=True))
    names = ("id", "text", "genre")
    write_table(folder / "data" / "items.csv", names, [row for n, row in enumerate(rows) if n not in new])
    write_table(folder / "new_items.csv", names, [rows[n] for n in sorted(new)])
    written: dict[str, list[tuple[str, str]]] = {
        "data/ratings.csv": [],
        "new_users.csv": [],
        "new_clicks.csv": [],
    }
    for user, place in zip(clicks.users.tolist(), clicks.places.tolist(), strict=True):
        file = "data/ratings.csv" if user < clicks.count - NEW_USERS else "new_users.csv"
        written["new_clicks.csv" if place in new else file].append((f"user-{user}", items.ids[place]))
    for file, pairs in written.items():
        write_table(folder / file, ("user", "item"), pairs)
    print(
        f"{clicks.count} simulated users clicked {len(clicks.users):,} times on {len(items):,} real texts; "
        f"{NEW_USERS} users and {NEW_ITEMS} items are held out, to be new."
    )


def by_user(path: Path) -> dict[str, list[str]]:
    """Returns the items of each user, in an order of seed 0."""
    found: dict[str, list[str]] = {}
    for row in read_table(path):
        found.setdefault(row["user"], []).append(row["item"])
    rng = np.random.default_rng(0)
    return {user: rng.permutation(items).tolist() for user, items in found.items()}


def ask(url: str, signature: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Asks a served model, in one request."""
    body = json.dumps({"signature_name": signature, "instances": rows}).encode()
    with urlopen(Request(f"{url}:predict", body, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)["predictions"]


def rank(url: str, history: Sequence[str]) -> list[tuple[str, float]]:
    """Returns items and their scores for a user: those that the towers retrieve, in the re-ranker's order."""
    (retrieved,) = ask(url, "retrieve", [{"history": history}])
    (ranked,) = ask(url, "serving_default", [{"history": history, "candidates": retrieved["item"]}])
    return list(zip(ranked["ranked"], ranked["scores"], strict=True))


def contributions(url: str, history: Sequence[str], items: Sequence[str]) -> np.ndarray:
    """Returns by how much each item's score is lower without each item of a history: float (history, items).

    Args:
        url: of the served model, which computes every score anew.
        history: of a user.
        items: what is ranked.
    """
    # "" is padding: the same history without one of its items.
    without = [[*history[:place], "", *history[place + 1 :]] for place in range(len(history))]
    rows = [{"history": some, "candidates": list(items)} for some in (list(history), *without)]
    scores = np.array(ask(url, "score", rows))
    return scores[0] - scores[1:]


def new_users(url: str, folder: Path) -> None:
    """Prints how good rankings are for users whom training has not seen: half of their clicks is known."""
    from karpa_tf.judging.ranking import ranking_metrics

    known = read_table(folder / "data" / "items.csv")
    place = {row["id"]: number for number, row in enumerate(known)}
    users = [items for items in by_user(folder / "new_users.csv").values() if len(items) > 1]
    seen, wanted, ours = (np.zeros((len(users), len(place)), kind) for kind in (bool, bool, np.float64))
    ours -= np.inf
    for user, items in enumerate(users):
        half = len(items) // 2
        seen[user, [place[item] for item in items[:half]]] = True
        wanted[user, [place[item] for item in items[half:]]] = True
        for item, score in rank(url, items[:half]):
            if item in place:
                ours[user, place[item]] = score
    counts = np.zeros(len(place))
    for row in read_table(folder / "data" / "ratings.csv"):
        counts[place[row["item"]]] += 1
    for name, scores in (("popularity", np.tile(counts, (len(users), 1))), ("recommender", ours)):
        found = ranking_metrics(scores, seen, wanted)
        print(f"{name:<12} {'  '.join(f'{key} {value:.3f}' for key, value in found.items())}")


def show(url: str, folder: Path) -> None:
    """Prints what is recommended to a new user, of all items and of the new ones alone; writes why."""
    new = read_table(folder / "new_items.csv")
    texts = {row["id"]: row["text"] for row in [*read_table(folder / "data" / "items.csv"), *new]}
    users, clicked = by_user(folder / "new_users.csv"), by_user(folder / "new_clicks.csv")
    # Of those with a history that fits on a page, the one who clicked on most new items.
    short = [name for name, items in users.items() if 10 <= len(items) <= 24]
    user = max(short, key=lambda name: (len(clicked.get(name, [])), name))
    half = len(users[user]) // 2
    history, wanted = users[user][:half], {*users[user][half:], *clicked.get(user, [])}
    print(f"{user}, of whom training has seen nothing, has clicked on:")
    for item in history:
        print(f"    {item}: {texts[item][:70]}")
    ranked = rank(url, history)
    candidates = [row["id"] for row in new]
    (fresh,) = ask(url, "serving_default", [{"history": history, "candidates": candidates}])
    of_new = list(zip(fresh["ranked"], fresh["scores"], strict=True))
    for title, items in (("of all items", ranked[:SHOWN]), (f"of the {len(new)} new items", of_new[:5])):
        print(f"is recommended, {title} (+ he clicked on it too, which nobody told the model):")
        for item, score in items:
            print(f"  {'+' if item in wanted else ' '}{score:7.2f}  {item}: {texts[item][:70]}")
    items = [item for item, _ in [*ranked[:7], *of_new[:3]]]
    table = contributions(url, history, items)
    why = {"user": user, "history": history, "items": items, "new": candidates}
    (folder / "why.json").write_text(json.dumps({**why, "contributions": table.tolist()}, indent=1))
    best = np.argsort(-table[:, 0], kind="stable")[:3]
    said = ", ".join(f"{history[place]} ({table[place, 0]:+.2f})" for place in best)
    print(f"{items[0]} is first because of {said}")


def draw(folder: Path, picture: Path) -> None:
    """Draws what each item of a history adds to the score of each recommended item."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    why = json.loads((folder / "why.json").read_text())
    table = np.array(why["contributions"])
    # The items of the history that add most, and what the others add together.
    order = np.argsort(-np.abs(table).sum(axis=1), kind="stable")[:15]
    table = table[order]
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    most = float(np.abs(table).max()) or 1.0
    image = axes.imshow(table, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    labels = [f"{item} (new)" if item in why["new"] else item for item in why["items"]]
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=7)
    axes.set_yticks(range(len(order)), [why["history"][place] for place in order], fontsize=7)
    axes.set_xlabel("recommended: the best of all, then the best new ones", fontsize=8)
    axes.set_ylabel(f"history of {why['user']} (simulated)", fontsize=8)
    figure.colorbar(image, label="what it adds to the score")
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    print(f"{picture}: what each item of the history adds to the scores")


def main() -> None:
    """Runs one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    for name in ("prepare", "new-users", "show", "draw"):
        step = steps.add_parser(name)
        if name in ("new-users", "show"):
            step.add_argument("url")
        step.add_argument("folder", type=Path)
        if name == "draw":
            step.add_argument("picture", type=Path)
    given = vars(parser.parse_args())
    functions: dict[str, Any] = {"prepare": prepare, "new-users": new_users, "show": show, "draw": draw}
    functions[given.pop("step")](**given)


if __name__ == "__main__":
    main()

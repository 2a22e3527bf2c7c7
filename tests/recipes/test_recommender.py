"""`recommender` from ratings to a served ranking."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.export import load_signature
from karpa_tf.recipes.recommender.recipe import Recommend
from karpa_tf.recipes.recommender.served import Recommender
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import make_ratings, write_csv
from tests.events import read_events, tags_of

TINY = ["--width", 8, "--users", 32, "--targets", 4, "--vocabulary_size", 150, "--epochs", 10]
TINY += [
    "--rerank_epochs",
    3,
    "--rerank_share",
    0.1,
    "--validation_share",
    0.1,
    "--neighbours",
    10,
    "--learning_rate",
    0.02,
    "--weight_decay",
    0,
    "--id_dropout",
    0.2,
]
LOWEST = float(np.finfo(np.float32).min)


def write_ratings(folder: Path, users: int = 90) -> Path:
    ratings = make_ratings(users)
    items = ratings.items
    write_csv(
        folder / "items.csv",
        list(zip(items.ids, items.texts, items.genres, strict=True)),
        ("id", "text", "genre"),
    )
    pairs = [(f"user {u}", items.ids[p]) for u, p in zip(ratings.users, ratings.places, strict=True)]
    write_csv(folder / "ratings.csv", pairs, ("user", "item"))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished tiny run, all of whose checkpoints were kept."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("recommender")
    words = ["--data", write_ratings(folder / "data"), "--logs", folder / "logs", *TINY]
    words += ["--deterministic", "true", "--checkpoint_seconds", 0, "--keep_checkpoints", 100]
    assert main([str(word) for word in ("train", "recommender", *words)]) == 0
    return folder / "logs" / "recommender" / "1"


@pytest.fixture(scope="module")
def parts(made):
    return Recommend().open_model(RunFolder(made))


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory) -> Path:
    """What the run exports, with two items that it was not trained on."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("savedmodels")
    rows = [("new-tool", "a large red hammer", "tool"), ("new-fruit", "a small old plum", "fruit")]
    new = write_csv(folder / "new.csv", rows, ("id", "text", "genre"))
    assert main(["export", str(made), "--to", str(folder), "--items", str(new)]) == 0
    return folder / "recommender" / "1"


def test_it_is_better_than_what_needs_no_network(made) -> None:
    metrics = json.loads((made / "metrics.json").read_text())
    popular, genres = metrics["baselines"]["popularity"], metrics["baselines"]["popularity by genre"]
    assert metrics["ndcg_10"] > 1.5 * popular["ndcg_10"] and metrics["recall_10"] > popular["recall_10"]
    assert metrics["cold_ndcg_10"] > genres["cold_ndcg_10"] and set(metrics["baselines"]) == {
        *("popularity", "item neighbours", "BPR matrix factorization", "popularity by genre", "own genres")
    }
    assert metrics["facts"]["cold items"] == 7 and metrics["facts"]["items"] == 65
    assert metrics["graph_traces"] == 1


def test_the_run_folder_and_tensorboard_are_complete(made) -> None:
    assert {p.name for p in (made / "assets").iterdir()} == {
        "data.json",
        "items.json",
        "start.json",
        "vocab.txt",
    }
    train, validation = (tags_of(read_events(made / name)) for name in ("train", "validation"))
    assert {"epoch/loss", "reranker/epoch/loss", "learning_rate"} <= train
    assert {"epoch/ndcg_10", "epoch/recall_10", "reranker/epoch/ndcg_10"} <= validation


@pytest.mark.parametrize("kept", [-1, pytest.param(3, marks=pytest.mark.slow)])
def test_it_resumes_to_the_bit(kept, made, karpa, tmp_path) -> None:
    before = json.loads((made / "metrics.json").read_text())
    stopped = shutil.copytree(made, tmp_path / "recommender" / "1")
    # In the towers' stage, and in that of the re-ranker.
    for path in sorted((stopped / "checkpoints").glob("step-*.npz"))[kept:]:
        path.unlink()
    (stopped / "metrics.json").unlink()
    result = karpa("train", "recommender", "--resume", stopped)
    assert result.status == 0, result.err
    assert json.loads((stopped / "metrics.json").read_text()) == before


def test_candidates_are_ranked_and_padding_is_last(parts) -> None:
    recommend = Recommender(parts).signatures()["serving_default"]
    row = {
        "history": ["hammer-red", "saw-old", "no item"],
        "candidates": ["apple-red", "", "drill-large", "no item", "otter-small"],
    }
    (found,) = recommend.predict([row])
    assert found["ranked"][0] == "drill-large" and set(found["ranked"][3:]) == {"", "no item"}
    assert found["scores"][:3] == sorted(found["scores"][:3], reverse=True)
    assert found["scores"][3:] == [LOWEST, LOWEST]
    # Rows of other lengths are padded, and do not change it; the order in a history counts for nothing.
    other = {"history": row["history"][::-1] + ["fig-old"] * 0, "candidates": row["candidates"] * 2}
    again = recommend.predict([row, other])
    assert again[0]["ranked"][:3] == found["ranked"][:3] and again[0]["ranked"][5:] == [""] * 5
    assert again[0]["scores"][:3] == pytest.approx(found["scores"][:3], rel=1e-4)
    assert again[1]["scores"][:6:2] == pytest.approx(found["scores"][:3], rel=1e-4)


def test_scores_vectors_and_what_is_retrieved_fit_each_other(parts) -> None:
    recommender = Recommender(parts)
    history = tf.constant([["hammer-red", "saw-old", ""]])
    retrieved = recommender.retrieve(history)
    items = [name.decode() for name in retrieved["item"][0].numpy() if name]
    assert len(items) == len(set(items)) == 70 and not {"hammer-red", "saw-old"} & set(items)
    # The product of the vectors is the towers' score.
    place = recommender.table.items.ids.index(items[0])
    some = recommender.table.items
    item = recommender.embed_item(*(tf.constant([x[place]]) for x in (some.ids, some.texts, some.genres)))
    user = recommender.user(recommender.rows.lookup(history))[0].numpy()
    vector = item["vector"].numpy()
    score = user @ vector[0, :-1] + vector[0, -1]
    assert score == pytest.approx(float(retrieved["score"][0, 0]), rel=1e-4)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"history": ["x", "y"], "candidates": ["fig-old"]},
            "Row 1: none of the 2 items of the history is in",
        ),
        ({"history": ["fig-old"], "candidates": ["", ""]}, "Row 1: there are no candidates"),
        ({"history": ["fig-old"], "candidates": []}, "Row 1: there are no candidates"),
        ({"history": "fig-old", "candidates": ["fig-red"]}, "Row 1: history must be a list of texts"),
        (
            {"history": ["fig-old"]},
            "A row is one JSON object with history, candidates; candidates is missing.",
        ),
        ({"history": [0], "candidates": ["fig-old"]}, "Row 1: history must be a list of texts, the ids"),
        ({"history": [["fig-old"]], "candidates": ["a"]}, "Row 1: history must be a list of texts"),
    ],
)
def test_wrong_rows_are_said_in_a_sentence(row, says, made, karpa) -> None:
    result = karpa("predict", made, json.dumps(row))
    assert result.status == 2 and says in result.err and "Traceback" not in result.err


def test_predict_prints_the_ranking_and_explain_why(made, karpa) -> None:
    row = json.dumps(
        {"history": ["hammer-red", "fig-old"], "candidates": ["fig-red", "otter-old", "hammer-old"]}
    )
    result = karpa("predict", made, row, "--json")
    (found,) = result.json["predictions"]
    result = karpa("explain", made, row, "--item", "hammer-old", "--json")
    assert result.status == 0, result.err
    (said,) = result.json["explanations"]
    assert said["score"] == pytest.approx(
        dict(zip(found["ranked"], found["scores"], strict=True))["hammer-old"], rel=1e-4
    )
    added = said["contributions"]
    assert list(added) == ["hammer-red", "fig-old"] and added["hammer-red"] > added["fig-old"]
    without = {"history": ["fig-old"], "candidates": ["hammer-old"]}
    (alone,) = karpa("predict", made, json.dumps(without), "--json").json["predictions"]
    assert said["score"] - added["hammer-red"] == pytest.approx(alone["scores"][0], rel=1e-3, abs=1e-4)
    assert "hammer-red  a red hammer" in karpa("explain", made, row, "--item", "hammer-old").out
    assert (
        'no item "hamer-old" among the 72 of the run; did you mean'
        in karpa("explain", made, row, "--item", "hamer-old").err
    )


def test_an_item_that_training_has_not_seen_is_ranked(exported) -> None:
    recommend = load_signature(exported)
    names = {"ranked", "scores"}
    for history, best in ((["hammer-red", "saw-old"], "new-tool"), (["fig-old", "plum-red"], "new-fruit")):
        (found,) = recommend.predict([{"history": history, "candidates": ["new-tool", "new-fruit"]}])
        assert set(found) == names and found["ranked"][0] == best
    retrieved = load_signature(exported, "retrieve").predict([{"history": ["hammer-red", "saw-old"]}])[0]
    assert {"new-tool", "new-fruit"} <= set(retrieved["item"])
    rows = [json.loads(line) for line in (exported / "assets" / "items.jsonl").read_text().splitlines()]
    assert len(rows) == 74 and rows[-1] == {
        **{"id": "new-fruit", "text": "a small old plum", "genre": "fruit"},
        "trained": False,
    }
    vectors = load_signature(exported, "embed_item")
    asked = [
        {"id": name, "text": "a large red hammer", "genre": "tool"} for name in ("new-tool", "", "hammer-red")
    ]
    new, unnamed, known = (row["vector"] for row in vectors.predict(asked))
    assert new == unnamed != known
    rowwise = json.loads((exported / "assets.extra" / "rowwise.json").read_text())["signatures"]
    assert all(signature["rowwise"] for signature in rowwise.values()), rowwise
    card = (exported / "assets.extra" / "model_card.md").read_text()
    assert "74 items; 9 of them were not seen in training" in card and "| popularity |" in card


def test_a_server_says_what_is_wrong(exported) -> None:
    recommend = load_signature(exported)
    for row, says in (
        ({"history": [["x"]], "candidates": [["fig-old"]]}, "None of the items of a history is in the table"),
        ({"history": [["fig-old"]], "candidates": [[""]]}, "There are no candidates"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=says):
            recommend({name: np.array(value, object) for name, value in row.items()})


def test_other_data_is_refused(made, karpa, tmp_path) -> None:
    result = karpa("evaluate", made, "--data", tmp_path)
    assert result.status == 2 and "evaluate takes no other data than" in result.err
    new = write_csv(tmp_path / "new.csv", [("a", "b")], ("id", "title"))
    result = karpa("export", made, "--items", new, "--to", tmp_path)
    assert result.status == 2 and 'has no column "text"' in result.err

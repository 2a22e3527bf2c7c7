"""Items and ratings: files of several layouts, splits, simulated clicks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from karpa_tf.data.clicks import documented_functions, simulated_clicks
from karpa_tf.data.ratings import Items, Ratings, open_ratings, read_items, split_ratings
from karpa_tf.errors import UserError
from tests.conftest import make_ratings, write_csv

# Two users and three films, as GroupLens lays them out.
FLAGS = ["unknown", "Action", "Comedy", "Drama"]
DATA = "1\t1\t5\t880000000\n1\t3\t2\t880000001\n2\t1\t4\t880000002\n2\t3\t4\t880000003\n"
ITEM = (
    "1|Café Müller (1995)|01-Jan-1995||url|0|0|1|1\n2|Heat (1995)|||url|0|1|0|0\n3|Odd (1996)|||url|0|0|0|0\n"
)


def movielens(folder: Path) -> Path:
    folder.mkdir()
    (folder / "u.data").write_text(DATA)
    (folder / "u.item").write_bytes(ITEM.encode("latin-1"))
    (folder / "u.genre").write_text("".join(f"{name}|{place}\n" for place, name in enumerate(FLAGS)) + "\n")
    return folder


def atomic(folder: Path) -> Path:
    folder.mkdir()
    rows = [line.split("\t") for line in DATA.splitlines()]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (folder / "ml.inter").write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    films = [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "1\tCafé Müller\t1995\tComedy Drama",
        "2\tHeat\t1995\tAction",
        "3\tOdd\t1996\t",
    ]
    (folder / "ml.item").write_text("\n".join(films) + "\n", encoding="utf-8")
    return folder


def tables(folder: Path) -> Path:
    items = [
        ("1", "Café Müller (1995)", "Comedy|Drama"),
        ("2", "Heat (1995)", "Action"),
        ("3", "Odd (1996)", ""),
    ]
    write_csv(folder / "items.csv", items, ("id", "text", "genre"))
    pairs = [tuple(line.split("\t")[:2]) for line in DATA.splitlines()]
    write_csv(folder / "ratings.csv", [*pairs, pairs[0]], ("user", "item"))
    return folder


@pytest.mark.parametrize("layout", [movielens, atomic, tables])
def test_every_layout_gives_the_same(layout, tmp_path) -> None:
    found = open_ratings(str(layout(tmp_path / "data")))
    assert found.items == Items(
        ["1", "2", "3"], ["Café Müller (1995)", "Heat (1995)", "Odd (1996)"], ["Comedy|Drama", "Action", ""]
    )
    assert found.users.tolist() == [0, 0, 1, 1] and found.places.tolist() == [0, 2, 0, 2] and found.count == 2
    assert bool(found.notes) == (layout is tables)  # a pair that is there twice
    assert found.fingerprint() == open_ratings(str(layout(tmp_path / "again"))).fingerprint()


@pytest.mark.parametrize(
    ("items", "ratings", "says"),
    [
        ("id,text\na,one\n", "user,item\nu,a\nu,b\nv,a\n", 'line 3: the item "b" is not in'),
        ("id,text\na,one\nb,two\n", "user,item\nu,a\nu,b\n", "has ratings of one user"),
        ("id,text\n", "user,item\nu,a\nv,a\n", "is empty: it has no rows below its header"),
        ("id,text\na,one\n", "user,item\n", "is empty: it has no rows below its header"),
        ("id,title\na,one\n", "user,item\nu,a\n", 'has no column "text"'),
        ("id,text\na,one\n", "user,film\nu,a\n", 'has no column "item"'),
        ("id,text\na,one\na,two\n", "user,item\nu,a\n", 'line 3: the item "a" is there already (line 2)'),
        ("id,text\na,\n", "user,item\nu,a\n", 'line 2 has nothing in the column "text"'),
        ("id,text\na,one\n", "user,item\n,a\n", 'line 2 has nothing in the column "user"'),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(items, ratings, says, tmp_path) -> None:
    (tmp_path / "items.csv").write_text(items)
    (tmp_path / "ratings.csv").write_text(ratings)
    with pytest.raises(UserError) as error:
        open_ratings(str(tmp_path))
    assert says in str(error.value)


def test_a_folder_without_tables_says_which_there_may_be(tmp_path) -> None:
    with pytest.raises(UserError, match=r"has no items.csv; did you mean"):
        (tmp_path / "item.csv").write_text("id,text\n")
        open_ratings(str(tmp_path))
    with pytest.raises(UserError, match='There is no folder "nowhere"'):
        open_ratings("nowhere")
    with pytest.raises(UserError, match=r"There is no file new\.csv"):
        read_items("new.csv")


def test_further_items_join_a_table() -> None:
    joined = Items(["a", "b"], ["one", "two"], ["x", ""]).joined(
        Items(["b", "c"], ["deux", "trois"], ["y", "z"])
    )
    assert joined == Items(["a", "b", "c"], ["one", "deux", "trois"], ["x", "y", "z"])


def test_a_split_is_of_all_ratings_and_the_same_each_time() -> None:
    ratings = make_ratings(60)
    shares = {"test_share": 0.25, "validation_share": 0.1, "rerank_share": 0.1, "cold_share": 0.1}
    found, again = split_ratings(ratings, **shares), split_ratings(ratings, **shares)
    parts = [found.train, found.rerank, found.validation, found.test, found.cold_test]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.unique(np.concatenate(parts)))
    # What was drawn for the test split of cold items is in none of the three.
    assert sum(map(len, parts)) <= len(ratings.users) and found.cold.sum() == round(0.1 * len(ratings.items))
    assert not found.cold[ratings.places[np.concatenate(parts[:4])]].any()
    assert found.cold[ratings.places[found.cold_test]].all()
    assert found.record == again.record and np.array_equal(found.train, again.train)
    taken = found.matrix("train", "test")
    assert taken.sum() == len(found.train) + len(found.test)
    assert len(found.test) / sum(map(len, parts[:4])) == pytest.approx(0.25, abs=0.03)
    with pytest.raises(UserError, match="need a rating each at least"):
        split_ratings(Ratings(ratings.items, ratings.users[:2], ratings.places[:2], 2), **shares)


def test_simulated_users_follow_what_they_like() -> None:
    items = make_ratings(2).items
    found, again = (simulated_clicks(items, users=120, clicks=12) for _ in range(2))
    assert found.fingerprint() == again.fingerprint() and found.count == 120
    pairs = set(zip(found.users.tolist(), found.places.tolist(), strict=True))
    assert len(pairs) == len(found.users) and np.bincount(found.users).min() >= 4

    def alike(genres: np.ndarray) -> float:
        each = [genres[found.users == user] for user in range(120)]
        return float(np.mean([(mine[:, None] == mine).mean() for mine in each]))

    genres = np.array(items.genres)[found.places]
    assert alike(genres) > alike(np.random.default_rng(0).permutation(genres)) + 0.05


def test_the_items_of_the_simulation_are_real_texts() -> None:
    items = documented_functions()
    assert len(items) > 1000 and len(set(items.texts)) == len(items)
    place = items.ids.index("scipy.signal.bilinear")
    assert "digital IIR filter" in items.texts[place] and items.genres[place] == "scipy.signal"

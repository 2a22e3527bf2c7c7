"""Items with their texts, and which user took which of them: tables, MovieLens' files, simulated clicks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from karpa_tf.data.cells import TABLES, Sheet, as_text, read_sheet, read_text
from karpa_tf.data.sources import DataRecord
from karpa_tf.data.tables import filled_columns
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine

# What is between several genres of an item, as in MovieLens.
GENRE_SEPARATOR = "|"
# u.item's last columns, where u.genre is not beside it.
_MOVIELENS_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|"
    "Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
_SPLIT_SEED = 20


@dataclass(frozen=True, repr=False)
class Items(InALine):
    """A table of items, a value a row each.

    Attributes:
        ids: names that differ from each other.
        texts: what is said of each.
        genres: of each, several with `|` between them; "" where there is none.
    """

    ids: list[str]
    texts: list[str]
    genres: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def joined(self, more: Items) -> Items:
        """Returns these items and further ones; of an id that is in both, the text and genre of `more`."""
        table = {
            name: (text, genre)
            for items in (self, more)
            for name, text, genre in zip(items.ids, items.texts, items.genres, strict=True)
        }
        return Items(list(table), *(list(column) for column in zip(*table.values(), strict=True)))


@dataclass(frozen=True, repr=False)
class Ratings(InALine):
    """Which user took which item: each pair once, of whatever rating.

    Attributes:
        items: all items, those that nobody took as well.
        users: int32 (ratings,), numbers of users from 0.
        places: int32 (ratings,), the rows of the items.
        count: users.
        notes: what the owner of the data may not know.
    """

    items: Items
    users: np.ndarray
    places: np.ndarray
    count: int
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Returns a hash of the items and the pairs."""
        digest = hashlib.sha256(repr((self.items.ids, self.items.texts, self.items.genres)).encode())
        digest.update(self.users.tobytes() + self.places.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, repr=False)
class RatingSplits(InALine):
    """Ratings for training, validation and test, and items of which training sees none.

    Attributes:
        ratings: all of them.
        train: int64, rows of `ratings`.
        rerank: the same, of the re-ranker alone: the towers do not learn from them.
        validation: the same; at test time they are known of a user.
        test: the same, of items that are not cold.
        cold: bool (items,), held out from training.
        cold_test: rows of `ratings`, all those of cold items.
    """

    ratings: Ratings
    train: np.ndarray
    rerank: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    cold: np.ndarray
    cold_test: np.ndarray

    @property
    def record(self) -> DataRecord:
        """What a run notes of them."""
        parts = ("train", "rerank", "validation", "test", "cold_test")
        sizes = {name: len(getattr(self, name)) for name in parts}
        return DataRecord(self.ratings.fingerprint(), {**sizes, "items": len(self.ratings.items)})

    def described(self, where: str) -> str:
        """Returns a line on them, for people."""
        cold = f", {self.cold.sum():,} of them held out" if self.cold.any() else ""
        train, rerank, validation, test = (
            f"{len(part):,}" for part in (self.train, self.rerank, self.validation, self.test)
        )
        return (
            f"{where}: {self.ratings.count:,} users, {len(self.ratings.items):,} items{cold}; "
            f"{train} ratings for the towers, {rerank} for the re-ranker, {validation} for validation, "
            f"{test} to test"
        )

    def matrix(self, *parts: str) -> np.ndarray:
        """Returns who took what in some parts, bool (users, items)."""
        taken = np.zeros((self.ratings.count, len(self.ratings.items)), bool)
        for part in parts:
            rows = getattr(self, part)
            taken[self.ratings.users[rows], self.ratings.places[rows]] = True
        return taken


def split_ratings(
    ratings: Ratings, *, test_share: float, validation_share: float, rerank_share: float, cold_share: float
) -> RatingSplits:
    """Splits ratings at random, always in the same way.

    Args:
        ratings: of all users and items.
        test_share: of the ratings; users are not told apart, as in Microsoft Recommenders' random split.
        validation_share: of the ratings that are left.
        rerank_share: of these as well.
        cold_share: of the items that somebody took: their ratings are in none of the three parts.

    Raises:
        UserError: a part has no ratings.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    order = rng.permutation(len(ratings.users))
    test, train = np.split(order, [round(test_share * len(order))])
    ends = np.round(np.cumsum([validation_share, rerank_share]) * len(train)).astype(int)
    validation, rerank, train = np.split(train, ends)
    taken = rng.permutation(np.unique(ratings.places))
    cold = np.zeros(len(ratings.items), bool)
    cold[taken[: round(cold_share * len(taken))]] = True
    train, rerank, validation, test = (
        np.sort(part[~cold[ratings.places[part]]]) for part in (train, rerank, validation, test)
    )
    sizes = [len(train), len(validation), len(test)]
    if not all(sizes):
        raise UserError(
            "Training, validation and test need a rating each at least; give more ratings or other shares. "
            f"Received: {len(order)} ratings, split into {', '.join(map(str, sizes))}."
        )
    return RatingSplits(ratings, train, rerank, validation, test, cold, np.flatnonzero(cold[ratings.places]))


# --- Reading --------------------------------------------------------------------------------------


def open_ratings(source: str) -> Ratings:
    """Reads items and ratings.

    Args:
        source: `embedded`, simulated clicks; or a folder: with the tables `items` (columns id, text and
            perhaps genre) and `ratings` (user, item), .csv or another kind of table; with MovieLens 100k's
            u.item and u.data; or with its atomic files ml-100k.item and ml-100k.inter.

    Returns:
        The items, and each pair of a user and an item once.

    Raises:
        UserError: there is no such folder, a file or column is missing, or what they hold cannot be used.
    """
    if source == "embedded":
        from karpa_tf.data.clicks import simulated_clicks

        return simulated_clicks()
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(
            f'There is no folder "{source}"; --data takes embedded, or a folder with the tables items and '
            "ratings, MovieLens' u.item and u.data, or NAME.item and NAME.inter."
        )
    items, pairs = _sheets(folder)
    return _ratings(_items(items), items.path, pairs)


def read_items(path: str | Path) -> Items:
    """Reads a table of items, with the columns id, text and perhaps genre.

    Args:
        path: of a .csv, .tsv, .jsonl, .xlsx or .parquet file.

    Returns:
        The items, in the order of the rows.

    Raises:
        UserError: it cannot be read, a column or a value is missing, or an id is there twice.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}; a table of items has the columns id, text and genre.")
    return _items(read_sheet(Path(path), ("id", "text", "genre")))


def _sheets(folder: Path) -> tuple[Sheet, Sheet]:
    """Returns the tables of items and of ratings in a folder."""
    if (folder / "u.data").is_file():
        return _movielens(folder)
    if atomic := sorted(folder.glob("*.inter")):
        return _atomic(atomic[0])
    tables = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLES}
    for name in ("items", "ratings"):
        if name not in tables:
            raise UserError(
                f"{folder} has no {name}.csv{did_you_mean(name, tables)} It needs the tables items (id, "
                "text, genre) and ratings (user, item), or MovieLens' u.item and u.data, or NAME.item and "
                "NAME.inter."
            )
    return read_sheet(tables["items"], ("id", "text")), read_sheet(tables["ratings"], ("user", "item"))


def _movielens(folder: Path) -> tuple[Sheet, Sheet]:
    """Reads MovieLens 100k as GroupLens lays it out; u.item is in Latin-1."""
    try:
        films = (folder / "u.item").read_bytes().decode("latin-1").splitlines()
    except OSError as error:
        raise UserError(f"{folder / 'u.item'} cannot be read: {error.strerror}.") from None
    genres = _MOVIELENS_GENRES.split("|")
    if (folder / "u.genre").is_file():
        genres = [line.split("|")[0] for line in read_text(folder / "u.genre").splitlines() if line.strip()]
    rows = []
    for line in filter(None, films):
        cells = line.split("|")
        flags = cells[-len(genres) :]
        named = [name for name, flag in zip(genres, flags, strict=False) if flag == "1"]
        rows.append([cells[0], cells[1] if len(cells) > 1 else "", GENRE_SEPARATOR.join(named)])
    pairs = [line.split("\t") for line in read_text(folder / "u.data").splitlines() if line.strip()]
    return (
        _sheet(folder / "u.item", ["id", "text", "genre"], rows),
        _sheet(folder / "u.data", ["user", "item", "rating", "time"], pairs),
    )


def _atomic(path: Path) -> tuple[Sheet, Sheet]:
    """Reads NAME.inter and NAME.item, whose columns say their types: item_id:token, movie_title:token_seq."""

    def read(file: Path, names: dict[str, str]) -> Sheet:
        lines = [line.split("\t") for line in read_text(file).splitlines() if line]
        header = [column.split(":")[0] for column in lines[0]] if lines else []
        return _sheet(file, [names.get(name, name) for name in header], lines[1:])

    names = {"item_id": "id", "movie_title": "text", "class": "genre", "user_id": "user"}
    items = read(path.with_suffix(".item"), names)
    # A sequence has blanks between its parts; the year says what the title says in u.item.
    for row in items.rows:
        cells = dict(zip(items.header, row, strict=False))
        if year := cells.get("release_year"):
            row[items.header.index("text")] += f" ({year})"
        if "genre" in cells:
            row[items.header.index("genre")] = GENRE_SEPARATOR.join(cells["genre"].split())
    return items, read(path, {"user_id": "user", "item_id": "item"})


def _sheet(path: Path, header: list[str], rows: Sequence[list[str]]) -> Sheet:
    first = 1 + path.name.endswith((".item", ".inter")) * (path.stem != "u")
    return Sheet(path, header, list(rows), list(range(first, first + len(rows))), "line", [])


def _items(sheet: Sheet) -> Items:
    wanted = [("id", "an item needs a name of its own"), ("text", "it says what the item is")]
    ids, texts = filled_columns(sheet, wanted, ["id"])
    seen: dict[str, int] = {}
    for place, name in enumerate(ids):
        if (first := seen.setdefault(name, place)) < place:
            raise UserError(
                f'{sheet.where(place)}: the item "{name}" is there already ({sheet.unit} '
                f"{sheet.numbers[first]}); keep one of them."
            )
    genres = [""] * len(ids)
    if "genre" in sheet.header:
        cells = sheet.select([("genre", "several have | between them")])
        genres = [as_text(cell, f'{sheet.where(place)}: "genre"') for place, (cell,) in enumerate(cells)]
    return Items(ids, texts, genres)


def _ratings(items: Items, path: Path, sheet: Sheet) -> Ratings:
    wanted = [("user", "it says who took the item"), ("item", "it is the id of an item")]
    places = {name: place for place, name in enumerate(items.ids)}
    users: dict[str, int] = {}
    pairs: dict[tuple[int, int], None] = {}
    rows = list(zip(*filled_columns(sheet, wanted, ["user", "item"]), strict=True))
    for place, (user, item) in enumerate(rows):
        if item not in places:
            raise UserError(
                f'{sheet.where(place)}: the item "{item}" is not in {path}{did_you_mean(item, places)} Add '
                "it there, or delete its ratings."
            )
        pairs[users.setdefault(user, len(users)), places[item]] = None
    if len(users) < 2:
        raise UserError(
            f"{sheet.path} has ratings of one user; what people have in common is learned from two at least."
        )
    notes = [*sheet.notes]
    if twice := len(rows) - len(pairs):
        notes.append(f"{sheet.path}: {twice:,} ratings of an item that the user has rated before are one.")
    found = np.array(list(pairs), np.int32)
    return Ratings(items, found[:, 0].copy(), found[:, 1].copy(), len(users), notes)

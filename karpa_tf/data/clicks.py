"""Simulated clicks on real texts: functions of SciPy and scikit-learn, and users that are made up.

The items and their texts are real, and come with packages that karpa_tf needs; **the users are simulated**.
"""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Iterator

import numpy as np

from karpa_tf.data.ratings import Items, Ratings

_MODULES = {
    "scipy": "cluster.hierarchy fft integrate interpolate linalg ndimage optimize signal sparse "
    "sparse.csgraph sparse.linalg spatial spatial.distance special stats",
    "sklearn": "cluster covariance decomposition ensemble feature_selection linear_model manifold metrics "
    "model_selection neighbors preprocessing",
}
# What the users are made of.
USERS, CLICKS, SEED = 800, 40, 5
_INTERESTS = 3
# What counts for log p of a click: how alike an item is to an interest, and how well known it is. And the
# share of the clicks that follow neither.
_TASTE, _FAME, _CHANCE = 12.0, 1.0, 0.1


def documented_functions() -> Items:
    """Returns the public functions and classes of SciPy and scikit-learn; the genre is the module.

    The text is the first paragraph of what each says of itself. It depends on the packages' versions.
    """
    ids, texts, genres = [], [], []
    for module, name, text in _documented():
        if text not in texts:  # one function under two names
            ids.append(f"{module}.{name}")
            texts.append(text)
            genres.append(module)
    return Items(ids, texts, genres)


def _documented() -> Iterator[tuple[str, str, str]]:
    for path in (f"{package}.{part}" for package, parts in _MODULES.items() for part in parts.split()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(path)
            for name in sorted(getattr(module, "__all__", ())):
                try:
                    thing = getattr(module, name)
                except ImportError:  # experimental, to be asked for
                    continue
                if not callable(thing) or name.startswith("_"):
                    continue
                paragraphs = (" ".join(part.split()) for part in (inspect.getdoc(thing) or "").split("\n\n"))
                # The first paragraph of a C function is its signature.
                prose = [p for p in paragraphs if re.match(r"[A-Z][^(=]* ", p) and not p.startswith("..")]
                if prose:
                    yield path, name, prose[0][:300]


def simulated_clicks(
    items: Items | None = None, *, users: int = USERS, clicks: int = CLICKS, seed: int = SEED
) -> Ratings:
    """Returns clicks of simulated users on items.

    A user has three interests, each an item drawn at random. What he clicks on is drawn without replacement:
    items whose words and genre are like those of an interest more often, well-known items more often, and
    one in ten from all alike. How well known an item is follows no text.

    Args:
        items: with texts and genres; none: `documented_functions`.
        users: how many.
        clicks: of a user, in the mean; they follow a geometric distribution, 8 at least.
        seed: of all that is drawn.
    """
    items = items or documented_functions()
    rng = np.random.default_rng(seed)
    likeness = _likeness(items)
    known = rng.permutation(-np.log(np.arange(1, len(items) + 1)))
    pairs = []
    for user in range(users):
        interests = rng.choice(len(items), min(_INTERESTS, len(items)), replace=False)
        count = min(8 + rng.geometric(1 / max(clicks - 8, 1)), len(items) // 2)
        # The largest of log p + Gumbel noise are a draw without replacement.
        liking = _TASTE * likeness[interests].max(axis=0) + _FAME * known + rng.gumbel(size=len(items))
        liked = np.argsort(-liking, kind="stable")[:count]
        chance = rng.choice(len(items), count, replace=False)
        drawn = np.where(rng.random(count) < _CHANCE, chance, liked)
        pairs += [(user, place) for place in np.unique(drawn)]
    found = np.array(pairs, np.int32)
    return Ratings(
        items, found[:, 0].copy(), found[:, 1].copy(), users, ["The users and clicks are simulated."]
    )


def _likeness(items: Items) -> np.ndarray:
    """Returns how alike the words of items are, 0 to 1, and 0.3 more for those of one genre."""
    words = [set(re.findall(r"[a-z]{3,}", text.lower())) for text in items.texts]
    names = sorted(set().union(*words))
    place = {word: number for number, word in enumerate(names)}
    counts = np.zeros((len(words), len(names)), np.float32)
    for row, some in enumerate(words):
        counts[row, [place[word] for word in some]] = 1
    counts *= np.log(len(words) / counts.sum(axis=0))
    counts /= np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)
    same = np.array(items.genres)[:, None] == np.array(items.genres)[None]
    return counts @ counts.T + 0.3 * same

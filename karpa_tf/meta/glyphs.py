"""Glyphs: the letters of matplotlib's DejaVu fonts as classes of images, split by script; nothing is fetched.

A class is a letter. Its examples are its cuts (sans, mono and serif; plain, bold, slanted and both), turned,
sheared, scaled and moved a little, as Omniglot's are of 20 hands.
"""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from karpa_tf.data.images import Images
from karpa_tf.data.sources import Split

# Scripts by the first word of a letter's Unicode name. Those that share letters are on one side, to train on.
SCRIPTS: dict[Split, tuple[str, ...]] = {
    "train": ("LATIN", "GREEK", "CYRILLIC", "COPTIC", "OLD", "LISU", "CANADIAN", "ARABIC"),
    "validation": ("ARMENIAN",),
    "test": ("GEORGIAN", "HEBREW", "LAO"),
}
EXAMPLES = 20

_CUTS = [
    f"DejaVu{family}{cut}"
    for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for cut in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
]
# A letter that fewer cuts have would be told by its very pixels.
_LEAST_CUTS = 4
# From this cosine on two letters are one, as O of Latin and of Greek, or O and o: which class would be right?
_ALIKE = 0.93
# The distortions are part of the data: they must not change with a run's seed.
_SEED = 21


@functools.cache
def read_glyphs(size: int) -> dict[Split, Images]:
    """Draws letters, always the same ones.

    Left out are letters with accents or other additions, those of fewer than 4 cuts, and those that look like
    another one, within a script or between them, when both are as large as can be.

    Args:
        size: width and height.

    Returns:
        Images by split, white on black, 20 of each letter; a label is a letter's Unicode name.
    """
    import matplotlib
    from matplotlib.ft2font import FT2Font

    files = [Path(matplotlib.get_data_path(), "fonts", "ttf", f"{cut}.ttf") for cut in _CUTS]
    held = [set(FT2Font(str(file)).get_charmap()) for file in files]
    fonts = [ImageFont.truetype(str(file), 2 * size) for file in files]
    letters: list[tuple[Split, str, list[int]]] = []
    for split, scripts in SCRIPTS.items():
        for letter in map(chr, sorted(held[0])):
            cuts = [i for i, characters in enumerate(held) if ord(letter) in characters]
            script = unicodedata.name(letter, "").split(" ")[0]
            if script in scripts and _is_plain(letter) and len(cuts) >= _LEAST_CUTS:
                letters.append((split, letter, cuts))
    # Which letters there are must not depend on the size of the pictures.
    compared = ImageFont.truetype(str(files[0]), 56)
    plain = np.stack([_distorted(_outline(compared, letter), 28) for _, letter, _ in letters])
    other = _unlike(plain.reshape(len(letters), -1).astype(np.float32))
    rng = np.random.default_rng(_SEED)
    found: dict[Split, tuple[list[np.ndarray], list[str], list[str]]] = {s: ([], [], []) for s in SCRIPTS}
    for place in other:
        split, letter, cuts = letters[place]
        outlines = [_outline(fonts[cut], letter) for cut in cuts]
        name = unicodedata.name(letter)
        for i in range(EXAMPLES):
            pixels, labels, names = found[split]
            pixels.append(_distorted(outlines[i % len(cuts)], size, rng))
            labels.append(name)
            names.append(f"{name}, {_CUTS[cuts[i % len(cuts)]]}")
    return {
        split: Images(np.stack(x)[..., None], labels, names) for split, (x, labels, names) in found.items()
    }


def _is_plain(letter: str) -> bool:
    kind, parts = unicodedata.category(letter), unicodedata.decomposition(letter)
    return kind in ("Lu", "Ll", "Lo") and not parts and " WITH " not in unicodedata.name(letter)


def _unlike(pictures: np.ndarray) -> list[int]:
    """Returns the places of pictures (n, pixels) that look like none of those before them."""
    pictures = pictures / np.linalg.norm(pictures, axis=1, keepdims=True)
    alike = pictures @ pictures.T > _ALIKE
    kept: list[int] = []
    for place in range(len(pictures)):
        if not alike[place, kept].any():
            kept.append(place)
    return kept


def _outline(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    """Returns a letter, white on black, in a picture that ends where it does."""
    left, top, right, bottom = font.getbbox(letter)
    picture = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(picture).text((-left, -top), letter, 255, font)
    return picture


def _distorted(letter: Image.Image, size: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Returns a letter as uint8 (size, size), its longer side 5/7 of that; with `rng` it is distorted."""
    # From twice the size of the picture (reduced in the end: smooth edges) to the place in the letter's.
    matrix = np.eye(2) * max(letter.size) / (2 * size * 5 / 7)
    shift = np.zeros(2)
    if rng:
        turn, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.25, 0.25)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = matrix @ turned @ np.array([[1, shear], [0, 1]]) @ np.diag(np.exp(rng.uniform(-0.2, 0.2, 2)))
        shift = rng.uniform(-1 / 7, 1 / 7, 2) * size
    offset = np.array(letter.size) / 2 - matrix @ (size + shift)
    numbers = (*matrix[0], offset[0], *matrix[1], offset[1])
    picture = letter.transform((2 * size,) * 2, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)
    return np.asarray(picture.reduce(2))

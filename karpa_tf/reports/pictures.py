"""Pictures of images: grids of them, and what speaks for a label, for TensorBoard and as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from karpa_tf.errors import writing

_TILE = 112
_CAPTION = 14


def sample_grid(pixels: np.ndarray) -> np.ndarray:
    """Returns images uint8 (n, height, width, channels) side by side, as uint8 (height, width, 3)."""
    return error_grid(pixels, [""] * len(pixels), caption=0)


def error_grid(pixels: np.ndarray, captions: Sequence[str], caption: int = _CAPTION) -> np.ndarray:
    """Returns a grid of images with a line below each.

    Args:
        pixels: uint8 (n, height, width, channels); without any, a grey tile says so.
        captions: a line each; what does not fit is cut.
        caption: height of the line.

    Returns:
        uint8 (height, width, 3).
    """
    if not len(pixels):
        pixels, captions = np.full((1, 8, 8, 1), 200, np.uint8), ["no errors"]
    columns = int(np.ceil(np.sqrt(len(pixels))))
    rows = -(-len(pixels) // columns)
    tile = _TILE if caption else 2 * max(pixels.shape[1], 32)
    sheet = Image.new("RGB", (columns * tile, rows * (tile + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, text) in enumerate(zip(pixels, captions, strict=True)):
        x, y = number % columns * tile, number // columns * (tile + caption)
        sheet.paste(_enlarged(image, tile - 2), (x + 1, y + 1))
        while text and draw.textlength(text) > tile - 2:
            text = text[:-1]
        if text:
            draw.text((x + 2, y + tile), text, fill="black")
    return np.asarray(sheet)


def explanation(image: np.ndarray, attributions: np.ndarray, caption: str) -> np.ndarray:
    """Returns an image beside what speaks for its label (red) and against it (blue).

    Args:
        image: uint8 (height, width, channels).
        attributions: float (height, width, channels); the channels are added up.
        caption: a line below.

    Returns:
        uint8 (height, width, 3).
    """
    each = attributions.sum(axis=-1)
    # The largest hundredth would leave the rest white.
    strength = np.clip(each / max(float(np.quantile(np.abs(each), 0.99)), 1e-12), -1, 1)[..., None]
    red, blue, white = np.array([178, 24, 43]), np.array([33, 102, 172]), 255.0
    map_ = np.where(strength > 0, white + strength * (red - white), white - strength * (blue - white))
    side = 2 * _TILE
    sheet = Image.new("RGB", (2 * side + 4, side + _CAPTION), "white")
    sheet.paste(_enlarged(image, side), (0, 0))
    sheet.paste(_enlarged(map_.round().astype(np.uint8), side), (side + 4, 0))
    ImageDraw.Draw(sheet).text((2, side), caption, fill="black")
    return np.asarray(sheet)


def write_png(path: Path, image: np.ndarray) -> None:
    """Writes an image uint8 (height, width, 3) to a PNG file, whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    with writing(path):
        try:
            Image.fromarray(image).save(temporary, format="png")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _enlarged(image: np.ndarray, side: int) -> Image.Image:
    image = image[..., 0] if image.shape[-1] == 1 else image
    return Image.fromarray(image).convert("RGB").resize((side, side), Image.Resampling.NEAREST)

"""Pictures: grids of images, what speaks for a label, and films, for TensorBoard and as files."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from karpa_tf.errors import UserError, writing

_TILE = 112
_CAPTION = 14


def sample_grid(pixels: np.ndarray, columns: int = 0) -> np.ndarray:
    """Returns images uint8 (n, height, width, channels) side by side, as uint8 (height, width, 3).

    Args:
        pixels: the images.
        columns: of the grid; 0: as many as rows.
    """
    return error_grid(pixels, [""] * len(pixels), caption=0, columns=columns)


def error_grid(
    pixels: np.ndarray, captions: Sequence[str], caption: int = _CAPTION, columns: int = 0
) -> np.ndarray:
    """Returns a grid of images with a line below each.

    Args:
        pixels: uint8 (n, height, width, channels); without any, a grey tile says so.
        captions: a line each; what does not fit is cut.
        caption: height of the line.
        columns: of the grid; 0: as many as rows.

    Returns:
        uint8 (height, width, 3).
    """
    if not len(pixels):
        pixels, captions = np.full((1, 8, 8, 1), 200, np.uint8), ["no errors"]
    columns = columns or int(np.ceil(np.sqrt(len(pixels))))
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
    with _whole(path) as temporary:
        Image.fromarray(image).save(temporary, format="png")


# --- Films ----------------------------------------------------------------------------------------


def check_film(path: Path) -> None:
    """Raises a UserError if a film of that name cannot be written: it is no .gif, and no .mp4 with ffmpeg."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UserError(f"--gif takes a file that ends in .gif or .mp4. Received: {path}.")
    if path.suffix.lower() == ".mp4" and not shutil.which("ffmpeg"):
        raise UserError(
            f"{path} needs the program ffmpeg, which is not on the PATH: install it, or give a .gif instead."
        )


def write_film(path: Path, pictures: Iterable[np.ndarray], fps: float) -> int:
    """Writes pictures uint8 (height, width, 3), all of a size, to a GIF or MP4, whole or not at all.

    Args:
        path: whose suffix says which; see `check_film`.
        pictures: one at least; they are taken one by one.
        fps: pictures a second. A GIF counts hundredths of seconds, and browsers show 50 a second at most.

    Returns:
        How many there were.
    """
    check_film(path)
    count = itertools.count()
    images = (image for image, _ in zip(map(Image.fromarray, pictures), count, strict=False))
    with _whole(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _write_mp4(temporary, images, fps)
        else:
            duration = 10 * max(2, round(100 / fps))
            next(images).save(
                temporary, format="gif", save_all=True, append_images=images, duration=duration, loop=0
            )
    return next(count)


def _write_mp4(path: Path, images: Iterator[Image.Image], fps: float) -> None:
    first = next(images)
    width, height = first.size
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    # Players want 4:2:0, which needs even sides.
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-f", "mp4", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stderr
        with contextlib.suppress(BrokenPipeError):  # it says why it has ended
            for image in itertools.chain([first], images):
                process.stdin.write(image.tobytes())
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        said = process.stderr.read().decode(errors="replace")
    if process.returncode:
        raise UserError(f"ffmpeg could not write the film: {' '.join(said.split())[-300:]}")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Gives a file to write, which gets its name when it is whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    with writing(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _enlarged(image: np.ndarray, side: int) -> Image.Image:
    image = image[..., 0] if image.shape[-1] == 1 else image
    return Image.fromarray(image).convert("RGB").resize((side, side), Image.Resampling.NEAREST)

"""One image: a file's bytes, or an array, as the recipes see it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from karpa_tf.errors import UserError, did_you_mean

# What a file may be when it is not an image at all, or ends too soon.
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)
# Formats that Pillow lists but reads only with a plugin or a program that it does not bring.
_NO_READER = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


def suffixes() -> set[str]:
    """Returns the endings of the image files that Pillow reads, in small letters, e.g. `.jfif`."""
    kinds = PIL.Image.registered_extensions()
    return {end for end, kind in kinds.items() if kind in PIL.Image.OPEN and kind not in _NO_READER}


def read_image(path: str | Path, size: int, channels: int) -> np.ndarray:
    """Reads an image file as the recipes see it.

    Args:
        path: of the file, in any format that Pillow reads.
        size: width and height of what comes out.
        channels: 1 (grey) or 3 (colours).

    Returns:
        uint8 (size, size, channels).

    Raises:
        UserError: it is not there or is no image.
    """
    try:
        return decode_image(Path(path).read_bytes(), size, channels)[0]
    except FileNotFoundError:
        near = did_you_mean(Path(path).name, (x.name for x in Path(path).parent.glob("*")))
        raise UserError(f'There is no image "{path}"{near}') from None
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image: {reason(error)}.") from None


def decode_image(data: bytes, size: int, channels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes PNG, JPEG and what else Pillow reads.

    Turned as its EXIF says; transparency lies on white; 16 bits and floats become 8 bits as `to_bytes` says;
    colours become grey by their luminance; another size is resized, without keeping the ratio of the sides.

    Args:
        data: the bytes of the file.
        size: width and height of what comes out.
        channels: 1 (grey) or 3 (colours).

    Returns:
        uint8 (size, size, channels), and the width and height that it had.

    Raises:
        OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError: it is no image, or has numbers
            of an unknown range.
    """
    with PIL.Image.open(io.BytesIO(data)) as file:
        kind = file.format
        image: Any = PIL.ImageOps.exif_transpose(file)
        image.load()
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        # Of the formats that Pillow reads into 32 bits, TIFF alone has as many; the others have 16.
        if image.mode == "I" and kind != "TIFF":
            values = np.clip(values, 0, 65535).astype(np.uint16)
        image = PIL.Image.fromarray(to_bytes(values))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(ground, image)
    before = image.size
    image = image.convert("L" if channels == 1 else "RGB")
    return resized(image, size), before


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Returns the pixels of one image as uint8, by a rule for their type, never by what is in this image.

    One image's brightest pixel says nothing of the scale: by it a dark image would become a bright one.

    Args:
        values: uint8, uint16 (0 to 65535), bool, or floats of 0 to 1.

    Raises:
        ValueError: numbers of another type, or floats beyond 0 to 1.
    """
    kind = values.dtype
    if kind == np.uint8:
        return values
    if kind.kind == "b":
        return values.astype(np.uint8) * 255
    if kind.kind == "u" and kind.itemsize == 2:
        return np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    if kind.kind != "f":
        raise ValueError(f"pixels of the type {kind} have no known range; save it with 8 or 16 bits")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # not a number fails as well
        raise ValueError(
            f"pixels that are floats must lie between 0 and 1, and these do from {low:g} to {high:g}"
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def resized(image: Any, size: int) -> np.ndarray:
    if image.size != (size, size):
        image = image.resize((size, size), PIL.Image.Resampling.BILINEAR)
    array = np.asarray(image, np.uint8)
    return array[..., None] if array.ndim == 2 else array


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "identify image file" in text:
        return "it is no image of a kind that Pillow reads"
    return (text or type(error).__name__)[:150].rstrip(".")

"""Images of TFDS."""

from __future__ import annotations

import numpy as np
import PIL.Image

from karpa_tf.data.images.common import Images, Reader
from karpa_tf.data.images.decode import resized, to_bytes
from karpa_tf.data.sources import SPLITS, Split, open_tfds
from karpa_tf.data.tables import with_training
from karpa_tf.errors import UserError


def read_tfds(source: str, reader: Reader) -> dict[Split, Images]:
    builder = open_tfds(source.removeprefix("tfds:"))
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    for name in ("image", "label"):
        if name not in features:
            raise UserError(f'{source} has no feature "{name}". It has: {", ".join(features)}.')
    kind = features["label"]
    mode = "L" if reader.channels == 1 else "RGB"
    found: dict[Split, Images] = {}
    for split in SPLITS:
        if split not in builder.info.splits:
            continue
        pixels: list[np.ndarray] = []
        labels: list[str] = []
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            try:
                values = to_bytes(example["image"])
            except ValueError as error:
                raise UserError(f"{source}: {split}[{len(labels)}]: {error}.") from None
            image = PIL.Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
            pixels.append(resized(image.convert(mode), reader.size))
            label = example["label"]
            labels.append(kind.int2str(int(label)) if hasattr(kind, "int2str") else str(label))
        if labels:
            names = [f"{split}[{i}]" for i in range(len(labels))]
            found[split] = Images(np.stack(pixels), labels, names)
    return with_training(source, found)

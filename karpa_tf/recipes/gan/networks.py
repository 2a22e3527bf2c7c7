"""The images of a run, and its networks."""

from __future__ import annotations

from typing import Any

import keras

from karpa_tf.data.images import ImageData, Images, open_images
from karpa_tf.errors import UserError
from karpa_tf.models import build_dcgan_discriminator, build_dcgan_generator
from karpa_tf.training.adversarial import GanStep
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.schedule import WarmupThenDecay

from . import GanSettings

# Real images that others are compared with, at least.
_LEAST = 10


def open_data(config: GanSettings) -> ImageData:
    """Returns the images that the settings name, split."""
    size, _, channels = config.shape
    data = open_images(
        config.data,
        size=size,
        channels=channels,
        validation_share=config.validation_share,
        test_share=config.test_share,
        broken=config.broken,
    )
    if config.conditional and data.bare:
        raise UserError(
            f"{config.data} has classes without images that can be read: {', '.join(data.bare)}; "
            "put some into their folders, "
            "or take these away."
        )
    for split in ("validation", "test"):
        check_size(data.splits[split], f"{config.data} ({split} split)")
    return data


def check_size(images: Images, where: str) -> None:
    """Raises a UserError for too few images to compare others with."""
    if len(images) < _LEAST:
        raise UserError(
            f"{where} has too few images to compare generated ones with: bring {_LEAST} at least. Received: "
            f"{len(images)}."
        )


def make_networks(config: GanSettings, classes: int, dtype: str) -> tuple[keras.Model, keras.Model]:
    """Returns a new generator and a new discriminator."""
    common: dict[str, Any] = {"classes": classes if config.conditional else 0, "filters": config.filters}
    return (
        build_dcgan_generator(config.shape, latent=config.latent, dtype=dtype, **common),
        build_dcgan_discriminator(config.shape, dtype=dtype, **common),
    )


def make_step(config: GanSettings, classes: int, steps: int) -> GanStep:
    """Returns what trains two new networks, for so many updates in all."""
    keras.utils.set_random_seed(config.seed)  # whatever the judge has drawn
    networks = make_networks(config, classes, config.precision)
    average: dict[str, Any] = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    rates = (config.learning_rate, config.learning_rate * config.discriminator_rate)
    optimizers = [
        AdamW(WarmupThenDecay(rate, steps, warmup=0.0), 0.0, beta_1=0.5, beta_2=0.99, **more)
        for rate, more in zip(rates, (average, {}), strict=True)
    ]
    return GanStep(*networks, (optimizers[0], optimizers[1]), seed=config.seed)

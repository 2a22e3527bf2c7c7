"""`cifar10-cnn`: settings and options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from karpa_tf.errors import UserError
from karpa_tf.recipe import About, ExplainOptions
from karpa_tf.recipes.families.settings import (
    ImageEvaluateOptions,
    ImageExportOptions,
    ImageSettings,
    image_inputs,
    whole_numbers,
)
from karpa_tf.settings import Bounds, Count, defaults_of, option


@dataclass(kw_only=True)
@defaults_of(__file__)
class Cifar10CnnSettings(ImageSettings):
    """A convolutional network for small colour images."""

    data: str = option(
        "tfds:cifar10",
        "Images with labels: a folder or .zip of class folders, an .npz file with x_train and y_train, "
        "cifar-10-batches-py, tfds:NAME (needs a network once).",
    )
    image_size: Annotated[int, Bounds(least=16, most=1024)] = option(
        32, "Width and height of the images; others are resized."
    )
    network: Literal["airbench", "essay"] = option(
        "airbench",
        "airbench: whitened patches and three blocks; essay: two convolutions, three dense layers.",
    )
    widths: str = option("64,256,256", "airbench: channels of each block.")
    depth: Count = option(2, "airbench: convolutions of a block.")
    activation: Literal["gelu", "silu", "relu"] = option("relu", "airbench: after each normalization.")

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        smallest = 2 ** len(self.block_widths()) + 1
        if self.network == "airbench" and self.image_size <= smallest:
            raise UserError(
                f"{len(self.block_widths())} widths need an image_size above {smallest}. "
                f"Received: {self.image_size}."
            )

    def smaller(self, assets: Path) -> dict[str, Any]:
        if self.ensemble or self.network != "airbench":
            return {}
        return {"widths": ",".join(str(max(1, width // 2)) for width in self.block_widths())}

    def block_widths(self) -> list[int]:
        """Returns the numbers in `widths`."""
        return whole_numbers("widths", self.widths)


ABOUT = About(
    summary="convolutional network for small colour images",
    default_data="tfds:cifar10 (needs a network once); offline: a folder, .zip or .npz of yours",
    settings=Cifar10CnnSettings,
    inputs=image_inputs,
    evaluate=ImageEvaluateOptions,
    export=ImageExportOptions,
    explain=ExplainOptions,
    charts={"accuracy": ["epoch/accuracy"], "loss": ["epoch/loss"]},
    figure="accuracy",
)

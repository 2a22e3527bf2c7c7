"""`q-learning`: see `families/tabular.py`."""

from __future__ import annotations

from karpa_tf.recipes.families.tabular import TabularRecipe

from . import ABOUT


class QLearning(TabularRecipe):
    """Q-learning with a table."""

    about = ABOUT
    on_policy = False

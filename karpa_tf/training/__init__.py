"""Training: the loop and its steps, checkpoints, the run folder, optimizers, losses.

Importing this package imports nothing; its names come when they are asked for, because the command line reads
run folders without TensorFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from karpa_tf.training.callbacks import BestWeights as BestWeights
    from karpa_tf.training.checkpoint import Checkpoints as Checkpoints
    from karpa_tf.training.evaluation import evaluate as evaluate
    from karpa_tf.training.loop import Stage as Stage
    from karpa_tf.training.loop import fit as fit
    from karpa_tf.training.loop import train as train
    from karpa_tf.training.losses import SparseCrossEntropy as SparseCrossEntropy
    from karpa_tf.training.optimizers import SGD as SGD
    from karpa_tf.training.optimizers import AdamW as AdamW
    from karpa_tf.training.run import Run as Run
    from karpa_tf.training.schedule import WarmupThenDecay as WarmupThenDecay
    from karpa_tf.training.step import Step as Step
    from karpa_tf.training.step import SupervisedStep as SupervisedStep

_MODULES = {
    "SGD": "optimizers",
    "AdamW": "optimizers",
    "BestWeights": "callbacks",
    "Checkpoints": "checkpoint",
    "Run": "run",
    "SparseCrossEntropy": "losses",
    "Stage": "loop",
    "Step": "step",
    "SupervisedStep": "step",
    "WarmupThenDecay": "schedule",
    "evaluate": "evaluation",
    "fit": "loop",
    "train": "loop",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"karpa_tf.training.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

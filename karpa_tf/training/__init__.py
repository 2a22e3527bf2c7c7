"""What every recipe shares: the loop, checkpoints, the run folder, callbacks, TensorBoard.

Importing this room imports nothing; its names come when they are asked for, because the command line reads
run folders without TensorFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from karpa_tf.training.checkpoint import Checkpoints as Checkpoints
    from karpa_tf.training.loop import evaluate as evaluate
    from karpa_tf.training.loop import fit as fit
    from karpa_tf.training.losses import SparseCrossEntropy as SparseCrossEntropy
    from karpa_tf.training.optimizers import AdamW as AdamW

_PUBLIC = {
    "Checkpoints": "karpa_tf.training.checkpoint",
    "evaluate": "karpa_tf.training.loop",
    "fit": "karpa_tf.training.loop",
    "SparseCrossEntropy": "karpa_tf.training.losses",
    "AdamW": "karpa_tf.training.optimizers",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Training: the loop and its steps, checkpoints, the run folder, optimizers, losses.

Importing this package imports nothing; its names come when they are asked for, because the command line reads
run folders without TensorFlow.
"""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.training.adversarial import GanStep as GanStep
    from karpa_tf.training.callbacks import BestWeights as BestWeights
    from karpa_tf.training.checkpoint import Checkpoints as Checkpoints
    from karpa_tf.training.consolidation import EwcStep as EwcStep
    from karpa_tf.training.consolidation import fisher_information as fisher_information
    from karpa_tf.training.distillation import Distillation as Distillation
    from karpa_tf.training.distillation import TaughtRows as TaughtRows
    from karpa_tf.training.distillation import distillation_loss as distillation_loss
    from karpa_tf.training.evaluation import Evaluator as Evaluator
    from karpa_tf.training.evaluation import evaluate as evaluate
    from karpa_tf.training.fitting import fit as fit
    from karpa_tf.training.listing import list_runs as list_runs
    from karpa_tf.training.loop import Stage as Stage
    from karpa_tf.training.loop import train as train
    from karpa_tf.training.losses import SparseCrossEntropy as SparseCrossEntropy
    from karpa_tf.training.multi_task import MultiTaskStep as MultiTaskStep
    from karpa_tf.training.optimizers import SGD as SGD
    from karpa_tf.training.optimizers import AdamW as AdamW
    from karpa_tf.training.run import Run as Run
    from karpa_tf.training.run_folder import RunFolder as RunFolder
    from karpa_tf.training.run_folder import open_run as open_run
    from karpa_tf.training.schedule import WarmupThenDecay as WarmupThenDecay
    from karpa_tf.training.step import Step as Step
    from karpa_tf.training.supervised import SupervisedStep as SupervisedStep
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(
        __name__,
        {
            ".adversarial": "GanStep",
            ".callbacks": "BestWeights",
            ".checkpoint": "Checkpoints",
            ".consolidation": "EwcStep fisher_information",
            ".distillation": "Distillation TaughtRows distillation_loss",
            ".evaluation": "Evaluator evaluate",
            ".fitting": "fit",
            ".loop": "Stage train",
            ".losses": "SparseCrossEntropy",
            ".multi_task": "MultiTaskStep",
            ".optimizers": "SGD AdamW",
            ".run": "Run",
            ".listing": "list_runs",
            ".run_folder": "RunFolder open_run",
            ".schedule": "WarmupThenDecay",
            ".step": "Step",
            ".supervised": "SupervisedStep",
        },
    )

"""Learning to learn from few examples: tasks, and algorithms that adapt a network to one."""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.meta.adapt import adapt as adapt
    from karpa_tf.meta.algorithm import Algorithm as Algorithm
    from karpa_tf.meta.anil import ANIL as ANIL
    from karpa_tf.meta.classes import ClassTasks as ClassTasks
    from karpa_tf.meta.functional import Functional as Functional
    from karpa_tf.meta.images import open_image_tasks as open_image_tasks
    from karpa_tf.meta.imaml import IMAML as IMAML
    from karpa_tf.meta.maml import MAML as MAML
    from karpa_tf.meta.pretraining import pretrain as pretrain
    from karpa_tf.meta.protonet import ProtoNet as ProtoNet
    from karpa_tf.meta.reptile import Reptile as Reptile
    from karpa_tf.meta.sinusoids import Sinusoids as Sinusoids
    from karpa_tf.meta.sinusoids import open_sinusoids as open_sinusoids
    from karpa_tf.meta.step import MetaStep as MetaStep
    from karpa_tf.meta.tasks import TaskData as TaskData
    from karpa_tf.meta.tasks import Tasks as Tasks
    from karpa_tf.meta.tasks import task_batches as task_batches
    from karpa_tf.meta.texts import open_text_tasks as open_text_tasks
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(
        __name__,
        {
            ".adapt": "adapt",
            ".algorithm": "Algorithm",
            ".anil": "ANIL",
            ".classes": "ClassTasks",
            ".functional": "Functional",
            ".imaml": "IMAML",
            ".images": "open_image_tasks",
            ".maml": "MAML",
            ".pretraining": "pretrain",
            ".protonet": "ProtoNet",
            ".reptile": "Reptile",
            ".sinusoids": "Sinusoids open_sinusoids",
            ".step": "MetaStep",
            ".tasks": "TaskData Tasks task_batches",
            ".texts": "open_text_tasks",
        },
    )

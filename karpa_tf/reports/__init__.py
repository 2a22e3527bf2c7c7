"""What TensorBoard, a terminal and picture files show of figures."""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.reports.tensorboard import TensorBoard as TensorBoard
    from karpa_tf.reports.terminal import Progress as Progress
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(__name__, {".tensorboard": "TensorBoard", ".terminal": "Progress"})

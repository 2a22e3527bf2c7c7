"""The embedded server: SavedModels behind TensorFlow Serving's REST and gRPC API.

Imports tensorflow when it loads a model, and the libraries of ops of tensorflow_text; no Keras, which is not
installed with deploy/requirements-serve.txt, and no other package of karpa_tf.
"""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.serving.in_process import Serving as Serving
    from karpa_tf.serving.in_process import serve as serve
    from karpa_tf.serving.options import ServeOptions as ServeOptions
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(__name__, {".in_process": "Serving serve", ".options": "ServeOptions"})

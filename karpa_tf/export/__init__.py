"""Models as files: what is served, writing it as SavedModel, LiteRT or ONNX, reading it back."""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.export.litert import export_litert as export_litert
    from karpa_tf.export.loader import load_model as load_model
    from karpa_tf.export.loader import load_signature as load_signature
    from karpa_tf.export.onnx import export_onnx as export_onnx
    from karpa_tf.export.savedmodel import describe as describe
    from karpa_tf.export.savedmodel import export_savedmodel as export_savedmodel
    from karpa_tf.export.signature import Signature as Signature
    from karpa_tf.export.signature import text_input as text_input
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(
        __name__,
        {
            ".litert": "export_litert",
            ".loader": "load_model load_signature",
            ".onnx": "export_onnx",
            ".savedmodel": "describe export_savedmodel",
            ".signature": "Signature text_input",
        },
    )

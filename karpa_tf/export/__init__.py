"""SavedModels: signatures, versions, warm-up, verification."""

from karpa_tf.export.savedmodel import export_savedmodel as export_savedmodel
from karpa_tf.export.signature import Signature as Signature
from karpa_tf.export.signature import text_input as text_input

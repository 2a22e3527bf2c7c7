"""karpa_tf: Keras builders, tf.data pipelines and SavedModels, from data to TensorFlow Serving.

This module imports nothing heavy; import the packages that you need:
`karpa_tf.data`, `karpa_tf.models`, `karpa_tf.training`, `karpa_tf.reports`, `karpa_tf.export`,
`karpa_tf.serving`.
"""

__version__ = "0.1.0"

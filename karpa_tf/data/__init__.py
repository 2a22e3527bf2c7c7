"""Sources and tf.data pipelines; this room knows no model."""

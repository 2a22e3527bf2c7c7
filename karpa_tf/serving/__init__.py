"""The embedded server: SavedModels behind TensorFlow Serving's REST and gRPC API.

Imports tensorflow and tensorflow_text when it loads a model, no Keras, and no other package of karpa_tf.
"""

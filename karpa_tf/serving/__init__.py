"""The embedded server: SavedModels behind TensorFlow Serving's REST and gRPC API.

Imports tensorflow when it loads a model, and the libraries of ops of tensorflow_text; no Keras, which is not
installed with deploy/requirements-serve.txt, and no other package of karpa_tf.
"""

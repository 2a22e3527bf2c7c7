"""Keras builders: hyper-parameters in, a `keras.Model` out. This room knows no data."""

from karpa_tf.models.mlm_gru import build_mlm_gru as build_mlm_gru

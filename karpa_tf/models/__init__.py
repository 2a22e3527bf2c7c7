"""Keras builders: hyper-parameters in, a `keras.Model` out. This room knows no data."""

from karpa_tf.models.mlm_gru import build_mlm_gru as build_mlm_gru
from karpa_tf.models.q_network import build_q_network as build_q_network

"""Two replicas of `test_loop.py`: a process with two CPUs, as far as TensorFlow knows."""

from __future__ import annotations

import json
import sys

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.training.fitting import fit
from karpa_tf.training.supervised import Adversary
from tests.training.helpers import make_lookahead, make_wide_batches, make_wide_model


def main(path: str) -> None:
    """Writes the weights to `path`, and the rest as a line of JSON to standard output."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = make_wide_model()
    refused = ""
    try:
        fit(model, make_wide_batches(), adversary=Adversary(model.get_layer("embedding").embeddings, 1.0))
    except UserError as error:
        refused = str(error)
    history = fit(model, make_wide_batches(), epochs=2)
    with strategy.scope():
        follower = make_wide_model(make_lookahead())
    fit(follower, make_wide_batches(), epochs=2)
    np.savez(path, *model.get_weights(), *follower.get_weights())
    said = {
        "replicas": strategy.num_replicas_in_sync,
        "graph_traces": history.graph_traces,
        "loss": [logs["loss"] for logs in history],
        "refused": refused,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Reads event files as TensorBoard does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.util import event_pb2


def read_events(folder: Path) -> list[event_pb2.Event]:
    # Their names end in the number of the writer: the tenth comes behind the ninth.
    paths = sorted(folder.glob("events.out.tfevents.*"), key=lambda path: (len(path.name), path.name))
    records = tf.data.TFRecordDataset([str(path) for path in paths]).as_numpy_iterator() if paths else []
    return [event_pb2.Event.FromString(record) for record in records]


def tags_of(events: Iterable[event_pb2.Event]) -> set[str]:
    return {value.tag for event in events for value in event.summary.value}


def read_values(folder: Path) -> dict[str, tf.compat.v1.Summary.Value]:
    return {value.tag: value for event in read_events(folder) for value in event.summary.value}


def read_text(folder: Path, tag: str = "errors") -> str:
    return read_values(folder)[tag].tensor.string_val[0].decode()


def read_image(folder: Path) -> np.ndarray:
    value = read_values(folder)["confusion"]
    assert value.metadata.plugin_data.plugin_name == "images"
    width, height, picture = value.tensor.string_val
    image = tf.io.decode_png(picture).numpy()
    assert image.shape == (int(height), int(width), 3)
    return image


def read_curves(folder: Path) -> dict[str, dict[str, list[float]]]:
    """What TensorBoard's own plugin hands to its page, by tag."""
    from tensorboard import context
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.pr_curve import pr_curves_plugin

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    plugin = pr_curves_plugin.PrCurvesPlugin(base_plugin.TBContext(data_provider=provider))
    request = context.RequestContext()
    tags = plugin.tags_impl(request, "").get(".", {})
    assert all(shown["displayName"] == tag for tag, shown in tags.items())
    return {tag: plugin.pr_curves_impl(request, "", ["."], tag)["."][-1] for tag in tags}


def as_html(text: str) -> str:
    from tensorboard import plugin_util

    return plugin_util.markdown_to_safe_html(text)

"""The model card of `bert-classifier`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training.run_folder import RunFolder

from .batches import ClassifierTask


def model_card(folder: RunFolder, task: ClassifierTask, metrics: Mapping[str, Any], note: str) -> str:
    """Returns the model card of a run, with a note on how it was exported."""
    config, classes = task.config, len(task.names)
    reads = "`text` and `text_b` string [n]" if config.text_b else "`text` string [n]"
    return f"""# {folder.recipe}

Says which of {classes} labels a text has. Trained on {config.data}, from {config.preset}, method
{config.method}.

- in: {reads}; {config.sequence_length} pieces of it are read
- out: `label` string [n]; `probabilities` float32 [n, {classes}], in the order of `assets/labels.txt`

On {metrics["facts"]["rows"]} held-out rows:

{metrics_table(metrics, ["accuracy", "macro_f1", "ece", "loss"])}
{note}
{settings_list(folder.read_config())}
"""

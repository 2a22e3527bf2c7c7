"""The model card of `multi-task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training.run_folder import RunFolder

from .batches import MultiTask
from .data import heads_of


def model_card(folder: RunFolder, task: MultiTask, metrics: Mapping[str, Any], note: str) -> str:
    """Returns the model card of a run, with a note on how it was exported."""
    config, lines, figures = task.config, [], []
    for name, head in heads_of(task.names).items():
        if head.kind == "texts":
            lines.append(
                f"- `{name}`: `label` string [n]; `probabilities` float32 [n, {len(head.names)}], in the "
                f"order of the lines `{name}: ...` of `assets/labels.txt`"
            )
            figures += [f"{name}_accuracy", f"{name}_macro_f1"]
        else:
            lines.append(
                f"- `{name}`: `tokens`, `tags` string, `scores` float32, all [n, words]; `words` int32 [n], "
                "how many of them are a text's own: what lies beyond is padding"
            )
            figures += [f"{name}_f1_strict", f"{name}_f1"]
    several = "\n".join(lines)
    return f"""# {folder.recipe}

Answers {len(lines)} tasks of a text in one pass. Trained on {config.data}, from {config.preset}, method
{config.method}.

- in: `text` string [n]; of a long one labels are by its first {config.sequence_length} pieces, about

Signatures, with the outputs of each:

{several}
- `serving_default`: all of them, as NAME_OUTPUT

On {metrics["facts"]["texts"]} held-out texts:

{metrics_table(metrics, [name for name in [*figures, "exact_rows"] if name in metrics])}
{note}
{settings_list(folder.read_config())}
"""

"""The flags of `watch`, each with its line of `--help`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from karpa_tf.errors import UserError
from karpa_tf.serving.options import Port
from karpa_tf.settings import Bounds, Count, CountOrNone, Fields, Seed, option


@dataclass(kw_only=True)
class WatchOptions(Fields):
    """The flags of `karpa-tf watch`."""

    window: Count = option(500, "Texts that the shares are taken over.")
    baseline: Annotated[int, Bounds(least=20)] = option(
        1000, "Texts at the beginning whose shares are the normal ones."
    )
    shift: Annotated[float, Bounds(above=0, below=1)] = option(
        0.15, "Change of a label's share that is to be found as fast as possible."
    )
    false_alarms: Annotated[int, Bounds(least=100, most=1_000_000)] = option(
        10_000, "Mean number of texts between two false alarms of a kind."
    )
    every: Count = option(50, "Texts between two reports.")
    samples: CountOrNone = option(5, "Texts that an alarm names, redacted.")
    follow: bool = option(True, "Of a file: wait for more lines at its end.")
    state: str = option("", "File that keeps everything, so that a watcher which was killed goes on.")
    seed: Seed = option(0, "Seed of the simulated bounds and the intervals.")
    signature: str = option("serving_default", "The signature that is asked, of a SavedModel or a server.")
    reference: str = option("", "What held-out rows were like, a reference.json; else the model's own.")
    model_name: str = option("", "Of a request log: only this model's requests. A server's address names it.")
    token_file: str = option("", "File with the token that the server wants.")
    ca_file: str = option("", "https: PEM certificates to check the server's with; else the system's.")
    host: str = option("127.0.0.1", "Address that the page and the metrics are served on.")
    metrics_port: Port = option(0, "Port of the page at / and of Prometheus' /metrics; 0: none.")
    metrics_file: str = option("", "File for Prometheus' metrics, as its node exporter's text files.")
    webhook: str = option("", "URL that alarms are posted to, as JSON.")
    tensorboard: str = option("", "Folder for TensorBoard's events, as logs/watch.")

    def __post_init__(self) -> None:
        """Raises a UserError for flags that make no sense."""
        super().__post_init__()
        if self.webhook and (
            urlsplit(self.webhook).scheme not in ("http", "https") or not urlsplit(self.webhook).netloc
        ):
            raise UserError(
                f"--webhook takes http://HOST/PATH or https://HOST/PATH. Received: {self.webhook}."
            )

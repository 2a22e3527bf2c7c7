"""The flags of `serve`, `rollout` and `load-test`, each with its line of `--help`. Imports nothing heavy.

Where TensorFlow Serving has the same flag, it has the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from karpa_tf.errors import UserError
from karpa_tf.serving.canary import read_canaries, read_share
from karpa_tf.settings import (
    Bounds,
    Count,
    CountOrNone,
    Fields,
    NonNegative,
    Positive,
    UnitInterval,
    option,
)

Port = Annotated[int, Bounds(least=0, most=65_535)]


@dataclass(kw_only=True)
class ServeOptions(Fields):
    """The flags of `karpa-tf serve`."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 for every one of this machine.")
    port: Port = option(8500, "Port of gRPC; 0: none.")
    rest_api_port: Port = option(8501, "Port of REST; 0: none.")
    grpc_socket_path: str = option("", "Also listen for gRPC on this unix socket.")
    rest_api_socket_path: str = option("", "Also listen for REST on this unix socket.")
    rest_api_enable_cors_support: bool = option(False, "Let pages of other origins ask (CORS).")
    model_name: str = option("", "With --model_base_path: the name of the one model.")
    model_base_path: str = option("", "Serve one model, from the folder that holds its versions.")
    model_config_file: str = option("", "Serve the models of this file, TensorFlow Serving's models.config.")
    model_config_file_poll_wait_seconds: CountOrNone = option(
        0, "Seconds between looks whether that file has changed; 0: it is read once."
    )
    allow_version_labels_for_unavailable_models: bool = option(
        False, "Accept labels of versions that are not loaded."
    )
    canary: str = option(
        "",
        "MODEL=VERSION:SHARE, as mine=2:10%: the version answers that share of the clients that name none; "
        "with commas between several.",
    )
    canary_tolerance: UnitInterval = option(
        0.1, "Points by which the share of a label may differ until a canary is stopped; 1: any."
    )
    monitoring_config_file: str = option("", "Where metrics are, and whether: a MonitoringConfig.")
    enable_batching: bool | None = option(
        None,
        "Join the requests that are in flight for a signature; null: where its export has shown that "
        "each row is answered as if alone.",
    )
    batching_parameters_file: str = option("", "Limits of batches and queues: a BatchingParameters.")
    file_system_poll_wait_seconds: NonNegative = option(
        1.0, "Seconds between looks for new versions; 0: only at the start."
    )
    max_num_load_retries: CountOrNone = option(5, "How often to try again to load a version that failed.")
    load_retry_interval_micros: CountOrNone = option(60_000_000, "Microseconds between these tries.")
    enable_model_warmup: bool = option(True, "Replay assets.extra/tf_serving_warmup_requests.")
    rest_api_timeout_in_ms: CountOrNone = option(30_000, "Milliseconds until a REST request is given up.")
    max_run_seconds: NonNegative = option(
        600.0,
        "Seconds that a run of a model may take; then its requests are refused and /healthz fails. 0: any.",
    )
    max_request_bytes: CountOrNone = option(32 << 20, "Largest body of a request.")
    drain_seconds: NonNegative = option(30.0, "Seconds that requests get to finish after SIGTERM.")
    tensorflow_session_parallelism: CountOrNone = option(
        0, "Threads that TensorFlow computes with; 0: one a core."
    )
    allow_unsafe_ops: bool = option(False, "Load graphs that call Python or read and write files.")
    tls_certificate_file: str = option("", "PEM certificate (chain); with it both ports speak TLS only.")
    tls_key_file: str = option("", "PEM private key of the certificate.")
    token_file: str = option("", "A SHA-256 in hex a line; requests must then bring such a bearer token.")
    access_log: str = option("-", "JSON line a request: a file, - for standard error, or empty for none.")
    request_log: str = option(
        "", "File for the inputs themselves; e-mails, IBANs, card and phone numbers redacted."
    )

    def __post_init__(self) -> None:
        """Raises a UserError for flags that make no sense."""
        super().__post_init__()
        sockets = self.grpc_socket_path or self.rest_api_socket_path
        if not self.port and not self.rest_api_port and not sockets:
            raise UserError("--port and --rest_api_port are both 0: there is nothing to listen on.")
        if self.port == self.rest_api_port and self.port:
            raise UserError(f"--port and --rest_api_port must differ. Received: {self.port} for both.")
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            raise UserError("--tls_certificate_file and --tls_key_file go together; one of them is missing.")
        if bool(self.model_name) != bool(self.model_base_path):
            raise UserError("--model_name and --model_base_path go together; one of them is missing.")
        if self.model_config_file and self.model_base_path:
            raise UserError("--model_config_file and --model_base_path exclude each other.")
        if read_canaries(self.canary) and self.model_config_file:
            raise UserError(
                "--canary goes with a folder; a --model_config_file has the share in it: karpa-tf rollout "
                "FOLDER --canary N --share 10% writes it."
            )


@dataclass(kw_only=True)
class LoadOptions(Fields):
    """The flags of `karpa-tf load-test`."""

    clients: Count = option(1, "Closed loop: so many clients, each of which waits for its answer.")
    rate: NonNegative = option(
        0.0, "Open loop: so many requests a second, whether or not others were answered; 0: closed loop."
    )
    seconds: Positive = option(10.0, "After these no more requests are sent.")
    requests: CountOrNone = option(0, "Most requests; 0: as many as go into the seconds.")
    rows: Count = option(1, "Rows of a request.")
    signature: str = option("serving_default", "The signature that is asked for.")
    timeout: Positive = option(30.0, "Seconds after which a request is given up.")
    token_file: str = option("", "File with the token that the server wants.")
    ca_file: str = option("", "https, grpcs: PEM certificates to check the server's with; else the system's.")

    def __post_init__(self) -> None:
        """Raises a UserError for flags that make no sense."""
        super().__post_init__()
        if self.rate and self.clients > 1:
            raise UserError(
                "--rate and --clients exclude each other: an open loop has no clients. Received: "
                f"{self.rate:g} and {self.clients}."
            )


@dataclass(kw_only=True)
class RolloutOptions(Fields):
    """The flags of `karpa-tf rollout`."""

    stable: CountOrNone = option(0, "The version of the label stable; 0: as it is.")
    canary: CountOrNone = option(0, "The version of the label canary beside it; 0: none.")
    share: str = option(
        "",
        "Share of the clients that name no version which the canary answers, as 10%; in karpa-tf serve, "
        "TensorFlow Serving has none.",
    )
    promote: bool = option(False, "The canary becomes the stable version.")
    rollback: bool = option(False, "The canary is taken back.")
    config: str = option("", "The models.config to write; else the one beside the model's folder.")
    name: str = option("", "The model's name in it; else that of its folder.")

    def __post_init__(self) -> None:
        """Raises a UserError for flags that make no sense."""
        super().__post_init__()
        if (self.promote and self.rollback) or (
            (self.promote or self.rollback) and (self.stable or self.canary or self.share)
        ):
            raise UserError("--promote, --rollback and the versions exclude each other: give one of them.")
        if not (self.promote or self.rollback or self.stable or self.canary or self.share):
            raise UserError("rollout takes --stable N, --canary N, --share 10%, --promote or --rollback.")
        if self.share:
            read_share(self.share, "--share")

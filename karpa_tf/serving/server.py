"""Starts the embedded server, keeps it running, and drains it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import tensorflow as tf
from aiohttp import web
from grpc_health.v1 import health_pb2
from tensorflow_serving.config import model_server_config_pb2

from karpa_tf.errors import UserError
from karpa_tf.serving import access, buffers, config_files
from karpa_tf.serving.batching import BatchLimits
from karpa_tf.serving.canary import read_canaries
from karpa_tf.serving.examples import Limits
from karpa_tf.serving.grpc_api import TokenInterceptor, add_services
from karpa_tf.serving.log_writer import LogHandler, LogWriter
from karpa_tf.serving.model import Model, load_model
from karpa_tf.serving.observing import Observer
from karpa_tf.serving.options import ServeOptions
from karpa_tf.serving.readers import Readers
from karpa_tf.serving.refusal import Refusal
from karpa_tf.serving.registry import Registry, check_base_path
from karpa_tf.serving.rest_api import RestApi, TimedServer

log = logging.getLogger(__name__)

_SWITCH_SECONDS = 0.0005
# With fewer signatures than these stuck in runs that do not end, the others are answered.
_SIGNATURES = 4
# Between looks at the files of tokens and certificates: what is withdrawn is refused within a second.
_ACCESS_SECONDS = 0.3
_THREADS = ("run", "load", "disk", "write", "read", "asyncio")
_SERVICES = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")


def run(options: ServeOptions, folder: str, ready: Callable[[dict[str, Any]], None]) -> None:
    """Serves until SIGTERM or Ctrl-C; then lets the requests in flight finish.

    Args:
        options: the flags.
        folder: the folder of models, where no flag names others.
        ready: called with where the server listens and what it serves, once it answers.

    Raises:
        UserError: it cannot start.
        KeyboardInterrupt: it was stopped by Ctrl-C.
    """
    # What it warns of (deprecated names, variables of old models) is nothing that who serves can change.
    tf.get_logger().setLevel(logging.ERROR)
    # Threads that write answers must not keep the event loop waiting for Python's lock.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # A run that does not end keeps a thread of the pool of ops, which all models share.
    pool = options.tensorflow_session_parallelism or _side_by_side(_limits(options)) + usable_cores()
    # A process that has computed with TensorFlow before keeps its pools; the command's has not.
    with contextlib.suppress(RuntimeError):
        # By itself TensorFlow takes every core, also those of which a container may not use all the time.
        tf.config.threading.set_intra_op_parallelism_threads(_cores(options))
        tf.config.threading.set_inter_op_parallelism_threads(pool)
    if asyncio.run(_serve(options, folder, ready)) == signal.SIGINT:
        raise KeyboardInterrupt


def _cores(options: ServeOptions) -> int:
    return options.tensorflow_session_parallelism or usable_cores()


def _limits(options: ServeOptions) -> BatchLimits:
    limits = config_files.read_batching(
        options.batching_parameters_file, options.enable_batching, _cores(options)
    )
    return dataclasses.replace(limits, run_seconds=options.max_run_seconds)


def _side_by_side(limits: BatchLimits) -> int:
    """Returns how many runs of all models may go on at one time, several times those of one signature."""
    return _SIGNATURES * max(limits.threads, limits.lone_threads)


async def _serve(options: ServeOptions, folder: str, ready: Callable[[dict[str, Any]], None]) -> int:
    stopped = _stop_signal()
    server = Server(options, folder)
    _log_to_stderr(server.writer)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.hangup.set)
    # A signal that comes while models load ends the server as well.
    starting: asyncio.Future[Any] = asyncio.ensure_future(server.start())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        ready(server.description())
        await stopped
        log.info("stopping; requests in flight have %g s to finish", options.drain_seconds)
    else:
        starting.cancel()
    await server.stop()
    if server.busy():
        # Nothing ends a thread that loads or computes; the process would wait for it.
        sys.stdout.flush()
        os._exit(128 + stopped.result() if stopped.result() == signal.SIGINT else 0)
    return stopped.result()


def _stop_signal() -> asyncio.Future[Any]:
    """Returns a future of the signal that asks the server to stop; a second one stops it at once."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[Any] = loop.create_future()

    def stop(number: int) -> None:
        if stopped.done():
            os._exit(128 + number)
        stopped.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopped


class Server:
    """A registry of models with REST and gRPC before it. Lives in one event loop.

    Attributes:
        registry: the models.
        writer: of all logs.
        hangup: set when SIGHUP asks to read certificates and tokens again.
    """

    def __init__(self, options: ServeOptions, folder: str) -> None:
        """Reads every file that the options name.

        Raises:
            UserError: one of them is wrong.
        """
        cores = _cores(options)
        self._options = options
        self._folder = folder
        self._tokens = access.read_tokens(options.token_file)
        if not self._tokens:
            raise UserError(
                f"--token_file: {options.token_file} holds no token, so that nobody could ask anything."
            )
        self._rest_tls = access.rest_tls(options.tls_certificate_file, options.tls_key_file)
        self._grpc_tls = access.grpc_tls(options.tls_certificate_file, options.tls_key_file)
        self._limits = _limits(options)
        self._metrics_path = config_files.read_monitoring(options.monitoring_config_file)
        self._config_file = _ConfigFile(options)
        self._executor = ThreadPoolExecutor(_side_by_side(self._limits), "run")
        # Write what is large: answers, metrics.
        self._workers = ThreadPoolExecutor(max(cores, 2), "write")
        self._asked = Limits(options.max_request_bytes, self._limits.request_rows)
        self._readers = Readers(max(cores // 2, 1), self._asked)
        self.writer = LogWriter()
        self.registry = Registry(
            functools.partial(
                load_model,
                allow_unsafe_ops=options.allow_unsafe_ops,
                warm_up=options.enable_model_warmup,
            ),
            self._open,
            poll_seconds=options.file_system_poll_wait_seconds,
            retries=options.max_num_load_retries,
            retry_seconds=options.load_retry_interval_micros / 1e6,
            allow_unavailable_labels=options.allow_version_labels_for_unavailable_models,
            tolerance=options.canary_tolerance,
        )
        self._observer = Observer(self.registry, self.writer, options.access_log, options.request_log)
        self._grpc: grpc.aio.Server | None = None
        self._rest: web.ServerRunner | None = None
        self._api: RestApi | None = None
        self._health: Any = None
        self._health_task: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.hangup = asyncio.Event()

    def _open(self, model: Model) -> None:
        model.open(self._limits, self._executor, self._observer.ran)

    async def start(self) -> None:
        """Loads the models, then listens.

        Raises:
            UserError: a port is taken, or there is nothing to serve.
        """
        options = self._options
        for flag in ("port", "rest_api_port"):
            _check_free(options.host, getattr(options, flag), flag)
        # TensorFlow's own objects stay: collections after an unload need not look at them. Models may go.
        gc.collect()
        gc.freeze()
        buffers.keep_freed()
        try:
            if self._config_file.path:
                await self.registry.serve_config(self._config_file.read())
            elif options.model_base_path:
                await self.registry.serve_config(_one_model(options))
            else:
                await self.registry.serve_folder(Path(self._folder))
        except Refusal as refusal:
            raise UserError(refusal.message) from None
        for canary in read_canaries(options.canary):
            self.registry.start_canary(*canary)
        self.registry.start_polling()
        self._tasks = [
            asyncio.create_task(self._follow_config()),
            asyncio.create_task(self._follow_access()),
        ]
        await self._start_grpc()
        await self._start_rest()
        self._health_task = asyncio.create_task(self._report_health())

    async def _start_grpc(self) -> None:
        options = self._options
        if not options.port and not options.grpc_socket_path:
            return
        self._grpc = grpc.aio.server(
            interceptors=[TokenInterceptor(self._tokens)],
            options=[
                ("grpc.max_receive_message_length", options.max_request_bytes),
                ("grpc.max_send_message_length", -1),
                # Without it a second server would take half of the first one's connections.
                ("grpc.so_reuseport", 0),
                # Clients that ping during a long call, or between calls, are answered and not sent away.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_ping_strikes", 0),
            ],
        )
        self._health = add_services(
            self._grpc, self.registry, self._observer, self._readers, self._workers, self._asked
        )
        addresses = [f"{_in_url(options.host)}:{options.port}"] if options.port else []
        if options.grpc_socket_path:
            addresses.append(f"unix:{options.grpc_socket_path}")
        for address in addresses:
            try:
                if self._grpc_tls:
                    self._grpc.add_secure_port(address, self._grpc_tls)
                else:
                    self._grpc.add_insecure_port(address)
            except RuntimeError:
                if address.startswith("unix:"):
                    raise UserError(f"--grpc_socket_path: {address[5:]} cannot be listened on.") from None
                raise _taken(options.host, options.port, "port", "it cannot be bound") from None
        await self._grpc.start()

    async def _start_rest(self) -> None:
        options = self._options
        if not options.rest_api_port and not options.rest_api_socket_path:
            return
        api = RestApi(
            self.registry,
            self._observer,
            self._tokens,
            metrics_path=self._metrics_path,
            timeout=options.rest_api_timeout_in_ms / 1e3,
            limits=self._asked,
            readers=self._readers,
            workers=self._workers,
            cors=options.rest_api_enable_cors_support,
        )
        # aiohttp's own log would quote broken requests.
        silent = logging.getLogger("karpa_tf.serving.http")
        silent.disabled = True
        # Who sends a body that was refused unread gets a second to read the answer.
        handler = TimedServer(
            api.handle,
            timeout=options.rest_api_timeout_in_ms / 1e3,
            access_log=None,
            logger=silent,
            lingering_time=1.0,
            # Bodies are unpacked where they are read: a few packed bytes can be a great deal of work.
            auto_decompress=False,
        )
        self._api = api
        self._rest = web.ServerRunner(handler, shutdown_timeout=1.0)
        await self._rest.setup()
        try:
            if options.rest_api_port:
                port = options.rest_api_port
                await web.TCPSite(self._rest, options.host, port, ssl_context=self._rest_tls).start()
        except OSError as error:
            raise _taken(options.host, options.rest_api_port, "rest_api_port", _reason(error)) from None
        try:
            if path := options.rest_api_socket_path:
                await web.UnixSite(self._rest, path, ssl_context=self._rest_tls).start()
        except OSError as error:
            raise UserError(
                f"--rest_api_socket_path: {path} cannot be listened on: {_reason(error)}."
            ) from None

    async def _stop_rest(self) -> None:
        if self._rest and self._api:
            for site in list(self._rest.sites):
                await site.stop()
            # aiohttp's own way of stopping reads no more of a body that is on its way.
            await self._api.drain(self._options.drain_seconds)
            await self._rest.cleanup()

    async def _follow_config(self) -> None:
        """Reads the configuration of the models again, on a clock of its own."""
        wait = self._options.model_config_file_poll_wait_seconds
        while self._config_file.path and wait:
            await asyncio.sleep(wait)
            try:
                config = await asyncio.to_thread(self._config_file.read_if_changed)
                if config is not None:
                    await self.registry.serve_config(config)
            except Refusal as refusal:
                log.warning("%s is not followed: %s", self._config_file.path, refusal.message)
            except Exception:  # the next look may succeed, and must take place
                log.exception("following %s failed", self._config_file.path)

    async def _follow_access(self) -> None:
        """Reads certificates and tokens again when their files change, or on SIGHUP."""
        options = self._options
        files = [options.token_file, options.tls_certificate_file, options.tls_key_file]
        files = [path for path in files if path]
        seen = await asyncio.to_thread(_states, files)
        while files:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.hangup.wait(), _ACCESS_SECONDS)
            now = await asyncio.to_thread(_states, files)
            if now == seen and not self.hangup.is_set():
                continue
            self.hangup.clear()
            seen = now
            try:
                await asyncio.to_thread(self._read_access_again)
            except UserError as error:
                log.warning("what was read before stays: %s", error)

    def _read_access_again(self) -> None:
        options = self._options
        tokens = access.read_tokens(options.token_file)
        # A certificate that cannot be used must not keep a withdrawn token.
        self._tokens.become(tokens)
        if self._rest_tls:
            access.renew_rest_tls(self._rest_tls, options.tls_certificate_file, options.tls_key_file)
        log.info("tokens and certificates were read again")
        if not tokens:
            log.warning("%s holds no token any more: every request is refused", options.token_file)

    async def _report_health(self) -> None:
        """Keeps gRPC's health service up to date, for the server (""), its services, and models by name."""
        status = health_pb2.HealthCheckResponse
        while self._health is not None:
            now = status.SERVING if self.registry.ready() else status.NOT_SERVING
            states = dict.fromkeys(_SERVICES, now)
            for model in self.registry.models():
                states[model.name] = status.SERVING if model.available() else status.NOT_SERVING
            for service, state in states.items():
                await self._health.set(service, state)
            await asyncio.sleep(0.2)

    def description(self) -> dict[str, Any]:
        """Returns where the server listens, and the versions that it serves by model."""
        options = self._options
        host = _in_url(options.host)
        scheme = "https" if self._rest_tls else "http"
        return {
            "rest": f"{scheme}://{host}:{options.rest_api_port}" if options.rest_api_port else None,
            "grpc": f"{host}:{options.port}" if options.port else None,
            "models": {model.name: model.available() for model in self.registry.models()},
        }

    def busy(self) -> bool:
        """Whether a thread still loads, computes or looks at the disk, though nobody waits any more."""
        return (
            any(thread.name.startswith(_THREADS) and thread.is_alive() for thread in threading.enumerate())
            and not self._threads_end()
        )

    def _threads_end(self) -> bool:
        end = time.monotonic() + 1.0
        for thread in threading.enumerate():
            if thread.name.startswith(_THREADS):
                thread.join(max(end - time.monotonic(), 0))
                if thread.is_alive():
                    return False
        return True

    async def stop(self) -> None:
        """Takes no more requests, waits for those in flight, and lets go of everything."""
        await self.registry.close()
        waiting = []
        for task in (*self._tasks, *([self._health_task] if self._health_task else [])):
            task.cancel()
        if self._health:
            await self._health.enter_graceful_shutdown()
        if self._grpc:
            waiting.append(self._grpc.stop(self._options.drain_seconds))
        if self._rest:
            waiting.append(self._stop_rest())
        await asyncio.gather(*waiting)
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._readers.close()
        await asyncio.to_thread(self.writer.close)


def usable_cores() -> int:
    """Returns how many cores this process may use: those it may run on, and its cgroup's share of time."""
    cores = len(os.sched_getaffinity(0))
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = Path(quota_file).read_text(encoding="ascii").split()
            if period_file:
                words.append(Path(period_file).read_text(encoding="ascii").strip())
            quota, period = int(words[0]), int(words[1])  # "max" is no number, and -1 no limit
            if quota > 0 and period > 0:
                cores = min(cores, -(-quota // period))
    return max(cores, 1)


def _states(files: list[str]) -> list[Any]:
    """Changes when one of the files does."""
    states: list[Any] = []
    for path in files:
        try:
            status = os.stat(path)
            states.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
        except OSError as error:
            states.append(error.errno)
    return states


class _ConfigFile:
    """The models.config, and whether it has been written since it was read."""

    def __init__(self, options: ServeOptions) -> None:
        self.path = options.model_config_file
        self._text = b""

    def read(self) -> Any:
        config = config_files.read_models(self.path)
        self._text = Path(self.path).read_bytes()
        return config

    def read_if_changed(self) -> Any:
        try:
            if Path(self.path).read_bytes() == self._text:
                return None
            return self.read()
        except (OSError, UserError) as error:
            log.warning("%s is not followed: %s", self.path, error)
            return None


def _one_model(options: ServeOptions) -> Any:
    path = Path(options.model_base_path).absolute()
    if not path.is_dir():
        raise UserError(f"--model_base_path: there is no folder {path}.")
    try:
        check_base_path(path)
    except Refusal as refusal:
        raise UserError(f"--model_base_path: {refusal.message}") from None
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(
        name=options.model_name, base_path=str(path), model_platform="tensorflow"
    )
    return config


def _check_free(host: str, port: int, flag: str) -> None:
    """Says that a port is taken before models are loaded."""
    if not port:
        return
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise _taken(host, port, flag, _reason(error)) from None


def _taken(host: str, port: int, flag: str, reason: str) -> UserError:
    return UserError(f"--{flag}: {host}:{port} cannot be listened on: {reason}; choose another.")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _log_to_stderr(writer: LogWriter) -> None:
    logger = logging.getLogger("karpa_tf.serving")
    if not logger.handlers:
        handler = LogHandler(writer, sys.stderr.buffer)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

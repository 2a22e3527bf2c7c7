"""The process before it trains: threads, seeds, determinism, arithmetic, workers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.settings import RunSettings, TrainingSettings


def usable_cores() -> int:
    """Returns how many cores this process may use: affinity, bounded by the cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in _cgroup_limits():
        cores = min(cores, max(1, math.ceil(quota / period)))
    return cores


def _cgroup_limits() -> list[tuple[int, int]]:
    limits = []
    try:  # version 2: "200000 100000", or "max 100000"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            limits.append((int(quota), int(period)))
    except (OSError, ValueError):
        pass
    try:  # version 1: -1 where there is no limit
        folder = Path("/sys/fs/cgroup/cpu")
        quota = (folder / "cpu.cfs_quota_us").read_text()
        if int(quota) > 0:
            limits.append((int(quota), int((folder / "cpu.cfs_period_us").read_text())))
    except (OSError, ValueError):
        pass
    return limits


def use_threads(cores: int | None = None) -> int:
    """Lets TensorFlow use as many threads as the process may use cores.

    TensorFlow itself counts the machine's cores, which in a container are too many. Does nothing once
    TensorFlow has started.
    """
    cores = cores or usable_cores()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(cores)
        tf.config.threading.set_inter_op_parallelism_threads(cores)
    except RuntimeError:
        pass  # TensorFlow has started: a notebook, or a test
    return cores


def fast_bfloat16() -> bool:
    """Whether the GPU, or else the CPU, multiplies bfloat16 faster than float32."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return tuple(details.get("compute_capability", (0, 0))) >= (8, 0)
    flags = _cpu_flags()
    return ("avx512_bf16" in flags or "amx_bf16" in flags) and not bfloat16_is_broken()


def bfloat16_is_broken() -> bool:
    """Whether TensorFlow would crash in bfloat16 arithmetic on the CPU.

    On a CPU with AVX-512 it hands that to oneDNN, which has none where a setting takes AVX-512 away.
    """
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if tf.config.list_physical_devices("GPU") or "avx512f" not in _cpu_flags():
        return False
    return not any(name in allowed for name in ("ALL", "DEFAULT", "AVX512", "AVX10"))


def _cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def prepare(config: RunSettings, threads: int | None = None) -> tf.distribute.Strategy:
    """Sets up this process for a run, and makes `config.precision` definite, if it has one.

    Args:
        config: of the run.
        threads: that TensorFlow uses; None: as many as there are cores.

    Returns:
        The strategy under whose scope the model is to be built.

    Raises:
        UserError: TF_CONFIG is missing or wrong for `strategy: multi-worker`, or the CPU cannot do what
            `precision` says.
    """
    use_threads(threads)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(getattr(config, "strategy", "none"))
    keras.utils.set_random_seed(config.seed)
    precision = getattr(config, "precision", "")
    settings: Any = config
    if precision == "auto":
        settings.precision = "mixed_bfloat16" if fast_bfloat16() else "float32"
    elif precision == "mixed_bfloat16" and bfloat16_is_broken():
        raise UserError(
            "TensorFlow crashes in bfloat16 where ONEDNN_MAX_CPU_ISA takes AVX-512 away: unset it, or give "
            f"--precision float32. Received: ONEDNN_MAX_CPU_ISA={os.environ.get('ONEDNN_MAX_CPU_ISA')}."
        )
    return strategy


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the tf.distribute strategy for `none`, `mirrored` or `multi-worker`."""
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multi-worker":
        _tf_config()
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes files and speaks."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    return _leads(resolver.task_type, resolver.task_id, resolver.cluster_spec().jobs)


def will_be_chief(config: RunSettings) -> bool:
    """Says what `is_chief` will, before there is a strategy.

    Raises:
        UserError: TF_CONFIG is missing or wrong for `strategy: multi-worker`.
    """
    if not isinstance(config, TrainingSettings) or config.strategy != "multi-worker":
        return True
    cluster, kind, index = _tf_config()
    return _leads(kind, index, cluster)


def _leads(kind: str, index: int, jobs: Collection[str]) -> bool:
    return kind == "chief" or (kind == "worker" and index == 0 and "chief" not in jobs)


def _tf_config() -> tuple[dict[str, list[str]], str, int]:
    """Returns the addresses of the cluster by job, and the job and the index of this process."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise UserError(
            "--strategy multi-worker needs TF_CONFIG in the environment: the addresses of all workers "
            "and the index of this one."
        )
    try:
        value = json.loads(text)
        cluster, kind, index = value["cluster"], value["task"]["type"], int(value["task"]["index"])
        cluster[kind][index]
        if index < 0 or not set(cluster) <= {"chief", "worker"}:
            raise ValueError
    except (ValueError, KeyError, TypeError, IndexError):
        raise UserError(
            'TF_CONFIG must look like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
            f'"worker", "index": 0}}}}. Received: {text}'
        ) from None
    return cluster, kind, index


def has_other_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether other processes train along."""
    resolver = strategy.cluster_resolver
    return resolver is not None and sum(map(len, resolver.cluster_spec().as_dict().values())) > 1


@contextmanager
def needing_all_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns what TensorFlow raises when another worker is gone into a sentence, where there is another.

    Workers send each other heartbeats; one that is silent for ten seconds counts as gone, and the sums
    that the others wait for are given up.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.DeadlineExceededError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.InternalError,
    ) as error:
        if not has_other_workers(strategy):
            raise
        reason = " ".join(error.message.split()).split("Collective ops is aborted by: ")[-1]
        raise UserError(
            "Another worker is gone; start all of them again, with --resume and the run. TensorFlow "
            f"says: {reason[:200]}"
        ) from error


def sum_over_replicas(strategy: tf.distribute.Strategy, number: int) -> int:
    """Returns the sum of what every replica gives; returns only when all have given theirs."""

    def replica() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(number))

    def total() -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(replica))[0]

    if strategy.num_replicas_in_sync == 1:
        return number
    with needing_all_workers(strategy):
        return int(tf.function(total, autograph=False)())


# Numbers that `from_chief` sends at once: one graph for values of all lengths.
_SENT = 1024


def from_chief(strategy: tf.distribute.Strategy, make: Callable[[], Any]) -> Any:
    """Returns what `make` gives at the chief, to all workers; the others do not call it.

    Args:
        strategy: of the training.
        make: returns what JSON can hold.
    """
    if not has_other_workers(strategy):
        return make()
    text = json.dumps(make()).encode() if is_chief(strategy) else b""
    length = int(_send(strategy, np.array([len(text)], np.int32))[0])
    parts = []
    for start in range(0, length, _SENT):
        part = np.frombuffer(text[start : start + _SENT].ljust(_SENT), np.uint8).astype(np.int32)
        parts.append(_send(strategy, part))
    return json.loads(np.concatenate(parts)[:length].astype(np.uint8).tobytes())


def _send(strategy: tf.distribute.Strategy, numbers: np.ndarray) -> np.ndarray:
    """Returns the chief's int32 numbers, at every worker."""

    def replica() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        # The first replica is the chief's; it may have others beside it.
        mine = tf.where(context.replica_id_in_sync_group == 0, tf.constant(numbers), 0)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

    def total() -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(replica))[0]

    with needing_all_workers(strategy):
        return tf.function(total, autograph=False)().numpy()


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers have come here: a job's work is done when that of each of them is.

    Without it a worker would have ended well that is needed once more should the chief die.
    """
    sum_over_replicas(strategy, 0)

"""The process before it trains: threads, seeds, determinism, arithmetic, workers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import keras
import tensorflow as tf

from karpa_tf.configs import TrainingConfig
from karpa_tf.errors import UserError


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
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def prepare(config: TrainingConfig) -> tf.distribute.Strategy:
    """Sets up this process for a run, and makes `config.precision` definite.

    Returns:
        The strategy under whose scope the model is to be built.

    Raises:
        UserError: TF_CONFIG is missing or wrong for `strategy: multi-worker`.
    """
    use_threads()
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = make_strategy(config.strategy)
    keras.utils.set_random_seed(config.seed)
    if config.precision == "auto":
        config.precision = "mixed_bfloat16" if fast_bfloat16() else "float32"
    return strategy


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the tf.distribute strategy for `none`, `mirrored` or `multi-worker`."""
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multi-worker":
        if not os.environ.get("TF_CONFIG"):
            raise UserError(
                "--strategy multi-worker needs TF_CONFIG in the environment: the addresses of all "
                "workers and the index of this one."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes files and speaks."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )

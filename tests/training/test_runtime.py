from __future__ import annotations

import os

import pytest

from karpa_tf.errors import UserError
from karpa_tf.recipes.mlm_gru import MlmGruSettings
from karpa_tf.training import runtime


def test_threads_follow_affinity_and_quota(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(runtime, "_cgroup_limits", lambda: [])
    assert runtime.usable_cores() == 16
    monkeypatch.setattr(runtime, "_cgroup_limits", lambda: [(250_000, 100_000)])
    assert runtime.usable_cores() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert runtime.usable_cores() == 1


def test_precision_becomes_definite(monkeypatch) -> None:
    for fast, name in ((True, "mixed_bfloat16"), (False, "float32")):
        monkeypatch.setattr(runtime, "fast_bfloat16", lambda fast=fast: fast)
        config = MlmGruSettings()
        runtime.prepare(config)
        assert config.precision == name


def test_multi_worker_without_tf_config(monkeypatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="needs TF_CONFIG"):
        runtime.make_strategy("multi-worker")


def test_bfloat16_that_would_crash_is_refused(monkeypatch) -> None:
    """TensorFlow hands bfloat16 to oneDNN on a CPU with AVX-512, and oneDNN may be told to use less."""
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: {"avx2", "avx512f", "avx512_bf16"})
    for limit, broken in (("AVX2", True), ("SSE41", True), ("AVX512_CORE", False), ("ALL", False)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert runtime.bfloat16_is_broken() == broken
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(runtime.tf.config, "list_physical_devices", lambda kind=None: [])
    assert not runtime.fast_bfloat16()
    with pytest.raises(UserError, match="Received: ONEDNN_MAX_CPU_ISA=AVX2"):
        runtime.prepare(MlmGruSettings(precision="mixed_bfloat16"))

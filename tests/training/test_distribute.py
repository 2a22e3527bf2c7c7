"""Several workers on the loopback interface: the same training, and what happens when one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.training.runtime import needing_all_workers
from tests.conftest import BERT_TINY, TINY, TINY_DIGITS, make_intents, write_csv

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
# Long enough for a loaded machine; nothing waits longer than it must.
LONGEST = 420
WORDS = ["train", "mlm-gru", "--strategy", "multi-worker", *TINY, "--ema", "0"]


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Job:
    """Worker processes, each with a file of its losses, one of its output and one of its errors."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, workers: int, *words: object, devices: int = 1, others: Sequence[object] | None = None
    ) -> Job:
        """Starts the workers with `words`; all but the first with `others`, if that is given."""
        self.folder.mkdir(parents=True, exist_ok=True)
        addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
        for index in range(workers):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            told = words if index == 0 or others is None else others
            command = [WORKER, self.losses_file(index), devices, *told, "--logs", self.folder / "logs"]
            with (
                (self.folder / f"{index}.out").open("wb") as out,
                (self.folder / f"{index}.err").open("wb") as err,
            ):
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, command)],
                        cwd=ROOT,
                        env={**os.environ, "TF_CONFIG": json.dumps(config), "PYTHONPATH": str(ROOT)},
                        stdout=out,
                        stderr=err,
                    )
                )
        return self

    def wait(self) -> list[int]:
        end = time.monotonic() + LONGEST
        return [process.wait(max(1.0, end - time.monotonic())) for process in self.processes]

    def finish(self) -> Job:
        assert self.wait() == [0] * len(self.processes), self.errors()
        return self

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + LONGEST
        while len(self.losses(0)) < step:
            assert all(p.poll() is None for p in self.processes), self.errors()
            assert time.monotonic() < end, self.errors()
            time.sleep(0.05)

    def losses_file(self, index: int) -> Path:
        return self.folder / f"{index}.jsonl"

    def losses(self, index: int) -> list[float]:
        path = self.losses_file(index)
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["loss"] for line in lines]

    def weights(self, index: int) -> list[np.ndarray]:
        with np.load(self.losses_file(index).with_suffix(".npz")) as file:
            return [file[name] for name in file.files]

    def errors(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.err")))

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def assert_same_training(one: Job, other: Job, steps: int) -> None:
    expected = one.losses(0)
    assert len(expected) >= steps
    for index in range(len(other.processes)):
        losses = other.losses(index)
        assert len(losses) == len(expected)
        np.testing.assert_allclose(losses[:steps], expected[:steps], rtol=0, atol=1e-5)
        for a, b in zip(other.weights(index), one.weights(0), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
        # The workers of one job have the very same weights.
        for a, b in zip(other.weights(index), other.weights(0), strict=True):
            np.testing.assert_array_equal(a, b)


def test_two_workers_train_as_one_does(text_file, tmp_path) -> None:
    words = [*WORDS, "--data", text_file, "--epochs", 1, "--json"]
    with Job(tmp_path / "one") as one, Job(tmp_path / "two") as two:
        one.start(1, *words)
        two.start(2, *words)
        assert_same_training(one.finish(), two.finish(), steps=20)
        metrics = [json.loads((job.folder / "0.out").read_text())["metrics"] for job in (one, two)]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3)
    # The second worker makes no run folder and says nothing but the one object that --json promises.
    assert [path.name for path in (two.folder / "logs" / "mlm-gru").iterdir()] == ["1"]
    assert json.loads((two.folder / "1.out").read_text()) == {"run": None, "metrics": {}}
    assert "run " not in (two.folder / "1.err").read_text()


@pytest.mark.slow
def test_two_workers_fine_tune_as_one_does(tmp_path) -> None:
    data = write_csv(tmp_path / "train.csv", make_intents(240))
    words = [
        "train",
        "bert-classifier",
        "--strategy",
        "multi-worker",
        *BERT_TINY,
        "--data",
        data,
        "--epochs",
        1,
    ]
    words += ["--pretrain_data", "same", "--pretrain_epochs", 1]
    with Job(tmp_path / "one") as one, Job(tmp_path / "two") as two:
        one.start(1, *words)
        two.start(2, *words)
        # Masked words first, then labels; the embedding's lazy Adam in both.
        assert_same_training(one.finish(), two.finish(), steps=15)
    assert [path.name for path in (two.folder / "logs" / "bert-classifier").iterdir()] == ["1"]


@pytest.mark.slow
def test_one_two_and_four_workers_agree_over_a_hundred_steps(text_file, tmp_path) -> None:
    words = [*WORDS, "--data", text_file, "--epochs", 5, "--accumulate", 2]
    with Job(tmp_path / "one") as one, Job(tmp_path / "two") as two, Job(tmp_path / "four") as four:
        # One after the other: they are seven processes.
        one.start(1, *words).finish()
        two.start(2, *words).finish()
        four.start(4, *words).finish()
        assert_same_training(one, two, steps=100)
        assert_same_training(one, four, steps=100)


@pytest.mark.slow
def test_two_devices_of_one_machine_train_as_one_does(text_file, tmp_path) -> None:
    # TensorFlow sees two CPUs here, in the place of two GPUs; with the running average of the weights.
    words = ["train", "mlm-gru", *TINY, "--data", text_file, "--epochs", 5]
    with Job(tmp_path / "one") as one, Job(tmp_path / "two") as two:
        one.start(1, *words).finish()
        two.start(1, *words, "--strategy", "mirrored", devices=2).finish()
        assert_same_training(one, two, steps=100)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_worker_dies_the_others_end_and_the_job_resumes(text_file, tmp_path, victim) -> None:
    # Dropout too: every worker draws its own, and goes on with it.
    words = [*WORDS, "--dropout", 0.2, "--ema", 0.9]
    fresh = [*words, "--data", text_file, "--epochs", 3, "--checkpoint_seconds", 0]
    with Job(tmp_path / "whole") as whole, Job(tmp_path / "killed") as killed:
        whole.start(2, *fresh).finish()
        killed.start(2, *fresh).wait_for_step(30)
        killed.processes[victim].send_signal(signal.SIGKILL)
        survivor = killed.processes[1 - victim]
        assert survivor.wait(timeout=60) == 2
        assert "Another worker is gone" in (killed.folder / f"{1 - victim}.err").read_text()
        run = killed.folder / "logs" / "mlm-gru" / "1"
        with Job(tmp_path / "wrong") as wrong:
            wrong.start(2, "train", "mlm-gru", "--resume", run, others=fresh)
            assert wrong.wait() == [2, 2]
            assert "do not go on from the same step" in wrong.errors()
        with Job(tmp_path / "resumed") as resumed:
            resumed.start(2, "train", "mlm-gru", "--resume", run).finish()
            steps = len(resumed.losses(0))
            assert 0 < steps <= 34
            assert resumed.losses(0) == resumed.losses(1) == whole.losses(0)[-steps:]
            for index in (0, 1):
                for a, b in zip(resumed.weights(index), whole.weights(0), strict=True):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_worker_that_is_told_to_stop_stops_all(text_file, tmp_path) -> None:
    words = [*WORDS, "--data", text_file, "--epochs", 100, "--checkpoint_seconds", 1000]
    with Job(tmp_path) as job:
        job.start(2, *words).wait_for_step(3)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.wait() == [130, 130], job.errors()
        steps = len(job.losses(0))
        saved = [path.name for path in (tmp_path / "logs/mlm-gru/1/checkpoints").iterdir() if path.suffix]
        assert saved == [f"step-{steps:010d}.npz"]


def noise(path: Path) -> Path:
    """Images whose labels are luck: no network gets better at others for long."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 255, (320, 10, 10), dtype=np.uint8)
    np.savez(path, x_train=x, y_train=np.arange(320) % 4)
    return path


NORMALIZED = ["mnist-mlp", "--batch_normalization", "true", *TINY_DIGITS, "--patience", 1, "--shift", 0]


@pytest.mark.slow
def test_two_devices_normalize_stop_early_and_resume(tmp_path) -> None:
    words = ["train", *NORMALIZED, "--data", noise(tmp_path / "noise.npz"), "--strategy", "mirrored"]
    with Job(tmp_path / "whole") as whole, Job(tmp_path / "cut") as cut:
        whole.start(1, *words, "--epochs", 40, devices=2).finish()
        assert 0 < len(whole.losses(0)) < 40 * 8, "luck does not last"
        cut.start(1, *words, "--epochs", 40, "--checkpoint_seconds", 0, devices=2).wait_for_step(10)
        cut.processes[0].send_signal(signal.SIGKILL)
        cut.wait()
        with Job(tmp_path / "again") as again:
            again.start(
                1, "train", "mnist-mlp", "--resume", cut.folder / "logs/mnist-mlp/1", devices=2
            ).finish()
            steps = len(again.losses(0))
            assert again.losses(0) == whole.losses(0)[-steps:]
            for a, b in zip(again.weights(0), whole.weights(0), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_two_devices_fine_tune(tmp_path) -> None:
    data = write_csv(tmp_path / "train.csv", make_intents(240))
    words = ["train", "bert-classifier", *BERT_TINY, "--data", data, "--patience", 1]
    with Job(tmp_path / "job") as job, Job(tmp_path / "more") as more:
        job.start(1, *words, "--epochs", 1, "--strategy", "mirrored", devices=2).finish()
        run = job.folder / "logs/bert-classifier/1"
        more.start(1, "train", "bert-classifier", "--resume", run, "--epochs", 2, devices=2).finish()
        assert len(more.losses(0)) == len(job.losses(0)) == 12
        assert more.losses(0)[-1] < job.losses(0)[0]


@pytest.mark.slow
def test_two_workers_normalize_stop_at_once_and_resume(tmp_path) -> None:
    """Each normalizes by its own half: the chief alone judges, and both stop after the same epoch."""
    words = ["train", *NORMALIZED, "--data", noise(tmp_path / "noise.npz"), "--strategy", "multi-worker"]
    with Job(tmp_path / "whole") as whole, Job(tmp_path / "cut") as cut:
        whole.start(2, *words, "--epochs", 40).finish()
        steps = len(whole.losses(0))
        assert 0 < steps < 40 * 8, "luck does not last"
        assert whole.losses(1) == whole.losses(0)
        for a, b in zip(whole.weights(1), whole.weights(0), strict=True):
            np.testing.assert_array_equal(a, b)  # moving averages too
        cut.start(2, *words, "--epochs", 40, "--checkpoint_seconds", 0).wait_for_step(10)
        for process in cut.processes:
            process.send_signal(signal.SIGKILL)
        cut.wait()
        with Job(tmp_path / "again") as again:
            again.start(2, "train", "mnist-mlp", "--resume", cut.folder / "logs/mnist-mlp/1").finish()
            assert again.losses(0) == whole.losses(0)[-len(again.losses(0)) :]
            for a, b in zip(again.weights(0), whole.weights(0), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_two_workers_fine_tune_with_patience_and_resume(tmp_path) -> None:
    data = write_csv(tmp_path / "train.csv", make_intents(240))
    words = ["train", "bert-classifier", *BERT_TINY, "--data", data, "--strategy", "multi-worker"]
    with Job(tmp_path / "job") as job, Job(tmp_path / "more") as more:
        job.start(2, *words, "--patience", 1, "--epochs", 1).finish()
        run = job.folder / "logs/bert-classifier/1"
        more.start(2, "train", "bert-classifier", "--resume", run, "--epochs", 6).finish()
        assert more.losses(0) == more.losses(1) and len(more.losses(0)) >= len(job.losses(0))


@pytest.mark.slow
def test_a_worker_that_waits_for_another_ends_when_it_is_told_to(text_file, tmp_path) -> None:
    """By the signal, not because TensorFlow gave up on the other one, whose status would be 2."""
    words = [*WORDS, "--data", text_file, "--epochs", 100]
    with Job(tmp_path) as job:
        job.start(2, *words).wait_for_step(3)
        job.processes[1].send_signal(signal.SIGSTOP)
        job.processes[0].send_signal(signal.SIGTERM)
        assert job.processes[0].wait(timeout=60) == 130, job.errors()
        assert "Stopped while waiting for another worker" in job.errors()


def test_alone_nobody_else_is_gone() -> None:
    alone = tf.distribute.get_strategy()
    with pytest.raises(tf.errors.AbortedError), needing_all_workers(alone):
        raise tf.errors.AbortedError(None, None, "a kernel gave up")

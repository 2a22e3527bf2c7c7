"""DQN on CartPole-v1: does every seed get a certificate, and how long does it take?

Trains `dqn` at its default settings, once a seed, each in a process of its own: 100 greedy episodes of
Gymnasium's own CartPole-v1 must all reach 500. In turn with some of the seeds, Stable-Baselines3 trains for
its 50,000 steps with the settings of its Zoo. Then the speeds alone: ours, and TF-Agents' stock way (a
Python environment, one step and one gradient step a call).

    python benchmarks/dqn_cartpole.py [--seeds 10] [--peers 3] [--picture docs/dqn.svg]

The last line is one JSON object. `sb3_time` is Stable-Baselines3's median time of `learn` over our median
time of all that `train` does, from its first line to the certificate and the last file: tracing, evaluating,
TensorBoard, checkpoints, filmstrip. `sb3_process` is the same with the imports of both, `sb3_cpu` that in
processor time. `stock_*` are TF-Agents' times of a step over ours.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mlm_throughput import ROOT, peer_python, run_process

BEGIN = time.perf_counter()
STEPS = 50_000


def quiet_tensorflow() -> Any:
    """Imports what training imports, without TensorFlow's words."""
    from karpa_tf.cli import _load
    from karpa_tf.recipe import find_recipe

    return _load(find_recipe("dqn"), legacy_keras=True)


def side_ours(seed: int, logs: str, smoke: bool) -> dict[str, Any]:
    """One run, as `karpa-tf train dqn --seed SEED` makes it."""
    from karpa_tf.recipes.dqn import DqnSettings
    from karpa_tf.training.run_folder import create_run

    recipe = quiet_tensorflow()
    imports = time.perf_counter() - BEGIN
    start = time.perf_counter()
    config = DqnSettings(seed=seed, **({"environment_steps": 1200} if smoke else {}))
    folder = create_run(logs, "dqn", ["benchmark"])
    metrics = recipe.start(config, folder)
    seconds = time.perf_counter() - start
    curve = read_curve(folder.path)
    return {**metrics, "seconds": seconds, "import_seconds": imports, "curve": curve}


def read_curve(run: Path) -> list[tuple[int, float]]:
    """Environment steps and the greedy policy's mean return, from the run's event files."""
    import tensorflow as tf
    from tensorflow.core.util import event_pb2

    points = []
    for path in sorted((run / "validation").glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                if value.tag == "dqn/episode/return":
                    points.append((event.step, float(tf.make_ndarray(value.tensor))))
    return points


def side_speed(smoke: bool) -> dict[str, float]:
    """Seconds of tracing, and steps a second once it is done."""
    steps_timed = 80 if smoke else 4000
    quiet_tensorflow()
    from karpa_tf.recipes.dqn import DqnSettings
    from karpa_tf.rl.dqn import Learner
    from karpa_tf.training import runtime

    runtime.use_threads(1)
    start = time.perf_counter()
    learner = Learner(DqnSettings(epsilon_end=1.0))  # short episodes, as many as there can be
    build = time.perf_counter() - start
    start = time.perf_counter()
    learner.run(8)
    tracing = time.perf_counter() - start
    start = time.perf_counter()
    learner.evaluate(20, 1)
    evaluation_tracing = time.perf_counter() - start
    learner.run(1008 if smoke else 2000)  # it trains after a thousand
    steps, gradients = int(learner.environment_steps.numpy()), int(learner.gradient_steps.numpy())
    start = time.perf_counter()
    learner.run(steps_timed)
    seconds = time.perf_counter() - start
    both = {
        "environment_steps_per_second": (int(learner.environment_steps.numpy()) - steps) / seconds,
        "gradient_steps_per_second": (int(learner.gradient_steps.numpy()) - gradients) / seconds,
    }
    alone = Learner(DqnSettings(initial_steps=10**6))  # it only collects
    alone.run(8)
    start = time.perf_counter()
    alone.run(2 * steps_timed)
    collect = (time.perf_counter() - start) / (2 * steps_timed)
    train = seconds / steps_timed - collect
    return {
        **both,
        "build_seconds": build,
        "tracing_seconds": tracing,
        "evaluation_tracing_seconds": evaluation_tracing,
        "collect_step_seconds": collect,
        "gradient_step_seconds": train,
    }


def side_stock(smoke: bool) -> dict[str, float]:
    """TF-Agents as its tutorials use it: TFPyEnvironment, a driver and a dataset, one step a call."""
    count = 20 if smoke else 1000
    quiet_tensorflow()
    import tensorflow as tf
    from tf_agents.agents.dqn import dqn_agent
    from tf_agents.drivers import dynamic_step_driver
    from tf_agents.environments import tf_py_environment
    from tf_agents.networks import q_network
    from tf_agents.replay_buffers import tf_uniform_replay_buffer
    from tf_agents.utils import common

    from karpa_tf.rl.environment import GymnasiumEnvironment

    environment = tf_py_environment.TFPyEnvironment(GymnasiumEnvironment("CartPole-v1"))
    network = q_network.QNetwork(
        environment.observation_spec(), environment.action_spec(), fc_layer_params=(64, 64)
    )
    agent = dqn_agent.DdqnAgent(
        environment.time_step_spec(),
        environment.action_spec(),
        network,
        tf.compat.v1.train.AdamOptimizer(3e-3),
        td_errors_loss_fn=common.element_wise_squared_loss,
        gamma=0.99,
        target_update_period=100,
        train_step_counter=tf.Variable(0, dtype=tf.int64),
    )
    agent.initialize()
    agent.train = common.function(agent.train)
    buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(agent.collect_data_spec, 1, 50_000)
    driver = dynamic_step_driver.DynamicStepDriver(
        environment, agent.collect_policy, [buffer.add_batch], num_steps=1
    )
    driver.run = common.function(driver.run)
    state: Any = None
    time_step = environment.reset()

    def collect(count: int) -> float:
        nonlocal time_step, state
        start = time.perf_counter()
        for _ in range(count):
            time_step, state = driver.run(time_step, state or ())
        return (time.perf_counter() - start) / count

    begin = time.perf_counter()
    collect(1)
    collect(1)
    tracing = time.perf_counter() - begin
    collect(200)
    step = collect(count)
    batches = iter(buffer.as_dataset(num_parallel_calls=3, sample_batch_size=64, num_steps=2).prefetch(3))
    begin = time.perf_counter()
    agent.train(next(batches)[0])
    tracing += time.perf_counter() - begin
    start = time.perf_counter()
    for _ in range(count):
        agent.train(next(batches)[0])
    gradient = (time.perf_counter() - start) / count
    return {"collect_step_seconds": step, "gradient_step_seconds": gradient, "tracing_seconds": tracing}


def timed(command: list[str]) -> dict[str, Any]:
    """Returns what a side prints, and what its process took."""
    start, cpu = time.perf_counter(), cpu_seconds()
    result = run_process(command)
    return {
        **result,
        "process_seconds": time.perf_counter() - start,
        "cpu_seconds": cpu_seconds() - cpu,
    }


def cpu_seconds() -> float:
    """Processor time of the sides so far: on a machine that does other work it tells more than the clock."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def draw(runs: list[dict[str, Any]], path: str) -> None:
    """Draws the greedy policy's return over environment steps, a line a seed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "dqn"  # the same picture for the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for run in runs:
        steps, returns = zip(*run["curve"], strict=True)
        (line,) = axes.plot(steps, returns, linewidth=1, label=f"seed {run['seed']}")
        axes.plot(run["best_step"], 500, "o", color=line.get_color())
    axes.set(xlabel="environment steps", ylabel="greedy return, mean of 20 episodes", ylim=(0, 520))
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--peers", type=int, default=3, help="Seeds of Stable-Baselines3; 0: leave it out.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--picture", default="", help="Where to draw the curves, e.g. docs/dqn.svg.")
    parser.add_argument("--side", help="Run one side and print its figures (used by this script itself).")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", default="logs")
    parser.add_argument(
        "--smoke", action="store_true", help="A short run, no peer: whether it runs, not how fast."
    )
    arguments = parser.parse_args()
    if arguments.side:
        sides = {
            "ours": lambda: side_ours(arguments.seed, arguments.logs, arguments.smoke),
            "speed": lambda: side_speed(arguments.smoke),
            "stock": lambda: side_stock(arguments.smoke),
        }
        print(json.dumps(sides[arguments.side]()))
        return

    script = [sys.executable, str(Path(__file__).resolve()), "--side"]
    if arguments.smoke:
        arguments.seeds, arguments.peers = 1, 0
        script.insert(2, "--smoke")
    runs, theirs = [], []
    with tempfile.TemporaryDirectory() as logs:
        for seed in range(arguments.seeds):
            run = timed([*script, "ours", "--seed", str(seed), "--logs", logs])
            runs.append({**run, "seed": seed})
            print(
                f"seed {seed}: {run['mean_return']:.1f} +- {run['std_return']:.1f} after "
                f"{run['environment_steps']:,} environment steps (and "
                f"{run['selection_environment_steps']:,} to choose), {run['gradient_steps']:,} gradient "
                f"steps, {run['seconds']:.1f} s",
                flush=True,
            )
            if seed < arguments.peers:
                options = {"seed": seed, "steps": STEPS, "threads": arguments.threads}
                peer = timed(
                    [peer_python(), str(ROOT / "benchmarks" / "peers" / "sb3_dqn.py"), json.dumps(options)]
                )
                theirs.append(peer)
                print(
                    f"        Stable-Baselines3: {peer['mean_return']:.1f} after {STEPS:,} environment "
                    f"steps, {peer['gradient_steps']:,} gradient steps, {peer['seconds']:.1f} s",
                    flush=True,
                )
    speed = timed([*script, "speed"])
    stock = timed([*script, "stock"])
    if arguments.picture:
        draw(runs, arguments.picture)

    def median(rows: list[dict[str, Any]], name: str) -> float:
        return statistics.median(row[name] for row in rows)

    values = {
        "certified_seeds": sum(r["min_return"] == 500 and r["environment_steps"] <= STEPS for r in runs),
        "seeds": len(runs),
        "median_seconds": median(runs, "seconds"),
        "longest_seconds": max(run["seconds"] for run in runs),
        "median_import_seconds": median(runs, "import_seconds"),
        "median_environment_steps": median(runs, "environment_steps"),
        "longest_environment_steps": max(run["environment_steps"] for run in runs),
        "median_selection_environment_steps": median(runs, "selection_environment_steps"),
        **{name: value for name, value in speed.items() if name[:3] not in ("pro", "cpu")},
        **{f"stock_{name}": value for name, value in stock.items() if name[:3] not in ("pro", "cpu")},
    }
    ratios = {
        "certified": values["certified_seeds"] / values["seeds"],
        "stock_collect_step": stock["collect_step_seconds"] / speed["collect_step_seconds"],
        "stock_gradient_step": stock["gradient_step_seconds"] / speed["gradient_step_seconds"],
    }
    if theirs:
        values["sb3_median_seconds"] = median(theirs, "seconds")
        values["sb3_median_return"] = median(theirs, "mean_return")
        values["sb3_gradient_steps_per_second"] = median(theirs, "gradient_steps") / median(theirs, "seconds")
        ratios["sb3_time"] = values["sb3_median_seconds"] / values["median_seconds"]
        ratios["sb3_cpu"] = median(theirs, "cpu_seconds") / median(runs, "cpu_seconds")
        ratios["sb3_process"] = median(theirs, "process_seconds") / median(runs, "process_seconds")
    for name, value in {**values, **ratios}.items():
        print(f"{name:<40}{value:>14,.4f}")
    print(json.dumps({"benchmark": "dqn_cartpole", "ratios": ratios, "values": values}))


if __name__ == "__main__":
    main()

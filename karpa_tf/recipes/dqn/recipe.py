"""`dqn`: TF-Agents' DQN on CartPole-v1, from an environment to a served policy.

    karpa-tf train dqn                       10 to 20 seconds on two cores
    karpa-tf train dqn --env Acrobot-v1      any Gymnasium environment with discrete actions

What it reaches stands in the header of each YAML file beside this one. Training needs TF-Agents and
legacy Keras (`karpa_tf.rl.dqn`); judging, predicting and serving what was learned need neither.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from karpa_tf.errors import UserError
from karpa_tf.export.loader import load_signature
from karpa_tf.export.savedmodel import (
    describe,
    export_savedmodel,
    publish,
    write_requests,
    write_savedmodel,
)
from karpa_tf.export.signature import Signature
from karpa_tf.models import build_q_network
from karpa_tf.recipe import EvaluateOptions, Evaluation, Exported, ExportOptions, PredictOptions, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.reports.classification import event_writer, write_image
from karpa_tf.rl import has_tf_agents
from karpa_tf.rl.episodes import (
    CERTIFICATE_SEEDS,
    CannotBeDrawn,
    Policy,
    film,
    first_action,
    make_flat,
    observation_scale,
    play,
    random_policy,
    strip,
    summary,
)
from karpa_tf.training import runtime
from karpa_tf.training.loop import Diverged, Stage
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder, write_json, writing
from karpa_tf.training.step import Step

from . import ABOUT, DqnSettings

if TYPE_CHECKING:  # importing it needs legacy Keras
    from karpa_tf.rl.dqn import Learner

# Episodes of the second and the third judgement: the second says which policy is the best, the third whether
# there can be a better one.
MORE_EPISODES, LAST_EPISODES = 100, 1_000
# A line of progress and a histogram of the weights every so many judgements.
_EVERY = 10


# --- Train ----------------------------------------------------------------------------------------


def train(run: Run[DqnSettings]) -> dict[str, float]:
    """Trains into a run folder and returns the final figures, those of the best policy's certificate."""
    from karpa_tf.rl.dqn import Learner

    config, folder = run.settings, run.folder
    run.begin()
    learner = Learner(config)
    if config.init:
        learner.set_weights(weights_of(config.init, config))
    step = DqnStep(config, learner)
    best = BestPolicy(folder, step)
    run.say(f"{config.env}: {config.environments} side by side; run {folder.path}")
    run.fit(
        Stage(step, length=config.environment_steps, validation=best.evaluate),
        callbacks=[best],
        shown=("episodes", "return", "epsilon"),
        unit="environment steps",
        period="step",
        lines_every=_EVERY,
        tags={
            "return": "episode/return",
            "length": "episode/length",
            "loss": "batch/loss",
            "q": "q",
            "epsilon": "epsilon",
            "gradient_steps_per_second": "speed/gradient_steps_per_second",
        },
        every=1,
        graph=learner.graph,
        weights=lambda: {f"weights/{v.name.split(':')[0]}": v for v in learner.q_network.variables},
        weights_every=_EVERY,
    )
    if best.perfect and run.steps < config.environment_steps:
        run.say(
            f"Stopped early, after {run.steps:,} of {config.environment_steps:,} environment steps: the "
            f"policy reached a return of {config.target_return:g} in each of {LAST_EPISODES:,} fresh "
            "episodes."
        )
    try:
        policy = play_with(load_policy(folder), learner.first_action)
        pictures = strip(film(config.env, policy, CERTIFICATE_SEEDS[0]))
        with event_writer(folder.path / "validation"):
            write_image(run.steps, "filmstrip", pictures)
    except CannotBeDrawn as error:
        run.say(f"No film of an episode: {error}")
    gradient_steps = int(learner.gradient_steps.numpy())
    return run.finish(
        lambda: Evaluation(**evaluate(folder)), best_step=best.step, gradient_steps=gradient_steps
    )


class DqnStep(Step):
    """Some environment steps, with the gradient steps between them: the clock is the environment's."""

    def __init__(self, config: DqnSettings, learner: Learner) -> None:
        super().__init__()
        self.config = config
        self.learner = learner
        self.episodes = 0

    @property
    def variables(self) -> Sequence[Any]:
        return self.learner.variables

    def get_state(self) -> dict[str, Any]:
        return {"episodes": self.episodes}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episodes = state["episodes"]

    def _counts(self) -> tuple[int, int]:
        return int(self.learner.environment_steps.numpy()), int(self.learner.gradient_steps.numpy())

    def __call__(self, batch: Any, stop: bool = False) -> Mapping[str, float]:
        """Collects and trains until the next evaluation of the policy; see `Learner.run`."""
        config = self.config
        steps, gradient_steps = self._counts()
        start = time.perf_counter()
        try:
            figures = self.learner.run(min(config.judge_every, config.environment_steps - steps))
        except tf.errors.OpError as error:
            raise _explained(error, config.env, steps) from error
        seconds = time.perf_counter() - start
        now, gradient_steps_now = self._counts()
        self.advance = now - steps
        self.episodes += int(figures["episodes"])
        speed = (gradient_steps_now - gradient_steps) / seconds
        return {**figures, "episodes": self.episodes, "gradient_steps_per_second": speed}


def _explained(error: tf.errors.OpError, env: str, steps: int) -> Exception:
    """Returns what is to be raised instead of an error of TensorFlow's, or the error itself."""
    if "inf or nan" in error.message.lower():  # TF-Agents' own check of the loss
        return Diverged(
            f"The loss is not a number after {steps} environment steps: training stopped; try a smaller "
            "learning_rate."
        )
    if "Traceback (most recent call last)" in error.message:  # the environment runs in Python
        # What it raised stands in the line before.
        said = error.message.split("Traceback (most recent call last)")[0].rstrip().splitlines()[-1]
        return UserError(f"--env: {env} failed after {steps} environment steps: {said[:200].rstrip('. ')}.")
    return error


class BestPolicy(keras.callbacks.Callback):
    """Evaluates the greedy policy as training goes, and keeps the weights of the best one.

    DQN forgets: the last policy is often not the best, and may be a bad one. A policy plays `judge_episodes`
    first; if none was better there, 100 more, whose mean decides. One that reached `target_return` in all of
    them plays 1,000; if it does so again it is perfect, and training may stop. All are episodes that
    training does not see, and their steps are counted.
    """

    def __init__(self, folder: RunFolder, training: DqnStep) -> None:
        super().__init__()
        self.folder = folder
        self.training = training
        self.learner = training.learner
        self.config = training.config
        self.mean: float | None = None
        self.step = 0
        self.number = 0
        self.judged_steps = 0
        self.perfect = False
        self._played = 0
        self._weights: list[np.ndarray] | None = None
        self._network: keras.Model | None = None

    def evaluate(self) -> dict[str, float]:
        """Evaluates the present weights and returns the mean return of the first episodes."""
        self.number += 1
        first = self._play(self.config.judge_episodes)
        if self.mean is not None and first.mean() < self.mean:
            return {"return": float(first.mean())}
        returns = self._play(MORE_EPISODES)
        if min(first.min(), returns.min()) >= self.config.target_return:
            returns = np.concatenate([returns, self._play(LAST_EPISODES)])
            self.perfect = bool(returns.min() >= self.config.target_return)
        mean = float(returns.mean())
        if self.mean is None or mean > self.mean or self.perfect:
            self.mean, self.step = mean, int(self.learner.environment_steps.numpy())
            self._weights = self.learner.get_weights()
        return {"return": float(first.mean())}

    def _play(self, count: int) -> np.ndarray:
        self._played += 1
        returns, lengths = self.learner.evaluate(count, self._played)
        self.judged_steps += int(lengths.sum())
        return returns

    def get_state(self) -> dict[str, Any]:
        self.write()
        return {
            "mean": self.mean,
            "step": self.step,
            "number": self.number,
            "judged_steps": self.judged_steps,
            "perfect": self.perfect,
            "_played": self._played,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.training.stop_training = self.perfect

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.write()

    def write(self) -> None:
        """Writes the best weights, if there are new ones, and what choosing them cost."""
        weights = self._weights
        if self.mean is None:  # stopped before the first judgement: what there is, is the best there is
            weights = self.learner.get_weights()
        with writing(self.folder.path):
            if weights is not None:
                if self._network is None:
                    self._network = build_model(self.config, self.learner.scale, self.learner.actions)
                self._network.set_weights(weights)
                temporary = self.folder.best_weights.with_name(f".tmp-{self.folder.best_weights.name}")
                self._network.save_weights(temporary)
                temporary.replace(self.folder.best_weights)
                self._weights = None
            facts = {
                "observation_scale": self.learner.scale,
                "actions": self.learner.actions,
                "first_action": self.learner.first_action,
                "environment_steps": int(self.learner.environment_steps.numpy()),
                "selection_environment_steps": self.judged_steps,
            }
            write_json(self.folder.assets / "policy.json", facts)


# --- Evaluate -------------------------------------------------------------------------------------


def build_model(config: DqnSettings, scale: Sequence[float], actions: int) -> keras.Model:
    return build_q_network(
        scale, actions, units=config.units, hidden_layers=config.layers, dueling=config.dueling
    )


def open_model(folder: RunFolder) -> tuple[DqnSettings, keras.Model]:
    """Returns the settings of a run and its best q-network, in Keras 3."""
    config = folder.open_config(DqnSettings)
    try:
        facts = read_facts(folder)
        model = build_model(config, facts["observation_scale"], facts["actions"])
        model.load_weights(folder.best_weights)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{folder.best_weights} cannot be read ({reason}); go on with `"
            f"{folder.resume_command}`, or train again."
        ) from None
    return config, model


def read_facts(folder: RunFolder) -> dict[str, Any]:
    """Returns what the best weights were written with: counts of steps, sizes, the first action's number."""
    facts = folder.read_json("assets/policy.json")
    if "first_action" not in facts:  # a run of before that was written
        facts["first_action"] = first_action(folder.read_config()["env"])
    return facts


def weights_of(run: str, config: DqnSettings) -> list[np.ndarray]:
    """Returns the best weights of another run, for `--init`."""
    from karpa_tf.training.run_folder import open_run

    other, model = open_model(open_run(run))
    sizes = [(c.env, c.units, c.layers, c.dueling) for c in (config, other)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--init: {run} has (env, units, layers, dueling) {sizes[1]}; give this run the same. "
            f"Received: {sizes[0]}."
        )
    return model.get_weights()


def load_policy(folder: RunFolder) -> Signature:
    """Returns the run's policy as TensorFlow Serving would have it: out of a SavedModel."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "1"
        write_savedmodel({"serving_default": signature(folder)}, path, {})
        return load_signature(path)


def play_with(served: Signature, first_action: int) -> Policy:
    """Returns a policy with actions from 0, as `play` and `film` take it."""
    return lambda observations: served({"observation": observations})["action"] - first_action


def evaluate(folder: RunFolder, data: str | None = None) -> dict[str, Any]:
    """Certifies a run: 100 greedy episodes in Gymnasium's own environment, played by a SavedModel.

    Their seeds are none of those that trained or chose the policy. A random policy plays the same ones.
    """
    if data:
        raise UserError(f"dqn is judged in the run's own environment and takes no --data. Received: {data}.")
    runtime.use_threads(1)
    config = folder.open_config(DqnSettings)
    policy = play_with(load_policy(folder), read_facts(folder)["first_action"])
    returns, _ = play(lambda: make_flat(config.env), policy, CERTIFICATE_SEEDS)
    chance, _ = play(lambda: make_flat(config.env), random_policy(config.env), CERTIFICATE_SEEDS)
    facts = read_facts(folder)
    counts = {name: facts[name] for name in ("environment_steps", "selection_environment_steps")}
    return {
        "data": config.env,
        "metrics": {**summary(returns), **counts},
        "baselines": {"random": summary(chance)},
        "facts": {"seeds": f"{CERTIFICATE_SEEDS[0]} to {CERTIFICATE_SEEDS[-1]}"},
    }


def signature(folder: RunFolder) -> Signature:
    """Returns the greedy policy of a run, as `predict` calls it and `export` writes it."""
    config, model = open_model(folder)
    size = model.input_shape[-1]
    first = read_facts(folder)["first_action"]

    def act(observation: tf.Tensor) -> dict[str, tf.Tensor]:
        q_values = model(observation, training=False)
        return {"action": tf.argmax(q_values, axis=-1) + first, "q_values": q_values}

    def check(number: int, row: Mapping[str, Any]) -> None:
        try:
            value = np.array(row["observation"], np.float32)
        except (TypeError, ValueError):
            value = np.array(np.nan)
        if value.shape != (size,) or not np.isfinite(value).all():
            raise UserError(
                f"Observation {number} must be {size} numbers, as {config.env} gives them. "
                f"Received: {str(row['observation'])[:80]}."
            )

    return Signature(
        act,
        {"observation": tf.TensorSpec([None, size], tf.float32)},
        variables=model.variables,
        check=check,
    )


# --- Export ---------------------------------------------------------------------------------------


def export(
    folder: RunFolder,
    to: str | Path = "savedmodels",
    *,
    force: bool = False,
    policy_saver: bool | None = None,
) -> dict[str, Any]:
    """Writes the next version of `savedmodels/dqn`, and of `savedmodels/dqn-policy`.

    Args:
        folder: the run.
        to: where models live.
        force: export even a policy that is no better than chance.
        policy_saver: also write the policy in the form of TF-Agents' PolicySaver, as `dqn-policy`: for those
            who feed it time steps. It needs TF-Agents with legacy Keras; None: where TF-Agents is installed.

    Returns:
        The place and the signatures of `dqn`.
    """
    metrics = common.finished_metrics(folder)
    chance = metrics["baselines"]["random"]["mean_return"]
    if metrics["mean_return"] <= chance and not force:
        raise UserError(
            f"{folder.path} has not learned its task: mean return {metrics['mean_return']:.1f}, and a random "
            f"policy's is {chance:.1f}; train longer, or --force."
        )
    config, model = open_model(folder)
    lines = []
    if policy_saver is None:
        policy_saver = has_tf_agents()
        if not policy_saver:
            lines.append(
                "dqn-policy, the form of TF-Agents' PolicySaver, is left out: tf-agents is not installed."
            )
    if policy_saver:
        from karpa_tf.rl.dqn import Learner
    signatures = {"serving_default": signature(folder)}
    path = export_savedmodel(
        signatures,
        to,
        folder.recipe,
        examples=examples(config),
        model_card=model_card(folder, metrics),
        force=force,
    )
    result = {"savedmodel": str(path), "signatures": describe(signatures)}
    if policy_saver:
        learner = Learner(config)
        learner.set_weights(model.get_weights())
        name = f"{folder.recipe}-policy"
        rows = np.array([row["observation"] for row in examples(config)], np.float32)

        def write(folder: Path) -> None:
            learner.save_policy(folder)
            write_policy_warmup(folder, name, rows)

        result["policy_saver"] = str(publish(write, to, name))
    return result | ({"lines": lines} if lines else {})


def write_policy_warmup(folder: Path, name: str, observations: np.ndarray) -> None:
    """Writes the warm-up file of a policy that TF-Agents saved: `action`, asked at first steps."""
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    arrays = {}
    for key, info in saved.meta_graphs[0].signature_def["action"].inputs.items():
        if key.endswith("observation"):
            arrays[key] = observations
        else:  # step type and reward of a first step are 0, its discount is 1
            shape = [len(observations), *(dim.size for dim in info.tensor_shape.dim[1:])]
            dtype = tf.dtypes.as_dtype(info.dtype).as_numpy_dtype
            arrays[key] = np.full(shape, key.endswith("discount"), dtype)
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    write_requests(extra, name, "action", [{key: array[:1] for key, array in arrays.items()}, arrays])


def examples(config: DqnSettings) -> list[dict[str, Any]]:
    """Returns the first observations of a few episodes."""
    env = make_flat(config.env)
    rows = [{"observation": np.asarray(env.reset(seed=seed)[0], float).tolist()} for seed in range(4)]
    env.close()
    return rows


def model_card(folder: RunFolder, metrics: Mapping[str, Any]) -> str:
    config = folder.read_config()
    scale = ", ".join(f"{value:g}" for value in observation_scale(config["env"]))
    return f"""# {folder.recipe}

The greedy policy of a DQN trained in {config["env"]}.

- in: `observation` float32 [n, size], as the environment gives it (it is divided by {scale} inside)
- out: `action` int64 [n], as the environment numbers them; `q_values` float32 [n, actions], the expected
  discounted returns

Over {metrics["episodes"]} episodes of Gymnasium's {config["env"]} (seeds {metrics["facts"]["seeds"]}), not
discounted:

| | mean_return | std_return | min_return |
|---|---|---|---|
| this policy | {metrics["mean_return"]:.4g} | {metrics["std_return"]:.4g} | {metrics["min_return"]:.4g} |
| a random one | {metrics["baselines"]["random"]["mean_return"]:.4g} | | |

Training took {metrics["environment_steps"]:,} environment steps, choosing the policy
{metrics["selection_environment_steps"]:,}.

{common.settings_list(folder)}
"""


# --- The recipe -----------------------------------------------------------------------------------


class Dqn(Recipe[DqnSettings]):
    """Deep Q-learning."""

    # Its ops are so small that a second thread only makes the first one wait.
    threads = 1

    about = ABOUT

    def train(self, run: Run[DqnSettings]) -> dict[str, float]:
        return train(run)

    def evaluate(self, folder: RunFolder, options: EvaluateOptions) -> Evaluation:
        return Evaluation(**evaluate(folder, options.data or None))

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        return signature(folder)

    def export(self, folder: RunFolder, options: ExportOptions) -> Exported:
        return Exported.of(export(folder, options.to, force=options.force))

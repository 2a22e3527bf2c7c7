"""What the recipes of environments share: a policy is evaluated, and filmed, as a server would have it."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium

from karpa_tf.errors import UserError
from karpa_tf.export.loader import load_signature
from karpa_tf.export.savedmodel import write_savedmodel
from karpa_tf.judging.by_row import of_values
from karpa_tf.recipe import EvaluateOptions, Evaluation, Played, PlayOptions, Recipe
from karpa_tf.reports.pictures import check_film, write_film
from karpa_tf.rl.episodes import Film, Policy, play, rule_policy, summary
from karpa_tf.settings import RunSettings
from karpa_tf.training import runtime
from karpa_tf.training.run_folder import RunFolder

S = TypeVar("S", bound=RunSettings)


class EnvironmentRecipe(Recipe[S]):
    """A recipe that learns in a Gymnasium environment, the one of its setting `env`."""

    # Its ops are so small that a second thread only makes the first one wait.
    threads = 1
    # Seeds of the episodes that evaluate; those of training and of choosing a policy are others.
    seeds: ClassVar[range]

    @abstractmethod
    def make_env(self, config: S, **options: Any) -> gymnasium.Env:
        """Makes the environment; options as `gymnasium.make` takes them, e.g. `render_mode`."""

    @abstractmethod
    def first_action(self, folder: RunFolder) -> int:
        """Returns the number of the environment's first action; policies number them from 0."""

    @abstractmethod
    def baselines(self, config: S) -> Mapping[str, Policy]:
        """Returns policies to play beside the run's, by name."""

    def policy(self, folder: RunFolder) -> Policy:
        """Returns a run's policy as TensorFlow Serving would have it: out of a SavedModel."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "1"
            signatures = {"serving_default": self.signature(folder, self.about.predict())}
            write_savedmodel(signatures, path, {})
            served = load_signature(path)
        first = self.first_action(folder)
        return lambda observations: served({"observation": observations})["action"] - first

    def evaluate(self, folder: RunFolder, options: EvaluateOptions, step: int | None = None) -> Evaluation:
        """Plays greedy episodes with a SavedModel, none of which training has seen; so do the baselines."""
        if options.data:
            raise UserError(
                f"{folder.recipe} is evaluated in the run's own environment and takes no --data. "
                f"Received: {options.data}."
            )
        runtime.use_threads(self.threads)
        config: Any = folder.open_config(self.about.settings)
        policies = {"model": self.policy(folder), **self.baselines(config)}
        with contextlib.closing(self.make_env(config)) as env:
            if rule := rule_policy(env):
                policies["rule"] = rule
        played = {
            name: play(lambda: self.make_env(config), policy, self.seeds) for name, policy in policies.items()
        }
        results = {name: summary(episodes) for name, episodes in played.items()}
        return Evaluation(
            data=config.env,
            metrics=results.pop("model"),
            baselines=results,
            facts={"seeds": f"{self.seeds[0]} to {self.seeds[-1]}"},
            by_row=lambda: {
                "mean_return": of_values([f"seed {seed}" for seed in self.seeds], played["model"].returns)
            },
        )

    def shown(self, metrics: Mapping[str, Any]) -> list[str]:
        """Returns the names of a run's figures that its card shows: those that the random policy has too."""
        return [name for name in metrics["baselines"]["random"] if name != "episodes"]

    def play(self, folder: RunFolder, options: PlayOptions) -> Played:
        """Plays greedy episodes and films them."""
        path = Path(options.gif)
        check_film(path)
        runtime.use_threads(self.threads)
        config: Any = folder.open_config(self.about.settings)
        film = Film(
            config.env,
            functools.partial(self.make_env, config),
            self.policy(folder),
            range(options.seed, options.seed + options.episodes),
            range(options.frames),
        )
        frames = write_film(path, film, options.fps or film.fps)
        return Played(
            path=str(path),
            frames=frames,
            returns=film.returns,
            lengths=film.lengths,
            figures=film.figures,
        )

"""Episodes of Gymnasium's own environments: making them, playing them with a policy, filming them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import yaml

import karpa_tf.rl.routes  # noqa: F401  (registers environments)
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine
from karpa_tf.rl import lanes

# Observations, float32 (n, size) or numbers of states (n,), to actions, integers (n,).
Policy = Callable[[np.ndarray], np.ndarray]

_AT_ONCE = 100

# The seeds of the episodes that certify a policy. Training's lie below a billion, those that choose a policy
# from two billion on: no episode of an evaluation was seen before.
CERTIFICATE_SEEDS = range(1_000_000_000, 1_000_000_100)

# Where an episode of CartPole-v1 ends, and speeds that are usual on the way: divided by these, the numbers
# of an observation have the same size. The space itself has twice the limits, and no bounds of the speeds.
_SCALES = {"CartPole-v1": [2.4, 2.0, 0.2, 2.0], "karpa_tf/Lanes-v0": lanes.SCALE}

# Steps of an episode of an environment without a time limit; one that takes more may never end.
_LONGEST = 10_000


def make(name: str, **options: Any) -> gymnasium.Env:
    """Makes a Gymnasium environment.

    Args:
        name: its id, e.g. `CartPole-v1`, and behind it what it takes, as `FrozenLake-v1 map_name=8x8`.
        options: passed on to the environment, e.g. `render_mode`.

    Raises:
        UserError: its module cannot be imported, there is no such environment, or it cannot be made: it
            fails, has no such setting, or something that it needs is not installed. A step raises one where
            an episode of an environment without a time limit takes more than 10,000 steps.
    """
    name, *words = name.split() or [""]
    module, _, own = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever somebody's module raises
            raise UserError(
                f'--env: the module "{module}" of {name} cannot be imported ({reason(error)}); install it, '
                "or put the folder that it is in into PYTHONPATH."
            ) from None
    try:
        options = {**_given(name, own, words), **options}
        env = gymnasium.make(name, disable_env_checker=True, **options)
        return env if env.spec and env.spec.max_episode_steps else _Ending(env, name)
    except UserError as error:
        raise UserError(f"--env: {error}") from None
    except Exception as error:  # whatever somebody's environment raises
        if own in gymnasium.registry:
            raise UserError(f"--env: {name} cannot be made: {reason(error)}.") from None
        where = f"The module {module}" if module else "Gymnasium"
        # First those that lack nothing but what stands before the name.
        known = [known for known in gymnasium.registry if known.endswith(f"/{own}")] or gymnasium.registry
        raise UserError(f'--env: {where} has no environment "{own}"{did_you_mean(own, known)}') from None


def _given(name: str, own: str, words: Sequence[str]) -> dict[str, Any]:
    """Returns what stands behind an environment's id, `NAME=VALUE NAME=VALUE`; values are as in YAML."""
    found: dict[str, Any] = {}
    known: Mapping[str, Any] = {}
    if words and (entry := gymnasium.spec(own).entry_point):
        make_it = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
        known = inspect.signature(make_it).parameters
    for word in words:
        key, _, value = word.partition("=")
        if not value:
            raise UserError(f"what follows the id of an environment is NAME=VALUE. Received: {word}.")
        if key in found:
            raise UserError(f"{key} is given more than once. Received: {' '.join(words)}.")
        anything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values())
        if key not in (*known, "max_episode_steps") and not anything:
            raise UserError(f"{name} has no setting {key}{did_you_mean(key, known)}")
        found[key] = yaml.safe_load(value)
    return found


class _Ending(gymnasium.Wrapper):
    """An environment without a time limit: an episode that takes too long is an error."""

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self._name, self._steps = name, 0

    def reset(self, **options: Any) -> Any:
        self._steps = 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps > _LONGEST:
            raise UserError(
                f"--env: an episode of {self._name} has not ended within {_LONGEST:,} steps, and it has no "
                f'time limit; give it one: --env "{self._name} max_episode_steps=1000".'
            )
        return self.env.step(action)


def reason(error: BaseException) -> str:
    """Returns what an error says, and what it is where that says little."""
    text = " ".join(str(error).split())[:200].rstrip(".")
    known = isinstance(error, (gymnasium.error.Error, ImportError))
    return text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")


def make_flat(name: str, **options: Any) -> gymnasium.Env:
    """Makes an environment with discrete actions, its observations as one vector of numbers each.

    Raises:
        UserError: as `make`; or the actions are not discrete.
    """
    env = make(name, **options)
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise UserError(f"--env: {name} has no discrete actions but {env.action_space}; dqn needs them.")
    space = env.observation_space
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1:
        return env
    if not space.is_np_flattenable:
        raise UserError(f"--env: the observations of {name} are no vector and cannot be made one: {space}.")
    return gymnasium.wrappers.FlattenObservation(env)


def actions_of(env: gymnasium.Env) -> tuple[int, int]:
    """Returns how many discrete actions an environment has, and the number of the first one."""
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Discrete)
    return int(space.n), int(space.start)


def first_action(name: str) -> int:
    """Returns the number that an environment's first action has."""
    with contextlib.closing(make_flat(name)) as env:
        return actions_of(env)[1]


def observation_scale(name: str) -> list[float]:
    """Returns what to divide each number of an observation by: its bound, or 1 where it has none."""
    if (own := name.split()[0]) in _SCALES:
        return _SCALES[own]
    with contextlib.closing(make_flat(name)) as env:
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        bound = np.maximum(np.abs(space.low), np.abs(space.high)).astype(float)
        return np.where(np.isfinite(bound) & (bound > 0) & (bound < 1e6), bound, 1.0).tolist()


def make_tabular(name: str, **options: Any) -> gymnasium.Env:
    """Makes an environment whose states and actions are numbers from 0.

    Raises:
        UserError: as `make`; or states or actions are of another kind.
    """
    env = make(name, **options)
    for what, space in (("states", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, gymnasium.spaces.Discrete) or space.start != 0:
            raise UserError(
                f"--env: the {what} of {name} are not numbers from 0 but {space}; use dqn for it."
            )
    return env


def random_policy(name: str, seed: int = 0) -> Policy:
    """Returns a policy that takes each action with the same probability."""
    with contextlib.closing(make_flat(name)) as env:
        actions, _ = actions_of(env)
    generator = np.random.default_rng(seed)
    return lambda observations: generator.integers(actions, size=len(observations))


def rule_policy(env: gymnasium.Env) -> Policy | None:
    """Returns the policy of an environment's own `rule(observation)`, to compare with; None: it has none."""
    rule, space = getattr(env.unwrapped, "rule", None), env.unwrapped.observation_space
    if rule is None:
        return None

    def act(observations: np.ndarray) -> np.ndarray:
        if isinstance(space, gymnasium.spaces.Discrete) and observations.ndim > 1:
            observations = observations.argmax(axis=1)  # `make_flat` made vectors of them
        return np.array([rule(observation) for observation in observations])

    return act


class Episodes(NamedTuple):
    """What came of episodes.

    Attributes:
        returns: float64 (episodes,): sums of rewards, undiscounted.
        lengths: int64 (episodes,): steps.
        figures: of each episode, what the `info` of its last step has under `figures`.
    """

    returns: np.ndarray
    lengths: np.ndarray
    figures: list[Mapping[str, float]]


def summary(episodes: Episodes) -> dict[str, float]:
    """Returns the metrics of episodes: mean, deviation and least of the returns; how many; mean figures.

    A figure's mean is over the episodes that have it.
    """
    returns = episodes.returns
    names = dict.fromkeys(name for figures in episodes.figures for name in figures)
    return {
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
        "min_return": float(returns.min()),
        "episodes": len(returns),
        **{name: float(np.mean([f[name] for f in episodes.figures if name in f])) for name in names},
    }


def play(make_env: Callable[[], gymnasium.Env], policy: Policy, seeds: Iterable[int]) -> Episodes:
    """Plays one episode a seed.

    Up to a hundred go in step, so that the policy is asked once for all of them.

    Args:
        make_env: makes an environment with discrete actions.
        policy: observations to actions, numbers from 0.
        seeds: what each episode's `reset` gets.

    Returns:
        What came of them.
    """
    seeds = list(seeds)
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    figures: list[Mapping[str, float]] = [{}] * len(seeds)
    with contextlib.ExitStack() as stack:
        envs = [stack.enter_context(contextlib.closing(make_env())) for _ in seeds[:_AT_ONCE]]
        _, start = actions_of(envs[0])
        for begin in range(0, len(seeds), _AT_ONCE):
            going = {
                begin + i: _number(env.reset(seed=seed)[0])
                for i, (env, seed) in enumerate(zip(envs, seeds[begin : begin + _AT_ONCE], strict=False))
            }
            while going:
                actions = policy(np.stack(list(going.values())))
                for index, action in zip(list(going), actions, strict=True):
                    env = envs[index - begin]
                    observation, reward, terminated, truncated, info = env.step(start + int(action))
                    returns[index] += float(reward)
                    lengths[index] += 1
                    if terminated or truncated:
                        figures[index] = info.get("figures", {})
                        del going[index]
                    else:
                        going[index] = _number(observation)
    return Episodes(returns, lengths, figures)


def _number(observation: Any) -> np.ndarray:
    """Returns an observation as policies take it: float32, or int64 where it is the number of a state."""
    value = np.asarray(observation)
    return value.astype(np.int64 if value.ndim == 0 else np.float32)


class CannotBeDrawn(UserError):
    """An environment has no pictures."""


class Film(InALine):
    """Episodes of a policy, one a seed, as pictures: to iterate over it is to play them.

    Args:
        name: of the environment.
        make_env: makes it, with discrete actions; takes `render_mode`.
        policy: observations to actions, numbers from 0.
        seeds: what each episode's `reset` gets.
        shown: which pictures, counted from 0; episodes are played to their end all the same.

    Attributes:
        fps: steps that the environment has in a second; 30 where it does not say.
        returns: of the episodes that have ended, not discounted.
        lengths: of these, in steps.
        figures: of these, as `Episodes` has them.

    Raises:
        CannotBeDrawn: the environment gives no pictures.
    """

    def __init__(
        self,
        name: str,
        make_env: Callable[..., gymnasium.Env],
        policy: Policy,
        seeds: Iterable[int],
        shown: Container[int],
    ) -> None:
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame looks for a sound card, at length
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        with contextlib.closing(make_env()) as env:
            if "rgb_array" not in (env.metadata.get("render_modes") or []):
                raise CannotBeDrawn(f'{name} cannot be drawn (it has no render mode "rgb_array").')
            self.fps = float(env.metadata.get("render_fps") or 30)
        self.name = name
        self.make_env = make_env
        self.policy = policy
        self.seeds = seeds
        self.shown = shown
        self.returns: list[float] = []
        self.lengths: list[int] = []
        self.figures: list[Mapping[str, float]] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields pictures, uint8 (height, width, 3) each."""
        number = 0
        with self._drawn():
            env = self.make_env(render_mode="rgb_array")
        with contextlib.closing(env):
            _, start = actions_of(env)
            for seed in self.seeds:
                observation, _ = env.reset(seed=seed)
                total, length, done = 0.0, 0, False
                while True:
                    if number in self.shown:
                        yield self._picture(env)
                    number += 1
                    if done:
                        break
                    action = start + int(self.policy(_number(observation)[None])[0])
                    observation, reward, terminated, truncated, info = env.step(action)
                    total, length, done = total + float(reward), length + 1, terminated or truncated
                self.returns.append(total)
                self.lengths.append(length)
                self.figures.append(info.get("figures", {}))

    def _picture(self, env: gymnasium.Env) -> np.ndarray:
        with self._drawn():
            picture: Any = env.render()
            array = np.asarray(picture, np.uint8)
            if array.ndim != 3 or array.shape[2] != 3:
                raise TypeError(f"render() gives {type(picture).__name__} of {array.shape}")
        return array

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever somebody's render() raises
            raise CannotBeDrawn(f"{self.name} cannot be drawn ({reason(error)}).") from None


def film(
    name: str, make_env: Callable[..., gymnasium.Env], policy: Policy, seed: int, frames: int = 12
) -> list[np.ndarray]:
    """Plays one episode and returns pictures of it, evenly spread, uint8 (height, width, 3) each.

    The episode is played once for its actions, then again for the pictures: drawing a frame takes longer than
    playing it. See `Film`.
    """
    actions: list[np.ndarray] = []

    def noted(observations: np.ndarray) -> np.ndarray:
        actions.append(policy(observations))
        return actions[-1]

    play(make_env, noted, [seed])
    again = iter(actions)
    shown = np.linspace(0, len(actions), min(frames, len(actions) + 1)).round().astype(int).tolist()
    return list(Film(name, make_env, lambda observations: next(again), [seed], shown))


def strip(pictures: Sequence[np.ndarray], columns: int = 4, width: int = 200) -> np.ndarray:
    """Lays small copies of pictures out in rows, each in a grey frame: uint8 (height, width, 3)."""
    step = max(1, pictures[0].shape[1] // width)
    small = [_framed(_shrunk(picture, step)) for picture in pictures]
    small += [np.full_like(small[0], 255)] * (-len(small) % columns)
    rows = [np.concatenate(small[i : i + columns], axis=1) for i in range(0, len(small), columns)]
    return np.concatenate(rows, axis=0)


def _shrunk(picture: np.ndarray, step: int) -> np.ndarray:
    """Averages squares of step x step pixels: thin lines stay to be seen."""
    rows, columns = picture.shape[0] // step, picture.shape[1] // step
    squares = picture[: rows * step, : columns * step].reshape(rows, step, columns, step, -1)
    return squares.mean(axis=(1, 3)).round().astype(np.uint8)


def _framed(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=160)

"""Environments of one's own, as a module's text."""

from __future__ import annotations

MODULE = """
import gymnasium
import numpy as np
from gymnasium.envs.registration import register


class Line(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, start=0, fails="", render_mode=None):
        if fails == "at once":
            raise RuntimeError("no motor")
        self.fails = fails
        self.action_space = gymnasium.spaces.Discrete(3, start=start)
        self.observation_space = gymnasium.spaces.Box(-6, 6, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(int(action)), action
        self.place += int(action) - self.action_space.start - 1
        over = abs(self.place) == 3
        return np.array([self.place], np.float32), float(self.place == 3), over, False, {}

    def render(self):
        return {"": None, "list": [1, 2], "flat": np.zeros((4, 4), np.uint8)}[self.fails]


class Blind(Line):
    metadata = {}


register("Line-v0", "own_line:Line", max_episode_steps=20)
register("LineBelow-v0", "own_line:Line", max_episode_steps=20, kwargs={"start": -1})
register("LineBlind-v0", "own_line:Blind", max_episode_steps=20)
register("LineBroken-v0", "own_line:Line", kwargs={"fails": "at once"})
register("LineList-v0", "own_line:Line", max_episode_steps=20, kwargs={"fails": "list"})
register("LineFlat-v0", "own_line:Line", max_episode_steps=20, kwargs={"fails": "flat"})
"""

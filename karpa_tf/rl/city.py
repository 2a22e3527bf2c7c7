"""A city whose streets take minutes, some of them closed: which is the cheapest way to the goal?"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from karpa_tf.errors import UserError
from karpa_tf.lines import in_a_line

# By action, how far it goes: north, east, south, west, as (rows, columns).
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
# Minutes that a street takes, 1 to MOST, and minutes lost before a closed one.
MOST, LOST = 9, 1
SIZES = (2, 30)
_PIXELS = 480


class City(gymnasium.Env):
    """Junctions in a square, with a street to each neighbour, of which some are closed.

    A street takes 1 to 9 minutes, each of its two directions its own number, and a reward is the minutes that
    a step took, below zero. Who tries a closed street, or to leave the city, loses a minute and stays. An
    episode begins at any junction that has a way to the goal, the last junction, and ends there. Everything
    is a function of the settings: the same seed is the same city.

    What the cheapest way takes is found by Dijkstra's algorithm (1959), and `rule` goes by the fewest
    streets, as a map without traffic would have it. `figures` of a step's info are, of the episode so far:
    `success`, whether the goal was reached; `minutes`; `over_optimum`, minutes by those of the cheapest way,
    of those that arrived; `blocked`, how often a street was closed.

    Args:
        size: junctions in a row and in a column, 2 to 30. Junction n is in row n // size, column n % size.
        seed: of the minutes and the closed streets.
        closed: share of the streets that are closed, in both directions, from 0 to below 1.
        render_mode: `rgb_array`, or none.

    Attributes:
        minutes: float64 (size * size, 4): by junction and action; infinite where there is no street.
        optimum: float64 (size * size,): minutes of the cheapest way to the goal; infinite if there is none.
        streets: float64 (size * size,): streets of the shortest way.

    Raises:
        UserError: a setting is out of bounds, or there is no way from the first junction to the goal.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  (Gymnasium has it so)

    def __init__(
        self, size: int = 10, seed: int = 0, closed: float = 0.15, render_mode: str | None = None
    ) -> None:
        if type(size) is not int or not SIZES[0] <= size <= SIZES[1]:
            raise UserError(
                f"A city's size is {SIZES[0]} to {SIZES[1]} junctions in a row. Received: {size}."
            )
        if type(seed) is not int or seed < 0:
            raise UserError(f"A city's seed is a whole number of 0 or more. Received: {seed}.")
        if type(closed) not in (int, float) or not 0 <= closed < 1:
            raise UserError(f"closed, a share of a city's streets, is from 0 to below 1. Received: {closed}.")
        self.size, self.closed, self.render_mode = size, closed, render_mode
        self.count = size * size
        self.observation_space = gymnasium.spaces.Discrete(self.count)
        self.action_space = gymnasium.spaces.Discrete(len(MOVES))
        self.to, self.minutes = _streets(size, np.random.default_rng(seed), closed)
        open_ = np.isfinite(self.minutes)
        junctions = np.repeat(np.arange(self.count), len(MOVES))[open_.ravel()]
        # Backwards, from the goal.
        graph = csr_array((self.minutes[open_], (self.to[open_], junctions)), shape=(self.count,) * 2)
        self.optimum = dijkstra(graph, indices=self.count - 1)
        self.streets = dijkstra(graph, indices=self.count - 1, unweighted=True)
        if not np.isfinite(self.optimum[0]):
            raise UserError(
                f"A city with size={size} seed={seed} closed={closed} has no way from its first junction "
                "to its goal; give a smaller closed, or another seed."
            )
        self.starts = np.flatnonzero(np.isfinite(self.optimum[:-1]))
        self.P = [[self._outcome(junction, action) for action in range(4)] for junction in range(self.count)]

    def __repr__(self) -> str:
        return in_a_line("City", {"size": self.size, "closed": self.closed})

    def _outcome(self, junction: int, action: int) -> list[tuple[float, int, float, bool]]:
        """Returns what Gymnasium's toy texts say: [(probability, next, reward, whether it ends)]."""
        minutes, to = float(self.minutes[junction, action]), int(self.to[junction, action])
        cut_off = not np.isfinite(self.optimum[junction])  # nobody comes there
        if cut_off or not np.isfinite(minutes):
            return [(1.0, junction, -float(LOST), cut_off)]
        return [(1.0, to, -minutes, to == self.count - 1)]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Begins at `options["start"]`, or at a junction that is drawn."""
        super().reset(seed=seed)
        drawn = int(self.np_random.choice(self.starts))
        self.place = int((options or {}).get("start", drawn))
        self.way, self.spent, self.blocked = [self.place], 0.0, 0
        return self.place, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        ((_, to, reward, over),) = self.P[self.place][int(action)]
        self.spent -= reward
        self.blocked += to == self.place
        self.place = to
        self.way.append(to)
        figures = {"success": float(over), "minutes": self.spent, "blocked": float(self.blocked)}
        if over:
            figures["over_optimum"] = self.spent / float(self.optimum[self.way[0]])
        return to, reward, over, False, {"figures": figures}

    def rule(self, observation: Any) -> int:
        """Returns the action of the way with the fewest streets, whatever its traffic."""
        junction = int(observation)
        nearer = np.where(np.isfinite(self.minutes[junction]), self.streets[self.to[junction]], np.inf)
        return int(nearer.argmin())

    def render(self) -> Any:
        """Draws the city, uint8 (height, width, 3): streets green, yellow, red by their minutes, closed ones
        grey; the way so far.
        """
        step = _PIXELS // self.size
        sheet = Image.new("RGB", (step * self.size, step * self.size), "white")
        draw = ImageDraw.Draw(sheet)

        def at(junction: int) -> tuple[int, int]:
            return step // 2 + junction % self.size * step, step // 2 + junction // self.size * step

        def dot(junction: int, colour: Any, radius: int) -> None:
            x, y = at(junction)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)

        for junction in range(self.count):
            for action in (1, 2):  # east and south: each street once
                to = int(self.to[junction, action])
                if to == junction:
                    continue
                mean = (self.minutes[junction, action] + self.minutes[to, (action + 2) % 4]) / 2
                colour, width = (215, 215, 215), 1
                if np.isfinite(mean):
                    share = (mean - 1) / (MOST - 1)
                    red, green = min(1, 2 * share), min(1, 2 - 2 * share)
                    colour, width = (int(220 * red), int(180 * green), 40), max(step // 8, 2)
                draw.line((*at(junction), *at(to)), colour, width)
        for junction in range(self.count):
            dot(junction, (120, 120, 120), max(step // 12, 1))
        if len(self.way) > 1:
            draw.line([at(junction) for junction in self.way], (30, 60, 200), max(step // 14, 2))
        dot(self.count - 1, (160, 30, 160), step // 4)
        dot(self.place, (30, 60, 200), step // 5)
        return np.asarray(sheet)


def _streets(size: int, generator: np.random.Generator, closed: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each action leads from each junction, and in how many minutes: (size * size, 4) each."""
    junctions = np.arange(size * size)
    rows, columns = junctions // size, junctions % size
    to = np.tile(junctions[:, None], 4)
    for action, (down, right) in enumerate(MOVES):
        there = (rows + down >= 0) & (rows + down < size) & (columns + right >= 0) & (columns + right < size)
        to[there, action] = (rows + down)[there] * size + (columns + right)[there]
    minutes = generator.integers(1, MOST + 1, to.shape).astype(np.float64)
    minutes[to == junctions[:, None]] = np.inf
    # Each street once: those to the east, then those to the south.
    every = [
        (junction, action) for action in (1, 2) for junction in junctions if to[junction, action] != junction
    ]
    for number in generator.permutation(len(every))[: round(closed * len(every))]:
        junction, action = every[number]
        minutes[junction, action] = minutes[to[junction, action], action + 2 & 3] = np.inf
    return to, minutes

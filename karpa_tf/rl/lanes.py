"""A winding road of three lanes, with a car in each: keep to a lane, pass the others, be quick.

The same in TensorFlow's ops, many at a time, is `karpa_tf.rl.environment.LanesInTensorFlow`; a test holds the
two together.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw

from karpa_tf.lines import in_a_line

# Metres, seconds, radians.
SECONDS, MAX_STEPS = 0.4, 100
LANES = np.array([-4.0, 0.0, 4.0])
"""Middles of the lanes, from right to left."""
LANE, CAR_LENGTH, CAR_WIDTH = 4.0, 5.0, 2.0
EDGE = 1.5 * LANE - CAR_WIDTH / 2
"""How far off the middle of the road a car may be."""
TURNED = 1.0
"""A car that has turned so far against the road is off it."""
SLOWEST, FASTEST, ACCELERATION = 5.0, 20.0, 3.0
STEERING, BEND, WAVE = 0.012, 0.004, 250.0
"""1/m that steering bends the way of the car, 1/m that the road bends at most, metres from bend to bend."""
BEHIND, FAR, SIGHT = -15.0, 130.0, 100.0
"""Where another car has been passed or is lost from sight; how far ahead the next one comes at most."""
# By action: keep, left, right, faster, slower.
STEER = np.array([0.0, 1.0, -1.0, 0.0, 0.0])
PEDAL = np.array([0.0, 0.0, 0.0, 1.0, -1.0])
HIGH = np.array([LANE, 6, TURNED + 0.1, FASTEST, 1, 1, *[FAR] * 3, *[FASTEST] * 3], np.float32)
"""Bounds of an observation."""
# What divides each number of an observation, so that all have about the same size.
SCALE = [1.0, 4.0, 0.2, 10.0, 1.0, 1.0, 50.0, 50.0, 50.0, 10.0, 10.0, 10.0]

_KEEP, _LEFT, _RIGHT, _FASTER, _SLOWER = range(5)


def start(draws: np.ndarray) -> np.ndarray:
    """Returns a first state.

    Args:
        draws: float64 (10,), uniform from 0 to below 1.

    Returns:
        float64 (10,): metres to the left of the middle of the road; angle to the road; m/s; where in a bend
        the road is, as an angle; metres to the car ahead in each lane; their m/s.
    """
    side = LANES[int(3 * draws[0])] + draws[1] - 0.5
    own = [side, 0.1 * draws[2] - 0.05, 12.0, 2 * np.pi * draws[3]]
    return np.concatenate([own, *another(draws[4:7], draws[7:10])])


def another(place: Any, speed: Any) -> tuple[Any, Any]:
    """Returns how many metres ahead other cars come, and their m/s, of draws from 0 to below 1."""
    return SIGHT * (0.6 + 0.4 * place), 9 + 5 * speed


def drive(state: np.ndarray, action: int, draws: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Drives for 0.4 s: a kinematic model in the coordinates of the road, Euler's method.

    Args:
        state: as `start` gives it.
        action: 0 keeps on, 1 steers left, 2 right, 3 accelerates, 4 brakes.
        draws: float64 (2, 3), uniform from 0 to below 1: place and speed of the next car in each lane.

    Returns:
        The next state; the reward: speed along the road by the highest speed, less 0.3 x the square of how
        far the car is from the middle of the nearest lane in halves of a lane, and 0 for a crash; whether it
        has crashed into another car or has left the road.
    """
    side, angle, speed, phase = state[:4]
    along = speed * np.cos(angle)
    bend = BEND * np.sin(phase)
    gaps = state[4:7] + SECONDS * (state[7:10] - along)
    new, (far, others) = (gaps < BEHIND) | (gaps > FAR), another(draws[0], draws[1])
    following = np.concatenate(
        [
            [
                side + SECONDS * speed * np.sin(angle),
                angle + SECONDS * speed * (STEERING * STEER[action] - bend),
                np.clip(speed + SECONDS * ACCELERATION * PEDAL[action], SLOWEST, FASTEST),
                (phase + SECONDS * along * 2 * np.pi / WAVE) % (2 * np.pi),
            ],
            np.where(new, far, gaps),
            np.where(new, others, state[7:10]),
        ]
    )
    off = np.abs(following[0] - LANES)
    hit = bool(((np.abs(following[4:7]) < CAR_LENGTH) & (off < CAR_WIDTH)).any())
    crashed = hit or bool(np.abs(following[0]) > EDGE or np.abs(following[1]) > TURNED)
    return (
        following,
        0.0 if crashed else float(along / FASTEST - 0.3 * (off.min() / (LANE / 2)) ** 2),
        crashed,
    )


def observe(state: np.ndarray) -> np.ndarray:
    """Returns what a driver sees of a state, float32 (12,).

    It is how far left of the middle of the nearest lane the car is; then as the state, but the bend as its
    sine and cosine, and the others' speeds as differences to its own.
    """
    off = state[0] - LANE * np.clip(np.round(state[0] / LANE), -1, 1)
    bend = [np.sin(state[3]), np.cos(state[3])]
    return np.concatenate([[off], state[:3], bend, state[4:7], state[7:10] - state[2]]).astype(np.float32)


class Lanes(gymnasium.Env):
    """Lane keeping with other cars.

    Actions are discrete: keep on, left, right, faster, slower. See `start`, `drive` and `observe` for what
    happens. An episode is 40 seconds, or ends with a crash. `figures` of a step's info are, of the episode so
    far: `success`, no crash in 40 seconds; `crashed`; `metres`; `off_middle`, mean metres from the middle of
    the nearest lane.

    Args:
        render_mode: `rgb_array`, or none.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2.5}  # noqa: RUF012  (Gymnasium has it so)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-HIGH, HIGH)
        self.action_space = gymnasium.spaces.Discrete(len(STEER))

    def __repr__(self) -> str:
        return in_a_line("Lanes", {"render_mode": self.render_mode})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = start(self.np_random.random(10))
        self.steps, self.metres, self.off, self.crashed = 0, 0.0, 0.0, False
        return observe(self.state), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.metres += SECONDS * self.state[2] * np.cos(self.state[1])
        self.state, reward, self.crashed = drive(self.state, int(action), self.np_random.random((2, 3)))
        self.steps += 1
        self.off += np.abs(self.state[0] - LANES).min()
        figures = {
            "success": float(self.steps >= MAX_STEPS and not self.crashed),
            "crashed": float(self.crashed),
            "metres": float(self.metres),
            "off_middle": float(self.off / self.steps),
        }
        return observe(self.state), reward, self.crashed, False, {"figures": figures}

    def rule(self, observation: Any) -> int:
        """Returns what a careful driver does: stays in its lane, and brakes behind a car that is slower."""
        off, side, angle, speed, sine, _, *others = map(float, observation)
        lane = int(np.abs(side - LANES).argmin())
        gap, faster = others[lane], others[3 + lane]
        # The curvature that brings the car back to the middle in some seconds, beside that of the road.
        wanted = BEND * sine - 0.01 * off - 0.2 * angle
        if 0 < gap < 30 and faster < 0 and abs(wanted) < STEERING:
            return _SLOWER
        if abs(wanted) > STEERING / 2:
            return _LEFT if wanted > 0 else _RIGHT
        return _FASTER if speed < 12 and not (0 < gap < 40 and faster < 1) else _KEEP

    def render(self) -> Any:
        """Draws the road from behind the car to 100 m ahead, straightened, uint8 (height, width, 3).

        The car is blue, and the others are orange.
        """
        metre, back, ahead = 6, 15, 100
        width, height = int(metre * (back + ahead)), int(metre * 17)
        sheet = Image.new("RGB", (width, height), (90, 140, 80))
        draw = ImageDraw.Draw(sheet)

        def y(side: float) -> float:
            return height / 2 - metre * side

        draw.rectangle((0, y(6), width, y(-6)), (70, 70, 75))
        first = -(self.metres % 6) * metre
        for side in (-2, 2):
            for dash in range(-1, width // (6 * metre) + 2):
                x = first + dash * 6 * metre
                draw.line((x, y(side), x + 3 * metre, y(side)), (230, 230, 230), 2)

        def car(x: float, side: float, angle: float, colour: Any) -> None:
            corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (CAR_LENGTH / 2, CAR_WIDTH / 2)
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            draw.polygon([((x + dx + back) * metre, y(side + dy)) for dx, dy in corners @ turn], colour)

        for gap, side in zip(self.state[4:7], LANES, strict=True):
            car(gap, side, 0.0, (240, 150, 40))
        car(0.0, self.state[0], self.state[1], (200, 30, 30) if self.crashed else (60, 130, 240))
        bend = BEND * np.sin(self.state[3])
        way = f"bend {'left' if bend > 0 else 'right'}, radius {min(1 / max(abs(bend), 1e-4), 9999):.0f} m"
        draw.text((4, 2), f"{3.6 * self.state[2]:.0f} km/h  {way}", fill="white")
        return np.asarray(sheet)

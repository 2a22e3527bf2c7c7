"""Control with a table of values: Q-learning and SARSA (Sutton & Barto 2018, sections 6.4 and 6.5).

States and actions are numbers, and the table holds the return that is expected of an action in a state.
After each step the entry moves a little towards what was seen:

    Q(s, a) += learning_rate * (r + gamma * next - Q(s, a))

where `next` is the value of the best action in the next state (Q-learning: learns about the greedy policy
while another one explores), or of the action that will be taken there (SARSA: learns about the policy that
it follows).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np


def play_and_learn(
    env: gymnasium.Env,
    table: list[list[float]],
    generator: np.random.Generator,
    *,
    epsilon: float,
    learning_rate: float,
    gamma: float,
    on_policy: bool,
) -> tuple[float, int]:
    """Plays one episode, epsilon-greedy, and learns from each of its steps.

    Args:
        env: its states and actions are numbers from 0.
        table: a row a state, a value an action; changed in place. Lists, because a step reads and writes
            single numbers, which NumPy does many times slower.
        generator: of all random numbers, those of the environment too.
        epsilon: share of random actions.
        learning_rate: share of the error that goes into the table.
        gamma: discount of a step.
        on_policy: SARSA; otherwise Q-learning.

    Returns:
        The sum of rewards, not discounted, and the number of steps.
    """

    def choose(state: int) -> int:
        values = table[state]
        if generator.random() < epsilon:
            return int(generator.integers(len(values)))
        return values.index(max(values))

    # Below a billion: no episode of an evaluation is among those that train.
    state, _ = env.reset(seed=int(generator.integers(1_000_000_000)))
    action = choose(state)
    total, steps, over = 0.0, 0, False
    while not over:
        following, reward, terminated, truncated, _ = env.step(action)
        next_action = choose(following)
        if terminated:
            target = float(reward)  # nothing comes after; behind a mere cut something would
        elif on_policy:
            target = reward + gamma * table[following][next_action]
        else:
            target = reward + gamma * max(table[following])
        table[state][action] += learning_rate * (target - table[state][action])
        state, action = following, next_action
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps


def optimal_values(env: gymnasium.Env, gamma: float = 0.9999, tolerance: float = 1e-9) -> np.ndarray | None:
    """Returns the best possible table by value iteration (Sutton & Barto 2018, section 4.4).

    Args:
        env: one that says how it works, as Gymnasium's toy texts do: `P[state][action]` is a list of
            (probability, next state, reward, whether it ends).
        gamma: discount; just below 1, so that it does not wander.
        tolerance: largest change of a value at which to stop.

    Returns:
        float64 (states, actions), or None where the environment does not say how it works.
    """
    model: Any = getattr(env.unwrapped, "P", None)
    if model is None:
        return None
    states, actions = len(model), len(model[0])
    moves = np.zeros([states, actions, states])
    rewards = np.zeros([states, actions])
    for state in range(states):
        for action in range(actions):
            for probability, following, reward, ends in model[state][action]:
                rewards[state, action] += probability * reward
                if not ends:
                    moves[state, action, following] += probability
    table = np.zeros([states, actions])
    for _ in range(100_000):
        better = rewards + gamma * moves @ table.max(axis=1)
        if np.abs(better - table).max() < tolerance:
            break
        table = better
    return table

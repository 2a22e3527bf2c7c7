"""Stable-Baselines3's DQN on CartPole-v1 with the settings of its Zoo, as a peer to compare with.

Reads seed, environment steps and threads as one JSON object from the command line; prints the seconds of
`learn`, those of the imports, and the returns of 100 greedy episodes. Uses nothing of karpa_tf, for it runs
in an environment of its own.
"""

from __future__ import annotations

import json
import sys
import time

begin = time.perf_counter()
import numpy as np  # noqa: E402
import torch  # noqa: E402
from stable_baselines3 import DQN  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.evaluation import evaluate_policy  # noqa: E402


def main() -> None:
    imports = time.perf_counter() - begin
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    start = time.perf_counter()
    # rl-baselines3-zoo, hyperparams/dqn.yml, CartPole-v1.
    model = DQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", seed=options["seed"]),
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=options["seed"],
        device="cpu",
    )
    model.learn(total_timesteps=options["steps"])
    seconds = time.perf_counter() - start
    environment = make_vec_env("CartPole-v1", seed=1_000_000_000)
    returns, _ = evaluate_policy(model, environment, n_eval_episodes=100, return_episode_rewards=True)
    result = {
        "seconds": seconds,
        "import_seconds": imports,
        "gradient_steps": int(model._n_updates),
        "mean_return": float(np.mean(returns)),
        "min_return": float(np.min(returns)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

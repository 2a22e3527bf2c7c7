"""MAML's meta-iteration, second order, in PyTorch: torch.func's grad within vmap over the tasks.

Uses nothing of karpa_tf. Prints a JSON object: the seconds of the median iteration.

    python torch_meta.py '{"kind": "sinusoid", "tasks": 25, ...}'
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap


def conv4(ways: int, filters: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(4):
        layers += [nn.Conv2d(channels, filters, 3, 2, 1), nn.GroupNorm(1, filters, 1e-3), nn.ReLU()]
        channels = filters
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * filters, ways))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def main() -> None:
    sizes = json.loads(sys.argv[1])
    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tasks, rows, queries = sizes["tasks"], sizes["rows"], sizes["queries"]
    if sizes["kind"] == "conv":
        net, criterion = conv4(sizes["ways"], sizes["filters"]), F.cross_entropy
        x = rng.random((tasks, rows + queries, 1, 28, 28), np.float32)
        y = torch.from_numpy(np.tile(np.arange(rows + queries) % sizes["ways"], (tasks, 1)))
    else:
        net, criterion = mlp(), F.mse_loss
        x = rng.random((tasks, rows + queries, 1), np.float32)
        y = torch.from_numpy(np.sin(x))
    x = torch.from_numpy(x)
    names = [name for name, _ in net.named_parameters()]
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return criterion(functional_call(net, weights, (x,)), y)

    def of_task(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for _ in range(sizes["inner_steps"]):
            slopes = grad(loss)(weights, x[:rows], y[:rows])
            weights = {name: w - sizes["inner_rate"] * slopes[name] for name, w in weights.items()}
        return loss(weights, x[rows:], y[rows:])

    def step() -> float:
        optimizer.zero_grad()
        weights = dict(zip(names, parameters, strict=True))
        mean = vmap(of_task, in_dims=(None, 0, 0))(weights, x, y).mean()
        mean.backward()
        optimizer.step()
        return mean.item()

    times = []
    for _ in range(sizes["steps"] + 2):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    # The first two choose kernels.
    print(json.dumps({"seconds": float(np.median(times[2:]))}))


if __name__ == "__main__":
    main()

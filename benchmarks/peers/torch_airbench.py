"""The default network of cifar10-cnn in PyTorch: the same layers, batch size, optimizer, kinds of changes.

Channels last, the faster layout on a CPU; float32 or autocast to bfloat16. The images lie in memory as
uint8 and are shifted and mirrored a batch at a time. Uses nothing of karpa_tf. The last line is one JSON
object.

    python torch_airbench.py IMAGES.npz --batch-size 512 --steps 8 [--bf16]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, widths: list[int], activation: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 2, bias=False)
        self.patches.weight.requires_grad = False
        self.blocks, channels = nn.ModuleList(), 24
        for width in widths:
            first = nn.Conv2d(channels, width, 3, padding="same", bias=False)
            second = nn.Conv2d(width, width, 3, padding="same", bias=False)
            self.blocks.append(nn.ModuleList([first, nn.BatchNorm2d(width), second, nn.BatchNorm2d(width)]))
            channels = width
        self.head = nn.Linear(channels, 10, bias=False)
        self.act = getattr(F, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.patches(x))
        for first, norm, second, other in self.blocks:
            x = self.act(norm(F.max_pool2d(first(x), 2)))
            x = self.act(other(second(x)))
        return self.head(x.amax((2, 3))) / 9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--widths", default="64,256,256")
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with np.load(arguments.images) as file:
        pixels = torch.from_numpy(file["x"]).permute(0, 3, 1, 2)  # stays channels last
        labels = torch.from_numpy(file["y"]).long()
    net = Net([int(w) for w in arguments.widths.split(",")], arguments.activation)
    net = net.to(memory_format=torch.channels_last)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.85, nesterov=True, weight_decay=0.0013)
    times = []
    for _ in range(arguments.steps + 2):
        begin = time.perf_counter()
        rows = torch.randint(len(labels), (arguments.batch_size,))
        images = F.pad(pixels[rows].float(), (2, 2, 2, 2), mode="reflect")
        dx, dy = torch.randint(0, 5, (2,)).tolist()
        images = images[:, :, dy : dy + 32, dx : dx + 32]
        if torch.rand(()) < 0.5:
            images = images.flip(3)
        images = ((images - 120.0) / 63.0).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            logits = net(images)
        loss = criterion(logits.float(), labels[rows])
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - begin)
    # The first two steps choose kernels.
    print(json.dumps({"images_per_second": arguments.batch_size / float(np.median(times[2:]))}))


if __name__ == "__main__":
    main()

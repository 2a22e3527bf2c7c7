"""The essay's CIFAR-10 network in PyTorch, trained as PyTorch's tutorial does: batches of 4, two workers.

Every image becomes a float32 tensor of its own, normalized, when its turn comes, four of them a batch;
SGD with momentum; the loss is read after each step. Uses nothing of karpa_tf. The last line is one JSON
object.

    python essay_cifar.py IMAGES.npz --images 8000
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Images(torch.utils.data.Dataset):
    """uint8 images as the tutorial's transforms give them: 0 to 1, less 0.5, by 0.5."""

    def __init__(self, path: str, count: int) -> None:
        with np.load(path) as file:
            self.pixels, self.labels = file["x"][:count], file["y"][:count]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(self.pixels[index].transpose(2, 0, 1).copy())
        return image.float().div(255).sub(0.5).div(0.5), int(self.labels[index])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2, 2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("--images", dest="count", type=int, default=8000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = Images(arguments.images, arguments.count)
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, num_workers=2)
    net, criterion = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    begin, seen, total = time.perf_counter(), 0, 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
        seen += len(labels)
    print(json.dumps({"images_per_second": seen / (time.perf_counter() - begin), "loss": total}))


if __name__ == "__main__":
    main()

"""The essay's masked language model and train step in PyTorch, as a peer to compare with.

Reads one JSON object with the sizes from the command line and prints one with the tokens per
second of each variant. Uses nothing of karpa_tf, for it runs in an environment of its own.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import torch
from torch import nn


class MaskedLanguageModel(nn.Module):
    """Embedding, bidirectional GRU, and a softmax at the gathered positions only."""

    def __init__(self, vocabulary: int, embedding: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.gru = nn.GRU(embedding, units, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * units, vocabulary)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits (batch * predictions, vocabulary) at positions (batch, predictions)."""
        hidden, _ = self.gru(self.embedding(tokens))
        index = positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        return self.head(hidden.gather(1, index).flatten(0, 1))


def measure(sizes: dict, fused: bool, low_precision: bool) -> float:
    """Tokens per second of the whole train step, in the best of the repetitions."""
    torch.manual_seed(0)
    batch, length = sizes["batch"], sizes["length"]
    model = MaskedLanguageModel(sizes["vocabulary"], sizes["embedding"], sizes["units"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    tokens = torch.randint(1, sizes["vocabulary"], (batch, length))
    positions = torch.stack([torch.randperm(length)[: sizes["predictions"]] for _ in range(batch)])
    labels = tokens.gather(1, positions).flatten()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            loss = nn.functional.cross_entropy(model(tokens, positions), labels)
        loss.backward()
        optimizer.step()

    for _ in range(sizes["warmup"]):
        step()
    best = float("inf")
    for _ in range(sizes["repetitions"]):
        start = time.perf_counter()
        for _ in range(sizes["steps"]):
            step()
        best = min(best, time.perf_counter() - start)
    return batch * length * sizes["steps"] / best


def main() -> None:
    sizes = json.loads(sys.argv[1])
    torch.set_num_threads(sizes["threads"])
    results = {}
    for low_precision, fused in itertools.product((False, True), (False, True)):
        if low_precision and not sizes["bfloat16"]:
            continue
        name = ("bfloat16" if low_precision else "float32") + ("_fused_adam" if fused else "")
        results[name] = measure(sizes, fused, low_precision)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

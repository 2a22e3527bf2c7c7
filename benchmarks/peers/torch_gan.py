"""The networks of the recipe `gan` in PyTorch, trained as its DCGAN example does it.

The same layers, losses, optimizers, batch size and running average, channels last; float32, or autocast to
bfloat16. An update is that of PyTorch's DCGAN example (examples/dcgan/main.py): the discriminator on real
images and on generated ones, cut from the generator, then the generator against the new discriminator; with
`"together": true` both from what they were before, as karpa_tf does it, by one pass forward and a gradient
for each.
Uses nothing of karpa_tf. The last line is one JSON object.

    python torch_gan.py '{"batch": 64, "steps": 60, ...}'
"""

from __future__ import annotations

import copy
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class Generator(nn.Module):
    def __init__(self, size: int, channels: int, classes: int, latent: int, filters: int) -> None:
        super().__init__()
        self.places = size // 4
        self.first = nn.Linear(latent + classes, 2 * filters * self.places**2, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(2 * filters), nn.BatchNorm2d(filters)])
        self.up = nn.ConvTranspose2d(2 * filters, filters, 4, 2, 1, bias=False)
        self.last = nn.ConvTranspose2d(filters, channels, 4, 2, 1)

    def forward(self, z: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = self.first(torch.cat([z, label], 1))
        # Places first and channels last, as they lie in memory.
        x = x.view(len(x), self.places, self.places, -1).permute(0, 3, 1, 2)
        x = self.up(F.relu(self.norms[0](x), inplace=True))
        return 255 * torch.sigmoid(self.last(F.relu(self.norms[1](x), inplace=True)).float())


class Discriminator(nn.Module):
    def __init__(self, size: int, channels: int, classes: int, filters: int, units: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                spectral_norm(nn.Conv2d(channels, filters, 4, 2, 1)),
                spectral_norm(nn.Conv2d(filters, 2 * filters, 4, 2, 1)),
            ]
        )
        self.hidden = spectral_norm(nn.Linear(2 * filters * (size // 4) ** 2, units))
        self.head = spectral_norm(nn.Linear(units, 1))
        self.projection = spectral_norm(nn.Linear(units, classes, bias=False))

    def forward(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = image / 127.5 - 1
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.2, inplace=True)
        x = F.leaky_relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1)), 0.2)
        return (self.head(x)[:, 0] + (self.projection(x) * label).sum(1)).float()


def main() -> None:
    sizes = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(sizes["threads"])
    size, channels, classes, latent, batch = (
        sizes[name] for name in ("size", "channels", "classes", "latent", "batch")
    )
    generator = Generator(size, channels, classes, latent, sizes["filters"]).to(
        memory_format=torch.channels_last
    )
    discriminator = Discriminator(size, channels, classes, sizes["filters"], sizes["units"]).to(
        memory_format=torch.channels_last
    )
    average = copy.deepcopy(generator)
    optimizers = [
        torch.optim.Adam(network.parameters(), 5e-4, (0.5, 0.99), fused=True)
        for network in (generator, discriminator)
    ]
    images = torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    label = F.one_hot(torch.arange(batch) % classes, classes).float()

    def update() -> None:
        z, real = torch.randn(batch, latent), images.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=sizes["bf16"]):
            generated = generator(z, label)
            if sizes["together"]:
                logits = discriminator(torch.cat([real, generated]), label.repeat(2, 1))
                on_real, on_generated = logits.chunk(2)
            else:
                on_real = discriminator(real, label)
                on_generated = discriminator(generated.detach(), label)
        loss = F.softplus(-on_real).mean() + F.softplus(on_generated).mean()
        if sizes["together"]:
            own = F.softplus(-on_generated).mean()
            grads = torch.autograd.grad(own, list(generator.parameters()), retain_graph=True)
            discriminator.zero_grad()
            loss.backward(inputs=list(discriminator.parameters()))
            for parameter, grad in zip(generator.parameters(), grads, strict=True):
                parameter.grad = grad
            optimizers[1].step()
        else:
            discriminator.zero_grad()
            loss.backward()
            optimizers[1].step()
            generator.zero_grad()
            for parameter in discriminator.parameters():
                parameter.requires_grad_(False)
            with torch.autocast("cpu", torch.bfloat16, enabled=sizes["bf16"]):
                on_generated = discriminator(generated, label)
            F.softplus(-on_generated).mean().backward()
            for parameter in discriminator.parameters():
                parameter.requires_grad_(True)
        optimizers[0].step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(generator.parameters()), 1 - 0.998)

    for _ in range(5):
        update()
    times, cpu = [], time.process_time()
    for _ in range(sizes["steps"]):
        begin = time.perf_counter()
        update()
        times.append(time.perf_counter() - begin)
    cpu = 1000 * (time.process_time() - cpu) / sizes["steps"]
    median = sorted(times)[len(times) // 2]
    print(json.dumps({"images_per_second": batch / median, "cpu_ms": cpu}))


if __name__ == "__main__":
    main()

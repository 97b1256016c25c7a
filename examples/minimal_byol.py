"""BYOL in one file: torch and torchvision, no other library. Grill et al. 2020, arXiv:2006.07733.

    python minimal_byol.py FOLDER_OF_IMAGES

It is documentation: the package does the same with exact views, resumable runs, evaluation and diagnosis.
"""

import copy
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2


def mlp(inputs, hidden, outputs):
    """Projector and predictor (section 3.3): no bias on the last layer, as in the authors' code."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=False)
    )


def initialize(module):
    """Truncated normal of sigma 1/sqrt(fan_in), zero biases: the defaults of the authors' framework."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            sigma = 1 / math.sqrt(part.weight[0].numel())
            nn.init.trunc_normal_(part.weight, std=sigma, a=-2 * sigma, b=2 * sigma)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class BYOL(nn.Module):
    def __init__(self, encoder, dim, hidden=4096, out=256, tau=0.996):
        super().__init__()
        self.encoder, self.projector = encoder, mlp(dim, hidden, out)
        self.predictor = mlp(out, hidden, out)
        initialize(self)
        self.target = nn.Sequential(copy.deepcopy(encoder), copy.deepcopy(self.projector))
        initialize(self.target)
        self.target.requires_grad_(False)
        self.tau = tau

    def forward(self, v, v_prime):
        """The loss of both directions; target networks stay in training mode and see each view on its own."""
        q = self.predictor(self.projector(self.encoder(v)))
        q_prime = self.predictor(self.projector(self.encoder(v_prime)))
        with torch.no_grad():
            xi, xi_prime = self.target(v), self.target(v_prime)
        cosines = F.cosine_similarity(q, xi_prime) + F.cosine_similarity(q_prime, xi)
        return (4 - 2 * cosines).mean()

    @torch.no_grad()
    def follow(self, progress):
        """xi <- tau xi + (1 - tau) theta, after the optimizer's step; tau rises to 1 along a cosine."""
        tau = 1 - (1 - self.tau) * (math.cos(math.pi * progress) + 1) / 2
        online = [*self.encoder.parameters(), *self.projector.parameters()]
        for xi, theta in zip(self.target.parameters(), online, strict=True):
            xi.lerp_(theta, 1 - tau)


class LARS(torch.optim.Optimizer):
    """Trust ratio on weights, none and no decay on biases and norms; the learning rate outside the momentum."""

    def __init__(self, params, lr, weight_decay, momentum=0.9, eta=1e-3):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                update = p.grad.clone()
                if p.ndim > 1:
                    update += group["weight_decay"] * p
                    norms = p.norm(), update.norm()
                    if norms[0] > 0 and norms[1] > 0:
                        update *= group["eta"] * norms[0] / norms[1]
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * momentum)


def learning_rate(step, steps, warmup, peak):
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def view(blur, solarize, size=224):
    """Table 6 of the paper with torchvision's operations; draw it anew for each image."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * int(size / 20) + 1, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(0.5, p=solarize),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


class Pairs(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        self.t, self.t_prime = view(1.0, 0.0), view(0.1, 0.2)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        image = decode_image(str(self.files[i]), ImageReadMode.RGB) / 255
        return self.t(image), self.t_prime(image)


def main(folder, epochs=100, batch=64, base_lr=0.45, weight_decay=1e-6):
    loader = torch.utils.data.DataLoader(Pairs(folder), batch, shuffle=True, drop_last=True, num_workers=2)
    encoder = models.resnet18()
    encoder.fc = nn.Identity()
    byol = BYOL(encoder, 512, tau=0.99)
    optimizer = LARS([p for p in byol.parameters() if p.requires_grad], 0.0, weight_decay)
    steps, step = epochs * len(loader), 0
    for epoch in range(epochs):
        for v, v_prime in loader:
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, steps // 10, base_lr * batch / 256)
            loss = byol(v, v_prime)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            byol.follow(step / steps)
            step += 1
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    torch.save(encoder.state_dict(), "encoder.pt")


if __name__ == "__main__":
    main(sys.argv[1])

"""The heads of each method, layer by layer, as the authors' code has them."""

import inspect

import pytest
import torch
from torch import nn

from byol.conformance import make
from byol.methods import get


def layers(head):
    """Each layer in words, such as "Linear 12 > 5 + bias" and "BN 5 plain"."""
    return [describe(part) for part in (head if isinstance(head, nn.Sequential) else [head])]


def describe(part):
    if isinstance(part, nn.Linear):
        return f"Linear {part.in_features} > {part.out_features}" + (" + bias" if part.bias is not None else "")
    if isinstance(part, nn.BatchNorm1d):
        kind = {(False, False): "plain", (True, False): "scale", (True, True): "affine"}
        trained = [p is not None and p.requires_grad for p in (part.weight, part.bias)]
        return f"BN {part.num_features} {kind[tuple(trained)]}"
    return type(part).__name__


# (method, arguments, part) -> its layers; the encoder has 12 features.
HEADS = {
    "byol, projector": ("byol", {"hidden": 7, "out": 5}, "projector",
        ["Linear 12 > 7 + bias", "BN 7 affine", "ReLU", "Linear 7 > 5"]),
    "byol, predictor": ("byol", {"hidden": 7, "out": 5}, "predictor",
        ["Linear 5 > 7 + bias", "BN 7 affine", "ReLU", "Linear 7 > 5"]),
    "simsiam, projector": ("simsiam", {"hidden": 7, "out": 5, "bottleneck": 3, "layers": 3}, "projector",
        ["Linear 12 > 7", "BN 7 affine", "ReLU", "Linear 7 > 7", "BN 7 affine", "ReLU", "Linear 7 > 5", "BN 5 plain"]),
    "simsiam, projector for CIFAR-10": ("simsiam", {"hidden": 7, "out": 5, "bottleneck": 3, "layers": 2}, "projector",
        ["Linear 12 > 7", "BN 7 affine", "ReLU", "Linear 7 > 5", "BN 5 plain"]),
    "simsiam, projector of the paper": ("simsiam", {"hidden": 7, "out": 5, "layers": 2, "out_scale": True}, "projector",
        ["Linear 12 > 7", "BN 7 affine", "ReLU", "Linear 7 > 5", "BN 5 affine"]),
    "simsiam, predictor": ("simsiam", {"hidden": 7, "out": 5, "bottleneck": 3}, "predictor",
        ["Linear 5 > 3", "BN 3 affine", "ReLU", "Linear 3 > 5 + bias"]),
    "barlow_twins": ("barlow_twins", {"width": 7}, "projector",
        ["Linear 12 > 7", "BN 7 affine", "ReLU", "Linear 7 > 7", "BN 7 affine", "ReLU", "Linear 7 > 7"]),
    "vicreg": ("vicreg", {"width": 7}, "projector",
        ["Linear 12 > 7 + bias", "BN 7 affine", "ReLU", "Linear 7 > 7 + bias", "BN 7 affine", "ReLU", "Linear 7 > 7"]),
    "simclr v1": ("simclr", {"hidden": 7, "out": 5, "layers": 2}, "projector",
        ["Linear 12 > 7", "BN 7 affine", "ReLU", "Linear 7 > 5", "BN 5 scale"]),
    "simclr v2": ("simclr", {"hidden": 7, "out": 5, "layers": 3}, "projector",
        ["Linear 12 > 7", "BN 7 affine", "ReLU", "Linear 7 > 7", "BN 7 affine", "ReLU", "Linear 7 > 5", "BN 5 scale"]),
    "moco v1": ("moco", {"hidden": None, "out": 5}, "projector", ["Linear 12 > 5 + bias"]),
    "moco v2": ("moco", {"hidden": 7, "out": 5}, "projector", ["Linear 12 > 7 + bias", "ReLU", "Linear 7 > 5 + bias"]),
    "moco_v3, projector": ("moco_v3", {"hidden": 7, "out": 5}, "projector",
        ["Linear 12 > 7", "BN 7 affine", "ReLU", "Linear 7 > 5", "BN 5 plain"]),
    "moco_v3, predictor": ("moco_v3", {"hidden": 7, "out": 5}, "predictor",
        ["Linear 5 > 7", "BN 7 affine", "ReLU", "Linear 7 > 5"]),
    "instdisc": ("instdisc", {"out": 5}, "projector", ["Linear 12 > 5 + bias"]),
    "supervised": ("supervised", {}, "classifier", ["Linear 12 > 4 + bias"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_heads_have_the_layers_of_the_authors_code(name):
    method, arguments, part, expected = HEADS[name]
    assert layers(getattr(make(method, **arguments), part)) == expected


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("simsiam", "projector", 3 * 2048**2 + 2 * 2 * 2048),
        ("simsiam", "predictor", 2 * 2048 * 512 + 2 * 512 + 2048),
        ("barlow_twins", "projector", 2048 * 8192 + 2 * 8192**2 + 2 * 2 * 8192),
        ("vicreg", "projector", 2048 * 8192 + 2 * 8192**2 + 3 * 2 * 8192),
        ("simclr", "projector", 2 * 2048**2 + 2048 * 128 + 2 * 2 * 2048 + 2 * 128),
        ("moco", "projector", 2048 * 2048 + 2048 + 2048 * 128 + 128),
        ("moco_v3", "projector", 2048 * 4096 + 4096 * 256 + 2 * 4096),
        ("moco_v3", "predictor", 256 * 4096 + 4096 * 256 + 2 * 4096),
        ("instdisc", "projector", 2048 * 128 + 128),
    ],
)
def test_without_arguments_the_heads_are_as_large_as_published(name, part, expected):
    encoder = nn.Identity()
    encoder.dim = 2048
    filled = {"num_images": 3} if "num_images" in inspect.signature(get(name)).parameters else {}
    with torch.device("cpu" if name == "moco" else "meta"):
        method = get(name)(encoder, **filled)
    assert sum(p.numel() for p in getattr(method, part).parameters()) == expected


def test_the_key_encoder_has_the_projector_and_no_predictor():
    for name in ("moco", "moco_v3"):
        method = make(name, hidden=7, out=5)
        encoder, projector = method.target.module
        assert str(projector) == str(method.projector)
        assert str(encoder) == str(method.encoder)
        for own, online in zip(method.target.module.parameters(), method.online().parameters(), strict=True):
            assert own is not online
            assert torch.equal(own, online)


def test_simclr_s_head_starts_small():
    method = make("simclr", hidden=256, out=128, layers=3)
    for part in method.projector:
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.01, rel=0.05)
            assert abs(part.weight.mean().item()) < 4 * 0.01 / part.weight.numel() ** 0.5
            # Cut nowhere, as a normal: 0.27 % lie beyond three standard deviations.
            assert (part.weight.abs() > 0.03).double().mean().item() == pytest.approx(0.0027, abs=0.0025)


def test_simclr_s_last_norm_keeps_its_offset_at_zero():
    method = make("simclr", hidden=7, out=5)
    assert (method.projector[-1].bias == 0).all()
    z = torch.randn(9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert method.projector(z).mean(dim=0).abs().max() < 1e-12

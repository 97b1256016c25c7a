"""Encoders are timm's, with a stem for small images, and start as the authors' code does."""

import math

import pytest
import timm
import torch
from torch import nn

from byol.encoder import Encoder, EncoderSpec, initialize, stem_for
from byol.heads import mlp
from byol.methods.byol import BYOL

TRUNCATED = 0.8796256610  # standard deviation of a unit normal cut at two sigma


def check_moments():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 256, 3), nn.BatchNorm2d(256), nn.Linear(700, 300))
    nn.init.constant_(network[1].weight, 0.5)
    initialize(network)
    check_weights((network[0], 144), (network[2], 700))
    assert (network[1].weight == 1).all()


def check_weights(*layers):
    for part, fan_in in layers:
        weight, sigma = part.weight.detach().double(), 1 / math.sqrt(fan_in)
        n = weight.numel()
        assert abs(weight.mean().item()) < 4 * TRUNCATED * sigma / math.sqrt(n)
        assert weight.std().item() == pytest.approx(TRUNCATED * sigma, rel=0.02)
        assert weight.abs().max().item() <= 2 * sigma * (1 + 1e-6)
        assert weight.abs().max().item() > 1.98 * sigma
        # Kurtosis tells a truncated normal (2.37) from a uniform (1.8) and a full normal (3).
        assert (weight**4).mean().item() / (weight**2).mean().item() ** 2 == pytest.approx(2.37, abs=0.05)
        assert part.bias is None or (part.bias == 0).all()


def check_heads():
    torch.manual_seed(0)
    method = BYOL(Encoder(EncoderSpec("resnet18", 32, stem="3x3")), hidden=1024, out=256)
    for head in (method.projector, method.predictor, method.target.module[1]):
        check_weights(*((layer, layer.in_features) for layer in (head[0], head[3])))


def test_moments_of_the_heads_weights():
    check_heads()


def test_moments_of_the_weights():
    check_moments()


def test_the_last_norm_of_each_block_starts_at_one():
    for name in ("resnet18", "resnet26"):
        encoder = Encoder(EncoderSpec(name, 32, stem="3x3"))
        initialize(encoder)
        norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenetv3_small_050", 64), ("vgg11", 32), ("resnetv2_50", 64), ("resnext26ts", 64),
                       ("vit_tiny_patch16_224", 48), ("convnext_atto", 32), ("efficientnet_b0", 64)],
)  # fmt: skip
def test_features_are_as_wide_as_said_and_the_spec_builds_the_same_timm_model(name, size):
    encoder = Encoder(EncoderSpec(name, size, 3, stem_for(name, size))).eval()
    assert encoder(torch.randn(2, 3, size, size)).shape == (2, encoder.dim)
    own = timm.create_model(name, num_classes=0, in_chans=3, **encoder.spec.args)
    if encoder.spec.stem == "original":
        own.load_state_dict(encoder.model.state_dict(), strict=True)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels_and_a_stem_for_small_images(channels):
    assert stem_for("resnet18", 32) == "3x3"
    assert stem_for("resnet18", 224) == "original"
    assert stem_for("vit_tiny_patch16_224", 32) == "original"
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}
    encoder = Encoder(EncoderSpec("resnet18", 32, channels, "3x3", args)).eval()
    assert encoder.dim == 24
    assert encoder(torch.randn(2, channels, 32, 32)).shape == (2, 24)
    maps = []
    encoder.model.layer1.register_forward_hook(lambda module, inputs, output: maps.append(output.shape))
    encoder(torch.randn(2, channels, 32, 32))
    assert maps[0][-2:] == (32, 32)


def test_a_transformer_takes_the_image_size():
    encoder = Encoder(EncoderSpec("vit_tiny_patch16_224", 64)).eval()
    assert encoder(torch.randn(1, 3, 64, 64)).shape == (1, encoder.dim)


def test_a_stem_that_cannot_be_replaced_is_refused():
    with pytest.raises(ValueError, match="has no ResNet stem"):
        Encoder(EncoderSpec("mobilenetv3_small_050", 32, stem="3x3"))


def check_head():
    head = mlp(2048, 4096, 256)
    kinds = [type(part) for part in head]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert head[0].bias is not None
    assert head[3].bias is None
    assert sum(p.numel() for p in head.parameters()) == 9_449_472
    assert sum(p.numel() for p in mlp(256, 4096, 256).parameters()) == 2_109_440


def test_heads_have_the_reference_s_shape():
    check_head()

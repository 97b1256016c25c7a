"""The matrix-product convolution is a convolution: values and gradients against torch's own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from byol.convolution import MatrixConv2d, _MatrixConvolution, one_output, use_matrix_products


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (5, 1, 2), (3, 1, 0)]
)
@pytest.mark.parametrize("size", [(4, 4), (7, 6)])
def test_values_and_gradients(kernel, stride, padding, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, stride=stride, padding=padding)
    found = _MatrixConvolution.apply(x, weight, stride, padding)
    assert torch.allclose(found, expected, atol=1e-12)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found, (x, weight), gradient),
        torch.autograd.grad(expected, (x, weight), gradient),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [((1, 1), 3, 1, 1), ((2, 2), 3, 2, 1), ((1, 2), 3, 2, 1), ((2, 2), 1, 2, 0), ((3, 3), 3, 1, 0), ((1, 1), 5, 1, 2)],
)
def test_an_output_of_one_pixel(size, kernel, stride, padding):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, kernel, kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, stride=stride, padding=padding)
    found = one_output(x, weight, padding)
    assert found.shape == expected.shape == (2, 4, 1, 1)
    assert torch.allclose(found, expected, atol=1e-12)
    gradient = torch.randn(2, 4, 1, 1, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(found, (x, weight), gradient),
        torch.autograd.grad(expected, (x, weight), gradient),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_it_serves_small_maps_under_autocast_and_keeps_names_and_parameters(monkeypatch):
    monkeypatch.setattr(MatrixConv2d, "LARGEST_MAP", 16)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=2))
    names = list(network.state_dict())
    use_matrix_products(network)
    assert type(network[0]) is MatrixConv2d
    assert type(network[1]) is nn.Conv2d
    assert list(network.state_dict()) == names
    for side, served in ((4, True), (5, False)):
        x = torch.randn(3, 8, side, side)
        with torch.autocast("cpu", torch.bfloat16):
            found = network[0](x)
        assert found.dtype == torch.bfloat16
        exact = F.conv2d(x, network[0].weight, network[0].bias, padding=1)
        assert torch.allclose(found.float(), exact, atol=0.05)
        assert ("_MatrixConvolution" in str(found.grad_fn.next_functions)) == served
    assert network[0](torch.randn(3, 8, 4, 4)).dtype == torch.float32

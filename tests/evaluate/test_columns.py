import pytest
import torch

from byol.evaluate.columns import Pixels


def test_pixels_up_to_32_px_are_features_as_they_are():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Pixels()(x), x.flatten(1))
    assert not list(Pixels().parameters())


def test_larger_images_are_averaged_over_areas_by_hand():
    x = torch.arange(64 * 64, dtype=torch.float32).view(1, 1, 64, 64)
    # Pixel (i, j) is 64 i + j; the mean of rows 2a, 2a + 1 and columns 2b, 2b + 1 is 64 (2a + 0.5) + 2b + 0.5.
    a, b = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    torch.testing.assert_close(Pixels()(x), (64 * (2 * a + 0.5) + 2 * b + 0.5).flatten()[None])


@pytest.mark.parametrize("size", [33, 50])
def test_every_size_gives_32_px(size):
    assert Pixels()(torch.ones(2, 3, size, size)).shape == (2, 3072)

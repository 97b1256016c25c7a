"""Feature extraction: modes, order, the evaluation view against Pillow, raw pixels by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from byol.evaluate.features import evaluation_view, extract

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def noise(n, height, width=None, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width or height), dtype=torch.uint8, generator=generator)


def smooth(height, width):
    """One image with edges and gradients, whose bicubic resize is not dominated by noise."""
    rows, columns = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    channels = [rows.sin() * columns.cos(), (rows * columns / 9).sin(), torch.sign((columns - 3).sin())]
    return ((torch.stack(channels) + 1) * 127.5).round().to(torch.uint8)[None]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def pixels(images, size):
    """What the encoder sees, in rows."""
    return extract(nn.Flatten(), images, mean=(0, 0, 0), std=(1, 1, 1), size=size)


def test_images_of_the_encoders_size_are_only_normalised():
    images = noise(4, 32)
    features = extract(nn.Flatten(), images, mean=MEAN, std=STD, size=32)
    expected = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features.numpy(), expected.reshape(4, -1), atol=1e-5)


def test_batch_size_and_batching_do_not_change_features():
    images = noise(23, 20)
    results = [
        extract(network(), given, mean=MEAN, std=STD, size=16, batch_size=batch_size)
        for given, batch_size in [
            (images, 256),
            (images, 5),
            (images, 1),
            (images.split(9), 4),
            (iter(images.split(2)), 8),
        ]
    ]
    assert results[0].shape == (23, 8)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-5)


def test_extraction_is_in_inference_mode_and_restores_each_modules_mode():
    encoder = network().train()
    encoder[1].eval()
    modes = [module.training for module in encoder.modules()]
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    first = extract(encoder, noise(6, 16), mean=MEAN, std=STD, size=None)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(first, extract(encoder, noise(6, 16), mean=MEAN, std=STD, size=None))
    assert not first.requires_grad


def test_modes_are_restored_after_an_error():
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3)).train()
    with pytest.raises(ValueError, match="pools its features"):
        extract(encoder, noise(2, 16), mean=MEAN, std=STD, size=None)
    assert encoder.training
    assert encoder[0].training


def test_larger_images_lose_an_eighth_and_need_no_resize_when_that_fits():
    images = noise(2, 64, 80)
    expected = images[:, :, 4:60, 12:68].float() / 255
    torch.testing.assert_close(pixels(images, 56), expected.flatten(1))


@pytest.mark.parametrize(("height", "width", "box"), [(96, 96, (6, 6, 90, 90)), (120, 80, (5, 25, 75, 95))])
def test_larger_images_are_resized_as_pillow_does(height, width, box):
    # Pillow's bicubic is the same antialiased kernel, rounded to 8 bits after each of its two passes.
    image = smooth(height, width)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC, box=box)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels(image, 32).view(3, 32, 32).numpy(), expected, atol=1.6 / 255)


def test_smaller_images_are_enlarged_whole():
    image = smooth(28, 28)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    expected = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels(image, 32).view(3, 32, 32).numpy(), expected, atol=1.6 / 255)


def test_resizing_does_not_leave_the_range():
    view = evaluation_view(noise(8, 48).float().div(255).round(), 32)
    assert view.min() >= 0
    assert view.max() <= 1


def test_progress_counts_the_images():
    seen = []
    extract(network(), noise(10, 16), mean=MEAN, std=STD, size=None, batch_size=4, progress=seen.append)
    assert seen == [4, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8).double()}, "torch.uint8 or float32"),
        ({"images": noise(2, 8)[0]}, "torch.uint8"),
        ({"images": noise(2, 8, channels=1)}, "1 channels"),
        ({"images": []}, "no images"),
        ({"mean": (0.5,)}, "mean has 1 values"),
        ({"std": (0.5, 0.0, 0.5)}, "positive"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_extracted_is_refused(arguments, message):
    given = {"images": noise(2, 8), "mean": MEAN, "std": STD, "size": None}
    with pytest.raises(ValueError, match=message):
        extract(nn.Flatten(), **(given | arguments))

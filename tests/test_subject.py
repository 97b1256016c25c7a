"""Which images a backbone is measured on, and beside which networks."""

import numpy as np
import pytest
import torch

from byol.data.source import DataError
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate import extract
from byol.evaluate.columns import backbone
from byol.subject import baseline, open_parts
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD


def test_a_labels_file_by_number_leaves_the_test_part_its_own_labels(with_test_part, tmp_path):
    # Number 3 is a training image and a test image: the file is of the training images.
    path = tmp_path / "labels.csv"
    path.write_text("id,label\n" + "".join(f"{i},{1 - i % 2}\n" for i in range(24)))
    said = []
    parts = open_parts(str(with_test_part), None, labels=str(path), say=said.append)
    assert parts.train.labels.tolist() == [1, 0] * 12
    assert parts.open_test().labels.tolist() == [0, 1] * 6
    assert any("keep their own labels" in line for line in said)


def test_a_labels_file_by_path_names_the_images_of_both_parts(tmp_path):
    from PIL import Image

    lines = ["file,label"]
    for part, count in (("train", 6), ("test", 4)):
        (tmp_path / "data" / part).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / "data" / part / f"{i}.png")
            lines.append(f"{part}/{i}.png,{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    parts = open_parts(str(tmp_path / "data"), None, labels=str(tmp_path / "labels.csv"))
    assert parts.train.labels.tolist() == [0, 1] * 3
    assert parts.open_test().labels.tolist() == [0, 1] * 2


def test_one_group_to_test_on_is_refused_before_anything_is_fitted(tmp_path):
    images = np.zeros((12, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(12) % 2)
    path = tmp_path / "labels.csv"
    path.write_text("id,label,film\n" + "".join(f"{i},{i % 2},{i // 4}\n" for i in range(12)))
    with pytest.raises(DataError, match="are of one group, and an interval needs 2 or more"):
        open_parts(str(tmp_path / "data.npz"), None, labels=str(path), groups="film")


def test_a_network_for_colour_stands_beside_one_for_gray_images(tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    like = backbone(Encoder(EncoderSpec("resnet18", 32, 1)), (0.1,), (0.3,))
    column = baseline(f"resnet10t={tmp_path / 'weights.safetensors'}", like)
    gray = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    found = extract(column.network, gray, mean=column.normalization.mean, std=column.normalization.std, size=None)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        torch.testing.assert_close(found, model((gray.expand(-1, 3, -1, -1) / 255 - mean) / std))
    # In colour it is that network itself.
    colour = backbone(Encoder(EncoderSpec("resnet18", 32, 3)), (0.1,) * 3, (0.3,) * 3)
    assert baseline(f"resnet10t={tmp_path / 'weights.safetensors'}", colour).normalization.mean == IMAGENET_MEAN

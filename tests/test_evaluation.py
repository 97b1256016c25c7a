"""Which images a backbone is measured on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from byol.data.source import DataError
from byol.encoder import Encoder, EncoderSpec
from byol.evaluate import extract, table
from byol.evaluate.columns import backbone
from byol.evaluate.labelled import Parts
from byol.evaluate.protocols import Settings
from byol.evaluation import baseline, evaluate_run, open_parts
from byol.options import Options
from byol.pipeline import pretrain
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """An .npz file of 24 training and 12 test images of two classes."""
    path = tmp_path_factory.mktemp("arrays") / "data.npz"
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (36, 16, 16, 3)).astype(np.uint8)
    labels = np.arange(36) % 2
    np.savez(path, images=images[:24], labels=labels[:24], test_images=images[24:], test_labels=labels[24:])
    return path


def test_a_labels_file_by_number_leaves_the_test_part_its_own_labels(arrays, tmp_path):
    # Number 3 is a training image and a test image: the file is of the training images.
    path = tmp_path / "labels.csv"
    path.write_text("id,label\n" + "".join(f"{i},{1 - i % 2}\n" for i in range(24)))
    said = []
    parts = open_parts(str(arrays), None, labels=str(path), say=said.append)
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


def test_no_choice_of_a_whole_evaluation_reads_a_test_image(arrays, tmp_path, monkeypatch):
    options = Options(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        steps=2,
        batch_size=8,
        method_args={"hidden": 16, "out": 8},
    )
    pretrain(str(arrays), tmp_path / "run", options)
    parts, fitted = open_parts(str(arrays), None), []

    def open_test():
        assert fitted, "a test image was read too early"
        return parts.open_test()

    fits = table.fit_rows
    guarded = Parts(parts.train, open_test, parts.test_name)
    settings = Settings(protocols=("knn", "linear"))
    with pytest.raises(AssertionError, match="too early"):  # the guard guards
        evaluate_run(tmp_path / "run", str(arrays), parts=guarded, settings=settings)
    monkeypatch.setattr(table, "fit_rows", lambda training: fitted.append(fits(training)) or fitted[-1])
    found = evaluate_run(tmp_path / "run", str(arrays), parts=guarded, settings=settings).found
    assert found["test_images"] == 12
    # Other labels of the training images are another evaluation, of which no row is kept.
    wrong = replace(parts.train, source=replace(parts.train.source, labels=1 - parts.train.labels))
    again = evaluate_run(
        tmp_path / "run", str(arrays), parts=Parts(wrong, open_test, parts.test_name), settings=Settings(("knn",))
    ).found
    assert {row["protocol"] for row in again["rows"]} == {"knn"}

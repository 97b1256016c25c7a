"""Weights from elsewhere: their features are those of another implementation, and what is no weights is told."""

import io
import json
import os
import pickle
import re
import sys
import zipfile
from argparse import Namespace

import dill
import haiku_files
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file
from torch import nn

import byol
from byol import pickled
from byol.encoder import Encoder, EncoderSpec
from byol.export import check_plain_timm, read_description, save_backbone, spec_of
from byol.importing import import_weights, resnet_of
from byol.networks import build
from byol.options import Options
from byol.pipeline import pretrain
from byol.run import Run
from byol.views.view import IMAGENET_MEAN, IMAGENET_STD

# DeepMind's layout


def padded(x, kernel, stride, value):
    """TensorFlow's SAME: ceil(size / stride) outputs, and of the padding the larger half after. x: [B, H, W, C]."""
    pads = [(0, 0)]
    for size in x.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads.append((total // 2, total - total // 2))
    return np.pad(x, [*pads, (0, 0)], constant_values=value)


def windows(x, kernel, stride, value=0.0):
    """[B, H, W, C] -> [B, H', W', C, kernel, kernel]"""
    return sliding_window_view(padded(x, kernel, stride, value), (kernel, kernel), (1, 2))[:, ::stride, ::stride]


def haiku_features(params, state, images, blocks, root="res_net50"):
    """Haiku's ResNet of version 1 in NumPy, in evaluation: [B, H, W, 3] -> [B, D], from the arrays as they are."""

    def conv(x, name, stride=1):
        w = params[f"{root}/~/{name}"]["w"].astype(np.float64)  # kernel height, kernel width, in, out
        return np.einsum("bhwcij,ijco->bhwo", windows(x, w.shape[0], stride), w, optimize=True)

    def norm(x, name):
        own = {k: v.astype(np.float64) for k, v in params[f"{root}/~/{name}"].items()}
        mean, var = (state[f"{root}/~/{name}/~/{k}_ema"]["average"].astype(np.float64) for k in ("mean", "var"))
        return (x - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["offset"]

    x = np.maximum(norm(conv(images, "initial_conv", 2), "initial_batchnorm"), 0)
    x = windows(x, 3, 2, -np.inf).max((-2, -1))
    for group, count in enumerate(blocks):
        for block in range(count):
            at, stride = f"block_group_{group}/~/block_{block}/~", 2 if group and not block else 1
            shortcut = norm(conv(x, f"{at}/shortcut_conv", stride), f"{at}/shortcut_batchnorm") if not block else x
            y = np.maximum(norm(conv(x, f"{at}/conv_0"), f"{at}/batchnorm_0"), 0)
            y = np.maximum(norm(conv(y, f"{at}/conv_1", stride), f"{at}/batchnorm_1"), 0)
            x = np.maximum(norm(conv(y, f"{at}/conv_2"), f"{at}/batchnorm_2") + shortcut, 0)
    return x.mean((1, 2))


R50 = (3, 4, 6, 3)


@pytest.fixture(scope="module")
def deepmind(tmp_path_factory):
    """(a checkpoint of a ResNet-50, its parameters, its state, the run that it became)."""
    root = tmp_path_factory.mktemp("deepmind")
    params, state = haiku_files.resnet(R50)
    (root / "pretrain_res50x1.pkl").write_bytes(haiku_files.checkpoint(params, state))
    import_weights(str(root / "pretrain_res50x1.pkl"), root / "run")
    return root / "pretrain_res50x1.pkl", params, state, root / "run"


@pytest.fixture(scope="module")
def both(deepmind):
    """The encoder of the run, and the same weights padded symmetrically, in float64."""
    own = byol.load(deepmind[3]).double()
    with torch.device("meta"):
        symmetric = Encoder(EncoderSpec("resnet50", 64)).eval()
    symmetric.model.load_state_dict(own.model.state_dict(), assign=True)
    return own, symmetric


@pytest.mark.parametrize("size", [64, 33, 46])
def test_features_of_a_checkpoint_in_deepmind_s_layout_are_those_of_a_forward_written_for_it(deepmind, both, size):
    _, params, state, _ = deepmind
    images = np.random.default_rng(1).normal(size=(1, size, size, 3))
    expected = haiku_features(params, state, images, R50)
    with torch.no_grad():
        found, other = (network(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy() for network in both)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * largest)
    # Where every stride meets an odd size, both paddings are one; else they are not, and this test sees it.
    assert (np.abs(other - expected).max() > 0.01 * largest) == (size != 33)


def test_a_deepmind_run_says_what_it_is_and_what_it_is_not(deepmind):
    file, _, _, directory = deepmind
    about = read_description(directory)
    assert spec_of(about) == EncoderSpec("resnet50", 224, padding="SAME")
    assert about["padding"].startswith("SAME") and about["format"] == 2
    assert about["normalization"]["mean"] == list(IMAGENET_MEAN)
    assert about["normalization"]["std"] == list(IMAGENET_STD)
    assert (about["method"], about["used_labels"], about["steps"]) == ("byol", False, 1000)
    assert about["imported"]["source"] == file.name and about["imported"]["layout"] == "deepmind"
    assert {"projector", "predictor", "classifier"} < set(about["imported"]["left_out"])
    with pytest.raises(ValueError, match="with timm alone its features would be others") as error:
        check_plain_timm(about)
    assert "\n" not in str(error.value)


def test_arrays_of_jax_are_read_as_arrays(tmp_path):
    params, state = haiku_files.resnet((1, 1, 1, 1), width=4)
    plain, wrapped = (
        haiku_files.checkpoint(params, state),
        haiku_files.checkpoint(params, state, wrap=haiku_files.DeviceArray),
    )
    (tmp_path / "plain").write_bytes(plain)
    (tmp_path / "wrapped").write_bytes(wrapped)
    held = [pickled.read(tmp_path / name)["experiment_state"].values[0] for name in ("plain", "wrapped")]
    for module, values in params.items():
        for name, value in values.items():
            for each in held:
                assert np.array_equal(each[module][name].value, value) and each[module][name].value.dtype == value.dtype


@pytest.mark.parametrize(
    "value",
    [
        np.arange(24, dtype=">i4").reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(2.5, np.float16),
        np.zeros((0, 3), np.uint8),
        np.float32(3.5),
        np.array([True, False]),
        np.arange(10.0)[::2],
    ],
    ids=["big-endian", "fortran", "scalar array", "empty", "scalar", "bool", "strided"],
)
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dumps", [pickle.dumps, dill.dumps], ids=["pickle", "dill"])
def test_any_array_of_numbers_is_what_numpy_wrote(tmp_path, value, protocol, dumps):
    (tmp_path / "file").write_bytes(dumps({"value": value, "more": [1, (True, None), -2.5, "text"]}, protocol=protocol))
    found = pickled.read(tmp_path / "file")
    assert found["more"] == [1, (True, None), -2.5, "text"]
    assert np.array_equal(found["value"].value, value) and found["value"].value.dtype == value.dtype


def small(**changes):
    params, state = haiku_files.resnet((1, 1, 1, 1), width=2)
    return haiku_files.checkpoint({**params, **changes}, state)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dill.dumps({"step": 1}, protocol=2), "no experiment_state"),
        (dill.dumps([1, 2], protocol=2), "no experiment_state"),
        (
            small(**{"res_net50/~/final_batchnorm": {"scale": np.ones(3, np.float32)}}),
            "no part of a ResNet of version 1",
        ),
        (small(**{"other/~/initial_conv": {"w": np.ones((7, 7, 3, 2), np.float32)}}), "2 ResNets"),
        (small(**{"res_net50/~/initial_conv": {"w": np.ones((3, 3, 3, 2), np.float32)}}), "not 7x7"),
        (small(**{"res_net50/~/initial_conv": {"w": np.ones(3, np.float32)}}), "is no convolution"),
        (small(**{"res_net50/~/initial_conv": {"w": np.ones((7, 7, 3, 2), int)}}), "no 'w' that is known"),
        (small(), "blocks; say which timm model"),
    ],
    ids=["no state", "a list", "version 2", "two", "3x3", "no kernel", "integers", "another structure"],
)
def test_a_checkpoint_of_something_else_is_told_in_one_line(tmp_path, data, words):
    (tmp_path / "file.pkl").write_bytes(data)
    with pytest.raises(ValueError, match=words) as error:
        import_weights(str(tmp_path / "file.pkl"), tmp_path / "out")
    assert str(error.value).isprintable() and not (tmp_path / "out").exists()


# Hostile pickles


class Call:
    """A pickle that calls `function`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def raw(*operations):
    return b"\x80\x02" + b"".join(operations) + b"."


ENCODED = (
    b"c_codecs\nencode\n"
    + b"X"
    + (1000).to_bytes(4, "little")
    + b"a" * 1000
    + b"q\x00X\x06\x00\x00\x00latin1q\x01\x86R0"
)
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
FLOAT = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
HUGE, MINUS = b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff"
HOSTILE = {
    "a command": lambda marker: pickle.dumps(Call(os.system, f"touch '{marker}'"), 2),
    "eval": lambda marker: pickle.dumps({"a": Call(eval, f"open('{marker}', 'w')")}, 2),
    "getattr": lambda marker: pickle.dumps(Call(getattr, Call(__import__, "os"), "system"), 2),
    "an argument": lambda marker: dill.dumps({"experiment_state": (Call(os.mkdir, str(marker)),)}, protocol=2),
    "a function of dill": lambda marker: dill.dumps(lambda: marker, protocol=2),
    "objects in an array": lambda marker: pickle.dumps(np.array([Call(os.mkdir, str(marker))], object), 2),
    "a structured array": lambda marker: pickle.dumps(np.zeros(3, [("a", "f4")]), 2),
    "dates": lambda marker: pickle.dumps(np.zeros(3, "M8[s]"), 2),
    "the state of a name": lambda marker: raw(b"cbyol.pickled\n_Machine\n}b"),
    "instance of protocol 0": lambda marker: b"(S'touch'\nios\nsystem\n.",
    "a persistent id": lambda marker: raw(b"Pname\n"),
    "an extension": lambda marker: raw(b"\x82\x01"),
    "a call of a result": lambda marker: raw(b"}", b"K\x01\x85R"),
    "too few values": lambda marker: raw(b"\x87"),
    "marks alone": lambda marker: raw(b"((((t"),
    "an odd number of values": lambda marker: raw(b"}(X\x01\x00\x00\x00au"),
    "a number as key": lambda marker: raw(b"}K\x01K\x01s"),
    "a memory that is not": lambda marker: raw(b"h\x07"),
    "two values": lambda marker: raw(b"NN"),
    "no value": lambda marker: raw(),
    "a huge text": lambda marker: b"\x80\x02X\xff\xff\xff\x7fabc",
    "a huge number": lambda marker: raw(b"\x8b" + (1000).to_bytes(4, "little") + b"\x7f" * 1000),
    "a huge shape": lambda marker: raw(ARRAY, b"(K\x01", HUGE, HUGE, b"\x86", FLOAT, b"\x89U\x04aaaatb"),
    "a negative shape": lambda marker: raw(ARRAY, b"(K\x01" + MINUS + MINUS, b"\x86", FLOAT, b"\x89U\x04aaaatb"),
    "too many dimensions": lambda marker: raw(ARRAY, b"(K\x01(", b"K\x01" * 40, b"t", FLOAT, b"\x89U\x04aaaatb"),
    "two states": lambda marker: raw(ARRAY, *[b"(K\x01K\x01\x85" + FLOAT + b"\x89U\x04aaaatb"] * 2),
    "the same text over and over": lambda marker: raw(ENCODED, b"c_codecs\nencode\nh\x00h\x01\x86R" * 200, b"N"),
    "a million operations": lambda marker: raw(b"]0" * 600_000, b"N"),
    "nothing": lambda marker: b"",
    "no pickle": lambda marker: b"\x80" + b"weights" * 9,
    "no text": lambda marker: raw(b"X\x02\x00\x00\x00\xff\xfe"),
    "a name of no text": lambda marker: b"\x80\x02c\xff\xff\n\xff\n.",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_does_nothing_and_is_told_in_one_line(tmp_path, name):
    marker = tmp_path / "marker"
    (tmp_path / "file").write_bytes(HOSTILE[name](marker))
    with pytest.raises(ValueError, match="checkpoint") as error:
        pickled.read(tmp_path / "file")
    assert str(error.value).isprintable() and len(str(error.value)) < 400
    assert not marker.exists()


def test_values_of_unknown_classes_are_their_names(tmp_path):
    (tmp_path / "file").write_bytes(raw(b"cos\nsystem\nX\x04\x00\x00\x00true\x85\x81}b"))
    found = pickled.read(tmp_path / "file")
    assert isinstance(found, pickled.Record) and (found.name, found.values) == ("os.system", ("true",))


def test_a_checkpoint_cut_short_anywhere_is_told_in_one_line(tmp_path):
    whole, file = small(), tmp_path / "file"
    for length in (*range(0, 400, 9), *range(400, len(whole) - 1, len(whole) // 50), len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checkpoint") as error:
            pickled.read(file)
        assert str(error.value).isprintable()


PLAIN = (
    dict,
    list,
    tuple,
    int,
    float,
    bool,
    str,
    bytes,
    type(None),
    pickled.Array,
    pickled.Record,
    pickled._Name,
    pickled._Type,
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
def test_changed_bytes_give_plain_values_or_one_line(tmp_path_factory, changes):
    data = bytearray(MUTATED)
    for place, byte in changes:
        data[int(place * len(data))] = byte
    file = tmp_path_factory.getbasetemp() / "mutated.pkl"
    file.write_bytes(data)
    try:
        found = pickled.read(file)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        assert type(found) in PLAIN


MUTATED = small()[:6000]
"""Its end is missing: what is changed lies in the part where the structure is."""
MUTATED = MUTATED[: MUTATED.rindex(b"q")] + b"."


# State dicts of other libraries


def with_statistics(network, seed=0):
    """The same, with statistics of batch norm that are not those of a new one, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
    return network.eval()


def small_resnet(padding=None):
    """torchvision's, a block a group, without its classifier; padding: of a 3x3 stem for small images."""
    torch.manual_seed(1)
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    network.fc = nn.Identity()
    if padding is not None:
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, padding, bias=False), nn.Identity()
    return with_statistics(network)


def below(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


HEAD = {"0.weight": torch.ones(2, 2)}


def exclude_bias_and_norm(p):
    return p.ndim == 1


def of_barlow_twins():
    network = small_resnet()
    state = below("module.backbone.", network.state_dict()) | below("module.projector.", HEAD)
    state |= {"module.bn.running_mean": torch.zeros(2)}
    # Its optimizer holds functions of the script.
    groups = [{"lr": 0.1, "weight_decay_filter": exclude_bias_and_norm}]
    return {"epoch": 9, "model": state, "optimizer": {"state": {}, "param_groups": groups}}, network


def of_vicreg():
    network = small_resnet()
    return {
        "epoch": 9,
        "model": below("module.backbone.", network.state_dict()) | below("module.projector.", HEAD),
    }, network


def of_solo_learn(padding=None, name="backbone"):
    network, other = small_resnet(padding), small_resnet(padding)
    other.conv1.weight.data.zero_()
    state = below(f"momentum_{name}.", other.state_dict()) | below(f"{name}.", network.state_dict())
    state |= below("projector.", HEAD) | {"classifier.weight": torch.ones(10, 512), "classifier.bias": torch.ones(10)}
    settings = {"backbone": Namespace(name="resnet18"), "data": {"dataset": "cifar10"}}
    return {
        "pytorch-lightning_version": "2.1.2",
        "epoch": 3,
        "state_dict": state,
        "hyper_parameters": settings,
    }, network


def of_lightly():
    network = small_resnet()
    backbone = nn.Sequential(*list(network.children())[:-1])
    state = below("backbone.", backbone.state_dict()) | below("projection_head.layers.", HEAD)
    state |= below("backbone_momentum.", {k: torch.zeros_like(v) for k, v in backbone.state_dict().items()})
    return {"pytorch-lightning_version": "2.5.0", "state_dict": state}, network


class Block(nn.Module):
    """lightly's own residual block."""

    def __init__(self, given, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or given != width:
            self.shortcut = nn.Sequential(nn.Conv2d(given, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Nine(nn.Module):
    """lightly's resnet-9 without its pooling and classifier."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for n in range(4):
            setattr(self, f"layer{n + 1}", nn.Sequential(Block(widths[n], widths[n + 1], 2 if n else 1)))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


def of_lightly_s_own_resnet():
    torch.manual_seed(1)
    network = with_statistics(Nine())
    return network.state_dict() | {"linear.weight": torch.ones(10, 512)}, network


def of_moco():
    network = small_resnet()
    state = below(
        "module.encoder_q.", network.state_dict() | {"fc.weight": torch.ones(8, 512), "fc.bias": torch.ones(8)}
    )
    state |= below("module.encoder_k.", {k: torch.zeros_like(v) for k, v in network.state_dict().items()})
    return {"epoch": 9, "arch": "resnet18", "state_dict": state | {"module.queue": torch.ones(8, 4)}}, network


def of_simsiam():
    network = small_resnet()
    state = below("module.encoder.", network.state_dict()) | below("module.predictor.", HEAD)
    return {"epoch": 9, "state_dict": state}, network


def of_torchvision():
    network = small_resnet()
    return network.state_dict() | {"fc.weight": torch.ones(5, 512), "fc.bias": torch.ones(5)}, network


FILES = {
    "barlow twins": (of_barlow_twins, "barlow-twins", {"method": "barlow_twins"}),
    "vicreg": (of_vicreg, "vicreg", {"method": "vicreg"}),
    "solo-learn": (of_solo_learn, "solo-learn", {"image_size": 224}),
    "solo-learn of CIFAR": (lambda: of_solo_learn(2), "solo-learn", {"stem": "3x3-pad2", "image_size": 32}),
    "solo-learn of old": (lambda: of_solo_learn(2, "encoder"), "solo-learn", {"stem": "3x3-pad2", "format": 2}),
    "lightly": (of_lightly, "lightly", {"name": "resnet18"}),
    "lightly's own": (
        of_lightly_s_own_resnet,
        "lightly",
        {"stem": "3x3", "args": {"layers": [1, 1, 1, 1]}, "format": 1},
    ),
    "moco": (of_moco, "moco", {"used_labels": False}),
    "simsiam": (of_simsiam, "simsiam", {"method": "simsiam"}),
    "torchvision": (of_torchvision, "torchvision", {"used_labels": True}),
}


@pytest.mark.parametrize("name", FILES)
def test_features_are_those_of_the_network_that_the_state_dict_is_of(tmp_path, monkeypatch, name):
    make, layout, says = FILES[name]
    held, network = make()
    # The script that trained is gone when its checkpoint is read.
    monkeypatch.setattr(exclude_bias_and_norm, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "exclude_bias_and_norm", exclude_bias_and_norm, raising=False)
    torch.save(held, tmp_path / "file.pth", _use_new_zipfile_serialization=name not in ("moco", "simsiam"))
    monkeypatch.delattr(sys.modules["__main__"], "exclude_bias_and_norm")
    found = import_weights(str(tmp_path / "file.pth"), tmp_path / "run")
    assert found["imported"]["layout"] == layout
    assert says.items() <= found.items()
    images = torch.randn(2, 3, 37, 33)
    with torch.no_grad():
        torch.testing.assert_close(byol.load(tmp_path / "run")(images), network(images), rtol=1e-4, atol=1e-5)


def test_the_same_of_a_safetensors_file_and_of_half_precision(tmp_path):
    network = small_resnet()
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()},
        tmp_path / "half.safetensors",
    )
    found = import_weights(str(tmp_path / "half.safetensors"), tmp_path / "run", layout="vicreg")
    assert found["method"] == "vicreg" and not found["used_labels"]
    own = byol.load(tmp_path / "run").model.state_dict()
    assert own["conv1.weight"].dtype == torch.float32
    assert all(torch.equal(v, network.state_dict()[k].half().float()) for k, v in own.items() if v.is_floating_point())


def test_any_model_of_timm_under_its_own_names(tmp_path):
    network = with_statistics(timm.create_model("mobilenetv3_small_050"))
    torch.save({"state_dict": below("backbone.", network.state_dict())}, tmp_path / "file.ckpt")
    with pytest.raises(ValueError, match="--backbone NAME"):
        import_weights(str(tmp_path / "file.ckpt"), tmp_path / "run")
    found = import_weights(str(tmp_path / "file.ckpt"), tmp_path / "run", backbone="mobilenetv3_small_050")
    assert found["imported"]["left_out"] == ["classifier"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        pooled = network.forward_head(network.forward_features(images), pre_logits=True)
        torch.testing.assert_close(byol.load(tmp_path / "run")(images), pooled)


def test_one_of_several_networks_is_named_by_its_prefix(tmp_path):
    network, other = small_resnet(), small_resnet()
    other.conv1.weight.data.zero_()
    torch.save(below("a.", network.state_dict()) | below("b.net.", other.state_dict()), tmp_path / "file")
    with pytest.raises(ValueError, match=r"several networks, 'a', 'b\.net'; name one with --prefix"):
        import_weights(str(tmp_path / "file"), tmp_path / "run")
    found = import_weights(str(tmp_path / "file"), tmp_path / "run", prefix="b.net")
    assert found["imported"]["network"] == "b.net" and found["imported"]["left_out"] == ["a"]
    assert not byol.load(tmp_path / "run").model.conv1.weight.any()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_a_resnet_is_known_by_its_blocks(name):
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    assert resnet_of(state, "file") == (name, {})


# Files that are none


def saved(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def compressed():
    stream = io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(9)})))
    with whole, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for each in whole.namelist():
            packed.writestr(each, whole.read(each))
    return stream.getvalue()


def changed(**changes):
    return saved({**small_resnet().state_dict(), **changes})


BAD_FILES = {
    "a command": (lambda marker: saved({"state_dict": Call(os.system, f"touch '{marker}'")}), "posix.system|nt.system"),
    "eval": (lambda marker: saved({"model": Call(eval, f"open('{marker}', 'w')")}), "holds more than weights .eval"),
    "a module": (lambda marker: saved(nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "a call of old": (lambda marker: pickle.dumps(Call(os.mkdir, str(marker)), 2), "mkdir"),
    "compressed": (lambda marker: compressed(), "are compressed"),
    "no zip": (lambda marker: b"PK\x03\x04" + b"weights" * 9, "no file of weights"),
    "text": (lambda marker: b"weights" * 9, "no file of weights"),
    "nothing": (lambda marker: b"", "no file of weights"),
    "a number": (lambda marker: saved(3), "no state dict"),
    "settings": (lambda marker: saved({"state_dict": {"a": 1}}), "no state dict"),
    "another network": (lambda marker: saved({"a.weight": torch.ones(2)}), "--backbone NAME"),
    "a layer too many": (lambda marker: changed(**{"layer1.0.\x1b[31m": torch.ones(2)}), "does not fit the backbone"),
    "another shape": (lambda marker: changed(**{"layer1.0.bn1.weight": torch.ones(9)}), r"has shape \(9,\)"),
    "a huge view": (lambda marker: changed(**{"layer1.0.bn1.weight": torch.ones(1).expand(1 << 40)}), "has shape"),
    "not a number": (lambda marker: changed(**{"bn1.weight": torch.full((64,), torch.nan)}), "no finite number"),
    "complex": (lambda marker: changed(**{"bn1.weight": torch.ones(64, dtype=torch.complex64)}), "no finite number"),
    "a variance below 0": (
        lambda marker: changed(**{"bn1.running_var": torch.full((64,), -1.0)}),
        "negative variances",
    ),
    "a lost ReLU": (lambda marker: saved(nn.Sequential(*Nine().children()).state_dict()), "loses the ReLU"),
    "sparse": (lambda marker: changed(**{"bn1.weight": torch.ones(64).to_sparse()}), "bn1.weight is missing"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_file_of_weights_does_nothing_and_is_told_in_one_line(run, tmp_path, name):
    make, words = BAD_FILES[name]
    marker = tmp_path / "marker"
    (tmp_path / "file").write_bytes(make(marker))
    code, stdout, stderr = run("import", tmp_path / "file", "--out", tmp_path / "out")
    assert (code, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1 and stderr.startswith("byol: ") and stderr.strip().isprintable()
    assert re.search(words, stderr), stderr
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_a_state_dict_cut_short_anywhere_is_told_in_one_line(tmp_path):
    state = {"layer4.0.conv1.weight": torch.ones(4), "layer1.0.conv1.weight": torch.ones(4)}
    for old in (False, True):
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=not old)
        whole = stream.getvalue()
        for length in range(0, len(whole), max(1, len(whole) // 40)):
            (tmp_path / "file").write_bytes(whole[:length])
            with pytest.raises(
                ValueError, match=r"is damaged|no file of weights|no ResNet|holds more than|no checkpoint"
            ) as error:
                import_weights(str(tmp_path / "file"), tmp_path / "out")
            assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.pth",), "neither a file nor a name of timm"),
        (("timm:resnet81",), "did you mean resnet18"),
        (("resnet18.no_such_tag",), "a1_in1k"),
        (("FOLDER",), "is no file"),
        (("FILE", "--backbone", "resnet81"), "did you mean resnet18"),
        (("FILE", "--mean", "0.5,x,0.5"), "no list of numbers"),
        (("FILE", "--mean", "0.5", "--std", "0.5"), "takes images of 3 channels"),
        (("FILE", "--std", "0.5,0,0.5"), "not above 0"),
        (("FILE", "--channels", "5"), "leave out --channels 5"),
        (("FILE", "--from", "deepmind"), "leave out --from deepmind"),
        (("FILE", "--prefix", "nothing"), "no ResNet below 'nothing'"),
        (("FILE", "--from", "sololearn"), "solo-learn"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line_and_writes_nothing(run, tmp_path, arguments, says):
    torch.save(of_lightly_s_own_resnet()[0], tmp_path / "FILE")
    (tmp_path / "FOLDER").mkdir()
    arguments = [tmp_path / each if each in ("FILE", "FOLDER") else each for each in arguments]
    code, _, stderr = run("import", *arguments, "--out", tmp_path / "out")
    assert code == 2 and says in stderr.splitlines()[-1], stderr
    assert not (tmp_path / "out").exists()


# Names of timm


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "timm:resnet18.a1_in1k", "resnet18"])
def test_a_name_of_timm_brings_its_weights_and_says_that_they_used_labels(run, published, tmp_path, name):
    code, stdout, stderr = run("import", name, "--out", tmp_path / "run", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert found["imported"]["source"] == "resnet18.a1_in1k" and found["used_labels"] is True
    assert (found["image_size"], found["normalization"]["mean"]) == (224, list(IMAGENET_MEAN))
    own = byol.load(tmp_path / "run").model.state_dict()
    assert all(torch.equal(value, published[key]) for key, value in own.items())


def test_weights_that_cannot_be_had_are_one_line(run, published, tmp_path):
    code, _, stderr = run("import", "resnet34", "--out", tmp_path / "run")
    assert code == 2 and "timm cannot load resnet34 with it" in stderr and stderr.splitlines()[-1].startswith("byol: ")
    assert not (tmp_path / "run").exists()


# A run directory like others


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run imported from a file of timm's smallest ResNet."""
    root = tmp_path_factory.mktemp("tiny")
    torch.save(with_statistics(timm.create_model("test_resnet")).state_dict(), root / "file.pth")
    import_weights(str(root / "file.pth"), root / "run", backbone="test_resnet", image_size=16)
    return root / "run"


def test_every_command_takes_an_imported_run(run, tiny, with_test_part, tmp_path, monkeypatch):
    monkeypatch.setenv("BYOL_CACHE", str(tmp_path / "cache"))
    code, stdout, stderr = run("evaluate", tiny, with_test_part, "--protocol", "knn", "--protocol", "views", "--json")
    assert code == 0, stderr
    found = json.loads(stdout)
    assert set(found["rows"][0]["columns"]) == {"backbone", "raw pixels", "untrained"}
    assert set(found["unlabelled"]) == {"backbone", "raw pixels", "untrained"}
    code, stdout, stderr = run("embed", tiny, with_test_part, "--out", tmp_path / "features", "--json")
    assert code == 0 and json.loads(stdout)["images"] == 36, stderr
    code, stdout, stderr = run(
        *("pretrain", with_test_part, "--out", tmp_path / "more", "--init", tiny, "--steps", 1, "--batch-size", 8),
        *("--image-size", 16, "--set", "hidden=16", "--set", "out=8", "--precision", "32"),
    )
    assert code == 0, stderr
    assert read_description(tmp_path / "more")["name"] == "test_resnet"


def test_padding_stays_with_the_weights_that_training_starts_from(tmp_path, make_run, with_test_part):
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    encoder = with_statistics(Encoder(EncoderSpec("resnet18", 24, args=args, padding="SAME")))
    (tmp_path / "run").mkdir()
    save_backbone(encoder, make_run(), tmp_path / "run", step=0)
    options = Options(
        init=str(tmp_path / "run"), image_size=24, batch_size=8, steps=1, precision="32", workers=0, device="cpu",
        method_args={"hidden": 16, "out": 8},
    )  # fmt: skip
    pretrain(str(with_test_part), tmp_path / "more", options)
    more = Run.read(tmp_path / "more" / "run.json")
    assert more.padding == "SAME" and read_description(tmp_path / "more")["padding"].startswith("SAME")
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        started = build(more).method.encoder.eval()(images)
        torch.testing.assert_close(started, encoder(images))
        plain = Encoder(EncoderSpec("resnet18", 24, args=args)).eval()
        plain.model.load_state_dict(encoder.model.state_dict())
        assert not torch.allclose(plain(images), encoder(images), rtol=1e-2)

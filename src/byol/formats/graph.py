"""Whole graphs, from images as they are to features, with normalisation inside: ONNX, and torch.export's own."""

from __future__ import annotations

import io
import json
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from byol.files import naming, replacing
from byol.formats.backbone import Backbone, Form, OfImages

ONNX = "model.onnx"
PT2 = "model.pt2"
ONE_FILE_BYTES = 2_000_000_000
"""Protocol buffers end at 2 GiB: above this, ONNX weights lie in a file of their own."""
INPUT, OUTPUT = "images", "features"


def write_onnx(backbone: Backbone, directory: Path) -> Form:
    """model.onnx: images [N, S, S, C] uint8 (float32 of deep images) -> features [N, D] float32, N any number."""
    import onnxruntime

    program = torch.onnx.export(
        _exported(backbone), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    assert program is not None, "given with dynamo"
    program.model.metadata_props.update(_about(backbone))
    size = sum(value.nbytes for value in backbone.encoder.state_dict().values())
    with naming(directory / ONNX):
        program.save(directory / ONNX, external_data=size > ONE_FILE_BYTES)
    session = onnxruntime.InferenceSession(directory / ONNX, providers=["CPUExecutionProvider"])

    def features(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    shape = (8, backbone.size, backbone.size, backbone.channels)
    if backbone.value_range is None:
        images = f"np.random.randint(0, 256, {shape}, dtype=np.uint8)"
    else:
        low, high = (list(ends) for ends in zip(*backbone.value_range, strict=True))
        images = f"np.random.uniform({low}, {high}, {shape}).astype(np.float32)"
    code = (
        "import numpy as np\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{ONNX}")\n'
        f"images = {images}  # yours\n"
        f'features = session.run(["{OUTPUT}"], {{"{INPUT}": images}})[0]  # [8, {backbone.encoder.dim}]\n'
    )
    return Form(code, features, "onnx", ("onnxruntime",), _note(backbone))


def write_pt2(backbone: Backbone, directory: Path) -> Form:
    """model.pt2: the same, for torch.export.load, with what it is in backbone.json inside."""
    buffer = io.BytesIO()
    torch.export.save(_exported(backbone), buffer, extra_files={"backbone.json": json.dumps(_about(backbone))})
    with replacing(directory / PT2) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    module = torch.export.load(directory / PT2).module()
    shape = (8, backbone.size, backbone.size, backbone.channels)
    if backbone.value_range is None:
        images = f"torch.randint(0, 256, {shape}, dtype=torch.uint8)"
    else:
        low, high = (list(ends) for ends in zip(*backbone.value_range, strict=True))
        images = f"torch.tensor({low}) + (torch.tensor({high}) - torch.tensor({low})) * torch.rand({shape})"
    code = (
        f'import torch\n\nmodel = torch.export.load("{PT2}").module()\n'
        f"images = {images}  # yours\n"
        f"features = model(images)  # [8, {backbone.encoder.dim}]\n"
    )
    return Form(code, module, "pytorch", ("torch",), _note(backbone))


def _exported(backbone: Backbone) -> torch.export.ExportedProgram:
    network = OfImages(backbone.encoder, backbone).eval().requires_grad_(False)
    batch = {INPUT: {0: torch.export.Dim("batch")}}
    return torch.export.export(network, (backbone.some_images(2, seed=0),), dynamic_shapes=batch)


def _about(backbone: Backbone) -> dict[str, str]:
    """What it is, as text: metadata of the file."""
    return {
        "name": str(backbone.description["name"]),
        "normalization": "inside: (x / 255 - mean) / std"
        if backbone.value_range is None
        else "inside: ((x - low) / (high - low) - mean) / std",
        "mean": json.dumps(backbone.mean),
        "std": json.dumps(backbone.std),
        "value_range": json.dumps(backbone.value_range or [[0, 255]] * backbone.channels),
        "byol": metadata.version("byol"),
    }


def _note(backbone: Backbone) -> str:
    side = f"{backbone.size} x {backbone.size} px"
    if backbone.value_range is None:
        kind = f"uint8 images [N, {backbone.size}, {backbone.size}, {backbone.channels}], channels last, 0 to 255"
    else:
        kind = f"float32 images [N, {backbone.size}, {backbone.size}, {backbone.channels}] of their own values"
    return f"It takes {kind}, any number of them, already at {side}; normalisation is inside."

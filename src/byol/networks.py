"""The networks of a run, and what moves their weights."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from byol.convolution import use_matrix_products
from byol.encoder import Encoder, EncoderSpec, initialize
from byol.export import start_from
from byol.methods import Method, Out, get, wanted
from byol.names import FILLED, unknown
from byol.norm import share
from byol.online import OnlineClassifier
from byol.optim import LARS, parameter_groups
from byol.parallel import world_size
from byol.run import Run


class Networks(nn.Module):
    """All that trains: the method, and the online classifier where there are labels."""

    def __init__(self, method: Method, classifier: OnlineClassifier | None) -> None:
        super().__init__()
        self.method = method
        self.classifier = classifier

    def forward(
        self, views: tuple[Tensor, ...], ids: Tensor, labels: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """(loss of the method, loss of the classifier, and features, embedding and extras of `Out`)."""
        given = {"ids": ids, "labels": labels, "key": key}
        asked = {name: given[name] for name in wanted(type(self.method))}
        out: Out = self.method(*(v.contiguous(memory_format=torch.channels_last) for v in views), **asked)
        probe = self.classifier(out.features, labels) if self.classifier else out.loss.new_zeros(())
        return out.loss, probe, out.features, out.embedding, out.extras


def build(run: Run, *, num_classes: int = 0, num_images: int = 0) -> Networks:
    """The networks of a run before its first step, drawn from its seed; no global random state is used up.

    num_classes: of the data, 0 without labels. num_images: one more than the largest image id.
    """
    spec = EncoderSpec(run.backbone, run.image_size, run.channels, run.stem, run.backbone_args, run.padding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        encoder = Encoder(spec)
        if run.encoder_init == "byol":
            initialize(encoder)
        if run.init is not None:
            encoder = start_from(encoder, run.init)
        kind = get(run.method)
        data = {"num_classes": num_classes, "num_images": num_images}
        filled = {name: data[name] for name in FILLED if name in inspect.signature(kind).parameters}
        method = kind(encoder, **filled, **run.method_args)
        classifier = OnlineClassifier(encoder.dim, num_classes) if num_classes else None
    networks = Networks(method, classifier).to(memory_format=torch.channels_last)
    if world_size() > 1:
        share(networks)
    if run.device == "cpu" and run.precision == "bf16":
        use_matrix_products(networks)
    return networks


def compile_networks(run: Run, networks: Networks) -> Networks:
    """The same, in place, each part of the method compiled where the run says so. Copies have to be compiled anew."""
    if run.compile is not None:
        # All parts, and the copy that tries the machine's speed, are one function to it.
        torch._dynamo.config.recompile_limit = 64
        for part in networks.method.children():
            part.compile(mode=run.compile)
    return networks


def refusal(run: Run, error: Exception) -> str:
    """Why the networks of a run cannot train, in one line."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"compile={run.compile} does not work here, leave it out: {reason}"
    return f"{run.backbone} cannot take {run.image_size} px images: {reason}"


def make_optimizer(run: Run, networks: Networks) -> torch.optim.Optimizer:
    parts = dict(networks.method.named_children()) if run.constant_lr or run.lr_scales else {}
    if strange := [name for name in (*run.constant_lr, *run.lr_scales) if name not in parts]:
        raise ValueError(unknown(f"part of {run.method}", strange[0], parts))
    groups = parameter_groups(
        [networks],
        weight_decay=run.weight_decay,
        decay_all=run.decay_all,
        bias_lr=run.bias_lr,
        constant=[parts[name] for name in run.constant_lr],
        lr_scales={parts[name]: scale for name, scale in run.lr_scales.items()},
    )
    if run.optimizer == "lars":
        return LARS(groups, lr=run.peak_lr, lr_in_momentum=run.lr_in_momentum)
    if run.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=run.peak_lr, momentum=0.9, fused=True)
    # One pass over each tensor: unfused, AdamW took a seventh of a small network's step on a CPU.
    return torch.optim.AdamW(groups, lr=run.peak_lr, betas=(0.9, 0.999), fused=True)

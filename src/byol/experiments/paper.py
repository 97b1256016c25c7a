"""The experiments of the BYOL paper that show why it works, as lists of runs that differ in one thing.

Each function takes the options that all of its runs share and gives an `Experiment`: its arms, with what the paper
measured for each (ImageNet, ResNet-50, 300 epochs, linear evaluation, top-1 in %), and the claims that are tested,
stated before anything runs. Grill et al. 2020, arXiv:2006.07733: section 5 and Appendix F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from byol.options import Options
from byol.views.view import BYOL_T, BYOL_T_PRIME

FAMILY = "byol.experiments.family:Family"
PAPER_STEPS = 93_835
"""Steps of the paper's runs: 300 epochs of ImageNet in batches of 4,096."""


@dataclass(frozen=True)
class Arm:
    """One thing that is trained, once a seed."""

    name: str
    options: Options | None
    """None for the network before training."""
    paper: float | None = None
    """What the paper measured, top-1 in %."""
    x: float | None = None
    """Where it stands on the plot's axis."""
    line: str = "BYOL"
    """Which line of the plot it belongs to."""
    teacher: str | None = None
    """The arm whose network, of the same seed, is this one's fixed target."""


@dataclass(frozen=True)
class Claim:
    """`weights` of arms' scores add up to more than 0: {better: 1, worse: -1}, or a difference of two differences."""

    words: str
    weights: dict[str, int]


@dataclass(frozen=True)
class Experiment:
    name: str
    question: str
    source: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    axis: str | None = None
    """What x is; None where the arms are no points of an axis."""
    picture: Literal["points", "lines", "horizon", "curves"] = "points"
    notes: tuple[str, ...] = field(default=())
    steps_a_pass: int = 0
    """Over the training images, at least; with fewer it is another experiment."""


def more(better: str, worse: str) -> Claim:
    return Claim(f"{better} > {worse}", {better: 1, worse: -1})


def loses_more(more: tuple[str, str], less: tuple[str, str]) -> Claim:
    """From more[0] to more[1] more is lost than from less[0] to less[1]."""
    weights = {more[0]: 1, more[1]: -1, less[0]: -1, less[1]: 1}
    return Claim(f"{more[0]} -> {more[1]} loses more than {less[0]} -> {less[1]}", weights)


def bootstrap(base: Options, generations: int = 4) -> Experiment:
    """A random network, one that predicts it, the next that predicts that one, and BYOL as the limit."""
    fixed = _family(base, tau=1.0, tau_schedule="constant")
    names = ["1: predicts a random network", *(f"{i}: predicts network {i - 1}" for i in range(2, generations + 1))]
    arms = [Arm(names[0], fixed, 18.8), *(Arm(b, fixed, teacher=a) for a, b in pairwise(names))]
    start, limit = Arm("untrained", None, 1.4), Arm("BYOL: the target follows", _family(base), 72.5)
    chain = [start, *arms, limit]
    claims = [more(arms[0].name, start.name), *(more(b.name, a.name) for a, b in pairwise(arms))]
    claims += [more(limit.name, arms[0].name), more(limit.name, arms[-1].name)]
    return Experiment(
        "bootstrap",
        "What does a network learn that predicts another one's output?",
        "section 3 and Table 5a",
        tuple(chain),
        tuple(claims),
        notes=(
            "Of one seed all networks start from the same weights, but for the random one that the first predicts, and "
            "train as long as BYOL does.",
        ),
    )


def tau(base: Options) -> Experiment:
    """The target's decay, from a copy of the online network (0) to a network that never moves (1)."""
    paper = {0.0: 0.3, 0.9: 68.4, 0.99: 72.5, 0.999: 69.8, 1.0: 18.8}

    def arm(value: float) -> Arm:
        schedule = {"tau_schedule": "constant"} if value in (0.0, 1.0) else {}
        return Arm(f"tau {value:g}", _family(base, tau=value, **schedule), paper.get(value), x=value)

    arms = tuple(map(arm, (0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)))
    claims = tuple(more("tau 0.8", f"tau {end}") for end in ("0", "0.999", "1"))
    return Experiment(
        "tau",
        "How fast should the target follow?",
        "Table 5a",
        arms,
        claims,
        axis="tau at the first step",
        picture="horizon",
        notes=(
            "tau rises to 1 by BYOL's cosine in all runs but those of tau = 0 and 1, as in the paper.",
            "A target with decay tau averages over about 1/(1 - tau) steps: what counts is the share of the run.",
        ),
    )


_TARGETS = {"ema": "EMA", "stop-gradient": "stop-gradient", "gradient": "gradient"}


def target(base: Options) -> Experiment:
    """With and without predictor, EMA, stop-gradient and negative examples; faster predictors without EMA."""
    paper = {
        (True, "ema", 0): 72.5,
        (True, "ema", 1): 70.9,
        (True, "stop-gradient", 0): 5.5,
        (True, "stop-gradient", 1): 70.2,
        (True, "gradient", 0): 0.3,
        (True, "gradient", 1): 69.0,
        (False, "ema", 0): 0.2,
        (False, "ema", 1): 70.7,
        (False, "stop-gradient", 0): 0.1,
        (False, "stop-gradient", 1): 69.2,
        (False, "gradient", 0): 0.1,
        (False, "gradient", 1): 69.4,
    }

    arms = [
        Arm(_member(predictor, of, beta), _family(base, **_parts(predictor, of), beta=float(beta)), top1)
        for (predictor, of, beta), top1 in sorted(paper.items(), key=lambda item: item[0][2])
    ]
    no_ema = _family(base, **_parts(True, "stop-gradient"), beta=0.0)
    for scale, top1 in ((2.0, 62.8), (10.0, 66.6), (20.0, 66.3)):
        faster = replace(no_ema, lr_scales={"predictor": scale})
        arms.append(Arm(f"predictor x {scale:g}, stop-gradient, beta 0", faster, top1))
    byol, faster_10 = arms[0].name, arms[-2].name
    simclr, no_negatives = _member(False, "gradient", 1), _member(False, "gradient", 0)
    claims = [more(byol, _member(*key)) for key in paper if key[2] == 0 and key != (True, "ema", 0)]
    claims += [more(simclr, no_negatives), more(faster_10, _member(True, "stop-gradient", 0))]
    return Experiment(
        "target",
        "Which parts keep the network from collapsing?",
        "Tables 5b, 19 and 21",
        tuple(arms),
        tuple(claims),
        notes=(
            "The target is a moving average of the online network (EMA), or that network itself, without its gradient "
            "(stop-gradient) or with it. beta = 1 adds negative examples (alpha = 0.1): no predictor, gradient, beta 1 "
            "is SimCLR's objective. predictor x 10: it learns at ten times the others' rate.",
        ),
    )


def collapse(base: Options) -> Experiment:
    """Loss, spread and rank over a run when the predictor or the target is taken away."""
    arms = (
        Arm("BYOL", _family(base, **_parts(True, "ema"), beta=0.0), 72.5),
        Arm("without predictor", _family(base, **_parts(False, "ema"), beta=0.0), 0.2),
        Arm("without EMA", _family(base, **_parts(True, "stop-gradient"), beta=0.0), 5.5),
        Arm("without EMA and stop-gradient", _family(base, **_parts(True, "gradient"), beta=0.0), 0.3),
        Arm("without predictor, EMA and stop-gradient", _family(base, **_parts(False, "gradient"), beta=0.0), 0.1),
    )
    return Experiment(
        "collapse",
        "What happens while a network collapses?",
        "Tables 5b and 19",
        arms,
        tuple(more("BYOL", arm.name) for arm in arms[1:]),
        picture="curves",
    )


def batch_size(base: Options) -> Experiment:
    """BYOL and SimCLR at equal epochs and images a step, in ever smaller forward passes."""
    paper = {
        "BYOL": {1024: 72.2, 512: 72.2, 256: 71.8, 128: 69.6, 64: 59.7},
        "SimCLR": {1024: 67.4, 512: 66.5, 256: 64.3, 128: 63.6, 64: 59.2},
    }
    arms = [
        Arm(
            f"{line}, {size:,}",
            replace(options, batch_size=size, accumulate=1024 // size),
            paper[line].get(size),
            x=size,
            line=line,
        )
        for line, options in _byol_and_simclr(base.at_batch(1024))
        for size in (1024, 512, 256, 128, 64, 32, 16)
    ]
    claims = (
        more("BYOL, 1,024", "BYOL, 64"),
        more("SimCLR, 1,024", "SimCLR, 64"),
        loses_more(("SimCLR, 1,024", "SimCLR, 256"), ("BYOL, 1,024", "BYOL, 256")),
        loses_more(("SimCLR, 1,024", "SimCLR, 128"), ("BYOL, 1,024", "BYOL, 128")),
    )
    return Experiment(
        "batch-size",
        "How much does a small batch cost?",
        "Figure 3a and Table 16",
        tuple(arms),
        claims,
        steps_a_pass=20,
        axis="images in one forward pass",
        picture="lines",
        notes=(
            "Gradients of 1,024 images are averaged before each step, in 1 to 64 forward passes: batch normalisation "
            "sees the small batch, and so do SimCLR's negative examples.",
            "What follows from a batch of 1,024 (rate, tau, number of steps) is moved there once, the same for all.",
        ),
    )


def augmentations(base: Options) -> Experiment:
    """BYOL and SimCLR with each operation of the views removed, down to crops alone."""
    operations = ("flip", "jitter", "gray", "blur", "solarize", "rotate_degrees", "shear")
    none = dict.fromkeys(operations, 0.0)

    def only(*kept: str) -> dict[str, Any]:
        return {name: value for name, value in none.items() if name not in kept}

    changes: dict[str, tuple[dict[str, Any], float, float]] = {
        "all": ({}, 72.5, 67.9),
        "no flip": ({"flip": 0.0}, 71.9, 67.3),
        "no blur": ({"blur": 0.0}, 71.2, 65.2),
        "no jitter": ({"jitter": 0.0}, 71.8, 63.7),
        "no grayscale": ({"gray": 0.0}, 70.3, 61.9),
        "no colour": ({"jitter": 0.0, "gray": 0.0}, 63.4, 45.7),
        "no solarize": ({"solarize": 0.0}, 72.3, 67.7),
        "crop + colour": (only("jitter", "gray"), 70.7, 64.2),
        "crop + blur": (only("blur"), 61.1, 41.7),
        "crop + flip": (only("flip"), 60.1, 40.2),
        "crop only": (none, 59.4, 40.3),
    }
    # The settings of all views first: what an arm takes away stays away.
    views = [replace(view, **base.view_changes) for view in base.views or (BYOL_T, BYOL_T_PRIME)]
    arms = [
        Arm(
            f"{line}, {name}",
            replace(options, views=tuple(replace(view, **change) for view in views), view_changes={}),
            byol if line == "BYOL" else simclr,
            x=i,
            line=line,
        )
        for line, options in _byol_and_simclr(base)
        for i, (name, (change, byol, simclr)) in enumerate(changes.items())
    ]
    claims = [
        more(f"{line}, all", f"{line}, {name}") for line in ("BYOL", "SimCLR") for name in ("no colour", "crop only")
    ]
    claims += [
        loses_more(("SimCLR, all", f"SimCLR, {name}"), ("BYOL, all", f"BYOL, {name}"))
        for name in ("no colour", "crop only")
    ]
    return Experiment(
        "augmentations",
        "Which changes of the images does the network need?",
        "Figure 3b and Table 17",
        tuple(arms),
        tuple(claims),
        picture="lines",
        axis="views",
        notes=("Both methods get the same views, BYOL's, as in the paper.",),
    )


def projector(base: Options) -> Experiment:
    """Depths of projector and predictor, and the width of the projection."""
    paper = {1: (61.9, 65.0, 65.7), 2: (71.5, 72.5, 71.4), 3: (71.4, 72.1, 72.1)}
    arms = [
        Arm(
            f"projector {depth}, predictor {predictor}",
            _family(base, depth=depth, predictor_depth=predictor),
            paper[depth][predictor - 1],
        )
        for depth in (1, 2, 3)
        for predictor in (1, 2, 3)
    ]
    widths = {16: 69.9, 32: 71.3, 64: 72.2, 128: 72.5, 256: 72.5, 512: 72.6}
    arms += [Arm(f"projection of {out}", _family(base, out=out), top1) for out, top1 in widths.items()]
    claims = (
        more("projector 2, predictor 2", "projector 1, predictor 2"),
        more("projector 2, predictor 2", "projector 2, predictor 1"),
        more("projection of 512", "projection of 16"),
    )
    return Experiment("projector", "How deep and wide should the heads be?", "Table 14", tuple(arms), claims)


def learning_rate(base: Options) -> Experiment:
    """The learning rate as a multiple of the recipe's, over the paper's range."""
    paper = {0.01: 34.8, 0.1: 65.0, 0.2: 71.7, 0.3: 72.5, 0.4: 72.3, 0.5: 71.5, 1.0: 69.4}
    return _multiples(base, "learning-rate", "base_lr", paper, 0.3, "Table 15a")


def weight_decay(base: Options) -> Experiment:
    """Weight decay as a multiple of the recipe's, over the paper's range."""
    paper = {1e-7: 72.1, 5e-7: 72.6, 1e-6: 72.5, 5e-6: 71.0, 1e-5: 69.6}
    return _multiples(base, "weight-decay", "weight_decay", paper, 1e-6, "Table 15b")


def loss_normalisation(base: Options) -> Experiment:
    """How predictions and targets are normalised before they are compared."""
    paper = {"l2": 72.5, "layer": 72.5, "none": 67.4, "batch": 65.3}
    arms = tuple(Arm(name, _family(base, normalize=name), top1) for name, top1 in paper.items())
    claims = (more("l2", "none"), more("l2", "batch"))
    return Experiment("loss-normalisation", "What should the loss compare?", "Appendix F.6, Table 20", arms, claims)


def symmetry(base: Options) -> Experiment:
    """The loss in both directions, in one, and in one for twice as long."""
    arms = [Arm("symmetric", _family(base)), Arm("one direction", _family(base, symmetric=False))]
    if base.steps is not None:
        twice = replace(_family(base, symmetric=False), steps=2 * base.steps)
        arms.append(Arm("one direction, twice as long", twice))
    return Experiment(
        "symmetry",
        "Does the loss need both directions?",
        "no table of the paper; SimSiam's section 4.6 found 68.1, 64.8 and 67.3 %",
        tuple(arms),
        (more("symmetric", "one direction"),),
    )


def init(base: Options) -> Experiment:
    """How the networks' weights are drawn, and whether the target starts as a copy."""
    arms = (
        Arm("BYOL's, target drawn anew", _family(base, target_init="independent")),
        Arm("BYOL's, target a copy", _family(base, target_init="copy")),
        Arm("timm's, target drawn anew", replace(_family(base, target_init="independent"), encoder_init="timm")),
        Arm("timm's, target a copy", replace(_family(base, target_init="copy"), encoder_init="timm")),
    )
    # The paper says of both that nothing changes: there is no order to test.
    return Experiment("init", "Does it matter how the weights start?", "Appendix F and the authors' code", arms, ())


EXPERIMENTS: dict[str, Callable[[Options], Experiment]] = {
    "bootstrap": bootstrap,
    "tau": tau,
    "target": target,
    "collapse": collapse,
    "batch-size": batch_size,
    "augmentations": augmentations,
    "projector": projector,
    "learning-rate": learning_rate,
    "weight-decay": weight_decay,
    "loss-normalisation": loss_normalisation,
    "symmetry": symmetry,
    "init": init,
}


def _family(base: Options, **method_args: Any) -> Options:
    return replace(base, method=FAMILY, method_args={**base.method_args, **method_args})


def _parts(predictor: bool, of: str) -> dict[str, Any]:
    """Arguments of a member of the family. Without its defaults' names: equal members are equal runs."""
    parts: dict[str, Any] = {} if predictor else {"predictor_depth": 0}
    return parts if of == "ema" else parts | {"target": of}


def _member(predictor: bool, of: str, beta: int) -> str:
    return f"{'predictor' if predictor else 'no predictor'}, {_TARGETS[of]}, beta {beta}"


def _byol_and_simclr(base: Options) -> tuple[tuple[str, Options], ...]:
    """The two, with the same views."""
    same = replace(base, views=base.views or (BYOL_T, BYOL_T_PRIME))
    return ("BYOL", same), ("SimCLR", same.for_method("simclr"))


def _multiples(
    base: Options, name: str, setting: str, paper: dict[float, float], own: float, source: str
) -> Experiment:
    value = getattr(base, setting)
    if value is None:
        raise ValueError(f"{name} varies {setting}; give its middle, e.g. --set {setting}=0.002")
    arms = tuple(
        Arm(f"x {at / own:.3g}", replace(base, **{setting: value * at / own}), top1, x=at / own)
        for at, top1 in paper.items()
    )
    ends = arms[0].name, arms[-1].name
    claims = tuple(more("x 1", end) for end in ends)
    words = name.replace("-", " ")
    return Experiment(
        name, f"How sensitive is BYOL to the {words}?", source, arms, claims, f"{words}, as a multiple", "lines"
    )

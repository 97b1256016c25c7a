"""The paper's experiments: what each list changes, and what it claims."""

from dataclasses import asdict, replace

import pytest

from byol.experiments.paper import EXPERIMENTS
from byol.experiments.small import digits_minute
from byol.views.view import BYOL_T, BYOL_T_PRIME


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_list_has_distinct_arms_and_claims_about_them(name):
    experiment = EXPERIMENTS[name](digits_minute())
    names = [arm.name for arm in experiment.arms]
    assert experiment.name == name
    assert len(set(names)) == len(names)
    assert all(set(claim.weights) <= set(names) for claim in experiment.claims)
    assert all(arm.teacher is None or names.index(arm.teacher) < names.index(arm.name) for arm in experiment.arms)
    # What the paper's numbers say of each claim is what is claimed.
    paper = {arm.name: arm.paper for arm in experiment.arms}
    for claim in experiment.claims:
        theirs = [paper[arm] for arm in claim.weights]
        if None not in theirs:
            assert sum(w * t for w, t in zip(claim.weights.values(), theirs, strict=True)) > 0, claim.words


def _changes(options, base):
    """The settings in which two options differ."""
    ours, theirs = asdict(options), asdict(base)
    found = {name for name in ours if ours[name] != theirs[name] and name not in ("method", "method_args", "views")}
    arguments = {n for n in ours["method_args"] if ours["method_args"][n] != theirs["method_args"].get(n)}
    if ours["method"].endswith("Family") or ours["method"] == theirs["method"]:
        found |= arguments
    views = [dict(v) for v in ours["views"] or ()], [dict(v) for v in theirs["views"] or ()]
    return found | {f"view.{n}" for a, b in zip(*views, strict=False) for n in a if a[n] != b[n]}


def test_what_an_arm_takes_away_stays_away():
    base = replace(digits_minute(), view_changes={"blur": 0.5})  # as --set view.blur=0.5; and its views rotate
    arms = {arm.name: arm.options for arm in EXPERIMENTS["augmentations"](base).arms}
    assert all(view.blur == 0.5 for view in arms["BYOL, all"].views)
    for view in arms["BYOL, crop only"].views:
        operations = ("flip", "jitter", "gray", "blur", "solarize", "rotate_degrees", "shear")
        assert {getattr(view, name) for name in operations} == {0.0}
    assert all(not options.view_changes for options in arms.values())


def test_the_arms_of_a_list_differ_in_what_it_is_about():
    base = replace(digits_minute(), views=(BYOL_T, BYOL_T_PRIME))
    allowed = {
        "bootstrap": {"tau", "tau_schedule"},
        "tau": {"tau", "tau_schedule"},
        "target": {"target", "predictor_depth", "beta", "lr_scales"},
        "collapse": {"target", "predictor_depth", "beta"},
        "batch-size": {"batch_size", "accumulate"},
        "augmentations": {"view.flip", "view.blur", "view.jitter", "view.gray", "view.solarize"},
        "projector": {"depth", "predictor_depth", "out"},
        "learning-rate": {"base_lr"},
        "weight-decay": {"weight_decay"},
        "loss-normalisation": {"normalize"},
        "symmetry": {"symmetric", "steps"},
        "init": {"target_init", "encoder_init"},
    }
    for name, make in EXPERIMENTS.items():
        for arm in make(base).arms:
            if arm.options is not None and arm.line == "BYOL":
                start = base.at_batch(1024) if name == "batch-size" else base
                assert _changes(arm.options, start) <= allowed[name], arm.name


def test_a_batch_of_1024_is_averaged_whatever_its_parts():
    for arm in EXPERIMENTS["batch-size"](digits_minute()).arms:
        assert arm.options.batch_size * arm.options.accumulate == 1024
    lines = {arm.line: arm.options.method for arm in EXPERIMENTS["batch-size"](digits_minute()).arms}
    assert lines == {"BYOL": "byol", "SimCLR": "simclr"}
    base = digits_minute()
    assert {arm.options.steps * 1024 for arm in EXPERIMENTS["batch-size"](base).arms} == {base.steps * base.batch_size}

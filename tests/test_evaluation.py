"""A whole evaluation of a run."""

import json
from dataclasses import replace

import pytest

from byol.evaluate import protocols, table
from byol.evaluate.labelled import Parts
from byol.evaluate.protocols import Settings
from byol.evaluation import evaluate_run
from byol.options import Options
from byol.pipeline import pretrain
from byol.subject import open_parts

SMALL = Options(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    steps=2,
    batch_size=8,
    method_args={"hidden": 16, "out": 8},
)


@pytest.fixture
def trained(with_test_part, tmp_path):
    pretrain(str(with_test_part), tmp_path / "run", SMALL)
    return tmp_path / "run"


def test_a_protocol_that_fails_loses_nothing_of_the_others(with_test_part, trained, monkeypatch):
    def fail(training):
        raise ValueError("training diverged")

    monkeypatch.setitem(protocols._FITS, "linear", fail)
    settings = Settings(("knn", "linear", "fewshot"), shots=2, draws=2)
    evaluated = evaluate_run(trained, str(with_test_part), settings=settings)
    with pytest.raises(ValueError, match="training diverged"):
        evaluated.whole()
    found = json.loads((trained / "evaluation.json").read_text("utf-8"))
    assert [row["protocol"] for row in found["rows"]] == ["knn", "knn", "fewshot"]
    assert found["failed"] == {"linear": "training diverged"}
    (trained / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="training diverged"):
        evaluate_run(trained, str(with_test_part), settings=Settings(("linear",)))
    assert not (trained / "evaluation.json").exists()


def test_no_choice_of_a_whole_evaluation_reads_a_test_image(with_test_part, trained, monkeypatch):
    parts, fitted = open_parts(str(with_test_part), None), []

    def open_test():
        assert fitted, "a test image was read too early"
        return parts.open_test()

    fits = table.fit_rows
    guarded = Parts(parts.train, open_test, parts.test_name)
    settings = Settings(protocols=("knn", "linear"))
    with pytest.raises(AssertionError, match="too early"):  # the guard guards
        evaluate_run(trained, str(with_test_part), parts=guarded, settings=settings)
    monkeypatch.setattr(table, "fit_rows", lambda training: fitted.append(fits(training)) or fitted[-1])
    found = evaluate_run(trained, str(with_test_part), parts=guarded, settings=settings).found
    assert found["test_images"] == 12
    # Other labels of the training images are another evaluation, of which no row is kept.
    wrong = replace(parts.train, source=replace(parts.train.source, labels=1 - parts.train.labels))
    again = evaluate_run(
        trained,
        str(with_test_part),
        parts=Parts(wrong, open_test, parts.test_name),
        settings=Settings(("knn",)),
    ).found
    assert {row["protocol"] for row in again["rows"]} == {"knn"}


def test_what_fails_on_test_images_loses_nothing_of_the_others(with_test_part, trained, monkeypatch):
    def cannot(training):
        row = protocols._knn(training)[0]
        return [replace(row, protocol="linear", name="linear", fitted={"backbone": protocols.Fitted(fail)})]

    def fail(test, features):
        raise ValueError("out of memory")

    monkeypatch.setitem(protocols._FITS, "linear", cannot)
    found = evaluate_run(trained, str(with_test_part), settings=Settings(("linear", "knn"))).found
    assert [row["protocol"] for row in found["rows"]] == ["knn", "knn"]
    assert found["failed"] == {"linear": "out of memory"}


def test_rows_of_another_network_by_the_same_name_are_not_kept(with_test_part, trained, tmp_path):
    kept = []
    for seed, protocol in ((1, "knn"), (2, "fewshot"), (2, "knn")):
        other = tmp_path / str(seed) / "other"
        if not other.exists():
            pretrain(str(with_test_part), other, replace(SMALL, seed=seed))
        settings = Settings((protocol,), shots=2, draws=2)
        found = evaluate_run(trained, str(with_test_part), settings=settings, baselines=(str(other),)).found
        kept.append({row["protocol"] for row in found["rows"]})
    assert kept == [{"knn"}, {"fewshot"}, {"fewshot", "knn"}]
    assert all("other" in row["columns"] for row in found["rows"])

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


@pytest.fixture
def trained(with_test_part, tmp_path):
    options = Options(
        backbone="resnet18",
        backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        steps=2,
        batch_size=8,
        method_args={"hidden": 16, "out": 8},
    )
    pretrain(str(with_test_part), tmp_path / "run", options)
    return tmp_path / "run"


def test_a_protocol_that_fails_loses_nothing_of_the_others(with_test_part, trained, monkeypatch):
    def fail(training):
        raise ValueError("training diverged")

    monkeypatch.setitem(protocols._FITS, "linear", fail)
    with pytest.raises(ValueError, match="training diverged"):
        evaluate_run(trained, str(with_test_part), settings=Settings(("knn", "linear", "fewshot"), shots=2, draws=2))
    found = json.loads((trained / "evaluation.json").read_text("utf-8"))
    assert [row["protocol"] for row in found["rows"]] == ["knn", "knn", "fewshot"]
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

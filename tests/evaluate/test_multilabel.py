"""Multi-label logistic regression against one scikit-learn model per class, and by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from byol.evaluate import logistic
from byol.evaluate.multilabel import fit_multilabel, random_split

FEW = tuple(np.logspace(-2, 4, 4))


def labels(images=400, dim=12, seed=0):
    """Features of different scales and noisy labels of four classes, from common to rare, some not known."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(images, dim))
    values = x @ np.random.default_rng(9).normal(size=(dim, 4)) + 3 * generator.normal(size=(images, 4))
    targets = (values > [-1.0, 1.0, 4.0, 6.0]).astype(np.int8)
    targets[generator.random(targets.shape) < 0.1] = -1
    return x * 10.0 ** np.linspace(-2, 2, dim) + 3, targets


def mean_precision(targets, scores):
    columns = [(t[t >= 0], s[t >= 0]) for t, s in zip(targets.T, scores.T, strict=True)]
    return float(np.mean([average_precision_score(t, s) for t, s in columns]))


def one_by_one(x, targets, penalty, queries):
    """Scores of the queries, [n, K], by scikit-learn, of each class's known images alone."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, queries = (x - mean) / std, (queries - mean) / std
    models = [LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=10_000).fit(x[t >= 0], t[t >= 0]) for t in targets.T]
    return np.column_stack([model.decision_function(queries) for model in models])


@pytest.mark.parametrize("penalty", [0.1, 20.0])
def test_each_class_is_scikit_learn_s(penalty):
    x, targets = labels()
    fit = fit_multilabel(x, targets, score=mean_precision, penalties=[penalty])
    assert fit.converged
    np.testing.assert_allclose(fit.classifier.scores(x), one_by_one(x, targets, penalty, x), rtol=1e-4, atol=1e-4)


def test_penalty_by_hand():
    # x = -1, 1, absent and present: the sum of losses + penalty / 2 * w^2 is 2 log(1 + exp(-w)) + penalty w^2 / 2,
    # whose derivative is zero where penalty = 2 sigmoid(-w) / w. For w = log 3: 1 / (2 log 3).
    x, targets = np.array([[-1.0], [1.0]]), np.array([[0], [1]])
    fit = fit_multilabel(x, targets, score=lambda t, s: 0.0, penalties=[1 / (2 * np.log(3))])
    np.testing.assert_allclose(fit.classifier.scores(x), [[-np.log(3)], [np.log(3)]], rtol=1e-5)


def test_what_is_not_known_changes_nothing_but_the_standardisation():
    x, targets = labels()
    x = np.vstack([x, x.mean(axis=0) + 3 * (x - x.mean(axis=0))])
    unknown = np.vstack([targets, np.full_like(targets, -1)])
    fit = fit_multilabel(x, unknown, score=lambda t, s: 0.0, penalties=[1.0])
    np.testing.assert_allclose(fit.classifier.scores(x), one_by_one(x, unknown, 1.0, x), rtol=1e-4, atol=1e-4)


def test_validation_scores_are_of_fits_to_the_fit_part_and_choose_the_penalty():
    x, targets = labels(images=150)
    fit, validation = np.arange(0, 150, 2), np.arange(1, 150, 2)
    few = (0.5, 30.0, 1e3)
    found = fit_multilabel(x, targets, score=mean_precision, penalties=few, split=(fit, validation))
    expected = {p: mean_precision(targets[validation], one_by_one(x[fit], targets[fit], p, x[validation])) for p in few}
    assert found.validation_scores == pytest.approx(expected, abs=2e-3)
    assert found.penalty == max(expected, key=expected.get)


def test_the_penalty_of_the_fit_part_is_not_that_of_all_images():
    # Continuous in the scores, so that a penalty divided by the wrong number of images shows.
    x, targets = labels(images=150)
    fit, validation = np.arange(0, 150, 2), np.arange(1, 150, 2)

    def mean_square(targets, scores):
        return float(np.square(scores).mean())

    found = fit_multilabel(x, targets, score=mean_square, penalties=[30.0], split=(fit, validation))
    expected = mean_square(targets, one_by_one(x[fit], targets[fit], 30.0, x[validation]))
    assert found.validation_scores[30.0] == pytest.approx(expected, rel=1e-2)


def test_a_class_that_the_fit_part_lacks_does_no_harm_to_the_others():
    x, targets = labels(images=200)
    targets[:, 3] = 0
    targets[-1, 3] = 1
    split = (np.arange(100), np.arange(100, 200))
    found = fit_multilabel(x, targets, score=mean_precision, penalties=[1.0], split=split)
    assert found.converged
    expected = one_by_one(x, targets[:, :3], 1.0, x)
    np.testing.assert_allclose(found.classifier.scores(x)[:, :3], expected, rtol=1e-3, atol=1e-3)


def test_a_streamed_fit_is_the_one_in_memory(tmp_path, monkeypatch):
    x, targets = labels(images=1500)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    kept = fit_multilabel(np.array(on_disk), targets, score=mean_precision, penalties=FEW)
    monkeypatch.setattr(logistic, "STREAM_IMAGES", 500)
    monkeypatch.setattr(logistic, "BLOCK_IMAGES", 128)
    streamed = fit_multilabel(on_disk, targets, score=mean_precision, penalties=FEW)
    assert (streamed.penalty, streamed.classifier.converged) == (kept.penalty, True)
    difference = streamed.classifier.weight - kept.classifier.weight
    assert np.linalg.norm(difference) <= 1e-4 * np.linalg.norm(kept.classifier.weight)


def test_the_same_input_twice_gives_the_same_bits():
    x, targets = labels()
    given = (x.copy(), targets), (torch.from_numpy(x), torch.from_numpy(targets))
    first, second = (fit_multilabel(*pair, score=mean_precision, penalties=FEW, seed=4) for pair in given)
    np.testing.assert_array_equal(first.classifier.weight, second.classifier.weight)
    assert first.validation_scores == second.validation_scores


def test_split_is_random_disjoint_complete_and_seeded():
    fit, validation = random_split(10, 0.2, np.random.default_rng(0))
    assert sorted([*fit, *validation]) == list(range(10))
    assert len(validation) == 2
    np.testing.assert_array_equal(validation, random_split(10, 0.2, np.random.default_rng(0))[1])
    assert len({tuple(random_split(10, 0.2, np.random.default_rng(s))[1]) for s in range(9)}) > 1
    assert [len(part) for part in random_split(2, 0.01, np.random.default_rng(0))] == [1, 1]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([[0, 1], [1, 1], [0, -1]]), "class 1 is present in no training image or absent from none"),
        (np.array([[0, 2], [1, 0], [0, 1]]), "of -1, 0 and 1"),
        (np.array([0, 1, 1]), "of -1, 0 and 1"),
        (np.array([[0], [1]]), "3 feature rows and 2 rows of targets"),
        (np.array([[0.0], [1.0], [1.0]]), "float64"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(targets, message):
    with pytest.raises(ValueError, match=message) as error:
        fit_multilabel(np.eye(3), targets, score=mean_precision)
    assert "\n" not in str(error.value)


def test_a_split_of_one_image_or_of_no_share_is_refused():
    with pytest.raises(ValueError, match="one image"):
        random_split(1, 0.2, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"validation_share=0"):
        random_split(5, 0, np.random.default_rng(0))

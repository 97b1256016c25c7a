"""Embedder keeps scikit-learn's rules, by scikit-learn's own checks, and does what it is for."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from byol.sklearn import Embedder

TINY = {
    "backbone": "resnet18",
    "steps": 1,
    "batch_size": 8,
    "settings": {
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        "method_args": {"hidden": 8, "out": 4},
    },
    "device": "cpu",
}
EXPECTED: dict[str, str] = {}


@parametrize_with_checks([Embedder(**TINY)], expected_failed_checks=lambda _: EXPECTED, xfail_strict=True)
def test_scikit_learns_own_check(estimator, check):
    check(estimator)

"""What a frozen encoder is worth: its features, and the classifiers that read them.

Labels are used here and in nothing that trains an encoder. Every choice is made on training data; the test
data are read last.
"""

from byol.evaluate.features import extract
from byol.evaluate.fewshot import FewshotResult, fewshot_evaluation
from byol.evaluate.knn import weighted_knn
from byol.evaluate.linear import LinearFit, LinearResult, fit_linear, linear_evaluation
from byol.evaluate.logistic import LinearClassifier, logistic_regression
from byol.evaluate.multilabel import fit_multilabel

__all__ = [
    "FewshotResult",
    "LinearClassifier",
    "LinearFit",
    "LinearResult",
    "extract",
    "fewshot_evaluation",
    "fit_linear",
    "fit_multilabel",
    "linear_evaluation",
    "logistic_regression",
    "weighted_knn",
]

"""The pictures: what the network sees, how training went, how good the result is."""

from byol.pictures.classes import confusion_matrix, per_class
from byol.pictures.classification import probabilities_chart
from byol.pictures.evaluation import label_efficiency, result_rows, results_chart
from byol.pictures.experiments import experiment
from byol.pictures.sheets import neighbour_sheet, sample_rows, suggested_sheet, views_grid
from byol.pictures.thumbnails import thumbnail
from byol.pictures.training import comparison, mean_curve, training_curves

__all__ = [
    "comparison",
    "confusion_matrix",
    "experiment",
    "label_efficiency",
    "mean_curve",
    "neighbour_sheet",
    "per_class",
    "probabilities_chart",
    "result_rows",
    "results_chart",
    "sample_rows",
    "suggested_sheet",
    "thumbnail",
    "training_curves",
    "views_grid",
]

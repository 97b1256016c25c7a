"""A page of a run to look at: what was trained on what, how good it is, and what it makes of the images."""

from byol.report.page import REPORT, write_page
from byol.report.watch import Watching, pretrain, report

__all__ = ["REPORT", "Watching", "pretrain", "report", "write_page"]

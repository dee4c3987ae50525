"""Evaluation of results: COCO average precision, matching metrics for dense scenes, and their report."""

from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.matching import Overlaps, matching_metrics, overlaps, tune_score_threshold
from masklab.evaluation.report import print_report, write_metrics

__all__ = [
    "Overlaps",
    "coco_metrics",
    "matching_metrics",
    "overlaps",
    "print_report",
    "tune_score_threshold",
    "write_metrics",
]

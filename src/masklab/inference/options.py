"""Prediction options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from masklab.inference.views import PLAIN, Flips, View, all_views
from masklab.utils.errors import InputError
from masklab.utils.types import Intensity, Precision

_UNTUNED_THRESHOLD = 0.5


def check_probability(value: float, name: str) -> None:
    """Raise `InputError`, which calls the value ``name``, unless it is from 0 to 1."""
    if not 0 <= value <= 1:
        meant = f" (did you mean {value / 100:g}?)" if 2 <= value <= 100 else ""
        raise InputError(f"{name} is {value:g}: give a probability from 0 to 1{meant}.")


@dataclass(frozen=True)
class PredictionOptions:
    """How a model is used on images; nothing here changes the model.

    - ``flips``: flips of test-time augmentation: "none", "horizontal", "both" or "turns" (1, 2, 4, 8 views)
    - ``scales``: scales of test-time augmentation, as factors on the size that the model was trained for
    - ``max_detections``: largest number of objects per image; None takes the model's own number
    - ``score_threshold``: score from which an object counts as found; None takes the model's own threshold
    - ``min_score``: objects of a lower score are left out before their masks are computed, which saves time; average
      precision needs them all
    - ``intensity``: "model" rescales intensities as in training; "percentiles" stretches each image between its
      percentiles 0.1 and 99.9, all channels together, unless the model has percentiles of its own
    - ``precision``: number format of the convolutions; "auto" takes bf16 where the hardware has it

    Time and memory grow with the number of views, which is flips times scales.

    Raises `InputError` for values that make no sense.
    """

    flips: Flips = "none"
    scales: tuple[float, ...] = (1.0,)
    max_detections: int | None = None
    score_threshold: float | None = None
    min_score: float = 0.0
    precision: Precision = "auto"
    intensity: Intensity = "model"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        all_views(self.flips, self.scales)
        if self.max_detections is not None and self.max_detections < 1:
            raise InputError(f"max_detections is {self.max_detections}: give 1 or more.")
        if self.score_threshold is not None:
            check_probability(self.score_threshold, "score_threshold")
        check_probability(self.min_score, "min_score")
        for name, allowed in (("precision", get_args(Precision)), ("intensity", get_args(Intensity))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(allowed)}.")

    def threshold(self, tuned: float | None) -> float:
        """The score from which an object counts as found: that given here, else the model's ``tuned`` one, else 0.5."""
        given = (self.score_threshold, tuned, _UNTUNED_THRESHOLD)
        return next(threshold for threshold in given if threshold is not None)

    @property
    def views(self) -> list[View]:
        """The views of an image that the network sees."""
        return all_views(self.flips, self.scales)

    @property
    def plain(self) -> bool:
        """Whether the network sees each image once, as it is."""
        return self.views == [PLAIN]

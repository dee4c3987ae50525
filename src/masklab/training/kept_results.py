"""What the best weights of a run found in the validation images, kept beside them so that a report need not predict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from masklab.utils.files import atomic_write

KEPT = "best_results.json"
_MOST_RESULTS = 100_000  # about 30 MB; beyond it predicting again is the smaller cost

Results = Mapping[int | str, Sequence[dict[str, Any]]]
"""Results in COCO's form by image id."""


def write_results(path: Path, results: Results, step: int, precision: str) -> None:
    """Write the results of the weights of ``step``, computed in a number format; very many are left out.

    A file of earlier weights is removed in any case.
    """
    if sum(map(len, results.values())) > _MOST_RESULTS:
        path.unlink(missing_ok=True)
        return
    text = json.dumps({"step": step, "precision": precision, "images": list(results.items())}, separators=(",", ":"))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_results(run: Path, step: Any, precision: str) -> dict[int | str, list[dict[str, Any]]] | None:
    """The results that a run kept of the weights of ``step`` in a number format; None where it has none of these."""
    try:
        values = json.loads((run / KEPT).read_text(encoding="utf-8"))
        fits = values["step"] == step and values["precision"] == precision
        return dict(values["images"]) if fits else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None

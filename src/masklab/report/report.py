"""The report of a run or a model: training, data, and how good it is on a split, as one HTML file."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from masklab.datasets.open import open_split
from masklab.datasets.source import Data
from masklab.evaluation.confusion import confusion
from masklab.evaluation.evaluate import Evaluation, evaluate_in_full
from masklab.evaluation.sweep import sweep
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor, load
from masklab.report import errors, scores
from masklab.report.data_sheet import Facts, data_sheet, facts_of, facts_of_split
from masklab.report.groups import groups_section
from masklab.report.markup import Html, joined, named, paragraph, table
from masklab.report.page import note, page, page_to_write, write_page
from masklab.report.pictures import Budget, Gallery
from masklab.report.training import Run, read_run, training_section
from masklab.training.kept_results import KEPT, Results, read_results
from masklab.training.record import fingerprint
from masklab.utils.device import number_format
from masklab.utils.errors import InputError
from masklab.utils.extras import require
from masklab.weights.facts import find_weights, read_notes

_log = logging.getLogger(__name__)


def report(
    model: str | Path,
    output: str | Path,
    data: Data | None = None,
    split: str = "val",
    options: PredictionOptions | None = None,
    predict: bool = True,
) -> Evaluation | None:
    """Measure a model, a run folder, weights file or name of a model, on a split and write a report to the file ``output``.

    ``data`` is by default what the run was trained on.  Where that is not known, or not there any more, the report has the
    training alone and says so, and None is returned.  On the validation images of the run, the results that training kept
    are used again; without ``predict`` there is no evaluation where there are none.  Raises `InputError` for a model or
    given data that cannot be used and for a file that cannot be written.
    """
    require("matplotlib", "report", "a report")
    output = page_to_write(output)
    weights, run = find_weights(model), read_run(model)
    source = data or (None if run is None else run.data)
    evaluation, reason = None, "No data are named: give --data DIR to measure the model on a split of a data set."
    if source is not None:
        try:
            predictor = load(weights, options=options)
            known = None if run is None else _kept(run, predictor, weights, source, split)
            if predict or known is not None:
                evaluation = evaluate_in_full(predictor, source, split, known_results=known)
                evaluation.metrics["measured"]["model"] = str(weights)
            reason = f"The model was not measured: `masklab report {model}` does it."
        except InputError as error:
            if data is not None:
                raise
            reason = f"The data of the run cannot be used ({error}) Give --data DIR to measure the model on others."
            _log.warning(reason)
    write_report(output, str(model), evaluation, run, read_notes(weights), source, reason)
    return evaluation


def _kept(run: Run, predictor: Predictor, weights: Path, data: Data, split: str) -> Results | None:
    """The results that the run kept of these weights, if they are of all images of the split and of the same options."""
    record, options = run.record.get("data", {}).get(split), predictor.options
    if weights.name != "best.safetensors" or record is None or not (run.folder / KEPT).is_file():
        return None
    precision = number_format(predictor.device, options.precision)
    if options != PredictionOptions(precision=options.precision):
        return None
    results = read_results(run.folder, read_notes(weights).get("step"), precision)
    if results is None:
        return None
    source = open_split(data, split)
    now, ids = fingerprint(source), {image.image_id for image in source.images}
    same = all(now[key] == record.get(key) for key in ("annotations_sha256", "images_sha256"))
    return results if same and ids == set(results) else None


def report_of(model: str | Path, evaluation: Evaluation, output: str | Path, data: Data) -> Path:
    """Write a report of an evaluation of ``model`` on ``data`` that was made already, and of its run."""
    return write_report(output, str(model), evaluation, read_run(model), read_notes(model), data)


def write_report(
    output: str | Path,
    name: str,
    evaluation: Evaluation | None,
    run: Run | None = None,
    notes: dict[str, Any] | None = None,
    data: Data | None = None,
    reason: str = "",
) -> Path:
    """Write a report of what is known: an evaluation, a run, or both; ``reason`` is why there is no evaluation.

    ``name`` is the model's, ``notes`` those of its weights, ``data`` the data set, whose split ``train`` is measured for
    the data sheet if it is there.
    """
    sections: list[tuple[str, str, Html]] = []
    if evaluation is None:
        sections.append(("summary", "Summary", note(reason or "The model was not measured.")))
    else:
        sections += _evaluation_sections(evaluation)
    sections.append(("data", "Data", data_sheet(_facts(evaluation, run, data))))
    sections.append(("training", "Training", training_section(run, notes or {})))
    if evaluation is not None:
        sections.append(("measured", "How this was measured", _measured(evaluation)))
    return write_page(output, page(f"{Path(name).name or name}: report", _subtitle(name, evaluation), sections))


def _evaluation_sections(evaluation: Evaluation) -> list[tuple[str, str, Html]]:
    swept = sweep(evaluation.inputs, evaluation.overlaps)
    mixed = confusion(evaluation.inputs, evaluation.overlaps, evaluation.threshold)
    gallery, budget = Gallery(evaluation), Budget()
    return [
        ("summary", "Summary", scores.summary(evaluation, swept)),
        ("score", "The score threshold", scores.threshold_section(evaluation, swept)),
        ("curves", "Curves", scores.curves(evaluation, swept)),
        ("figures", "Figures", scores.figures(evaluation)),
        ("groups", "Which objects and images", groups_section(evaluation)),
        ("kinds", "Kinds of errors", errors.kinds_section(evaluation, mixed)),
        ("confusion", "Confusion of classes", errors.confusion_section(evaluation, mixed)),
        ("images", "Worst and best images", errors.images_section(evaluation, gallery, budget)),
        ("gallery", "Errors by kind", errors.gallery_section(evaluation, gallery, budget)),
    ]


def _subtitle(name: str, evaluation: Evaluation | None) -> Html:
    if evaluation is None:
        return paragraph(named(name))
    measured = evaluation.metrics["measured"]
    return paragraph(named(name), " on the split ", named(measured["split"]), " of ", named(measured["data"]))


def _facts(evaluation: Evaluation | None, run: Run | None, data: Data | None) -> dict[str, Facts]:
    """The splits of the run's record, the training split where it can be opened, and what was measured."""
    found: dict[str, Facts] = {}
    own = run is not None and (data is None or data == run.data)
    if data is not None:
        with suppress(InputError):  # a data set to measure on needs none
            found["train"] = facts_of_split(open_split(data, "train"))
    if evaluation is not None:
        name = str(evaluation.metrics["measured"]["split"])
        found[name] = facts_of(evaluation.inputs, evaluation.split.note)
    for name, record in (run.record.get("data", {}) if run is not None else {}).items():
        if own and name in found:
            found[name].record = record
        else:
            found[name if own else f"{name} of the run"] = Facts(record=record)
    return found


def _measured(evaluation: Evaluation) -> Html:
    rows = []
    for key, value in evaluation.metrics["measured"].items():
        if value in (None, [], False) or key == "versions":
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else "yes" if value is True else value
        rows.append((key.replace("_", " "), named(shown)))
    versions = ", ".join(f"{name} {number}" for name, number in evaluation.metrics["measured"]["versions"].items())
    return joined([table(["", ""], [*rows, ("versions", versions)], class_="words")])

"""Classes of a model meet those of a data set by name, in `evaluate`, `show --data` and results with names."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from contracts import predictor

from masklab.cli.app import main
from masklab.datasets.class_names import match_classes
from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.evaluate import evaluate
from masklab.evaluation.inputs import read_inputs
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.results.instances import Instances
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import save_model


def table(*names, first=1):
    return ClassTable(tuple(range(first, first + len(names))), names)


ALIKE = [
    ("nucleus", "Nuclei"),
    ("nuclei", "nucleus"),
    ("cell", "CELLS"),
    ("berry", "Berries"),
    ("cookie", "cookies"),
    ("box", "boxes"),
    ("bus", "Buses"),
    ("glass", "glasses"),
    ("wine glass", "Wine_Glasses"),
    ("axe", "axes"),
    ("tomato", "tomatoes"),
    ("person", "people"),
    ("woman", "women"),
    ("leaf", "leaves"),
    ("bacterium", "bacteria"),
    ("lens", "lenses"),
    ("traffic light", "traffic-lights"),
    ("traffic light", "TrafficLight"),
    ("blood_cell", "Blood Cells "),
    ("Straße", "STRASSE"),
    ("\uff43\uff45ll", "cell"),  # full width
    ("1", "1"),
    ("-", "-"),
]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_differ_in_case_number_and_separators_are_one_class(one, other):
    for model, data in ((one, other), (other, one)):
        match = match_classes(table(model, "zebra"), table("zebra", data, first=7), "x")
        assert match.labels == {7: 1, 8: 0}
        assert ("as" in match.note) == (one != other)


@pytest.mark.parametrize(
    ("one", "other"), [("bus", "bu"), ("A", "As"), ("cell", "cello"), ("-", "_"), ("pus", "pu"), ("mass", "mas")]
)
def test_other_names_are_other_classes(one, other):
    with pytest.raises(InputError, match=rf"x: none of its classes \({other}, y\) .* finds \({one}, zebra\)"):
        match_classes(table(one, "zebra"), table(other, "y"), "x")


def test_the_closest_name_decides_and_ids_only_among_equal_names():
    assert match_classes(table("cells", "cell", "Cell"), table("Cell", "cell", "cells"), "x").labels == {
        1: 2,
        2: 1,
        3: 0,
    }
    assert match_classes(table("cell", "Cell"), table("CELLS", "Cell"), "x").labels == {2: 1}, (
        "which of the two is unknown"
    )
    twice = table("cell", "cell")
    assert match_classes(twice, twice, "x").labels == {1: 0, 2: 1}
    assert match_classes(table("a1", "b1"), table("b1", "a1"), "x") == match_classes(
        table("a1", "b1", first=50), table("b1", "a1"), "x"
    )


def test_one_class_is_matched_with_one_class_whatever_they_are_called():
    match = match_classes(table("nucleus"), table("object"), "x")
    assert match.labels == {1: 0}
    assert match.note == "classes are matched, object as nucleus"
    unused = table("things", "blobs", first=0)  # Roboflow lists a supercategory that no annotation has
    assert match_classes(table("nucleus"), unused, "x", {1}).labels == {1: 0}
    with pytest.raises(InputError, match="things, blobs"):
        match_classes(table("nucleus"), unused, "x", {0, 1})


def test_what_one_side_lacks_is_left_out_and_named():
    match = match_classes(table("cat", "dog"), table("dog", "cow", "horse"), "x", {1, 2})
    assert match.labels == {1: 1}
    assert "classes of the data that the model does not know, cow;" in match.note
    assert "classes of the model that the data do not have, cat" in match.note
    assert match_classes(table("cat", "dog"), table("cat", "dog"), "x").note == ""


@pytest.fixture
def classes(shapes):
    values = json.loads((shapes / "val.json").read_text())
    return ClassTable.from_categories(values["categories"], "val.json")


@pytest.fixture
def renamed(shapes, tmp_path):
    """The drawn data set with other ids, in another order, and names as another tool may write them."""
    folder = shutil.copytree(shapes, tmp_path / "renamed")
    new = {"disc": (40, "Discs"), "box": (30, "BOXES"), "triangle": (20, "triangle"), "ring": (10, "Ring")}

    def rename(change):
        values = json.loads((shapes / "val.json").read_text())
        of_id = {c["id"]: new[c["name"]] for c in values["categories"]}
        values["categories"] = [{"id": i, "name": name} for i, name in reversed(of_id.values())]
        for annotation in values["annotations"]:
            annotation["category_id"] = of_id[annotation["category_id"]][0]
        change(values)
        (folder / "val.json").write_text(json.dumps(values))
        return folder

    return rename


def measured(model, folder):
    metrics = evaluate(model, folder)
    note = metrics["measured"].pop("class_note")
    return {key: metrics[key] for key in ("mask", "box", "per_class", "matching")}, note


def test_evaluation_is_the_same_under_other_names_and_ids(shapes, renamed, tiny_config, classes, caplog):
    caplog.set_level(logging.INFO, "masklab")
    model = predictor(build_model(tiny_config, classes))
    figures, note = measured(model, shapes)
    assert note is None
    again, note = measured(model, renamed(lambda values: None))
    assert again == figures
    assert figures["per_class"]["disc"]["objects"] > 0
    assert "classes are matched, " in note
    assert "Discs as disc" in note
    assert note in caplog.text


def test_classes_that_only_one_side_has_are_left_out(renamed, tiny_config, classes):
    def strange(values):
        values["categories"][0]["name"] = "star"

    def without(values):
        gone = values["categories"].pop(0)["id"]
        values["annotations"] = [a for a in values["annotations"] if a["category_id"] != gone]

    model = predictor(build_model(tiny_config, classes), score_threshold=0.0)
    figures, note = measured(model, renamed(without))
    assert "the data do not have, ring" in note
    assert figures["per_class"]["ring"]["objects"] == 0
    others, note = measured(model, renamed(strange))
    assert "the model does not know, star" in note
    assert others == figures, "neither the objects nor the detections of the class count"


def test_detections_of_a_class_that_the_data_lack_are_not_wrong(renamed, tiny_config, classes, monkeypatch):
    def without(values):
        gone = values["categories"].pop(0)["id"]
        values["annotations"] = [a for a in values["annotations"] if a["category_id"] != gone]

    def found(count):
        def predict(self, image, batch_size=8, check=None):
            box, ring = np.array([[0, 0, 9, 9]] * count, np.float32), [classes.names.index("ring")] * count
            masks = np.ones((count, 3, 3), np.float32)
            scores, labels = np.full(count, 0.9, np.float32), np.array(ring, np.int64)
            return Instances(image.shape[1:], box.reshape(-1, 4), scores, labels, masks, classes.names, classes.ids)

        monkeypatch.setattr(Predictor, "predict", predict)
        evaluate(predictor(build_model(tiny_config, classes)), folder)
        return len(counted.pop())

    counted = []
    monkeypatch.setattr(
        "masklab.evaluation.evaluate.read_inputs",
        lambda truth, results, *others: counted.append(results) or read_inputs(truth, results, *others),
    )
    folder = renamed(lambda values: None)
    assert found(1) == 4, "one in each image"
    folder = renamed(without)
    assert found(1) == 0


def test_a_model_of_other_classes_is_refused_with_both_lists(renamed, tiny_config, classes, tmp_path, capsys):
    save_model(build_model(tiny_config, classes), tmp_path / "m.safetensors")

    def strange(values):
        for number, category in enumerate(values["categories"]):
            category["name"] = f"star {number}"

    folder = renamed(strange)
    for words in (["evaluate"], ["show", "--output", str(tmp_path / "figures")]):
        assert main([words[0], str(tmp_path / "m.safetensors"), "--data", str(folder), *words[1:]]) == 2
        said = capsys.readouterr().err
        assert "star 0, star 1, star 2, star 3" in said
        assert ", ".join(classes.names) in said


def test_failures_are_those_of_matched_classes(renamed, shapes, tiny_config, classes, tmp_path, capsys):
    torch.manual_seed(0)
    save_model(build_model(tiny_config, classes), tmp_path / "m.safetensors")
    said = []
    for folder in (shapes, renamed(lambda values: None)):
        words = ["--data", str(folder), "--output", str(tmp_path / "figures"), "--score", "0"]
        assert main(["show", str(tmp_path / "m.safetensors"), *words]) == 0
        said.append([line for line in capsys.readouterr().out.splitlines() if "objects found" in line])
    assert said[0] == said[1] != []


def box(image, left, name, score=None, **fields):
    entry = {"image_id": image, "segmentation": [[left, 1, left + 5, 1, left + 5, 6, left, 6]], **fields}
    return entry | ({"category_name": name, "score": score} if score else {})


def test_results_that_carry_names_are_matched_by_name(caplog):
    caplog.set_level(logging.INFO, "masklab")
    truth = {
        "images": [{"id": 1, "height": 20, "width": 40}],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "nucleus"}],
        "annotations": [box(1, 1, "", id=1, category_id=1), box(1, 20, "", id=2, category_id=2)],
    }
    results = [box(1, 1, "Cells", 0.9, category_id=2), box(1, 20, "Nuclei", 0.8, category_id=1)]
    assert coco_metrics(truth, results, 100)["mask"]["AP"] == pytest.approx(1)
    assert "Cells as cell" in caplog.text
    assert len(read_inputs(truth, [*results, box(1, 30, "dirt", 0.7, category_id=1)]).detections) == 2
    assert "dirt" in caplog.text
    nameless = [{key: value for key, value in result.items() if key != "category_name"} for result in results]
    assert coco_metrics(truth, nameless, 100)["mask"]["AP"] == 0
    with pytest.raises(InputError, match=r"the results: none of its classes \(dirt, stone\).*\(cell, nucleus\)"):
        read_inputs(truth, [box(1, 1, "dirt", 0.9, category_id=1), box(1, 1, "stone", 0.9, category_id=1)])

"""Ids of images and classes in the results of a folder: file names, or those of a COCO JSON that is given."""

import json
import shutil
import unicodedata

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest
from PIL import Image

from masklab.cli.app import main
from masklab.evaluation.evaluate import evaluate
from masklab.inference.folder import predict_folder
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.results.instances import Instances
from masklab.structures import ClassTable

CLASSES = ClassTable((2, 5), ("disc", "ring"))
SIZE = (40, 60)


@pytest.fixture
def finds(tiny_config, monkeypatch):
    """A predictor that finds a disc at a place that depends on the image's grey value, and a ring below it."""

    def predict(self, image, batch_size=8, check=None):
        left = float(image[0, 0, 0])
        boxes = np.array([[left, 2, left + 9, 12], [left, 20, left + 9, 30]], np.float32)
        scores, labels = np.array([0.9, 0.8], np.float32), np.array([0, 1])
        return Instances(SIZE, boxes, scores, labels, np.ones((2, 3, 3), np.float32), CLASSES.names, CLASSES.ids)

    monkeypatch.setattr(Predictor, "predict", predict)
    return Predictor(build_model(tiny_config, CLASSES))


def draw(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (4 * place, 0, 0)).save(folder / name)


def rectangle(left, top):
    return [left, top, left + 9, top, left + 9, top + 10, left, top + 10]


def listing(path, entries, categories=((1, "Rings"), (7, "Disc")), annotations=()):
    """A COCO JSON with (id, file name) entries."""
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in entries]
    table = [{"id": i, "name": name} for i, name in categories]
    path.write_text(json.dumps({"images": images, "annotations": list(annotations), "categories": table}))
    return path


def ids(path):
    """(image id, category id) of the results, and the names beside them."""
    found = {}
    for entry in json.loads(path.read_text()):
        found.setdefault(entry["image_id"], []).append((entry["category_id"], entry["category_name"]))
        assert isinstance(entry["file_name"], str)
    return found


@pytest.mark.parametrize("name", ["000000000139.png", "7.png", "07.PNG", "²10.png", "a b.tif", "Zelle_ä.png"])
def test_the_id_of_an_image_is_its_files_name(finds, tmp_path, name):
    draw(tmp_path / "images", [name])
    assert ids(predict_folder(finds, [tmp_path / "images"], tmp_path / "out")) == {name: [(2, "disc"), (5, "ring")]}


def test_names_of_one_number_are_two_images(finds, tmp_path):
    draw(tmp_path / "images", ["1.png", "01.png"])
    assert set(ids(predict_folder(finds, [tmp_path / "images"], tmp_path / "out"))) == {"1.png", "01.png"}


def test_results_with_the_ids_of_a_json_are_measured_alike_by_other_tools(finds, tmp_path):
    """Eleven images with numbers as names, in another order than their ids, half of them annotated where they are found."""
    names = [f"{number:06d}.png" for number in range(1, 12)]
    draw(tmp_path / "val", names)
    entries = [(12 - number, name) for number, name in enumerate(names, 1)]
    annotations = []
    for place, (image_id, _) in enumerate(entries):
        for category, top in ((7, 2), (1, 20)):
            left = 4 * place + place % 2
            fields = {"area": 90, "bbox": [left, top, 9, 10], "iscrowd": 0, "segmentation": [rectangle(left, top)]}
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category, **fields})
    path = listing(tmp_path / "val.json", entries, annotations=annotations)
    results = predict_folder(finds, [tmp_path / "val"], tmp_path / "out", path)
    assert {(e["file_name"], e["image_id"]) for e in json.loads(results.read_text())} == {(n, i) for i, n in entries}
    expected = evaluate(finds, tmp_path)["mask"]["AP"]
    assert 0.5 < expected < 1
    for truth, evaluation in (
        (pycocotools.coco.COCO(str(path)), pycocotools.cocoeval.COCOeval),
        (hotcoco.COCO(str(path)), hotcoco.COCOeval),
    ):
        measured = evaluation(truth, truth.loadRes(str(results)), "segm")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
        assert measured.stats[0] == pytest.approx(expected, abs=1e-6)


NAMES = [
    ("a.png", "a.png"),
    ("a.png", "images/val/a.png"),
    ("a.png", "C:\\data\\val\\a.png"),
    ("val/a.png", "val/a.png"),
    ("val/a.png", "./a.png"),
    ("sub/ä.png", unicodedata.normalize("NFD", "sub/ä.png")),
    (unicodedata.normalize("NFD", "ä.png"), "ä.png"),
]


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_images_are_found_by_their_listed_name(finds, tmp_path, file, name):
    draw(tmp_path / "images", [file])
    path = listing(tmp_path / "any.json", [(3, "b.png"), ("x9", name)])
    found = ids(predict_folder(finds, [tmp_path / "images" / file], tmp_path / "out", path))
    assert found == {"x9": [(7, "disc"), (1, "ring")]}


def test_the_longest_listed_path_decides(finds, tmp_path):
    draw(tmp_path / "one", ["a.png"])
    path = listing(tmp_path / "any.json", [(1, "a.png"), (2, "one/a.png"), (3, "two/a.png"), (4, "other.png")])
    assert list(ids(predict_folder(finds, [tmp_path / "one"], tmp_path / "out", path))) == [2]


def refused(finds, tmp_path, path, capsys):
    words = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "images"), "--annotations", str(path)]
    from masklab.weights.checkpoint import save_model

    save_model(finds.model, tmp_path / "m.safetensors")
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_told_is_refused(finds, tmp_path, capsys):
    draw(tmp_path / "images", ["a.png"])
    path = tmp_path / "any.json"
    said = refused(finds, tmp_path, listing(path, [(1, "x/a.png"), (2, "y/a.png")]), capsys)
    assert "images/a.png may be any of several images of" in said
    assert "x/a.png (id 1), y/a.png (id 2)" in said
    assert "several" in refused(finds, tmp_path, listing(path, [(1, "a.png"), (2, "a.png")]), capsys)
    assert "id 1 occurs twice" in refused(finds, tmp_path, listing(path, [(1, "a.png"), (1, "b.png")]), capsys)
    assert "lists none of the images" in refused(finds, tmp_path, listing(path, [(1, "b.png")]), capsys)
    assert "lists none of the images" in refused(finds, tmp_path, listing(path, []), capsys)
    said = refused(finds, tmp_path, listing(path, [(1, "a.png")], [(1, "star"), (2, "moon")]), capsys)
    assert "star, moon" in said
    assert "disc, ring" in said
    for values in ('{"images": [{"file_name": "a.png"}]}', '{"images": [{"id": 1}]}', '{"images": [7]}', "[]", "{", ""):
        path.write_text(values)
        assert "any.json" in refused(finds, tmp_path, path, capsys)
    assert not (tmp_path / "out").exists()


def test_an_image_of_another_size_is_skipped_and_named(finds, tmp_path, capsys):
    draw(tmp_path / "images", ["a.png", "b.png"])
    path = listing(tmp_path / "any.json", [(1, "a.png"), (2, "b.png")])
    values = json.loads(path.read_text())
    values["images"][1] |= {"height": 60, "width": 40}
    path.write_text(json.dumps(values))
    said = refused(finds, tmp_path, path, capsys)
    assert "b.png is 60 wide and 40 high" in said
    assert "1 of 2 images could not be used" in said
    assert list(ids(tmp_path / "out" / "predictions.json")) == [1]


def test_what_a_json_does_not_have_is_left_out_and_said(finds, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    draw(tmp_path / "images", ["a.png", "b.png"])
    path = listing(tmp_path / "any.json", [(5, "a.png"), (6, "c.png"), (7, "d.png")], [(1, "ring"), (3, "star")])
    found = ids(predict_folder(finds, [tmp_path / "images"], tmp_path / "out", path))
    assert found == {5: [(1, "ring")]}
    assert f"1 of 2 images is not listed in {path} and left out" in caplog.text
    assert f"2 of 3 images are listed in {path} but not given" in caplog.text
    assert "the data do not have, disc" in caplog.text
    assert "1 image, 1 object of score 0.50 or more (1 detection in all)" in caplog.text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.png",
        "predictions.json",
        "records",
        "settings.json",
    ]


def test_an_unused_category_does_not_stand_for_the_used_one(finds, tmp_path):
    """Roboflow lists a supercategory of its own with the id 0."""
    draw(tmp_path / "images", ["a.png"])
    square = {"id": 1, "image_id": 5, "category_id": 1, "segmentation": [rectangle(0, 2)], "iscrowd": 0}
    path = listing(tmp_path / "any.json", [(5, "a.png")], [(0, "disc"), (1, "discs")], [square])
    assert ids(predict_folder(finds, [tmp_path / "images"], tmp_path / "out", path)) == {5: [(1, "disc")]}


def test_a_json_without_categories_gives_images_their_ids(finds, tmp_path):
    draw(tmp_path / "images", ["a.png"])
    path = tmp_path / "any.json"
    path.write_text(json.dumps({"images": [{"id": 4, "coco_url": "http://images.org/val2017/a.png"}]}))
    assert ids(predict_folder(finds, [tmp_path / "images"], tmp_path / "out", path)) == {4: [(2, "disc"), (5, "ring")]}


def test_the_drawn_data_set_keeps_its_ids(shapes, tmp_path, tiny_config):
    values = json.loads((shapes / "val.json").read_text())
    classes = ClassTable.from_categories(values["categories"], "val.json")
    shutil.copytree(shapes / "val", tmp_path / "val")
    out = predict_folder(
        Predictor(build_model(tiny_config, classes)), [tmp_path / "val"], tmp_path, shapes / "val.json"
    )
    assert set(ids(out)) == {image["id"] for image in values["images"]}

"""Masks for boxes from any detector: files of each kind, images and classes by name, boxes that do not fit."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts import fails, predictor
from PIL import Image
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import masklab
from masklab.cli.app import main
from masklab.datasets.boxes.class_names import given_names
from masklab.datasets.boxes.read import read_boxes
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.inference.given_boxes import BoxCheck
from masklab.inference.options import PredictionOptions
from masklab.inference.segment import segment_folder
from masklab.model.build import build_model
from masklab.structures import TrainingData

SIZE = (128, 160)
LEAST_IOU = 0.8
"""Mean IoU with the truth of the weights `nuclei` in boxes that are off by a pixel to each side, on drawn images."""


@pytest.fixture(scope="module")
def nuclei():
    return masklab.load("nuclei", "cpu", PredictionOptions(precision="float32"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of two drawn images, and by name the objects of each and their boxes, off by up to a pixel."""
    folder = tmp_path_factory.mktemp("drawn")
    rng, truth = np.random.default_rng(0), {}
    for seed, name in enumerate(("a.png", "b 2.png")):
        image, labels = draw_nuclei(8, seed, SIZE)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / name)
        masks = [labels == k for k in range(1, labels.max() + 1)]
        boxes = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in map(np.nonzero, masks)], float)
        boxes = (boxes + rng.uniform(-1, 1, boxes.shape)).clip(0, (SIZE[1], SIZE[0]) * 2)
        truth[name] = masks, boxes, rng.uniform(0.3, 1, len(boxes)).round(6)
    return folder, truth


# Files as their tools write them: each is given rows (image name, box xyxy, class name, score)

ORDER = ("nucleus", "debris")  # of the classes by number


def as_xywh(box):
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]


def write_results(path, rows):
    """COCO results with file names, as Ultralytics writes them."""
    entries = [
        {"image_id": name.removesuffix(".png"), "file_name": name, "category_id": ORDER.index(c) + 1}
        | {"category_name": c, "bbox": as_xywh(box), "score": float(score)}
        for name, box, c, score in rows
    ]
    path.write_text(json.dumps(entries))
    return []


def write_document(path, rows, images=None):
    """A COCO file with annotations; the ids are in another order than the names."""
    names = images or sorted({name for name, *_ in rows}, reverse=True)
    ids = {name: number for number, name in enumerate(names, 1)}
    table = [{"id": k, "name": name} for k, name in enumerate(ORDER, 1)]
    values = {
        "images": [{"id": k, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for n, k in ids.items()],
        "annotations": [
            {"id": k, "image_id": ids[name], "category_id": ORDER.index(c) + 1, "bbox": as_xywh(box), "iscrowd": 0}
            | {"score": float(score)}
            for k, (name, box, c, score) in enumerate(rows, 1)
        ],
        "categories": table,
    }
    path.write_text(json.dumps(values))
    return []


def write_ids(path, rows):
    """COCO results with ids alone, and the JSON that the ids are from."""
    write_document(path.with_name("listing.json"), rows)
    values = json.loads(path.with_name("listing.json").read_text())
    keys = ("image_id", "category_id", "bbox", "score")
    path.write_text(json.dumps([{key: entry[key] for key in keys} for entry in values["annotations"]]))
    path.with_name("listing.json").write_text(json.dumps(values | {"annotations": []}))
    return ["--annotations", str(path.with_name("listing.json"))]


def write_yolo(path, rows):
    """Ultralytics' ``predict(save_txt=True, save_conf=True)``: ``labels/x.txt``, beside ``data.yaml``."""
    (path / "labels").mkdir(parents=True)
    (path / "data.yaml").write_text(f"names: {json.dumps(list(ORDER))}\n")
    for name, (x1, y1, x2, y2), c, score in rows:
        parts = ((x1 + x2) / 2 / SIZE[1], (y1 + y2) / 2 / SIZE[0], (x2 - x1) / SIZE[1], (y2 - y1) / SIZE[0])
        with open(path / "labels" / name.replace(".png", ".txt"), "a") as file:
            print(ORDER.index(c), *(f"{float(part):.17g}" for part in parts), score, file=file)
    return []


def supervision_rows(rows):
    """Of `sv.CSVSink` and `sv.JSONSink`, with class names in ``detections.data`` and ``file_name`` as custom data."""
    names = ("x_min", "y_min", "x_max", "y_max")
    return [
        dict(zip(names, map(float, box), strict=True))
        | {"class_id": ORDER.index(c), "confidence": float(score), "tracker_id": "", "class_name": c, "file_name": name}
        for name, box, c, score in rows
    ]


def write_supervision_json(path, rows):
    path.write_text(json.dumps(supervision_rows(rows), indent=4))
    return []


def write_supervision_csv(path, rows):
    return write_csv(path, supervision_rows(rows))


def write_csv(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return []


def write_spreadsheet(path, rows):
    """A spreadsheet's CSV of Germany: semicolons, commas in numbers, a byte order mark, empty lines."""
    keys = ("Image", "Left", "Top", "Width", "Height", "Label", "Score")
    lines = [[name, *as_xywh(box), c, score] for name, box, c, score in rows]
    texts = [[str(v).replace(".", ",") if isinstance(v, float) else v for v in line] for line in lines]
    content = "\r\n".join(";".join(line) for line in (keys, *texts, [""] * 7))
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    return []


def write_tabs(path, rows):
    keys = ("path", "xmin", "ymin", "xmax", "ymax", "class", "conf")
    table = [dict(zip(keys, (f"C:\\data\\{n}", *map(float, b), c, s), strict=True)) for n, b, c, s in rows]
    return write_csv(path, table, "\t")


def write_nested(path, rows):
    """Ultralytics' ``results.to_json()`` and transformers' pipelines: the box is an object."""
    names = ("x1", "y1", "x2", "y2")
    entries = [
        {"file": n, "name": c, "confidence": float(s), "box": dict(zip(names, map(float, b), strict=True))}
        for n, b, c, s in rows
    ]
    path.write_text(json.dumps(entries))
    return []


KINDS = {
    "results.json": write_results,
    "instances.json": write_document,
    "ids.json": write_ids,
    "yolo": write_yolo,
    "sink.json": write_supervision_json,
    "sink.csv": write_supervision_csv,
    "sheet.csv": write_spreadsheet,
    "tabs.tsv": write_tabs,
    "nested.json": write_nested,
}


def rows_of(truth, category="nucleus"):
    return [
        (name, box, category, score)
        for name, (_, boxes, scores) in truth.items()
        for box, score in zip(boxes, scores, strict=True)
    ]


def results_of(folder):
    found = {}
    for entry in json.loads((folder / "predictions.json").read_text()):
        found.setdefault(entry["file_name"], []).append(entry)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_gives_the_masks_of_segment(nuclei, drawn, tmp_path, kind):
    folder, truth = drawn
    words = KINDS[kind](tmp_path / kind, rows_of(truth))
    out = tmp_path / "out"
    segment_folder(nuclei, [folder], tmp_path / kind, out, words[1] if words else None)
    found = results_of(out)
    assert set(found) == set(truth)
    for name, (_, boxes, scores) in truth.items():
        expected = nuclei.segment(folder / name, boxes, scores=scores)
        assert [entry["segmentation"] for entry in found[name]] == expected.rles()
        np.testing.assert_allclose([entry["score"] for entry in found[name]], scores, atol=1e-6)
        np.testing.assert_allclose([entry["bbox"] for entry in found[name]], list(map(as_xywh, boxes)), atol=1e-4)
        assert {entry["category_name"] for entry in found[name]} == {nuclei.classes.names[0]}


def test_masks_of_jittered_boxes_are_near_the_truth(nuclei, drawn):
    folder, truth = drawn
    ious = []
    for name, (masks, boxes, _) in truth.items():
        found = nuclei.segment(folder / name, boxes)
        ious += [(found.mask(k) & mask).sum() / (found.mask(k) | mask).sum() for k, mask in enumerate(masks)]
    assert np.mean(ious) >= LEAST_IOU
    assert np.min(ious) >= 0.5


def test_the_command_writes_what_predict_writes(drawn, tmp_path, capsys):
    folder, truth = drawn
    write_supervision_csv(tmp_path / "b.csv", rows_of(truth))
    out = tmp_path / "out"
    words = ["segment", "nuclei", str(folder), "--boxes", str(tmp_path / "b.csv"), "--output", str(out)]
    assert main(words) == 0
    said = capsys.readouterr()
    count = sum(len(boxes) for _, boxes, _ in truth.values())
    assert f"{count} boxes of 2 images" in said.out
    assert f"2 images, {count} masks" in said.out
    assert said.err == ""
    assert (out / "a.png").is_file()
    assert json.loads((out / "settings.json").read_text())["boxes"] == str(tmp_path / "b.csv")
    assert main([*words[:-1], str(tmp_path / "scored"), "--score", "2"]) == 2


# Classes


@pytest.fixture(scope="module")
def three(tiny_config, classes):
    return predictor(build_model(tiny_config, classes))  # disc, box, ring with the ids 2, 5, 9


@pytest.fixture
def blank(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (60, 40), (90, 90, 90)).save(folder / name)
    return folder


def categories(used, images, boxes, out, **options):
    """The class names of the results of a folder, in order."""
    segment_folder(used, [images], boxes, out, **options)
    return [entry["category_name"] for entry in json.loads((out / "predictions.json").read_text())]


BOX = {"file": "a.png", "x1": 5, "y1": 5, "x2": 25, "y2": 25}


@pytest.mark.parametrize(
    ("column", "values", "options", "expected"),
    [
        ("class", ["Rings", "disc", "BOX"], {}, ["ring", "disc", "box"]),
        ("class", ["ring", "star", "disc"], {}, ["ring", "disc"]),
        ("class", ["ring", "star", "disc"], {"label": "box"}, ["box"] * 3),
        ("class_id", [2, 0, 1], {"classes": ["disc", "box", "ring"]}, ["ring", "disc", "box"]),
        ("class", ["2", "0.0", 1], {"classes": ["disc", "box", "ring"]}, ["ring", "disc", "box"]),
        ("class_id", [7, 3, 7], {"classes": ["3=discs", "7=ring"]}, ["ring", "disc", "ring"]),
        ("colour", ["red", "red", "red"], {"label": "ring"}, ["ring"] * 3),
    ],
)
def test_classes_are_matched_by_name(three, blank, tmp_path, column, values, options, expected):
    write_csv(tmp_path / "b.csv", [BOX | {column: value} for value in values])
    assert categories(three, blank, tmp_path / "b.csv", tmp_path / "out", **options) == expected


def test_a_class_that_is_not_known_is_refused(three, blank, tmp_path):
    path = tmp_path / "b.csv"

    def used(values, column="class", **options):
        write_csv(path, [BOX | {column: value} for value in values])
        categories(three, blank, path, tmp_path / "out", **options)

    fails(["star, moon", "disc, box, ring"], lambda: used(["star", "moon"]))
    fails(["by number alone (0, 4)", "--classes", "--label"], lambda: used([4, 0]))
    fails(["class 4", "no name"], lambda: used([4, 0], classes=["disc", "ring"]))
    fails(["has no classes", "--label"], lambda: used([4, 0], "colour"))
    fails(["--label is rin (did you mean ring?)"], lambda: used(["disc"], label="rin"))
    fails(["line 3 has no class"], lambda: used(["disc", ""]))
    fails(["line 3 has class 4"], lambda: used(["disc", 4]))
    assert not (tmp_path / "out").exists()


def test_a_model_of_one_class_takes_boxes_of_all(nuclei, blank, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    write_csv(tmp_path / "b.csv", [BOX | {"class": name} for name in ("lymphocyte", "tumour")])
    assert categories(nuclei, blank, tmp_path / "b.csv", tmp_path / "out") == [nuclei.classes.names[0]] * 2
    assert f"boxes of lymphocyte, tumour are segmented as {nuclei.classes.names[0]}" in caplog.text


def test_names_of_numbers_are_read_from_the_files_of_detectors(tmp_path):
    (tmp_path / "data.yaml").write_text("names: {0: disc, 1: ring}\n")
    (tmp_path / "classes.txt").write_text("disc\nring\n")
    (tmp_path / "coco.json").write_text('{"categories": [{"id": 1, "name": "disc"}, {"id": 5, "name": "ring"}]}')
    assert given_names([str(tmp_path / "data.yaml")]) == {0: "disc", 1: "ring"}
    assert given_names([str(tmp_path / "classes.txt")]) == {0: "disc", 1: "ring"}
    assert given_names([str(tmp_path / "coco.json")]) == {1: "disc", 5: "ring"}
    assert given_names(["disc", "big ring"]) == {0: "disc", 1: "big ring"}
    assert given_names(["4=disc", "2=ring"]) == {4: "disc", 2: "ring"}
    (tmp_path / "empty.json").write_text('{"images": []}')
    fails(["empty.json", "categories"], given_names, [str(tmp_path / "empty.json")])
    fails(["no such file"], given_names, [str(tmp_path / "gone.yaml")])
    fails(["NUMBER=NAME"], given_names, ["4=disc", "ring"])
    fails(["NUMBER=NAME"], given_names, ["4=disc", "4=ring"])


# Images


def boxes_of(nuclei, images, entries, tmp_path, **options):
    """How many results each image has."""
    write_csv(tmp_path / "b.csv", entries)
    segment_folder(
        nuclei, images if isinstance(images, list) else [images], tmp_path / "b.csv", tmp_path / "out", **options
    )
    return {name: len(found) for name, found in results_of(tmp_path / "out").items()}


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a", "deep/images/a.png", "C:\\x\\a.png", "/data/images/a.png"])
def test_an_image_is_found_by_its_name(nuclei, blank, tmp_path, name):
    assert boxes_of(nuclei, blank, [BOX | {"file": name}], tmp_path) == {"a.png": 1}


def test_images_without_boxes_and_boxes_without_image_are_said(nuclei, blank, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    entries = [BOX, BOX | {"file": "z.png"}, BOX | {"file": "z.png"}, BOX | {"file": "a.jpg"}]
    assert boxes_of(nuclei, blank, entries, tmp_path) == {"a.png": 1}
    assert "1 of 2 images without boxes: b.png" in caplog.text
    assert "3 boxes of 2 images that are not among the images are left out: z.png, a.jpg" in caplog.text
    assert (tmp_path / "out" / "b.png").is_file(), "an image without objects is a result too"


def test_the_very_name_comes_before_one_in_another_case(nuclei, blank, tmp_path):
    Image.new("RGB", (60, 40)).save(blank / "A.tif")
    entries = [BOX | {"file": "a"}, BOX | {"file": "a.png"}, BOX | {"file": "a.png"}]
    sources = [blank / "a.png", blank / "b.png"]
    fails(["has no boxes of the images"], boxes_of, nuclei, [blank / "b.png"], entries, tmp_path)
    assert boxes_of(nuclei, sources, entries, tmp_path) == {"a.png": 2}


def test_images_that_cannot_be_told_are_refused(nuclei, blank, tmp_path):
    def used(entries, images=blank):
        boxes_of(nuclei, images, entries, tmp_path)

    place = {key: value for key, value in BOX.items() if key != "file"}
    fails(["does not say which image"], used, [place])
    used([place], [blank / "a.png"])
    fails(["line 3", "file is empty"], used, [BOX, BOX | {"file": ""}])
    fails(["by id, such as 7", "--annotations"], used, [place | {"image_id": 7}])
    fails(["may be any of several", "x/a.png", "y/a.png"], used, [BOX | {"file": "x/a.png"}, BOX | {"file": "y/a.png"}])
    fails(["has no boxes of the images", "z.png"], used, [BOX | {"file": "z.png"}])


def test_an_empty_file_of_boxes_gives_images_without_objects(nuclei, blank, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    for name, content in (("b.json", "[]"), ("a.txt", ""), ("b.csv", "file,x1,y1,x2,y2\n")):
        (tmp_path / name).write_text(content)
        segment_folder(nuclei, [blank], tmp_path / name, tmp_path / "out")
        assert results_of(tmp_path / "out") == {}
    assert "2 of 2 images without boxes: a.png, b.png" in caplog.text


# Boxes


def test_boxes_are_clipped_skipped_and_counted(nuclei, blank, tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    entries = [
        BOX,
        BOX | {"x1": -8, "y2": 48},
        BOX | {"x2": 60.004, "x1": 40},
        BOX | {"x1": 70, "x2": 90},
        BOX | {"x2": 5},
        BOX | {"x1": 60, "x2": 70},
    ]
    assert boxes_of(nuclei, blank, entries, tmp_path) == {"a.png": 3}
    found = results_of(tmp_path / "out")["a.png"]
    assert [entry["bbox"] for entry in found] == [[5, 5, 20, 20], [0, 5, 25, 35], [40, 5, 20, 20]]
    assert "1 of 6 boxes reached out of the image and were clipped" in caplog.text
    assert (
        "3 of 6 boxes without area in the image skipped, such as [70, 5, 90, 25] of a.png, 60 x 40 pixels"
        in caplog.text
    )


def model_of(config, anchors, scale=1.0, training_data=None):
    rule = config.image.model_copy(update={"scale": scale})
    return SimpleNamespace(
        rpn=SimpleNamespace(anchor_sizes=anchors),
        config=config.model_copy(update={"image": rule}),
        training_data=training_data,
    )


def test_boxes_of_a_size_that_the_model_does_not_know_are_counted(tiny_config, caplog):
    """Anchors of 12, 24 and 48 pixels of an input that is as large as the image: from 6 to 96 pixels."""
    check = BoxCheck(model_of(tiny_config, [12, 24, 48]))
    assert check.known_sides((400, 500)) == (6, 96)
    sides = np.array([5.9, 6.1, 95, 97, 300])
    check.fit(np.stack((0 * sides, 0 * sides, sides, sides), 1), (400, 500), "a.png")
    check.warn()
    assert "3 of 5 boxes smaller or larger" in caplog.text
    assert "one of 5.9 pixels in a.png, where the range is 6 to 96" in caplog.text
    assert BoxCheck(model_of(tiny_config, [12, 48], 0.5)).known_sides((400, 500)) == (12, 192)


def test_the_sizes_of_the_training_data_count_where_they_are_known(tiny_config):
    known = TrainingData((256, 320), 5.0, 40.0)
    assert BoxCheck(model_of(tiny_config, [12, 48], 2.0, known)).known_sides((400, 500)) == (2.5, 80)
    assert BoxCheck(model_of(tiny_config, [12, 48], 2.0, known)).known_sides((90_000, 90_000)) == (2.5, 80)
    rule = tiny_config.image.model_copy(update={"min_side": 512, "max_side": 1024})
    one_size = model_of(tiny_config.model_copy(update={"image": rule}), [12, 48], None, known)
    assert BoxCheck(one_size).known_sides((512, 640)) == (5, 160), "an image twice as large, seen at the same size"


def test_no_warning_of_sizes_where_all_are_known(nuclei, drawn, tmp_path, caplog):
    folder, truth = drawn
    write_supervision_csv(tmp_path / "b.csv", rows_of(truth))
    segment_folder(nuclei, [folder], tmp_path / "b.csv", tmp_path / "out")
    assert "WARNING" not in caplog.text


def test_coordinates_as_fractions_of_the_image(nuclei, blank, tmp_path):
    entries = [BOX | {"x1": 0.25, "y1": 0.5, "x2": 0.5, "y2": 1.0}]
    boxes_of(nuclei, blank, entries, tmp_path)
    assert results_of(tmp_path / "out")["a.png"][0]["bbox"] == [15, 20, 15, 20]


HEADER = "file,x1,y1,x2,y2,class,score\n"
FAULTS = {
    "no number": ("b.csv", HEADER + "a,1,2,x,4,c,1\n", ["line 2", "x2 is 'x'"]),
    "NaN": ("b.csv", HEADER + "a,1,2,3,4,c,1\na,nan,2,3,4,c,1\n", ["line 3", "no finite number"]),
    "infinite": ("b.csv", HEADER + "a,1,2,inf,4,c,1\n", ["line 2", "no finite number"]),
    "swapped": ("b.csv", HEADER + "\na,5,2,3,4,c,1\n", ["line 3", "ends before it begins"]),
    "negative width": ("b.csv", "file,left,top,w,h\na,5,2,-3,4\n", ["line 2", "negative width"]),
    "score": ("b.csv", HEADER + "a,1,2,3,4,c,87\n", ["line 2", "score is 87"]),
    "score NaN": ("b.csv", HEADER + "a,1,2,3,4,c,nan\n", ["line 2", "score is nan"]),
    "short line": ("b.csv", HEADER + "a,1,2\n", ["line 2", "x2"]),
    "long line": ("b.csv", HEADER + "a,1,2,3,4,c,1,9\n", ["line 2", "8 values for 7 columns"]),
    "two lines in one value": ("b.csv", HEADER + '"a\nb",1,2,3,4,c,1\na,1,2,3,z,c,1\n', ["line 4", "y2"]),
    "no header": ("b.csv", "a.png,1,2,3,4\n", ["line 1", "first line"]),
    "other columns": ("b.csv", "file,colour\na,1\n", ["line 1", "x1, y1, x2, y2", "file, colour"]),
    "corner or centre": ("b.csv", "file,x,y,width,height\na,1,2,3,4\n", ["corner or the centre", "cx and cy"]),
    "empty": ("b.csv", "\n", ["is empty"]),
    "results without box": ("b.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 1}]', ["entry 1", "bbox"]),
    "short box": ("b.json", '[{"image_id": 1, "bbox": [1, 2, 3]}]', ["entry 0", "bbox"]),
    "NaN in JSON": ("b.json", '[{"image_id": 1, "bbox": [1, NaN, 3, 4]}]', ["entry 0", "no finite number"]),
    "negative height": ("b.json", '[{"image_id": 1, "bbox": [1, 2, 3, -4]}]', ["entry 0", "negative width or height"]),
    "no image": ("b.json", '[{"bbox": [1, 2, 3, 4]}]', ["entry 0", "image_id"]),
    "class of a kind": ("b.json", '[{"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": [1]}]', ["category_id"]),
    "numbers": ("b.json", "[1, 2]", ["list of other things"]),
    "objects": ("b.json", '[{"a": 1}]', ["x1, y1, x2, y2"]),
    "no annotations": ("b.json", '{"images": []}', ["annotations"]),
    "unknown image": (
        "b.json",
        '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 2, "bbox": [1, 2, 3, 4]}]}',
        ["annotation 0", "no image 2"],
    ),
    "broken JSON": ("b.json", '[{"image_id": 1', ["b.json is not JSON"]),
    "polygon": ("a.txt", "0 .1 .1 .2 .1 .2 .2\n", ["line 1", "7 values"]),
    "pixels": ("a.txt", "0 .1 .1 .2 .2\n0 10 10 5 5\n", ["line 2", "from 0 to 1"]),
    "no class": ("a.txt", "-1 .1 .1 .2 .2\n", ["line 1", "class -1"]),
    "NaN in YOLO": ("a.txt", "0 nan .1 .2 .2\n", ["line 1", "no finite number"]),
    "text": ("a.txt", "0 .1 .1 .2 .2\n0 .1 b .2 .2\n", ["line 2", "'b'"]),
    "binary": ("b.npy", b"\x93NUMPY\x00\xff", ["cannot be read"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place(tmp_path, fault):
    name, content, words = FAULTS[fault]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    fails([name, *words], read_boxes, tmp_path / name)


def test_a_folder_without_labels_and_a_class_without_name_are_refused(tmp_path):
    fails(["holds no x.txt"], read_boxes, tmp_path)
    (tmp_path / "classes.txt").write_text("disc\n")
    fails(["holds no x.txt"], read_boxes, tmp_path)
    (tmp_path / "a.txt").write_text("1 .1 .1 .2 .2\n")
    fails(["a.txt line 1", "class 1", "class names"], read_boxes, tmp_path)
    fails(["gone.csv cannot be read"], read_boxes, tmp_path / "gone.csv")


def test_yolo_labels_in_folders_of_splits_keep_their_folder(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "classes.txt").write_text("disc\n")
    given = read_boxes(tmp_path)
    assert [key.name for key in given.images] == ["train/a", "val/a"]
    assert read_boxes(tmp_path / "labels" / "val" / "a.txt").classes == ("disc",), "from above the folder labels"


# In Python


def test_segment_takes_what_a_detector_of_torchvision_returns(three):
    torch.manual_seed(0)
    detector = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=4, box_score_thresh=0.0, box_detections_per_img=12
    ).eval()
    image = torch.rand(3, 70, 90)
    found = detector([image])[0]
    assert len(found["boxes"]) > 0
    assert found["boxes"].requires_grad
    result = three.segment(image, found["boxes"], found["labels"] - 1, found["scores"])
    np.testing.assert_array_equal(result.boxes, found["boxes"].detach().numpy())
    np.testing.assert_array_equal(result.scores, found["scores"].detach().numpy())
    np.testing.assert_array_equal(result.labels, found["labels"].numpy() - 1)
    assert result.labels.dtype == np.int64


def test_segment_takes_one_class_for_all_and_clips(nuclei):
    image = np.zeros((3, 40, 60), np.uint8)
    found = nuclei.segment(image, [[-5, 5, 20, 50], [30, 10, 40, 30]], scores=[0.25, 0.75])
    assert found.boxes.tolist() == [[0, 5, 20, 40], [30, 10, 40, 30]]
    assert found.scores.tolist() == [0.25, 0.75]
    assert found.labels.tolist() == [0, 0]
    assert nuclei.segment(image, [[1, 1, 9, 9]]).scores.tolist() == [1]
    assert len(nuclei.segment(image, [])) == 0


def test_segment_refuses_what_does_not_fit(nuclei, three):
    image, box = np.zeros((3, 40, 60), np.uint8), [[1.0, 2, 9, 9]]
    fails(["labels are missing", "3 classes"], three.segment, image, box)
    fails(["scores of shape (2,)"], nuclei.segment, image, box, None, [0.1, 0.2])
    fails(["scores are from 2"], nuclei.segment, image, box, None, [2.0])
    fails(["scores are from nan"], nuclei.segment, image, box, None, [np.nan])
    fails(["labels are from 0.5"], nuclei.segment, image, box, [0.5])
    fails(["shape (4, 5)"], nuclei.segment, image, np.ones((4, 5)))
    fails(["box 1", "outside the image of 60 x 40"], nuclei.segment, image, [*box, [70, 1, 90, 9]])
    fails(["box 0", "inf"], nuclei.segment, image, [[1, 2, np.inf, 9]])
    fails(["no array of numbers"], nuclei.segment, image, [["a", 1, 2, 3]])

"""Kinds of YOLO segmentation, each written as its tool writes it."""

import json
import time

import numpy as np
import pytest
from contracts import fails
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.layouts import notes
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import CollectingSink
from masklab.masks import rle

SIZE = (120, 160)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
ELLIPSES = {
    "a": [(0, 40, 50, 30, 20), (1, 110, 70, 40, 35)],
    "b": [(1, 80, 60, 70, 50)],
    "c": [(0, 50, 50, 20, 40), (0, 120, 60, 25, 25), (1, 85, 20, 9, 15)],
}
"""By image: class, centre x and y, radii along x and y, in pixels."""


@pytest.fixture(autouse=True)
def _fresh_log():
    notes.warn_once.cache_clear()
    notes.inform_once.cache_clear()


def line(kind, x, y, rx, ry, digits=6):
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    points = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1) / (SIZE[1], SIZE[0])
    return " ".join([str(kind), *(f"{value:.{digits}f}" for value in points.ravel())])


def box(kind, x, y, rx, ry):
    return f"{kind} {x / SIZE[1]:.6f} {y / SIZE[0]:.6f} {2 * rx / SIZE[1]:.6f} {2 * ry / SIZE[0]:.6f}"


def text_of(name):
    return "".join(f"{line(*ellipse)}\n" for ellipse in ELLIPSES[name])


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), 120, np.uint8)).save(path)


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pairs(root, images, labels, names, suffix=".jpg"):
    for name in names:
        image(root / images / f"{name}{suffix}")
        put(root / labels / f"{name}.txt", text_of(name))


def assert_split(split, names, classes=("leaf", "fruit")):
    """Images, class names and masks are as they were drawn."""
    assert [entry.path.stem for entry in split.images] == list(names)
    assert split.categories.names == classes
    assert not split.skipped + split.left_out
    for index, name in enumerate(names):
        objects = split.objects(index)
        assert objects.labels.tolist() == [ellipse[0] for ellipse in ELLIPSES[name]]
        for row, (_, x, y, rx, ry) in enumerate(ELLIPSES[name]):
            mask = rle.window(objects.rle(row), SIZE, (0, 0, SIZE[1], SIZE[0])) != 0
            wanted = ((COLUMNS - x) / rx) ** 2 + ((ROWS - y) / ry) ** 2 <= 1
            assert (mask & wanted).sum() / (mask | wanted).sum() >= (0.98 if rx > 10 else 0.94)


# ---- exports of tools


def roboflow(root):
    pairs(root, "train/images", "train/labels", ["a", "c"])
    pairs(root, "valid/images", "valid/labels", ["b"])
    put(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['leaf', 'fruit']\n\n"
        "roboflow:\n  workspace: w\n  project: p\n  version: 1\n  license: CC BY 4.0\n",
    )
    put(root / "README.dataset.txt", "# p > v1\n")
    put(root / "README.roboflow.txt", "\np - v1\n==============================\n")


def ultralytics(root):
    pairs(root, "images/train", "labels/train", ["a", "c"])
    pairs(root, "images/val", "labels/val", ["b"])
    put(
        root / "coco8-seg.yaml",
        "# Ultralytics\npath: coco8-seg # dataset root dir\ntrain: images/train # 4 images\nval: images/val\n"
        "test: # test images (optional)\n\nnames:\n  0: leaf\n  1: fruit\n\ndownload: https://example.org/x.zip\n",
    )


def cvat(root):
    """CVAT's lists name folders that its archive does not have."""
    pairs(root, "images/train", "labels/train", ["a", "c"])
    pairs(root, "images/validation", "labels/validation", ["b"])
    put(root / "train.txt", "data/images/train/a.jpg\ndata/images/train/c.jpg\n")
    put(root / "validation.txt", "data/images/validation/b.jpg\n")
    put(
        root / "data.yaml",
        "names:\n  0: leaf\n  1: fruit\npath: ./\ntrain: train.txt\nval: validation.txt\n",
    )


def darknet(root):
    pairs(root, "obj_train_data", "obj_train_data", ["a", "c"])
    pairs(root, "obj_valid_data", "obj_valid_data", ["b"])
    put(
        root / "obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    put(root / "obj.names", "leaf\nfruit\n")
    put(root / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/c.jpg\n")
    put(root / "valid.txt", "data/obj_valid_data/b.jpg\n")


@pytest.mark.parametrize("make", [roboflow, ultralytics, cvat, darknet])
def test_exports_with_splits(tmp_path, make):
    make(tmp_path)
    assert split_names(tmp_path) == ["train", "val"]
    assert_split(open_split(tmp_path, "train"), ["a", "c"])
    assert_split(open_split(tmp_path, "val"), ["b"])


@pytest.mark.parametrize("make", [roboflow, ultralytics, cvat, darknet])
def test_exports_are_converted(tmp_path, make):
    make(tmp_path / "src")
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "dst")]) == 0
    assert_split(open_split(tmp_path / "dst", "train"), ["a", "c"])
    assert_split(open_split(tmp_path / "dst", "val"), ["b"])


def label_studio(root):
    pairs(root, "images", "labels", ["a", "b", "c"])
    put(root / "classes.txt", "leaf\nfruit\n")
    notes = {"categories": [{"id": 0, "name": "leaf"}, {"id": 1, "name": "fruit"}], "info": {"year": 2024}}
    put(root / "notes.json", json.dumps(notes, indent=2))


def beside(root):
    """As labelImg and its kin keep them."""
    pairs(root, ".", ".", ["a", "b", "c"], ".PNG")
    put(root / "classes.txt", "leaf\r\nfruit\r\n")


def beside_in_images(root):
    pairs(root, "images", "images", ["a", "b", "c"])
    put(root / "data.yaml", "names: [leaf, fruit]\n")


def classes_among_labels(root):
    pairs(root, "images", "labels", ["a", "b", "c"])
    put(root / "labels/classes.txt", "leaf\nfruit\n")


def capitals(root):
    pairs(root, "Images", "Labels", ["a", "b", "c"])
    for path in (root / "Labels").iterdir():
        path.rename(path.with_suffix(".TXT"))
    put(root / "classes.txt", "leaf\nfruit\n")


@pytest.mark.parametrize("make", [label_studio, beside, beside_in_images, classes_among_labels, capitals])
def test_exports_without_splits(tmp_path, make):
    make(tmp_path)
    assert split_names(tmp_path) == ["train", "val"]
    assert_split(open_split(tmp_path, "all"), ["a", "b", "c"])


def test_without_any_names_classes_are_numbers_the_same_in_all_splits(tmp_path):
    pairs(tmp_path, "train/images", "train/labels", ["a"])
    put(tmp_path / "val/labels/b.txt", line(12, 80, 60, 70, 50))
    image(tmp_path / "val/images/b.jpg")
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert train.categories == val.categories
    assert train.categories.names == ("0", "1", "12")
    assert val.objects(0).labels.tolist() == [2]


# ---- tables


@pytest.mark.parametrize("name", ["config.yaml", "custom.yaml", "Leaves.YML", "data.yaml"])
def test_a_table_of_any_name(tmp_path, name):
    roboflow(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / name)
    put(tmp_path / "other.yaml", "lr: 0.1\nname: x\n")
    put(tmp_path / "broken.yaml", "names: [\n")
    assert_split(open_split(tmp_path, "train"), ["a", "c"])


def test_two_tables_of_other_names_are_named(tmp_path):
    roboflow(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "one.yaml")
    put(tmp_path / "two.yaml", "names: [leaf]\n")
    fails(["one.yaml and two.yaml"], open_split, tmp_path, "train")


def test_a_table_beside_label_images_is_no_yolo(tmp_path):
    image(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.eye(*SIZE, dtype=np.uint8)).save(tmp_path / "masks/a.png")
    put(tmp_path / "config.yaml", "names: [cell]\n")
    assert len(open_split(tmp_path, "all")) == 1


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[yes, no]", ("yes", "no")),
        ("[on, off]", ("on", "off")),
        ("{0: no, 1: se}", ("no", "se")),
        ("[1.0, 010]", ("1.0", "010")),
        ("[2024-01-01, ~]", ("2024-01-01", "~")),
        ("['leaf: green', \"bl\u00e4tter\"]", ("leaf: green", "bl\u00e4tter")),
        ("\n- leaf\n- fruit", ("leaf", "fruit")),
    ],
)
def test_names_stay_text(tmp_path, written, names):
    pairs(tmp_path, "images", "labels", ["a", "b", "c"])
    (tmp_path / "data.yaml").write_text(f"names: {written}\n", encoding="utf-8-sig")
    assert_split(open_split(tmp_path, "all"), ["a", "b", "c"], names)


def test_a_count_of_classes_in_place_of_names(tmp_path):
    pairs(tmp_path, "images", "labels", ["a", "b", "c"])
    put(tmp_path / "data.yaml", "nc: 2\n")
    assert_split(open_split(tmp_path, "all"), ["a", "b", "c"], ("0", "1"))
    for bad in ("99999999999", "two", "[1]", "-1"):
        put(tmp_path / "data.yaml", f"nc: {bad}\n")
        fails(["names must list"], open_split, tmp_path, "all")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("C:\\Users\\me\\leaves\\train\\images", "C:\\Users\\me\\leaves\\valid\\images"),
        ("..\\train\\images", ".\\valid\\images\\"),
        ("/home/me/train/leaves/train/images", "/home/me/train/leaves/valid/images"),
        ("/content/datasets/leaves-3/train/images/", "/content/datasets/leaves-3/valid/images/"),
        ("leaves-3/train/images", "leaves-3/valid/images"),
        ("train", "valid"),
        ("[train/images]", "['../valid/images']"),
    ],
)
def test_paths_of_another_computer(tmp_path, train, val):
    roboflow(tmp_path)
    put(tmp_path / "data.yaml", f"path: D:\\\\data\ntrain: {train}\nval: {val}\nnames: [leaf, fruit]\n")
    assert_split(open_split(tmp_path, "train"), ["a", "c"])
    assert_split(open_split(tmp_path, "val"), ["b"])


def test_lists_with_paths_of_another_computer(tmp_path):
    cvat(tmp_path)
    put(tmp_path / "train.txt", "\ufeffC:\\work\\images\\train\\a.jpg\r\n\r\nC:\\work\\images\\train\\c.jpg\r\n")
    put(tmp_path / "validation.txt", "./b.jpg\n/home/me/images/validation/b.jpg\n")
    assert_split(open_split(tmp_path, "train"), ["a", "c"])
    fails(["validation.txt names ./b.jpg"], open_split, tmp_path, "val")


def test_paths_never_leave_the_data_set(tmp_path):
    pairs(tmp_path, "secret/images", "secret/labels", ["a"])
    roboflow(tmp_path / "data")
    for entry in ("../secret/images", f"{tmp_path}/secret/images", "..\\secret\\images", "train/../../secret/images"):
        put(tmp_path / "data/data.yaml", f"train: {entry}\nnames: [leaf, fruit]\n")
        fails(["data.yaml: train names", "secret"], open_split, tmp_path / "data", "train")


@pytest.mark.parametrize("entry", ["../test/images", "test/images", "/somewhere/test/images", "list.txt", "empty"])
def test_a_split_that_is_listed_but_absent_is_left_out_with_a_warning(tmp_path, caplog, entry):
    roboflow(tmp_path)
    (tmp_path / "empty").mkdir()
    put(tmp_path / "data.yaml", f"train: train/images\nval: valid/images\ntest: {entry}\nnames: [leaf, fruit]\n")
    assert split_names(tmp_path) == ["train", "val"]
    assert_split(open_split(tmp_path, "train"), ["a", "c"])
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"lists test as {entry}" in warnings[0]
    assert "left out" in warnings[0]
    fails(["no split test", "train, val"], open_split, tmp_path, "test")
    assert main(["data", "convert", str(tmp_path), str(tmp_path.parent / f"{tmp_path.name}-new")]) == 0


def test_an_absent_val_is_held_out_and_never_the_images_of_train(tmp_path):
    pairs(tmp_path, "images", "labels", ["a", "b", "c"])
    put(tmp_path / "data.yaml", "train: /x/images\nval: /x/val/images\nnames: [leaf, fruit]\n")
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert (len(train), len(val)) == (2, 1)
    assert "held out" in val.note


def test_an_absent_train_is_refused(tmp_path):
    roboflow(tmp_path)
    put(tmp_path / "data.yaml", "train: train2/images\nval: valid/images\nnames: [leaf, fruit]\n")
    fails(["data.yaml: train names train2/images", "not in"], open_split, tmp_path, "train")
    put(tmp_path / "data.yaml", "val: other/images\ntest: more\nnames: [leaf, fruit]\n")
    fails(["data.yaml: val names other/images"], open_split, tmp_path, "val")


def test_folders_below_a_listed_folder(tmp_path):
    pairs(tmp_path, "images/train/one", "labels/train/one", ["a"])
    pairs(tmp_path, "images/train/two", "labels/train/two", ["c"])
    put(tmp_path / "data.yaml", "train: images/train\nnames: [leaf, fruit]\n")
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert {entry.path.stem for entry in (*train.images, *val.images)} == {"a", "c"}
    assert len(train.objects(0)) + len(val.objects(0)) == 5


@pytest.mark.parametrize("bad", ["names: [" + "a, " * 2**19 + "a]", "a: &a [1]\nnames: [*a, *a]\n", "names: {x: y}"])
def test_tables_that_cannot_be_used(tmp_path, bad):
    pairs(tmp_path, "images", "labels", ["a", "b", "c"])
    put(tmp_path / "data.yaml", bad)
    fails(["data.yaml"], open_split, tmp_path, "all")


def test_keypoints_are_named(tmp_path):
    roboflow(tmp_path)
    put(tmp_path / "data.yaml", "train: train/images\nkpt_shape: [17, 3]\nnames: [person]\n")
    fails(["data.yaml", "keypoints", "outlines"], open_split, tmp_path, "train")


# ---- lines


def test_one_box_among_outlines_is_reported_counted_and_left_out(tmp_path, capsys):
    label_studio(tmp_path)
    put(tmp_path / "labels/a.txt", f"{box(0, 40, 50, 30, 20)}\n{line(*ELLIPSES['a'][1])}\n")
    sink = CollectingSink()
    split = open_split(tmp_path, "all", sink=sink)
    assert [len(split.objects(k)) for k in range(3)] == [1, 1, 3]
    (problem,) = sink.problems
    assert problem.name == "malformed segmentation"
    assert problem.file_name == "images/a.jpg"
    assert problem.sentence.startswith(f"{tmp_path}/labels/a.txt line 1 is a box, not an outline")
    assert "skipped 1 annotation (1 malformed segmentation)" in open_split(tmp_path, "all").summary()
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "line 1 is a box" in capsys.readouterr().out


@pytest.mark.parametrize("confidence", ["", " 0.91"])
def test_boxes_alone_are_refused_as_such(tmp_path, confidence):
    label_studio(tmp_path)
    for name, ellipses in ELLIPSES.items():
        put(tmp_path / f"labels/{name}.txt", "".join(f"{box(*ellipse)}{confidence}\n" for ellipse in ellipses))
    fails(["labels/a.txt", "boxes, not outlines"], open_split, tmp_path, "all")


def test_an_unreadable_label_file_costs_its_image(tmp_path):
    label_studio(tmp_path)
    (tmp_path / "labels/b.txt").write_bytes(b"\xff\xfe\xfd")
    sink = CollectingSink()
    split = open_split(tmp_path, "all", sink=sink)
    assert [len(split.objects(k)) for k in range(3)] == [2, 0, 3]
    assert [problem.name for problem in sink.problems] == ["unusable annotation file"]


def test_marks_and_line_ends_of_windows(tmp_path):
    label_studio(tmp_path)
    for name in ELLIPSES:
        text = text_of(name).replace("\n", "\r\n").replace(" ", "\t")
        (tmp_path / f"labels/{name}.txt").write_bytes(text.encode("utf-8-sig"))
    (tmp_path / "classes.txt").write_text("leaf\nfruit\n\n\n", encoding="utf-16")
    assert_split(open_split(tmp_path, "all"), ["a", "b", "c"])


def test_names_of_another_normal_form(tmp_path):
    image(tmp_path / "images/bla\u0308tter.jpg")
    put(tmp_path / "labels/bl\u00e4tter.txt", text_of("a"))
    assert len(open_split(tmp_path, "all").objects(0)) == 2


def test_images_without_labels_have_no_objects(tmp_path):
    label_studio(tmp_path)
    image(tmp_path / "images/d.jpg")
    put(tmp_path / "labels/c.txt", "")
    split = open_split(tmp_path, "all")
    assert [len(split.objects(k)) for k in range(4)] == [2, 1, 0, 0]


def test_labels_without_images_are_said_so(tmp_path):
    label_studio(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    fails(["YOLO labels but no images", "export the images"], open_split, tmp_path, "all")


def test_text_that_is_no_label_is_no_yolo(tmp_path):
    image(tmp_path / "images/a.jpg")
    put(tmp_path / "labels/a.txt", "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65\n")
    image(tmp_path / "b.jpg")
    put(tmp_path / "b.txt", "a caption of five words\n")
    fails(["holds no data set"], open_split, tmp_path, "train")


def test_a_table_of_lists_in_lists_is_refused_soon(tmp_path):
    (tmp_path / "data.yaml").write_text("names: " + "[" * 100_000)
    began = time.process_time()
    fails(["data.yaml", "nested more than 50 deep"], open_split, tmp_path, "train")
    assert time.process_time() - began < 2

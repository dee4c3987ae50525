"""labelme's files, written as `labelme.LabelFile.save` does."""

import base64
import io
import json
import logging
import os

import numpy as np
import pytest
from outlines import (
    BITMAP,
    BLOB,
    SIZE,
    STAR,
    assert_objects,
    ellipse,
    image,
    objects,
    opened,
    placed,
    raster,
    rectangle,
)
from PIL import Image

from masklab.datasets.check import check
from masklab.datasets.convert import convert
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import CollectingSink
from masklab.datasets.split import Split
from masklab.images.read import read_image
from masklab.utils.errors import InputError


def shape(label, points, kind="polygon", group=None, mask=None):
    points = [list(point) for point in points]
    own = {"label": label, "points": points, "group_id": group, "description": "", "shape_type": kind, "flags": {}}
    return own | {"mask": mask}


def png(bits):
    with io.BytesIO() as file:
        Image.fromarray(bits.astype(np.uint8)).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()


def write(path, shapes, image_path=None, data=None, size=SIZE, **other):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image_path or f"{path.stem}.png"}
    values |= {"imageData": data, "imageHeight": size[0], "imageWidth": size[1]} | other
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")


def data_set(folder, names=("a", "b")):
    for name in names:
        image(folder / f"{name}.png")
        write(folder / f"{name}.json", [shape("leaf", BLOB)])


def test_every_shape(tmp_path):
    image(tmp_path / "a.png")
    write(
        tmp_path / "a.json",
        [
            shape("leaf", BLOB),
            shape("door", [(250, 200), (30, 20)], "rectangle"),
            shape("door", [(30, 20), (250, 20), (250, 200), (30, 200)], "rectangle"),
            shape("disc", [(150, 120), (210, 200)], "circle"),
            shape("spot", [(40, 60), (90, 96)], "mask", mask=png(BITMAP)),
            shape("spot", [(40.3, 59.6), (55.2, 70.7)], "mask", mask=png(BITMAP)),
            shape("turned", [(100, 50), (250, 100), (220, 190), (70, 140)], "oriented_rectangle"),
        ],
    )
    split, problems = opened(tmp_path)
    assert not problems
    spot = placed(BITMAP, 40, 60)
    assert_objects(
        split,
        "a.png",
        ("leaf", raster(BLOB)),
        ("door", rectangle(30, 20, 250, 200)),
        ("door", rectangle(30, 20, 250, 200)),
        ("disc", ellipse(150, 120, 100, 100)),
        ("spot", spot),
        ("spot", spot),
        ("turned", raster([(100, 50), (250, 100), (220, 190), (70, 140)])),
    )
    assert all((mask == spot).all() for name, mask, _ in objects(split, "a.png") if name == "spot")
    assert split.categories.names == ("disc", "door", "leaf", "spot", "turned")


def test_a_mask_is_cut_by_its_whole_corners_and_by_the_image(tmp_path):
    image(tmp_path / "a.png")
    shapes = [shape("s", [(40, 60), (69, 79)], "mask", mask=png(BITMAP))]
    write(tmp_path / "a.json", [*shapes, shape("s", [(300, 230), (350, 266)], "mask", mask=png(BITMAP))])
    (_, cut, _), (_, outside, _) = objects(opened(tmp_path)[0], "a.png")
    assert (cut == placed(BITMAP[:20, :30], 40, 60)).all()
    assert (outside == placed(BITMAP, 300, 230)).all()


def test_a_group_of_one_label_is_one_object(tmp_path):
    image(tmp_path / "a.png")
    left, right = [(10, 10), (90, 10), (90, 200), (10, 200)], [(200, 10), (290, 10), (290, 200), (200, 200)]
    shapes = [shape("cat", left, group=0), shape("dog", left, group=0), shape("cat", right, group=0)]
    write(tmp_path / "a.json", [*shapes, shape("cat", right), shape("cat", right)])
    split, _ = opened(tmp_path)
    both = raster(left) | raster(right)
    wanted = ("cat", both), ("dog", raster(left)), ("cat", raster(right)), ("cat", raster(right))
    assert_objects(split, "a.png", *wanted)


def test_shapes_without_area_and_broken_ones_are_reported(tmp_path):
    image(tmp_path / "a.png")
    bad = [
        shape("a", BLOB[:2], "line"),
        shape("a", BLOB[:4], "linestrip"),
        shape("a", BLOB[:1], "point"),
        shape("a", BLOB[:2]),
        shape("a", [(1, 1), (float("nan"), 5), (9, 9)]),
        shape("a", [(1, 1), ("x", 5), (9, 9)]),
        shape("a", [(1, 1), (1e300, 5), (9, 9)]),
        shape("a", BLOB[:3], "circle"),
        shape("a", BLOB[:2], "mask", mask="no base64"),
        shape("a", BLOB[:2], "mask", mask=base64.b64encode(b"no PNG").decode()),
        shape("a", BLOB[:2], "mask", mask=png(np.ones((300, 400)))),
        shape("a", BLOB[:2], "mask", mask=png(np.ones((5, 5, 3)))),
        shape("a", BLOB[:2], "mask"),
        shape("", BLOB),
        shape(None, BLOB),
        "text",
    ]
    write(tmp_path / "a.json", [*bad, shape("a", BLOB), shape("__ignore__", STAR), shape("_background_", STAR)])
    split, problems = opened(tmp_path)
    assert_objects(split, "a.png", ("a", raster(BLOB)))
    assert [name for name, _ in problems] == ["a.png"] * len(bad)
    words = ["'line'", "'linestrip'", "'point'", "2 points", "x is 'nan'", "x is 'x'", "x is '1e+300'"]
    words += ["a circle has 2 points", *["no PNG"] * 2, "larger than the image", "colours", "no PNG", *["no class"] * 3]
    for (_, detail), word in zip(problems, words, strict=True):
        assert word in detail
    (raised,) = [problem.sentence for problem in reported(tmp_path) if "shape 14" in problem.detail]
    assert raised.startswith(str(tmp_path / "a.json"))


def reported(folder):
    sink = CollectingSink()
    open_split(folder, "all", sink=sink)
    return sink.problems


@pytest.mark.parametrize(
    "image_path", ["../images/x.png", "..\\images\\x.png", "x.png", "C:\\Users\\me\\x.png", "/home/me/x.png", "X.PNG"]
)
def test_images_in_another_folder(tmp_path, image_path):
    image(tmp_path / "images" / "x.png")
    write(tmp_path / "json" / "x.json", [shape("leaf", BLOB)], image_path)
    assert_objects(opened(tmp_path)[0], "images/x.png", ("leaf", raster(BLOB)))


def test_no_image_outside_of_the_folder(tmp_path):
    image(tmp_path / "secret" / "y.png")
    write(tmp_path / "set" / "x.json", [shape("leaf", BLOB)], "../secret/y.png")
    with pytest.raises(
        InputError, match=r"x\.json names the image \.\./secret/y\.png, which is not in .*add the image"
    ):
        open_split(tmp_path / "set", "all")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_embedded_image_is_used_where_the_file_is_missing(tmp_path, suffix):
    folder, images = tmp_path / "set", {}
    for name in ("a", "b"):
        image(folder / f"{name}{suffix}")
        images[name] = read_image(folder / f"{name}{suffix}", 3)
        data = base64.b64encode((folder / f"{name}{suffix}").read_bytes()).decode()
        write(folder / f"{name}.json", [shape("leaf", BLOB)], f"{name}{suffix}", data)
    (folder / f"a{suffix}").unlink()
    split, problems = opened(folder)
    assert not problems
    assert [one["file_name"] for one in split.coco["images"]] == ["a.json", f"b{suffix}"]
    assert_objects(split, "a.json", ("leaf", raster(BLOB)))
    found = split.read(0, 3)
    assert (found == images["a"]).all()
    assert check(folder).findings == []
    convert(folder, tmp_path / "coco")
    copied = {path.suffix for path in (tmp_path / "coco").rglob("a.*")}
    assert copied == {suffix}
    both = [Split.find(tmp_path / "coco", name) for name in ("train", "val")]
    assert sum(len(one) for one in both) == 2
    written = next((tmp_path / "coco").rglob(f"a{suffix}"))
    assert (read_image(written, 3) == found).all()


def test_an_embedded_image_is_not_taken_for_another_of_its_name(tmp_path):
    for place in ("one", "two"):
        image(tmp_path / "set" / place / "a.png")
        data = base64.b64encode((tmp_path / "set" / place / "a.png").read_bytes()).decode()
        write(tmp_path / "set" / place / "a.json", [shape("leaf", BLOB)], data=data)
    (tmp_path / "set" / "one" / "a.png").unlink()
    assert [one["file_name"] for one in opened(tmp_path / "set")[0].coco["images"]] == ["one/a.json", "two/a.png"]
    convert(tmp_path / "set", tmp_path / "coco")
    assert {path.name for path in (tmp_path / "coco").rglob("*.png")} == {"a.png"}
    assert sum(len(Split.find(tmp_path / "coco", name)) for name in ("train", "val")) == 2
    (tmp_path / "set" / "two" / "a.png").unlink()
    convert(tmp_path / "set", tmp_path / "again", 0.5)
    assert sum(len(Split.find(tmp_path / "again", name)) for name in ("train", "val")) == 2


def test_faults_of_embedded_images(tmp_path):
    write(tmp_path / "a.json", [shape("leaf", BLOB)], data="bm8gaW1hZ2U=")
    sentences = [problem.sentence for problem in reported(tmp_path)]
    assert [str(tmp_path / "a.json") + " is not an image that can be read" in sentence for sentence in sentences] == [
        True
    ]
    other = tmp_path / "other.json"
    other.write_text("[1, 2]")
    with pytest.raises(InputError, match=r"other\.json is not an image"):
        read_image(other, 3)


def test_images_without_a_file_are_left_out_with_a_warning(tmp_path, caplog):
    data_set(tmp_path)
    for name in ("c", "d"):
        image(tmp_path / f"{name}.png")
    write(tmp_path / "d.json", [])
    with caplog.at_level(logging.WARNING):
        split, _ = opened(tmp_path)
    assert [one["file_name"] for one in split.coco["images"]] == ["a.png", "b.png", "d.png"]
    assert objects(split, "d.png") == []
    assert "1 images, such as c.png, have no JSON file" in caplog.text


def test_splits_are_folders(tmp_path):
    for place in ("train", "valid", "test"):
        data_set(tmp_path / place, (f"{place}1",))
    assert split_names(tmp_path) == ["test", "train", "val"]
    assert [one["file_name"] for one in open_split(tmp_path, "val").coco["images"]] == ["valid/valid1.png"]
    for place in ("batch1", "batch2"):
        data_set(tmp_path / "undivided" / place, (place,))
    assert len(open_split(tmp_path / "undivided", "all")) == 2


def test_classes_are_the_same_in_all_splits(tmp_path):
    for place, label in (("train", "pear"), ("val", "apple")):
        image(tmp_path / place / "x.png")
        write(tmp_path / place / "x.json", [shape(label, BLOB)])
    tables = [open_split(tmp_path, name).coco["categories"] for name in ("train", "val")]
    assert tables[0] == tables[1] == [{"id": 1, "name": "apple"}, {"id": 2, "name": "pear"}]


def test_boxes_only_are_refused_and_some_are_warned_of(tmp_path, caplog):
    image(tmp_path / "a.png")
    box = shape("cat", [(1, 2), (200, 150)], "rectangle")
    write(tmp_path / "a.json", [box, box])
    with pytest.raises(InputError, match=r"holds boxes only \(2 rectangles of labelme\).*draw polygons or masks"):
        open_split(tmp_path, "all")
    write(tmp_path / "a.json", [box, shape("cat", BLOB)])
    with caplog.at_level(logging.WARNING):
        assert len(objects(opened(tmp_path)[0], "a.png")) == 2
    assert "1 of 2 shapes are rectangles" in caplog.text


def test_shapes_without_labels(tmp_path):
    image(tmp_path / "a.png")
    write(tmp_path / "a.json", [shape("", BLOB)])
    with pytest.raises(InputError, match="have no label: give each the label of its class"):
        open_split(tmp_path, "all")


def test_files_of_other_tools_and_encodings(tmp_path):
    data_set(tmp_path, ("ä", "b", "old"))
    (tmp_path / "classes.json").write_text('{"names": ["leaf"]}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "drawing.json").write_text('{"shapes": []}')
    text = (tmp_path / "b.json").read_text(encoding="utf-8")
    (tmp_path / "b.json").write_text(text, encoding="utf-8-sig")
    first = {"shapes": [{"label": "leaf", "points": BLOB}], "imagePath": "old.png", "imageData": None}
    (tmp_path / "old.json").write_text(json.dumps(first), encoding="utf-16")
    split, problems = opened(tmp_path)
    assert len(split) == 3
    assert not problems
    assert_objects(split, "old.png", ("leaf", raster(BLOB)))


@pytest.mark.parametrize("text", ["", "{", '{"shapes": [', "[]", '{"shapes": {}, "imagePath": "b.png"}'])
def test_a_damaged_file_concerns_its_image_alone(tmp_path, text):
    data_set(tmp_path)
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError, match=r"b\.json"):
        open_split(tmp_path, "all")
    split, problems = opened(tmp_path)
    assert [name for name, _ in problems] == ["b.png"]
    assert_objects(split, "a.png", ("leaf", raster(BLOB)))


def test_two_files_of_one_image_and_another_size(tmp_path):
    data_set(tmp_path)
    write(tmp_path / "c.json", [shape("leaf", BLOB)], "a.png")
    with pytest.raises(InputError, match=r"a\.json and .*c\.json both annotate .*a\.png"):
        open_split(tmp_path, "all")
    (tmp_path / "c.json").unlink()
    write(tmp_path / "a.json", [shape("leaf", BLOB)], size=(480, 640))
    with pytest.raises(InputError, match=r"a\.json was drawn on a\.png at 640 x 480 pixels.*320 x 240"):
        open_split(tmp_path, "all")


def test_an_unreadable_file_and_links(tmp_path):
    data_set(tmp_path / "set")
    image(tmp_path / "elsewhere" / "c.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "loop")
    os.symlink(tmp_path / "nothing", tmp_path / "set" / "broken.json")
    write(tmp_path / "set" / "c.json", [shape("leaf", BLOB)], "linked/c.png")
    assert len(opened(tmp_path / "set")[0]) == 3

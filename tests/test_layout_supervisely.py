"""Supervisely's projects are read as its SDK writes them: data sets, classes, polygons, bitmaps; the rest is reported."""

import base64
import io
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from contracts import fails
from matplotlib.path import Path as Outline
from PIL import Image

from masklab.datasets.layouts.supervisely import SUPERVISELY
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import CollectingSink
from masklab.masks import rle

SIZE = (120, 160)
BLOB = [[20, 30], [70, 22], [95, 60], [60, 101], [25, 80]]
SQUARE, HOLE = [[10, 10], [90, 10], [90, 90], [10, 90]], [[30, 30], [30, 70], [70, 70], [70, 30]]
MASK = np.random.default_rng(0).random((17, 23)) < 0.4
CLASSES = {"cell": "polygon", "nucleus": "bitmap", "thing": "any", "box": "rectangle"}


def packed(mask, form="palette"):
    """Bitmap.data_2_base64 and AlphaMask.data_2_base64 of the SDK; and forms that its reader accepts besides."""
    picture = Image.fromarray(np.array(mask, np.uint8))
    buffer = io.BytesIO()
    if form == "palette":
        picture.putpalette([0, 0, 0, 255, 255, 255])
        picture.save(buffer, format="PNG", transparency=0, optimize=0)
    elif form == "alpha mask":
        Image.fromarray(np.array(mask, np.uint8) * 50, mode="L").save(buffer, format="PNG", transparency=0, optimize=0)
    elif form == "RGBA":
        Image.fromarray(np.dstack([np.full((*mask.shape, 3), 255), mask * 255]).astype(np.uint8)).save(
            buffer, format="PNG"
        )
    elif form == "not packed":
        Image.fromarray(np.dstack([mask * 255] * 3).astype(np.uint8)).save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode()
    elif form == "grey":
        picture.save(buffer, format="PNG")
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def label(kind, title, **fields):
    """Label.to_json."""
    return {
        "classTitle": title,
        "description": "",
        "tags": [],
        "instance": "a",
        "geometryType": kind,
        "shape": kind,
        **fields,
    }


def polygon(exterior=BLOB, interior=(), title="cell"):
    return label("polygon", title, points={"exterior": exterior, "interior": list(interior)})


def bitmap(mask=MASK, origin=(30, 40), title="nucleus", form="palette"):
    kind = "alpha_mask" if form == "alpha mask" else "bitmap"
    return label(kind, title, bitmap={"origin": list(origin), "data": packed(mask, form)})


def box(title="box"):
    return label("rectangle", title, points={"exterior": [[1, 2], [30, 40]], "interior": []})


def annotation(*objects, size=SIZE):
    return {"description": "", "size": {"height": size[0], "width": size[1]}, "tags": [], "objects": list(objects)}


def add(folder, name, *objects, old=False, size=SIZE):
    for part in ("img", "ann"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.new("L", size[::-1]).save(folder / "img" / name)
    stem = name.rsplit(".", 1)[0] if old else name
    (folder / "ann" / f"{stem}.json").write_text(json.dumps(annotation(*objects, size=size)), encoding="utf-8")


def meta(folder, classes=None):
    entries = [{"title": title, "shape": shape, "color": "#0F138A"} for title, shape in (classes or CLASSES).items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({"classes": entries, "tags": [], "projectType": "images"}))


def project(folder, *objects):
    meta(folder)
    add(folder / "ds1", "x.png", *objects)
    return folder


def masks(split, index=0):
    objects = split.objects(index)
    return [rle.window(objects.rle(k), SIZE, (0, 0, SIZE[1], SIZE[0])) > 0 for k in range(len(objects))]


def grid():
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float)


def inside(points, offset=0.0):
    return Outline(np.array(points, float)).contains_points(grid() + offset).reshape(SIZE)


def drawn(points):
    """Pixels inside of or at most half a pixel from the outline through the pixels' centres: what cv2.fillPoly draws."""
    near = inside(points)
    for start, end in zip(np.array(points, float), np.roll(np.array(points, float), -1, axis=0), strict=True):
        along = np.clip(((grid() - start) @ (end - start)) / ((end - start) @ (end - start)), 0, 1)
        near |= (np.abs(grid() - start - along[:, None] * (end - start)).max(axis=1) <= 0.5).reshape(SIZE)
    return near


def iou(one, two):
    return (one & two).sum() / (one | two).sum()


def test_polygons(tmp_path):
    fractions = (np.array(BLOB) + 0.25).tolist()
    parts = label(
        "multipolygon",
        "cell",
        parts=[{"exterior": SQUARE, "interior": [HOLE]}, {"exterior": [[100, 5], [150, 5], [120, 60]]}],
    )
    split = open_split(project(tmp_path, polygon(), polygon(SQUARE, [HOLE]), polygon(fractions), parts), "all")
    assert split.categories.names == ("cell", "nucleus", "thing")
    hole = drawn(SQUARE) & ~drawn(HOLE)
    wanted = [drawn(BLOB), hole, inside(fractions, 0.5), hole | drawn([[100, 5], [150, 5], [120, 60]])]
    found = masks(split)
    assert len(found) == 4
    assert all(iou(one, two) >= 0.98 for one, two in zip(found, wanted, strict=True))
    assert (found[1] == hole).all()


@pytest.mark.parametrize("form", ["palette", "alpha mask", "RGBA", "not packed", "grey"])
def test_bitmaps_are_exact(tmp_path, form):
    for k, origin in enumerate([(30, 40), (0, 0), (140, 110), (-5, -4), (30.7, 40.2)]):
        split = open_split(project(tmp_path / f"{k}", bitmap(origin=origin, form=form)), "all")
        x, y = np.floor(origin).astype(int)
        wanted = np.zeros((SIZE[0] + 60, SIZE[1] + 60), bool)
        wanted[20 + y : 37 + y, 20 + x : 43 + x] = MASK
        assert (masks(split)[0] == wanted[20:-40, 20:-40]).all()
        assert split.objects(0).labels.tolist() == [1]


def test_data_sets_and_splits(tmp_path):
    """Data sets that are no splits are joined; nested ones belong to the outer; an older x.json is found too."""
    meta(tmp_path)
    add(tmp_path / "ds1", "a.jpg", polygon())
    add(tmp_path / "ds1" / "datasets" / "ds2", "ü.png", polygon(), old=True)
    add(tmp_path / "ds1" / "datasets" / "ds2" / "datasets" / "ds3", "A.PNG")
    add(tmp_path / "ds4", "a.png", polygon(), bitmap())
    split = open_split(tmp_path, "all")
    assert sorted(len(masks(split, k)) for k in range(4)) == [0, 1, 1, 2]
    (tmp_path / "ds1").rename(tmp_path / "train")
    (tmp_path / "ds4").rename(tmp_path / "val")
    assert split_names(tmp_path) == ["train", "val"]
    assert len(open_split(tmp_path, "train").images) == 3


def test_one_data_set_without_project(tmp_path):
    add(tmp_path, "x.png", polygon(title="b"), bitmap(title="a"))
    assert open_split(tmp_path, "all").categories.names == ("a", "b")
    add(tmp_path, "y.png")
    (tmp_path / "ann" / "y.png.json").write_text(
        json.dumps({"annotation": annotation(polygon(title="c")), "imageId": 1})
    )
    assert open_split(tmp_path, "all").categories.names == ("a", "b", "c")


def test_only_boxes(tmp_path):
    project(tmp_path, box())
    meta(tmp_path, {"box": "rectangle", "dot": "point"})
    fails(("meta.json", "point, rectangle", "polygons"), lambda: open_split(tmp_path, "all"))


BAD_DATA = [
    ("a polygon has no points", polygon() | {"points": None}),
    ("list of points", polygon() | {"points": {"exterior": 3}}),
    ("list of points", polygon([[1, "2"], [3, 4], [5, 6]])),
    ("list of points", polygon([[1, float("nan")], [3, 4], [5, 6]])),
    ("2 points but needs 3", polygon(BLOB[:2])),
    ("pixels outside", polygon([[10**8, 1], [3, 4], [5, 6]])),
    ("no origin", bitmap() | {"bitmap": {"data": packed(MASK)}}),
    ("no data", bitmap() | {"bitmap": {"origin": [1, 2], "data": None}}),
    ("cannot be read", bitmap() | {"bitmap": {"origin": [1, 2], "data": "ä"}}),
    ("cannot be read", bitmap() | {"bitmap": {"origin": [1, 2], "data": packed(MASK)[:40]}}),
    ("cannot be read", bitmap() | {"bitmap": {"origin": [1, 2], "data": base64.b64encode(b"GIF89a").decode()}}),
    ("larger than the image", bitmap(np.ones((121, 3), bool))),
    ("cannot be read", bitmap() | {"bitmap": {"origin": [1, 2], "data": base64.b64encode(zlib.compress(bytes(2**28))).decode()}}),
    ("rectangle has no mask", box("thing")),
    ("polyline has no mask", label("polyline", "thing", points={"exterior": BLOB, "interior": []})),
    ("graph has no mask", label("graph", "thing", nodes={})),
    ("none of its parts", label("multipolygon", "thing", parts=3)),
    ("not an object", 3),
    ("class 'other' is not in meta.json", polygon(title="other")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "bad"), BAD_DATA)
def test_what_cannot_be_used_is_reported(tmp_path, words, bad):
    sink = CollectingSink()
    split = open_split(project(tmp_path, bad, polygon()), "all", sink=sink)
    assert len(masks(split)) == 1
    assert [words in problem.sentence for problem in sink.problems] == [True], sink.problems
    assert sink.problems[0].sentence.startswith(f"{tmp_path / 'ds1' / 'ann' / 'x.png.json'}: object 1: ")


def test_bombs_are_not_unpacked(tmp_path):
    data = base64.b64encode(zlib.compress(bytes(2**27))).decode()
    project(tmp_path, bitmap() | {"bitmap": {"origin": [1, 2], "data": data}})
    tracemalloc.start()
    try:
        open_split(tmp_path, "all", sink=CollectingSink())
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_one_bad_part(tmp_path):
    sink = CollectingSink()
    parts = label("multipolygon", "cell", parts=[{"exterior": BLOB[:2]}, {"exterior": SQUARE}])
    split = open_split(project(tmp_path, parts), "all", sink=sink)
    assert (masks(split)[0] == drawn(SQUARE)).all()
    assert len(sink.problems) == 1


def test_older_objects_without_type(tmp_path):
    old = [polygon(), bitmap(), box()]
    for one in old:
        one.pop("geometryType")
        one.pop("shape")
    sink = CollectingSink()
    assert len(masks(open_split(project(tmp_path, *old), "all", sink=sink))) == 2
    assert "rectangle" in sink.problems[0].detail


def test_files_that_do_not_fit(tmp_path):
    project(tmp_path, polygon())
    path = tmp_path / "ds1" / "ann" / "x.png.json"
    for text, word in (("{", "JSON"), ("[]", "objects"), (json.dumps(annotation(size=(120, 161))), "161 wide")):
        path.write_text(text)
        fails(("x.png.json", word), lambda: open_split(tmp_path, "all"))
    path.rename(path.with_name("y.png.json"))
    fails(("x.png", "no annotation"), lambda: open_split(tmp_path, "all"))
    (tmp_path / "ds1" / "img" / "x.png").rename(tmp_path / "ds1" / "img" / "y.png")
    add(tmp_path / "ds1", "z.png")
    (tmp_path / "ds1" / "img" / "z.png").unlink()
    fails(("z.png.json", "no image"), lambda: open_split(tmp_path, "all"))
    (tmp_path / "ds1" / "img" / "y.png").unlink()
    fails(("img", "holds no image", "download"), lambda: open_split(tmp_path, "all"))


def test_other_folders(tmp_path):
    """A meta.json or a folder ann of other tools is none of Supervisely's."""
    (tmp_path / "meta.json").write_text('{"classes": 3}')
    (tmp_path / "x" / "ann").mkdir(parents=True)
    (tmp_path / "x" / "ann" / "a.json").write_text('{"shapes": []}')
    assert SUPERVISELY.find(tmp_path) == {}
    (tmp_path / "x" / "ann" / "a.json").write_text("{")
    assert SUPERVISELY.find(tmp_path) == {}

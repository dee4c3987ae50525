"""Regions of ImageJ are read as its ROI manager saves them: outlines, holes, groups, positions; others are reported."""

import io
import struct
import zipfile

import numpy as np
import pytest
import tifffile
from contracts import fails
from matplotlib.path import Path as Outline
from PIL import Image
from roifile import ROI_OPTIONS, ROI_SUBTYPE, ROI_TYPE, ImagejRoi, roiwrite

from masklab.datasets.layouts.imagej import IMAGEJ
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import CollectingSink
from masklab.masks import rle

SIZE = (120, 160)
BLOB = [[20.25, 30.5], [70.75, 22.1], [95.3, 60.9], [60.0, 101.7], [25.9, 80.4]]


def image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full(size, 120, np.uint8))


def polygon(points=BLOB, kind=ROI_TYPE.POLYGON, **fields):
    roi = ImagejRoi.frompoints(np.array(points), name="0001-0060-0050")
    roi.roitype = kind
    for name, value in fields.items():
        setattr(roi, name, value)
    return roi


def box(kind, left=10, top=20, right=90, bottom=70, **fields):
    return ImagejRoi(roitype=kind, left=left, top=top, right=right, bottom=bottom, name=kind.name, **fields)


def composite(path, **fields):
    """A ShapeRoi: a rectangle of the type with the path behind the header."""
    values = np.array(path, np.float32)
    return ImagejRoi(
        roitype=ROI_TYPE.RECT,
        right=99,
        bottom=99,
        shape_roi_size=len(values),
        multi_coordinates=values,
        name="c",
        **fields,
    )


def centres(size=SIZE):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=1)


def inside(points):
    return Outline(np.array(points, float)).contains_points(centres()).reshape(SIZE)


def disc(x, y, across, down):
    return (((centres() - (x, y)) / (across, down)) ** 2).sum(axis=1).reshape(SIZE) <= 1


def ring_path(*rings):
    path = []
    for (x, y), *others in rings:
        path += [0, x, y, *(value for point in others for value in (1, *point)), 4]
    return path


def masks(split, index=0):
    objects = split.objects(index)
    return [rle.window(objects.rle(k), SIZE, (0, 0, SIZE[1], SIZE[0])) > 0 for k in range(len(objects))]


def read(tmp_path, rois, sink=None):
    image(tmp_path / "x.tif")
    roiwrite(tmp_path / "x.zip", rois, name=[f"{k:04d}" for k in range(len(rois))], mode="w")
    return open_split(tmp_path, "all", sink=sink)


def iou(one, two):
    return (one & two).sum() / (one | two).sum()


SQUARE, HOLE = [(10, 10), (90, 10), (90, 90), (10, 90)], [(30, 30), (30, 70), (70, 70), (70, 30)]
ISLAND = [(40, 40), (60, 40), (60, 60), (40, 60)]
KAPPA = 0.5522847498 * 30
CURVES = [0, 80, 50, 3, 80, 50 + KAPPA, 50 + KAPPA, 80, 50, 80, 3, 50 - KAPPA, 80, 20, 50 + KAPPA, 20, 50]
CURVES += [3, 20, 50 - KAPPA, 50 - KAPPA, 20, 50, 20, 3, 50 + KAPPA, 20, 80, 50 - KAPPA, 80, 50, 4]
SUBPIXEL = {"options": ROI_OPTIONS.SUB_PIXEL_RESOLUTION, "version": 229}
SHAPES = {
    "polygon": (polygon(), inside(BLOB)),
    "whole numbers": (polygon(np.rint(BLOB).astype(int)), inside(np.rint(BLOB))),
    "freehand": (polygon(kind=ROI_TYPE.FREEHAND), inside(BLOB)),
    "traced": (polygon(SQUARE, ROI_TYPE.TRACED), inside(SQUARE)),
    "ellipse": (polygon(kind=ROI_TYPE.FREEHAND, subtype=ROI_SUBTYPE.ELLIPSE), inside(BLOB)),
    "rectangle": (box(ROI_TYPE.RECT), inside([(10, 20), (90, 20), (90, 70), (10, 70)])),
    "oval": (box(ROI_TYPE.OVAL), disc(50, 45, 40, 25)),
    "subpixel oval": (
        box(ROI_TYPE.OVAL, xd=10.5, yd=20.25, widthd=79, heightd=49.5, **SUBPIXEL),
        disc(50, 45, 39.5, 24.75),
    ),
    "hole and island": (composite(ring_path(SQUARE, HOLE, ISLAND)), inside(SQUARE) ^ inside(HOLE) ^ inside(ISLAND)),
    "curves": (composite(CURVES), disc(50, 50, 30, 30)),
    "quadratic": (composite([0, 20, 90, 2, 60, -50, 100, 90, 4]), None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(tmp_path, name):
    roi, expected = SHAPES[name]
    if expected is None:
        steps = np.linspace(0, 1, 200)[:, None]
        expected = inside((1 - steps) ** 2 * (20, 90) + 2 * steps * (1 - steps) * (60, -50) + steps**2 * (100, 90))
    split = read(tmp_path, [roi])
    assert len(masks(split)) == 1
    assert iou(masks(split)[0], expected) >= 0.98
    assert split.categories.names == ("object",)


def test_regions_without_area(tmp_path):
    """Lines, points, angles, text and images are reported; the others of the image stay."""
    kinds = (ROI_TYPE.LINE, ROI_TYPE.FREELINE, ROI_TYPE.POLYLINE, ROI_TYPE.ANGLE, ROI_TYPE.POINT)
    others = [polygon(kind=kind, name=kind.name) for kind in kinds]
    others.append(box(ROI_TYPE.RECT, subtype=ROI_SUBTYPE.TEXT, text="a", text_name="b", version=228))
    sink = CollectingSink()
    split = read(tmp_path, [*others, polygon()], sink)
    assert len(masks(split)) == 1
    assert [problem.name for problem in sink.problems] == ["malformed segmentation"] * 6
    assert "line has no area" in sink.problems[0].sentence
    assert "x.zip" in sink.problems[0].sentence
    assert "text has no area" in sink.problems[5].sentence


def test_groups_are_classes(tmp_path):
    image(tmp_path / "val" / "y.tif")
    polygon(group=7).tofile(tmp_path / "val" / "y.roi")
    image(tmp_path / "train" / "x.tif")
    roiwrite(tmp_path / "train" / "x.zip", [polygon(group=3), polygon(SQUARE, name="b")])
    for name in ("train", "val"):
        split = open_split(tmp_path, name)
        assert split.categories.names == ("no group", "group 3", "group 7")
        assert split.objects(0).labels.tolist() == ([1, 0] if name == "train" else [2])


def test_positions(tmp_path):
    """Regions of another slice or frame are said; the positions of channels are those of the image."""
    rois = [
        polygon(position=1),
        polygon(z_position=4),
        polygon(t_position=2),
        polygon(position=3),
        polygon(c_position=2),
    ]
    sink = CollectingSink()
    assert len(masks(read(tmp_path, rois, sink))) == 2
    assert [problem.detail for problem in sink.problems] == [
        "0001.roi: it lies on slice 4 of a stack, but the image is one plane",
        "0002.roi: it lies on frame 2 of a stack, but the image is one plane",
        "0003.roi: it lies on position 3 of a stack, but the image is one plane",
    ]
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((*SIZE, 3), np.uint8), photometric="rgb")
    assert len(masks(open_split(tmp_path, "all", sink=CollectingSink()))) == 3


NAMED = [
    "x.zip",
    "x.ZIP",
    "x_RoiSet.zip",
    "RoiSet_x.zip",
    "x__RoiSet.zip",
    "x-ROIs.zip",
    "x_roi.zip",
    "x.tif.zip",
    "RoiSet.zip",
]


@pytest.mark.parametrize("name", [*NAMED, "x.roi", "x.ROI", "x.tif.roi"])
@pytest.mark.parametrize(
    "places", [("", ""), ("scans", "rois"), ("", "ImageJ"), ("images", "x"), ("tissue images", "zips")]
)
def test_names_and_folders(tmp_path, name, places):
    if name == "RoiSet.zip" and places[0] != places[1]:
        return
    image(tmp_path / places[0] / "x.tif")
    (tmp_path / places[1]).mkdir(exist_ok=True)
    target = tmp_path / places[1] / name
    buffer = tmp_path / "buffer.zip"
    roiwrite(buffer, [polygon()])
    target.write_bytes(buffer.read_bytes() if name.lower().endswith("zip") else polygon().tobytes())
    buffer.unlink()
    assert len(masks(open_split(tmp_path, "all"))) == 1


def test_a_folder_for_each_image(tmp_path):
    for name in ("a", "b", "c"):
        image(tmp_path / name / "scan.tif")
        roiwrite(tmp_path / name / "RoiSet.zip", [polygon()] * (ord(name) - 96), name=list("xyz"[: ord(name) - 96]))
    split = open_split(tmp_path, "all")
    assert [len(masks(split, k)) for k in range(3)] == [1, 2, 3]
    assert split_names(tmp_path) == ["train", "val"]


def test_splits(tmp_path):
    for place in ("train", "val", "images/test"):
        image(tmp_path / place / "x.tif")
        rois = tmp_path / place.replace("images", "rois")
        rois.mkdir(parents=True, exist_ok=True)
        roiwrite(rois / "x.zip", [polygon()])
    assert split_names(tmp_path) == ["test", "train", "val"]
    assert all(len(masks(open_split(tmp_path, name))) == 1 for name in ("train", "val", "test"))


def test_archives(tmp_path, monkeypatch):
    """What macOS adds is left out; bombs, strange names and damage do no harm."""
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "x.tif")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../../outside.roi", polygon().tobytes())
        archive.writestr("/tmp/masklab-outside.roi", polygon().tobytes())
        archive.writestr("folder\\a.roi", polygon().tobytes())
        archive.writestr("__MACOSX/._a.roi", b"\0\5\x16\7")
        archive.writestr("notes.txt", "a")
        archive.writestr("broken.roi", b"Iout" + bytes(10))
        archive.writestr("other.roi", b"x" * 100)
        damaged = bytearray(polygon().tobytes())
        damaged[16:18] = struct.pack(">h", 30000)
        archive.writestr("long.roi", bytes(damaged))
    sink = CollectingSink()
    assert len(masks(open_split(tmp_path, "all", sink=sink))) == 3
    assert [problem.detail.split(":")[0] for problem in sink.problems] == ["broken.roi", "other.roi", "long.roi"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tif", "x.zip"]

    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(5):
            archive.writestr(f"{k}.roi", bytes(2**26))
    fails(("x.zip", "bytes"), lambda: open_split(tmp_path, "all"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.roi", polygon().tobytes())
    (tmp_path / "x.zip").write_bytes(buffer.getvalue()[:-30])
    (tmp_path / "x.zip").rename(tmp_path / "x_RoiSet.zip")
    fails(("x_RoiSet.zip", "save"), lambda: open_split(tmp_path, "all"))
    (tmp_path / "x_RoiSet.zip").write_bytes(buffer.getvalue().replace(b"Iout", b"Jout", 1))
    fails(("x_RoiSet.zip", "save"), lambda: open_split(tmp_path, "all"))


def test_coordinates_that_are_none(tmp_path):
    without = polygon()
    without.subpixel_coordinates = np.full((5, 2), np.nan, np.float32)
    few = polygon(BLOB[:2])
    paths = [[0, 1], [9, 1, 1], [1, 5, 5], [3, 1, 1, 2, 2, 3, 3], [np.nan, 1, 1], [0, 5, 5, 1, np.inf, 5, 1, 6, 6]]
    rois = [without, few, *map(composite, paths)]
    sink = CollectingSink()
    split = read(tmp_path, [*rois, polygon()], sink)
    assert len(masks(split)) == 1
    assert len(sink.problems) == len(rois)
    assert "not finite" in sink.problems[0].detail
    assert "path is damaged" in sink.problems[2].detail


def test_what_is_not_annotated(tmp_path, caplog):
    for name in "abc":
        image(tmp_path / f"{name}.tif")
    roiwrite(tmp_path / "b.zip", [polygon()])
    assert [entry.path.name for entry in open_split(tmp_path, "all").images] == ["b.tif"]
    assert "2 of 3 images have no annotation file" in caplog.text
    roiwrite(tmp_path / "d.zip", [polygon()])
    fails(("d.zip", "belongs to an image d"), lambda: open_split(tmp_path, "all"))
    (tmp_path / "d.zip").unlink()
    polygon().tofile(tmp_path / "b.roi")
    fails(("b.roi", "same image"), lambda: open_split(tmp_path, "all"))
    (tmp_path / "b.roi").unlink()
    Image.new("L", SIZE[::-1]).save(tmp_path / "b.png")
    fails(("b.png", "b.zip", "rename"), lambda: open_split(tmp_path, "all"))


def test_other_folders(tmp_path):
    """Archives without regions are another's; Cellpose's x_rois.zip belongs to its masks; regions alone are said."""
    image(tmp_path / "x.tif")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    assert IMAGEJ.find(tmp_path) == {}
    roiwrite(tmp_path / "x_rois.zip", [polygon()])
    np.save(tmp_path / "x_seg.npy", {"masks": np.ones(SIZE, np.uint8)})
    assert IMAGEJ.find(tmp_path) == {}
    assert len(masks(open_split(tmp_path, "all"))) == 1
    (tmp_path / "x_seg.npy").unlink()
    (tmp_path / "x.tif").unlink()
    fails(("x_rois.zip", "no image"), lambda: open_split(tmp_path, "all"))

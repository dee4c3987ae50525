"""What was found, written in each format and opened by the library that its users open it with."""

import csv
import dataclasses
import json
import math
import sys
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pycocotools.mask as oracle
import pytest
import roifile
import scenes
import shapely.geometry
import tifffile
from PIL import Image

from masklab.datasets.open import open_split
from masklab.masks.encode import encode_labels, encode_windows
from masklab.masks.packed import PackedRLEs
from masklab.results import overlay as drawing
from masklab.results.formats import labels, overlay
from masklab.results.formats.registry import FORMATS
from masklab.results.instances import Instances
from masklab.utils.errors import InputError

ALL = scenes.scene()
WITH_PIXELS = [n for n in range(len(ALL)) if ALL.mask(n).any()]


def image(size=scenes.SIZE, channels=3, dtype=np.uint8):
    return np.random.default_rng(1).integers(0, 256, (channels, *size)).astype(dtype)


def read_back(tmp_path, name):
    """The masks of a data set of one image, as masklab reads it, in order; and their classes."""
    Image.fromarray(image()[0]).save(tmp_path / name)
    split = open_split(tmp_path, "all")
    objects = split.objects(0)
    masks = [objects.rle(n) for n in range(len(objects))]
    return masks, [split.categories.names[label] for label in objects.labels]


def test_every_format_has_a_name_an_ending_and_a_suffix_of_its_own():
    for attribute in ("name", "ending", "suffixes"):
        values = [getattr(each, attribute) for each in FORMATS.values()]
        assert len(set(values)) == len(values) == 8
    assert all(each.combined is None or each.combine is not None for each in FORMATS.values())


@pytest.mark.parametrize("name", FORMATS)
def test_no_objects_make_a_whole_file(name, tmp_path):
    none = scenes.scene(0, empty=False)
    path = none.save(tmp_path / "x", name, image())
    assert path.stat().st_size > 0 or name == "yolo"


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_objects_give_the_same_bytes(name, tmp_path):
    first, second = (ALL.save(tmp_path / part / "x", name, image()).read_bytes() for part in "ab")
    assert first == second


@pytest.mark.parametrize("name", FORMATS)
def test_a_reader_of_windows_stands_for_the_array(name, tmp_path):
    windows, array = (
        ALL.save(tmp_path / place / "x", name, given).read_bytes()
        for place, given in (("a", scenes.Windows(image())), ("b", image()))
    )
    assert windows == array


@pytest.mark.parametrize("name", FORMATS)
def test_packed_run_lengths_give_the_same_file(name, tmp_path):
    """As the objects of an image of any size are kept."""
    packed = dataclasses.replace(ALL, _rle=PackedRLEs.of(ALL.rle)).above(0.5)
    one, two = (each.save(tmp_path / f"{k}/x", name, image()) for k, each in enumerate((packed, ALL.above(0.5))))
    assert one.read_bytes() == two.read_bytes()


def test_the_label_image_is_the_label_map_for_tifffile(tmp_path):
    path = ALL.save(tmp_path / "x.tif", pixel_size=(0.5, 0.25))
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert not file.is_bigtiff
        values = file.asarray()
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, ALL.label_map())
    assert (pixels["PhysicalSizeY"], pixels["PhysicalSizeX"]) == (0.5, 0.25)
    assert pixels["PhysicalSizeXUnit"] == pixels["PhysicalSizeYUnit"] == "µm"
    assert "PhysicalSize" not in tifffile.TiffFile(ALL.save(tmp_path / "y.tiff")).ome_metadata


def test_the_label_image_beside_its_image_is_a_data_set_of_cellpose(tmp_path):
    """So that predictions are corrected and trained on."""
    found = scenes.scene(12, empty=False)
    found.save(tmp_path / "x_masks.tif")
    masks, _ = read_back(tmp_path, "x.png")
    values, wanted = encode_labels(found.label_map())
    assert len(masks) == len(values)
    for mask, each in zip(masks, wanted, strict=True):
        np.testing.assert_array_equal(mask, each)


def test_a_large_label_image_is_painted_tile_by_tile(tmp_path, monkeypatch):
    """Of a size that no tile divides; objects lie over the edges of tiles."""
    size = (1030, 1541)
    found = scenes.scene(400, size, empty=True)
    wanted, largest = found.label_map(), []
    paint = labels.LabelPainter.paint
    monkeypatch.setattr(
        labels.LabelPainter, "paint", lambda self, part, at: largest.append(part.size) or paint(self, part, at)
    )
    with tifffile.TiffFile(found.save(tmp_path / "x.tif")) as file:
        assert file.pages[0].is_tiled
        np.testing.assert_array_equal(file.asarray(), wanted)
    assert max(largest) == 512 * 512


def test_more_objects_than_16_bits_tell_apart_take_32(tmp_path):
    count = 2**16
    corners = np.stack(np.divmod(np.arange(count), 256), axis=1)
    rle = encode_windows([np.ones((1, 1), bool)] * count, corners, (256, 256))
    boxes = np.concatenate((corners, corners + 1), axis=1).astype(np.float32)
    scores = np.linspace(1, 0, count, dtype=np.float32)
    found = Instances(
        (256, 256), boxes, scores, np.zeros(count, int), np.zeros((count, 0, 0), np.float32), ("a",), (1,), rle
    )
    values = tifffile.imread(found.save(tmp_path / "x.tif"))
    assert values.dtype == np.uint32
    assert values.max() == count
    assert tifffile.imread(found.above(scores[-2]).save(tmp_path / "y.tif")).dtype == np.uint16


def test_beyond_4_gb_the_label_image_is_a_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "_LARGEST_TIFF", scenes.SIZE[0] * scenes.SIZE[1] * 2 - 1)
    with tifffile.TiffFile(ALL.save(tmp_path / "x.tif")) as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.asarray(), ALL.label_map())


def filled(geometry):
    """The pixels of a geometry in which their centres lie."""
    y, x = np.mgrid[: scenes.SIZE[0], : scenes.SIZE[1]] + 0.5
    return shapely.contains_xy(geometry, x, y)


def test_geojson_holds_valid_outlines_with_their_holes(tmp_path):
    values = json.loads(ALL.save(tmp_path / "x.geojson").read_text())
    assert values["type"] == "FeatureCollection"
    assert len(values["features"]) == len(WITH_PIXELS)
    kinds, holes = set(), 0
    for n, feature in zip(WITH_PIXELS, values["features"], strict=True):
        geometry = shapely.geometry.shape(feature["geometry"])
        kinds.add(geometry.geom_type)
        assert geometry.is_valid, shapely.is_valid_reason(geometry)
        np.testing.assert_array_equal(filled(geometry), ALL.mask(n))
        for polygon in getattr(geometry, "geoms", [geometry]):
            holes += len(polygon.interiors)
            assert polygon.exterior.is_ccw, "RFC 7946"
        properties = feature["properties"]
        assert feature["type"] == "Feature"
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == scenes.NAMES[ALL.labels[n]]
        assert all(0 <= value <= 255 for value in properties["classification"]["color"])
        assert np.float32(properties["measurements"]["score"]) == ALL.scores[n]
        rings = feature["geometry"]["coordinates"]
        rings = rings if geometry.geom_type == "Polygon" else [ring for part in rings for ring in part]
        assert all(ring[0] == ring[-1] and len(ring) > 4 for ring in rings)
    assert kinds == {"Polygon", "MultiPolygon"}
    assert holes > 10


def test_geojson_read_again_is_equal_bit_by_bit(tmp_path):
    ALL.save(tmp_path / "x.geojson")
    masks, names = read_back(tmp_path, "x.png")
    for n, mask in zip(WITH_PIXELS, masks, strict=True):
        np.testing.assert_array_equal(mask, ALL.rle[n])
    assert names == [scenes.NAMES[ALL.labels[n]] for n in WITH_PIXELS]


def test_imagej_regions_read_again_are_equal_bit_by_bit(tmp_path):
    path = ALL.save(tmp_path / "x.zip")
    masks, groups = read_back(tmp_path, "x.png")
    for n, mask in zip(WITH_PIXELS, masks, strict=True):
        np.testing.assert_array_equal(mask, ALL.rle[n])
    assert groups == [f"group {ALL.labels[n] + 1}" for n in WITH_PIXELS]
    regions = roifile.roiread(path)
    names = [region.name for region in regions]
    assert len({name.casefold() for name in names}) == len(names) == len(zipfile.ZipFile(path).namelist())
    assert sorted(int(name[:4]) for name in names) == sorted(ALL.measurements()["label"][WITH_PIXELS])
    assert not any("/" in name for name in names)
    assert {region.roitype.name for region in regions} == {"TRACED", "RECT"}
    assert all(region.composite == (region.roitype.name == "RECT") for region in regions)
    for n, region in zip(WITH_PIXELS, regions, strict=True):
        y, x = np.nonzero(ALL.mask(n))
        assert (region.left, region.top, region.right, region.bottom) == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_imagej_regions_farther_than_16_bits_keep_their_place(tmp_path):
    size = (10, 70_000)
    rle = encode_windows([np.ones((4, 5), bool)] * 2, [[32_765, 2], [65_600, 2]], size)
    boxes = np.array([[32_765, 2, 32_770, 6], [65_600, 2, 65_605, 6]], np.float32)
    found = Instances(size, boxes, np.ones(2, np.float32), np.zeros(2, int), np.zeros((2, 0, 0)), ("a",), (1,), rle)
    for region, (left, _, right, _) in zip(roifile.roiread(found.save(tmp_path / "x.zip")), boxes, strict=True):
        points = np.concatenate(region.coordinates(multi=True))
        assert (points[:, 0].min(), points[:, 0].max()) == (left, right)


def test_a_yolo_line_ends_in_the_confidence(tmp_path):
    """As Ultralytics saves predictions; without the last number it is a label, equal bit by bit."""
    lines = ALL.save(tmp_path / "x.txt").read_text().splitlines()
    assert [float(line.split()[-1]) for line in lines] == pytest.approx(ALL.scores[WITH_PIXELS].tolist(), rel=1e-5)
    (tmp_path / "x.txt").write_text("".join(line.rpartition(" ")[0] + "\n" for line in lines))
    (tmp_path / "data.yaml").write_text("names: [a, b, c]")
    masks, names = read_back(tmp_path, "x.png")
    for n, mask in zip(WITH_PIXELS, masks, strict=True):
        np.testing.assert_array_equal(mask, ALL.rle[n])
    assert names == ["abc"[ALL.labels[n]] for n in WITH_PIXELS]


def test_coco_results_are_those_that_pycocotools_decodes(tmp_path):
    entries = json.loads(ALL.save(tmp_path / "x.json", image=tiff(tmp_path / "cells.tif")).read_text())
    assert len(entries) == len(ALL)
    for n, entry in enumerate(entries):
        np.testing.assert_array_equal(oracle.decode(entry["segmentation"]), ALL.mask(n))
        assert entry["image_id"] == entry["file_name"] == "cells.tif"
        assert entry["category_id"] == 5 + ALL.labels[n]
        assert entry["category_name"] == scenes.NAMES[ALL.labels[n]]


def test_parquet_holds_a_row_for_each_object(tmp_path):
    table = pq.read_table(ALL.save(tmp_path / "x.parquet"))
    assert table.column_names[:4] == ["file_name", "label", "class", "score"]
    rows = table.to_pylist()
    assert len(rows) == len(ALL)
    for n, row in enumerate(rows):
        counts = {"size": [row["height"], row["width"]], "counts": row["rle"]}
        np.testing.assert_array_equal(oracle.decode(counts), ALL.mask(n))
        assert [row[name] for name in ("x1", "y1", "x2", "y2")] == ALL.boxes[n].tolist()
        assert np.float32(row["score"]) == ALL.scores[n]
        assert (row["label"], row["class"]) == (ALL.labels[n], scenes.NAMES[ALL.labels[n]])
        assert row["file_name"] == "x"


def tiff(path, **options):
    tifffile.imwrite(
        path, image(dtype=np.uint16), **{"photometric": "minisblack", "metadata": {"axes": "CYX"}} | options
    )
    return path


def test_the_table_of_measurements_is_read_by_csv(tmp_path):
    with open(ALL.save(tmp_path / "x.csv", image=image(), pixel_size=0.5), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == (np.argsort(np.argsort(-ALL.scores, kind="stable")) + 1).tolist()
    for n, row in enumerate(rows):
        assert row["class"] == scenes.NAMES[ALL.labels[n]]
        assert int(row["area"]) == ALL.mask(n).sum()
        assert float(row["area_um2"]) == ALL.mask(n).sum() / 4
        assert row["touches_border"] in ("0", "1")
        assert (row["centroid_x"] == "") == (not ALL.mask(n).any())
    assert "channel_3_sum" in rows[0]
    assert "area_um2" not in ALL.save(tmp_path / "y.csv", image=image()).read_text().splitlines()[0]


def test_the_size_of_a_pixel_is_that_of_the_file(tmp_path):
    path = tiff(
        tmp_path / "x.ome.tif",
        metadata={"axes": "CYX", "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm", "PhysicalSizeX": 0.5},
    )
    assert "area_um2" in ALL.measurements(path)
    np.testing.assert_allclose(ALL.measurements(path)["area_um2"], ALL.measurements()["area"] / 4)


def test_an_overlay_of_a_large_image_is_drawn_smaller(tmp_path, monkeypatch):
    """From windows, none of which is the image; every third pixel is drawn."""
    monkeypatch.setattr(overlay, "_MOST_PIXELS", 1000)
    monkeypatch.setattr(overlay, "_LONGEST", 50)
    monkeypatch.setattr(overlay, "_WINDOW", 20)
    reader = scenes.Windows(image())
    few = scenes.scene(3, empty=False)
    drawn = []
    monkeypatch.setattr(
        drawing, "overlay", lambda shown, found, score: drawn.append((shown, found)) or Image.new("L", (1, 1))
    )
    few.save(tmp_path / "x.png", image=reader)
    shown, found = drawn[0]
    np.testing.assert_array_equal(shown, reader.values[:, ::3, ::3])
    np.testing.assert_array_equal(scenes.full(found), scenes.full(few)[:, ::3, ::3])
    np.testing.assert_allclose(found.boxes, few.boxes / 3)
    assert reader.largest <= 18 * 18


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.float64])
def test_an_overlay_shows_images_of_any_depth(dtype, tmp_path):
    values = np.linspace(0, 2 if dtype is bool else 250, 90 * 130).reshape(1, 90, 130).astype(dtype)
    drawn = np.asarray(Image.open(scenes.scene(0, empty=False).save(tmp_path / "x.png", image=values)))
    assert drawn.min() <= 5
    assert drawn.max() >= 249


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("x.doc", {}, ".geojson (geojson)"),
        ("x", {"format": "geojsn"}, "did you mean geojson"),
        ("x.png", {}, "an overlay needs the image"),
        ("x.csv", {"image": np.zeros((3, 4, 5))}, "4 x 5"),
        ("x.csv", {"image": np.zeros((90, 130, 3))}, "130 x 3"),
        ("x.csv", {"image": "missing.png"}, "missing.png"),
        ("x.csv", {"image": np.array(["a"])}, "give numbers"),
        ("x.tif", {"pixel_size": 0}, "pixel_size is 0"),
        ("x.tif", {"pixel_size": (1, math.inf)}, "pixel_size is"),
        ("x.tif", {"pixel_size": (1, 2, 3)}, "pixel_size is"),
    ],
)
def test_what_cannot_be_written_is_said(name, options, said, tmp_path):
    with pytest.raises(InputError, match=r"[.:]") as caught:
        ALL.save(tmp_path / name, **options)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "package"), [("x.csv", "skimage"), ("x.parquet", "pyarrow")])
def test_a_missing_package_is_named_with_its_extra(name, package, tmp_path, monkeypatch):
    monkeypatch.setattr("masklab.results.formats.base.installed", lambda wanted: wanted != package)
    with pytest.raises(InputError, match=rf'{package}.*pip install "masklab\[results\]"'):
        ALL.save(tmp_path / name)


def test_measurements_without_scikit_image_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(InputError, match=r'pip install "masklab\[results\]"'):
        ALL.measurements()

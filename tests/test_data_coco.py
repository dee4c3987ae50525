import copy
import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from contracts import fails
from msgspec.structs import astuple
from msgspec.structs import replace as changed_to
from PIL import Image
from pycocotools import mask as oracle

from masklab.datasets.annotations import read_annotation, read_annotations
from masklab.datasets.grouping import group_by_image
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.layouts.coco import find_split
from masklab.datasets.problems import CollectingSink, TrainingSink
from masklab.datasets.split import Split
from masklab.images.listing import list_images
from masklab.images.read import read_image
from masklab.masks import rle
from masklab.structures import ClassTable

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data"

SQUARE = [[2, 3, 6, 3, 6, 9, 2, 9]]
COCO = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 3, "file_name": "b.png", "height": 16, "width": 16},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 3, 4, 6], "area": 24, "segmentation": SQUARE},
    ],
    "categories": [{"id": 90, "name": "pear"}, {"id": 4, "name": "apple"}],
}


def write_split(folder, change=None, name="train"):
    """A data set of two images; ``change`` edits the JSON."""
    values = copy.deepcopy(COCO)
    if change:
        change(values)
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), (9, 8, 7)).save(folder / name / "a.png")
    Image.new("RGB", (16, 16)).save(folder / name / "b.png")
    (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def add(**fields):
    base = {"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 5, 5], "segmentation": SQUARE}
    return lambda values: values["annotations"].append({**base, **fields})


# ---- images


def test_read_image_brings_every_kind_to_rgb_and_grey(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(rgb)
    image.save(tmp_path / "rgb.png")
    assert (read_image(tmp_path / "rgb.png", 3) == rgb.transpose(2, 0, 1)).all()
    image.putalpha(40)
    image.save(tmp_path / "rgba.png")
    assert (read_image(tmp_path / "rgba.png", 3) == rgb.transpose(2, 0, 1)).all()
    assert read_image(tmp_path / "rgba.png", 4)[3].tolist() == np.full((6, 9), 40).tolist()
    grey = Image.fromarray(rgb).convert("L")
    grey.save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "rgb.png", 1)[0] == np.asarray(grey)).all()
    assert (read_image(tmp_path / "grey.png", 3) == np.asarray(grey)).all()
    assert read_image(tmp_path / "grey.png", 1).shape == (1, 6, 9)
    Image.fromarray(rgb).quantize(256).save(tmp_path / "palette.png")
    assert (read_image(tmp_path / "palette.png", 3) == rgb.transpose(2, 0, 1)).all()
    Image.fromarray(rgb[:, :, 0] > 99).save(tmp_path / "bits.png")
    assert (read_image(tmp_path / "bits.png", 1)[0] == 255 * (rgb[:, :, 0] > 99)).all()


def test_read_image_applies_exif_orientation(tmp_path):
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[0, 0] = 255
    exif = Image.Exif()
    exif[274] = 6  # shown turned clockwise: the top left corner goes to the top right
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    image = read_image(tmp_path / "turned.png", 3)
    assert image.shape == (3, 16, 8)
    assert np.argwhere(image[0]).tolist() == [[0, 7]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_is_that_of_pillow(tmp_path, orientation):
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(274, "H", 1, orientation, True)])
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    assert (read_image(tmp_path / "a.tif", 1) == read_image(tmp_path / "a.png", 1)).all()


def test_sixteen_bits_stay_sixteen(tmp_path):
    values = np.linspace(500, 1500, 4000).astype(np.uint16).reshape(50, 80)
    values[0, 0] = 65535
    Image.fromarray(values).save(tmp_path / "deep.png")
    tifffile.imwrite(tmp_path / "deep.tif", values)
    for file in ("deep.png", "deep.tif"):
        assert (read_image(tmp_path / file, 1) == values).all()
        assert (read_image(tmp_path / file, 3) == values).all()
        assert read_image(tmp_path / file, 3).dtype == np.uint16


@pytest.mark.parametrize("layout", ["YXS", "CYX"])
def test_tiff_with_five_channels(tmp_path, layout):
    values = np.random.default_rng(0).integers(0, 255, (5, 12, 9), dtype=np.uint8)
    stored = values if layout == "CYX" else values.transpose(1, 2, 0)
    planar = "separate" if layout == "CYX" else "contig"
    tifffile.imwrite(tmp_path / "five.tif", stored, photometric="minisblack", planarconfig=planar)
    assert (read_image(tmp_path / "five.tif", 5) == values).all()
    fails(["five.tif", "5 channels", "3 are expected", "in_channels"], read_image, tmp_path / "five.tif", 3)


def test_compressed_rgb_tiff(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    assert (read_image(tmp_path / "lzw.tif", 3) == rgb.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_damaged_images_are_named(tmp_path, suffix):
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    for share in (0.0, 0.001, 0.02, 0.5, 0.9):
        path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        fails([path.name], read_image, path, 3)
    path.write_text("not an image at all")
    fails([path.name, "not an image"], read_image, path, 3)
    fails(["missing"], read_image, tmp_path / f"missing{suffix}", 3)
    fails([str(tmp_path)], read_image, tmp_path, 3)


def test_a_png_with_a_wrong_checksum_is_damaged(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IEND") - 6] ^= 1  # in the pixels' checksum, at which Pillow does not look
    path.write_bytes(content)
    with Image.open(path) as opened:
        opened.load()
    fails([path.name, "damaged"], read_image, path, 3)


def test_no_program_runs_for_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    fails([path.name, "not an image"], read_image, path, 3)


def damage_tiff(path, change, **options):
    """Write a TIFF of three strips (or as ``options`` say) and change its first page's tags."""
    tifffile.imwrite(path, np.arange(24 * 20, dtype=np.uint8).reshape(24, 20), **{"rowsperstrip": 8} | options)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        change(tiff.pages[0].tags)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_that_contradicts_itself_is_damaged(tmp_path, compression):
    path = tmp_path / "a.tif"
    damage_tiff(path, lambda tags: tags["ImageLength"].overwrite(240), compression=compression)
    fails([path.name, "3 of 30 strips"], read_image, path, 1)
    damage_tiff(path, lambda tags: tags["StripByteCounts"].overwrite((160, 0, 160)), compression=compression)
    fails([path.name, "no bytes"], read_image, path, 1)
    damage_tiff(path, lambda tags: tags["RowsPerStrip"].overwrite((8, 8)), compression=compression)
    fails([path.name], read_image, path, 1)


@pytest.mark.parametrize("tag", ["BitsPerSample", "SamplesPerPixel", "StripOffsets"])
def test_a_tag_that_cannot_be_read_is_not_left_out(tmp_path, tag):
    """As when the bits of its own type are turned over."""

    def spoil(tags):
        entry = tags[tag].offset + 2
        file = tags[tag].parent.filehandle
        file.seek(entry)
        file.write(b"\xff\xff")

    rgb = np.zeros((24, 20, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb", rowsperstrip=8)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        spoil(tiff.pages[0].tags)
    fails(["a.tif", "damaged"], read_image, tmp_path / "a.tif", None)


def test_uncompressed_strips_are_as_large_as_their_pixels(tmp_path):
    damage_tiff(tmp_path / "a.tif", lambda tags: tags["ImageWidth"].overwrite(16))
    fails(["a.tif", "480 bytes", "need 384"], read_image, tmp_path / "a.tif", 1)


def test_a_tiff_whose_last_pages_are_cut_off_is_damaged(tmp_path):
    path = tmp_path / "a.tif"
    planes = np.zeros((5, 24, 20), np.float32)
    tifffile.imwrite(path, planes, photometric="minisblack", metadata=None)
    assert len(read_image(path, None)) == 5
    path.write_bytes(path.read_bytes()[:-2000])
    fails([path.name, "missing"], read_image, path, None)


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}])
def test_a_tiff_that_claims_100000_pixels_a_side_takes_no_memory(tmp_path, options):
    def claim(tags):
        for name in {"ImageWidth", "ImageLength", "RowsPerStrip", "TileWidth", "TileLength"} & {t.name for t in tags}:
            tags[name].overwrite(100_000 if tags[name].dtype == tifffile.DATATYPE.LONG else 65520)

    one = {"rowsperstrip": 24} if not options else {"rowsperstrip": None}
    damage_tiff(tmp_path / "a.tif", claim, compression="zlib", **one, **options)
    fails(["a.tif"], read_image, tmp_path / "a.tif", 1)


def test_wrong_number_of_channels(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    fails(["a.png", "3 channels", "6 are expected"], read_image, tmp_path / "a.png", 6)


def test_list_images(tmp_path):
    fails([str(tmp_path), "no image"], list_images, tmp_path)
    fails(["nowhere"], list_images, tmp_path / "nowhere")
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "._a.png").write_bytes(b"a Mac's notes on a.png")
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert list_images(tmp_path / "a.png") == [tmp_path / "a.png"]


# ---- finding a split


def test_find_split_in_every_layout(tmp_path):
    write_split(tmp_path / "simple", name="val")
    source = find_split(tmp_path / "simple", "val")
    assert (source.json_path, source.places[0]) == (tmp_path / "simple/val.json", tmp_path / "simple/val")
    for year in ("2014", "2017", ""):
        folder = tmp_path / f"official{year}"
        (folder / "annotations").mkdir(parents=True)
        (folder / f"train{year}").mkdir()
        (folder / f"annotations/instances_train{year}.json").touch()
        (folder / f"annotations/captions_train{year}.json").touch()
        source = find_split(folder, "train")
        assert source.json_path == folder / f"annotations/instances_train{year}.json"
        assert source.places[0] == folder / f"train{year}"
        assert find_split(folder, f"train{year}") == find_split(folder, "train")


def test_find_split_says_what_is_missing(tmp_path):
    fails(["nowhere"], find_split, tmp_path / "nowhere", "train")
    fails(["train.json", "instances_train2017.json", str(tmp_path)], find_split, tmp_path, "train")
    write_split(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/train")
    fails(["a.png", "missing", "2 of the 2", "--images"], Split.find, tmp_path / "moved", "train")
    for name in ("../train", "/etc", "", "..", "a/b"):
        fails(["split"], find_split, tmp_path, name)
    for year in ("2014", "2017"):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_val{year}.json").touch()
        (tmp_path / f"val{year}").mkdir()
    fails(["instances_val2014.json", "instances_val2017.json"], find_split, tmp_path, "val")
    assert find_split(tmp_path, "val2014").places[0] == tmp_path / "val2014"


# ---- reading a split


def test_empty_split(tmp_path):
    split = Split.find(write_split(tmp_path, lambda v: v.update(images=[], annotations=[])), "train")
    assert len(split) == split.most_objects == 0
    assert "0 images" in split.summary()


def test_split_as_written(tmp_path):
    split = Split.find(write_split(tmp_path), "train")
    assert [p.image_id for p in split.images] == [7, 3]
    assert split.images[0].size == (20, 30)
    assert split.categories == ClassTable((4, 90), ("apple", "pear"))
    objects = split.objects(0)
    assert objects.boxes.tolist() == [[2, 3, 6, 9]]
    assert objects.labels.tolist() == [1]
    assert objects.areas.tolist() == [24]
    mask = rle.window(objects.rle(0), (20, 30), (0, 0, 30, 20))
    assert mask.sum() == 24
    assert mask[3:9, 2:6].all()
    assert len(split.objects(1)) == 0
    assert split.objects(1).boxes.shape == (0, 4)
    assert (split.read(0, 3)[:, 0, 0] == [9, 8, 7]).all()
    assert split.coco == COCO
    assert split.most_objects == 1
    assert split.summary().endswith("2 images (1 without objects), 1 object, 0 crowd regions, 2 classes")


def test_polygons_keep_parts_and_rle_keeps_holes(tmp_path):
    holed = np.zeros((20, 30), np.uint8)
    holed[4:10, 5:12] = 1
    holed[6:8, 7:9] = 0
    flat = holed.ravel(order="F")
    counts = np.diff(np.flatnonzero(np.diff(flat, prepend=0, append=2))).tolist()
    counts = [int(np.flatnonzero(flat)[0]), *counts]
    parts = [[2, 3, 6, 3, 6, 9, 2, 9], [20, 10, 24, 10, 24, 12, 20, 12]]

    def change(values):
        add(segmentation={"size": [20, 30], "counts": counts})(values)
        add(segmentation=parts)(values)

    objects = Split.find(write_split(tmp_path, change), "train").objects(0)
    assert (rle.window(objects.rle(1), (20, 30), (0, 0, 30, 20)) == holed).all()
    assert objects.boxes[2].tolist() == [2, 3, 24, 12]
    assert objects.areas.tolist() == [24, 38, 24 + 8]


def test_bad_annotations_are_skipped_and_counted(tmp_path):
    empty = {"size": [20, 30], "counts": [600]}
    bad = [
        {"segmentation": empty, "bbox": [0, 0, 0, 0]},
        {"segmentation": empty},
        {"segmentation": [[40, 3, 46, 3, 46, 9]], "bbox": [40, 3, 6, 6]},
        {"segmentation": []},
        {"segmentation": None},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": {"size": [30, 20], "counts": [600]}},
        {"segmentation": {"size": [20, 30], "counts": "\x00"}},
        {"category_id": 5},
        {"category_id": [5]},
        {"category_id": None},
        {"category_id": True},
        {"iscrowd": "0"},
        {"iscrowd": float("nan")},
    ]

    def change(values):
        for fields in bad:
            add(**fields)(values)

    split = Split.find(write_split(tmp_path, change), "train")
    line = split.summary()
    assert split.skipped == {
        "empty mask": 2,
        "outside the image": 1,
        "malformed segmentation": 5,
        "unknown category": 4,
        "malformed iscrowd": 2,
    }
    assert "skipped 14 annotations (2 empty mask, 2 malformed iscrowd, 5 malformed segmentation, 1 outside" in line
    assert len(split.objects(0)) == 1
    assert split.summary() == line


def test_sinks_raise_count_or_collect_what_the_one_reader_meets(tmp_path):
    image = ImageRecord(7, tmp_path / "a.png", (20, 30))
    group = [
        {"id": 1, "image_id": 7, "category_id": 90, "segmentation": SQUARE, "area": -1},
        {"id": 2, "image_id": 7, "category_id": 5, "segmentation": SQUARE},
        {"id": 3, "image_id": 8, "category_id": 90, "segmentation": SQUARE},
    ]
    collecting, training = CollectingSink(), TrainingSink()
    for sink in (collecting, training):
        read = [read_annotation(annotation, image, {90: 0}, "x.json", sink) for annotation in group]
        assert [a.problem for a in read] == ["", "unknown category", ""]
        assert [a.rle.sum() for a in read] == [600] * 3
    assert [(p.name, p.annotation_id) for p in collecting.problems] == [("malformed area", 1), ("unknown category", 2)]
    assert training.skipped == {"unknown category": 1}
    assert group_by_image(group, [image], "x.json", collecting).of(0).tolist() == [0, 1]
    assert collecting.problems[-1][:4] == ("annotation of no image", "its image id is 8", None, 3)
    fails(["x.json", "annotation 3", "image id 8"], group_by_image, group, [image], "x.json", training)


def variants_of_one_annotation():
    """An annotation without a fault, and what differs from it in one or two fields."""
    runs, h, w = [25, 5, 15, 5, 550], 20, 30
    plain = {"id": 1, "image_id": 7, "category_id": 90, "iscrowd": 0, "area": 10, "bbox": [1, 5, 2, 5]}

    def mask(counts, size=(h, w)):
        return {"size": list(size), "counts": rle.rle_to_strings([np.array(counts)])[0]}

    plain["segmentation"] = mask(runs)
    fields = {
        "id": ["x", None, 1.5, True],
        "category_id": [5, "90", None, True, [90], 90.0],
        "iscrowd": [1, None, True, False, 2, "0", 0.0],
        "area": [-1, None, "ten", True, 2.5, 1e30, float("nan"), 0],
        "bbox": [
            None,
            [],
            [1, 5, 0, 5],
            [-1, -1, 32, 22],
            [-2, 5, 2, 5],
            [1, 5, 2, 99],
            (1, 5, 2, 5),
            [1.5, 5, 2, 5],
            [True, 5, 2, 5],
            ["1", 5, 2, 5],
            [1, 5, 2, float("nan")],
            [1, 5, 2, 2**40],
            [1, 5, 2],
        ],
        "segmentation": [
            mask(runs, (w, h)),
            mask(runs[:-1]),
            mask([*runs[:-1], 551]),
            mask([600]),
            mask([0, 600]),
            mask([25, 2, 0, 3, 15, 5, 550]),
            mask([25, 5, 15, 5, 550, 0]),
            mask([25, 0, 575]),
            mask([0, 2**31, 600]),
            {"size": [h, w], "counts": runs},
            {"size": (h, w), "counts": mask(runs)["counts"]},
            {"size": [float(h), w], "counts": mask(runs)["counts"]},
            {"size": np.array([h, w]), "counts": mask(runs)["counts"]},
            {"size": [h, w], "counts": mask(runs)["counts"].encode()},
            {"size": [h, w], "counts": ""},
            {"size": [h, w]},
            {"counts": mask(runs)["counts"]},
            [[1, 5, 3, 5, 3, 10]],
            [[1, 5, 3, 5]],
            None,
            "",
        ],
    }
    yield plain
    for key, values in fields.items():
        yield {name: value for name, value in plain.items() if name != key}
        yield from ({**plain, key: value} for value in values)
    yield {**plain, "segmentation": mask([600]), "bbox": [40, 5, 2, 5]}


def test_annotations_that_are_read_together_are_those_read_one_by_one(tmp_path):
    image = ImageRecord(7, tmp_path / "a.png", (20, 30))
    entries = list(variants_of_one_annotation())
    malformed = {**entries[0], "segmentation": {"size": [20, 30], "counts": "~"}}
    for group in (entries, [*entries, malformed], *([entry] for entry in entries), [malformed], []):
        one, other = CollectingSink(), CollectingSink()
        found = read_annotations(group, image, {90: 0}, "x.json", one)
        expected = [read_annotation(entry, image, {90: 0}, "x.json", other) for entry in group]
        assert one.problems == other.problems
        for read, wanted in zip(found, expected, strict=True):
            assert [type(value) for value in astuple(read)[4:-1]] == [type(value) for value in astuple(wanted)[4:-1]]
            assert repr(changed_to(read, rle=None, counts=None)) == repr(changed_to(wanted, rle=None, counts=None))
            np.testing.assert_array_equal(read.rle, wanted.rle)
            if read.counts is not None:
                assert rle.rle_from_string(read.counts).tolist() == wanted.rle.tolist()
    assert sum(read.counts is not None for read in read_annotations(entries, image, {90: 0}, "", one)) > 8


def test_crowds_are_ignored_regions(tmp_path):
    def change(values):
        add(iscrowd=1)(values)
        add(iscrowd=1, segmentation=None, bbox=[25, 10, 50, 4])(values)
        add(iscrowd=1, segmentation=None, bbox=[40, 10, 50, 4])(values)

    split = Split.find(write_split(tmp_path, change), "train")
    objects = split.objects(0)
    assert len(objects) == 1
    assert objects.ignored.tolist() == [[2, 3, 6, 9], [25, 10, 30, 14]]
    assert split.skipped == {"malformed segmentation": 1}
    assert split.most_objects == 1


def entry(number, **fields):
    return lambda v: v["images"][number].update(fields)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("images"), ["not a COCO", "'images'"]),
        (lambda v: v.pop("annotations"), ["not a COCO", "'annotations'"]),
        (lambda v: v.update(categories={}), ["not a COCO", "'categories'"]),
        (lambda v: v.update(categories=[]), ["categories"]),
        (lambda v: v["categories"].append({"id": 4, "name": "again"}), ["category id 4", "twice"]),
        (lambda v: v["categories"].append({"id": "x", "name": "again"}), ["whole number id"]),
        (lambda v: v["images"].append(v["images"][0]), ["image id 7", "twice"]),
        (lambda v: v["images"].append(3), ["no id"]),
        (lambda v: v["images"][0].pop("file_name"), ["image 7", "file_name"]),
        (lambda v: v["images"][0].pop("width"), ["image 7", "width"]),
        (entry(0, height="20"), ["image 7", "height"]),
        (entry(0, height=float("nan")), ["image 7", "height"]),
        (entry(0, height=float("inf")), ["image 7", "height"]),
        (entry(0, height=0), ["image 7", "height"]),
        (entry(1, file_name="c.png"), ["c.png", "1 of the 2", "missing"]),
        (entry(1, file_name="/etc/passwd"), ["train/etc/passwd", "missing"]),
        (add(image_id=99), ["annotation 2", "image id 99"]),
        (lambda v: v["annotations"].append(5), ["annotation"]),
        (add(image_id=[7]), ["annotation 2"]),
        (add(image_id=True), ["annotation 2", "True"]),
        (entry(1, file_name="a/" * 3000 + "b.png"), ["b.png", "missing"]),
        (entry(1, file_name="b.png\nc.png"), ["image 3", "control characters"]),
        (entry(1, id=True), ["no id"]),
        (lambda v: v["categories"][0].update(name=None), ["a name"]),
    ],
)
def test_files_that_are_not_coco_are_refused(tmp_path, change, words):
    fails(["train", *words], Split.find, write_split(tmp_path, change), "train")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "\ufeff{}", "[" * 100_000])
def test_files_that_are_not_json_are_refused(tmp_path, text):
    write_split(tmp_path)
    (tmp_path / "train.json").write_text(text, encoding="utf-8")
    fails(["train.json"], Split.find, tmp_path, "train")


def test_image_of_another_size_names_both_sizes(tmp_path):
    split = Split.find(write_split(tmp_path, lambda v: v["images"][0].update(height=30, width=20)), "train")
    fails(["a.png", "30 wide and 20 high", "20 wide and 30 high", "correct"], split.read, 0, 3)
    assert split.read(1, 3).shape == (3, 16, 16)


def test_classes_of_the_training_set_rule(tmp_path):
    train = Split.find(write_split(tmp_path), "train").categories
    fewer = write_split(tmp_path, lambda v: v.update(categories=[{"id": 90, "name": "pear"}]), name="val")
    val = Split.find(fewer, "val", train)
    assert val.objects(0).labels.tolist() == [1]
    assert list(val.truth.labels) == list(train.ids), "a model may find what val has none of"
    assert val.truth.class_names == list(train.names)
    more = write_split(tmp_path, lambda v: v["categories"].append({"id": 5, "name": "plum"}), name="more")
    fails(["more.json", "5 (plum)"], Split.find, more, "more", train)
    other = write_split(tmp_path, lambda v: v["categories"][0].update(name="quince"), name="other")
    fails(["other.json", "90 (quince)"], Split.find, other, "other", train)


@pytest.mark.parametrize("name", ["../train/b.png", "x/../../b.png", "..\\b.png", "./b.png", "B.PNG"])
def test_names_of_other_places_mean_the_file_in_the_data_set(tmp_path, name):
    split = Split.find(write_split(tmp_path, entry(1, file_name=name)), "train")
    assert split.images[1].path.name == "b.png"


def test_images_in_folders_below(tmp_path):
    write_split(tmp_path, entry(1, file_name="deep/b.png"))
    fails(["missing"], Split.find, tmp_path, "train")
    (tmp_path / "train/deep").mkdir()
    (tmp_path / "train/b.png").rename(tmp_path / "train/deep/b.png")
    assert Split.find(tmp_path, "train").read(1, 3).shape == (3, 16, 16)


# ---- real data


def encode(segmentation, size):
    coded = oracle.frPyObjects(segmentation, *size) if isinstance(segmentation, list) else segmentation
    return oracle.merge(coded) if isinstance(coded, list) else coded


@pytest.mark.parametrize("name", ["nuclei", "coco-mini"])
@pytest.mark.parametrize("split_name", ["train", "val"])
def test_real_data(name, split_name):
    if not (REAL / name).is_dir():
        pytest.skip(f"needs {REAL / name}, which is not part of the repository")
    split = Split.find(REAL / name, split_name)
    annotations = split.coco["annotations"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(0, len(split), 9):
            assert split.read(index, 3).shape == (3, *split.images[index].size)
    for index in range(0, len(split), 9):
        entries = [a for a in annotations if a["image_id"] == split.images[index].image_id]
        given = [a for a in entries if not a.get("iscrowd")]
        objects = split.objects(index)
        assert len(objects) == len(given)
        for row, annotation in enumerate(given):
            x, y, width, height = oracle.toBbox(encode(annotation["segmentation"], split.images[index].size))
            assert objects.boxes[row].tolist() == [x, y, x + width, y + height]
    assert not split.skipped
    assert re.search(rf"{len(split)} images \(\d+ without objects\)", split.summary())

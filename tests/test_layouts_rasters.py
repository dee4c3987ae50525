"""Layouts whose masks are images, each written as its tool writes it."""

import logging

import numpy as np
import pytest
import tifffile
from contracts import fails
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.layouts import notes
from masklab.datasets.layouts.voc_classes import VOC_COLOURS, voc_colour
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import CollectingSink
from masklab.datasets.split import Split
from masklab.masks import rle

SIZE = (20, 30)
VOC_PALETTE = [channel for number in range(256) for channel in voc_colour(number)]


@pytest.fixture(autouse=True)
def _fresh_log():
    notes.warn_once.cache_clear()
    notes.inform_once.cache_clear()


def rectangles(*corners, size=SIZE, numbers=None):
    """Numbers 1, 2, ... in rectangles ``(top, left, bottom, right)``, later ones over earlier ones."""
    labels = np.zeros(size, np.uint16)
    for number, (top, left, bottom, right) in zip(numbers or range(1, 99), corners, strict=False):
        labels[top:bottom, left:right] = number
    return labels


TWO = rectangles((2, 3, 9, 11), (6, 8, 18, 25))
THREE = rectangles((1, 1, 4, 28), (5, 5, 10, 9), (12, 2, 19, 20))


def write(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".tif":
        tifffile.imwrite(path, values)
        return
    picture = Image.fromarray(values)
    if palette:
        picture.putpalette(palette)
    picture.save(path)


def image(path, size=SIZE):
    write(path, np.full((*size, 3), 120, np.uint8))


def masks(split, index):
    height, width = split.images[index].size
    objects = split.objects(index)
    return [rle.window(objects.rle(row), (height, width), (0, 0, width, height)) for row in range(len(objects))]


def assert_objects(split, index, labels, classes=None):
    """The objects of an image are those of a label image, bit by bit, in its order."""
    found = masks(split, index)
    assert not split.skipped + split.left_out
    values = [value for value in np.unique(labels) if value]
    assert len(found) == len(values)
    assert all((mask == (labels == value)).all() for mask, value in zip(found, values, strict=True))
    if classes is not None:
        assert [split.categories.names[label] for label in split.objects(index).labels] == classes


def stems(split):
    return [entry.path.stem for entry in split.images]


# ---- Pascal VOC


def voc_masks(root, name, objects, classes, colours=False, table=None):
    """``objects`` with a border of 255 around them, as VOC draws it; ``classes`` by object."""
    of_class = np.zeros_like(objects)
    for value, number in classes.items():
        of_class[objects == value] = number
    for folder, values in (("SegmentationObject", objects), ("SegmentationClass", of_class)):
        path = root / folder / f"{name}.png"
        if colours:
            own = [voc_colour(k) for k in range(256)]
            own = table if table and folder == "SegmentationClass" else own
            write(path, np.array(own, np.uint8)[values])
        else:
            write(path, values.astype(np.uint8), VOC_PALETTE)


def with_border(labels):
    bordered = labels.copy()
    bordered[6:18, 8] = 255
    return bordered


def voc_layout(root, splits=None, colours=False, table=None):
    for name in ("2007_000032", "2007_000039", "2007_000063"):
        image(root / f"JPEGImages/{name}.jpg")
    image(root / "JPEGImages/2008_000001.jpg")
    voc_masks(root, "2007_000032", with_border(TWO), {1: 1, 2: 15, 255: 255}, colours, table)
    voc_masks(root, "2007_000039", with_border(THREE), {1: 20, 2: 3, 3: 3, 255: 255}, colours, table)
    voc_masks(root, "2007_000063", with_border(TWO), {1: 12, 2: 12, 255: 255}, colours, table)
    for name, own in (splits or {}).items():
        path = root / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{stem}\n" for stem in own))


VOC_SPLITS = {
    "train": ["2007_000032", "2007_000063"],
    "val": ["2007_000039"],
    "trainval": ["2007_000032", "2007_000039", "2007_000063"],
    "test": ["2008_000001"],
}


def test_the_colour_map_is_vocs():
    assert [voc_colour(k) for k in (0, 1, 2, 3, 15, 20, 255)] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (192, 128, 128),
        (0, 64, 128),
        (224, 224, 192),
    ]
    assert len(VOC_COLOURS) == 256


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("nested", ["", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, colours, nested):
    voc_layout(tmp_path / nested, VOC_SPLITS, colours)
    assert split_names(tmp_path) == ["train", "trainval", "val"], "test has no masks"
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert len(train.categories.names) == 20
    assert (train.categories.names[0], train.categories.names[-1]) == ("aeroplane", "tvmonitor")
    assert train.categories == val.categories
    assert (stems(train), stems(val)) == (VOC_SPLITS["train"], VOC_SPLITS["val"])
    inside = np.where(with_border(TWO) == 255, 0, TWO)
    assert_objects(train, 0, inside, ["aeroplane", "person"])
    assert_objects(train, 1, inside, ["dog", "dog"])
    assert_objects(val, 0, np.where(with_border(THREE) == 255, 0, THREE), ["tvmonitor", "bird", "bird"])
    assert len(open_split(tmp_path, "trainval")) == 3


def test_voc_grey_masks_and_palettes_in_another_order(tmp_path):
    voc_layout(tmp_path)
    for folder in ("SegmentationObject", "SegmentationClass"):
        path = tmp_path / folder / "2007_000032.png"
        write(path, np.asarray(Image.open(path)))
        path = tmp_path / folder / "2007_000063.png"
        Image.open(path).convert("RGB").quantize(5, dither=Image.Dither.NONE).save(path)
        assert Image.open(path).mode == "P"
    split = open_split(tmp_path, "all")
    inside = np.where(with_border(TWO) == 255, 0, TWO)
    assert_objects(split, 0, inside, ["aeroplane", "person"])
    assert_objects(split, 2, inside, ["dog", "dog"])


def test_a_voc_palette_in_which_all_colours_are_one(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    voc_masks(tmp_path, "a", TWO, {1: 3, 2: 7})
    for folder in ("SegmentationObject", "SegmentationClass"):
        path = tmp_path / folder / "a.png"
        write(path, np.asarray(Image.open(path)), [0] * 768)
    assert_objects(open_split(tmp_path, "all"), 0, TWO, ["bird", "car"])


LABEL_MAP = "\ufeff# label:color_rgb:parts:actions\nbackground:0,0,0::\nleaf:10,200,30::\nrotten: fruit:250,0,0::\n"


def test_voc_as_cvat_writes_it(tmp_path):
    """One list, ``default.txt``; colours of the labels' own; images in which nothing was drawn are listed too."""
    table = [(0, 0, 0), (10, 200, 30), (250, 0, 0)]
    for name in ("a", "sub/b b", "empty"):
        image(tmp_path / f"JPEGImages/{name}.png")
    voc_masks(tmp_path, "a", TWO, {1: 2, 2: 1}, True, table)
    voc_masks(tmp_path, "sub/b b", THREE, {1: 1, 2: 1, 3: 2}, True, table)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("a\nsub/b b\nempty\n")
    (tmp_path / "labelmap.txt").write_text(LABEL_MAP, encoding="utf-8")
    split = open_split(tmp_path, "all")
    assert split.categories.names == ("leaf", "rotten: fruit")
    assert stems(split) == ["a", "b b", "empty"]
    assert_objects(split, 0, TWO, ["rotten: fruit", "leaf"])
    assert_objects(split, 1, THREE, ["leaf", "leaf", "rotten: fruit"])
    assert len(split.objects(2)) == 0


def test_voc_as_labelme_writes_it(tmp_path):
    """labelme2voc.py: no lists, ``class_names.txt`` that begins with the background."""
    image(tmp_path / "JPEGImages/a.jpg")
    voc_masks(tmp_path, "a", TWO, {1: 1, 2: 2})
    (tmp_path / "class_names.txt").write_text("_background_\ncat\nno\n")
    split = open_split(tmp_path, "all")
    assert split.categories.names == ("cat", "no")
    assert_objects(split, 0, TWO, ["cat", "no"])


def test_most_pixels_decide_the_class_of_a_voc_object(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    voc_masks(tmp_path, "a", TWO, {1: 3, 2: 7})
    classes = np.where(TWO == 2, 7, 0)
    classes[6:8, 8:25], classes[2:9, 3:8], classes[2:3, 3:11] = 12, 3, 9
    write(tmp_path / "SegmentationClass/a.png", classes.astype(np.uint8), VOC_PALETTE)
    assert_objects(open_split(tmp_path, "all"), 0, TWO, ["bird", "car"])


def test_voc_without_classes_has_the_class_object(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "SegmentationObject/a.png", TWO.astype(np.uint8), VOC_PALETTE)
    split = open_split(tmp_path, "all")
    assert_objects(split, 0, TWO, ["object", "object"])


def test_a_voc_object_without_class_costs_that_object(tmp_path):
    image(tmp_path / "JPEGImages/a.jpg")
    voc_masks(tmp_path, "a", TWO, {1: 77, 2: 5})
    sink = CollectingSink()
    split = open_split(tmp_path, "all", sink=sink)
    assert_objects(split, 0, TWO == 2, ["bottle"])
    (problem,) = sink.problems
    assert (problem.name, problem.file_name) == ("malformed segmentation", "JPEGImages/a.jpg")
    assert "object 1 has no class" in problem.sentence
    assert "1 malformed segmentation" in open_split(tmp_path, "all").summary()


VOC_XML = (
    "<annotation><filename>a.jpg</filename><segmented>0</segmented><object><name>dog</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


@pytest.mark.parametrize("place", ["Annotations", "train", "."])
def test_voc_boxes_are_refused_as_such(tmp_path, place):
    image(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "a.xml").write_text(VOC_XML)
    fails(["a.xml", "boxes", "outlines"], open_split, tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "JPEGImages/2007_000063.jpg").unlink(), ["no image 2007_000063", "1 of 3"]),
        (lambda root: (root / "SegmentationClass/2007_000063.png").unlink(), ["2007_000063.png", "SegmentationClass"]),
        (lambda root: [p.unlink() for p in (root / "SegmentationObject").iterdir()], ["told apart"]),
        (lambda root: (root / "labelmap.txt").write_text("leaf:1,2::\n"), ["labelmap.txt", "leaf", "1,2"]),
        (lambda root: (root / "labelmap.txt").write_text("# nothing\n"), ["labelmap.txt", "no class"]),
        (lambda root: (root / "labelmap.txt").write_text("leaf:1,2,300::\n"), ["labelmap.txt", "1,2,300"]),
        (lambda root: (root / "SegmentationObject/2007_000063.png").write_bytes(b"x"), ["2007_000063.png"]),
        (lambda root: write(root / "SegmentationObject/2007_000063.png", np.zeros((3, 4), np.uint8)), ["4 wide"]),
        (lambda root: (root / "JPEGImages").rename(root / "other"), ["no JPEGImages"]),
    ],
)
def test_voc_folders_that_cannot_be_used(tmp_path, change, words):
    voc_layout(tmp_path)
    change(tmp_path)
    fails([str(tmp_path), *words], open_split, tmp_path, "all")


def test_voc_of_two_years_and_lists_that_climb_out(tmp_path):
    image(tmp_path / "secret.jpg")
    root = tmp_path / "data/VOCdevkit/VOC2007"
    voc_layout(root, {"train": ["2007_000032", "../../../../secret"]})
    fails(["no image ../../../../secret"], open_split, tmp_path / "data", "train")
    (root / "ImageSets/Segmentation/train.txt").write_text('"2007_000032"\r\n2007_000039\r\n\r\n2007_000032\r\n')
    assert stems(open_split(tmp_path / "data", "train")) + stems(open_split(tmp_path / "data", "val"))
    voc_layout(root.parent / "VOC2012")
    fails(["VOC2007", "VOC2012"], open_split, tmp_path / "data", "train")


# ---- Penn-Fudan


def test_penn_fudan(tmp_path):
    for name, labels in (("FudanPed00001", TWO), ("PennPed00096", THREE)):
        image(tmp_path / f"PNGImages/{name}.png")
        write(tmp_path / f"PedMasks/{name}_mask.png", labels.astype(np.uint8), VOC_PALETTE)
        (tmp_path / "Annotation").mkdir(exist_ok=True)
        (tmp_path / f"Annotation/{name}.txt").write_text("# Compatible with PASCAL Annotation Version 1.00\n")
    split = open_split(tmp_path, "all")
    assert stems(split) == ["FudanPed00001", "PennPed00096"]
    assert_objects(split, 0, TWO, ["person"] * 2)
    assert_objects(split, 1, THREE, ["person"] * 3)
    assert split_names(tmp_path) == ["train", "val"]
    (tmp_path / "PedMasks/PennPed00096_mask.png").unlink()
    fails(["PennPed00096.png has no mask", "1 of 2"], open_split, tmp_path, "all")


# ---- Cityscapes


def cityscapes_image(root, split, city, name, values, truth="gtFine"):
    image(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
    folder = root / truth / split / city
    write(folder / f"{name}_{truth}_instanceIds.png", values)
    write(folder / f"{name}_{truth}_labelIds.png", np.minimum(values, 33).astype(np.uint8))
    (folder / f"{name}_{truth}_polygons.json").write_text("{}")


def street(*objects):
    values = np.full(SIZE, 7, np.uint16)
    values[:3] = 23
    values[-2:] = 1
    for number, (top, left) in objects:
        values[top : top + 5, left : left + 6] = number
    return values


def cityscapes_layout(root):
    train = street((26000, (4, 1)), (26001, (4, 8)), (24000, (10, 1)), (24, (10, 10)), (29000, (4, 16)), (30, (4, 23)))
    cityscapes_image(root, "train", "aachen", "aachen_000000_000019", train)
    cityscapes_image(root, "train", "zurich", "zurich_000001_000019", street((33012, (4, 1)), (31000, (10, 1))))
    cityscapes_image(root, "val", "lindau", "lindau_000000_000019", street((25000, (4, 1)), (28003, (9, 9))))
    dummy = np.full(SIZE, 3, np.uint16)
    dummy[-2:] = 1
    cityscapes_image(root, "test", "berlin", "berlin_000000_000019", dummy)
    return train


def test_cityscapes(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="masklab")
    values = cityscapes_layout(tmp_path)
    assert split_names(tmp_path) == ["train", "val"]
    assert [r.message for r in caplog.records if "test is left out" in r.message] == [
        f"{tmp_path}/gtFine/test holds no annotations: test is left out."
    ]
    train = open_split(tmp_path, "train")
    assert train.categories.ids == (24, 25, 26, 27, 28, 31, 32, 33)
    assert train.categories.names == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    only = np.where(np.isin(values, [24000, 26000, 26001]), values, 0)
    assert_objects(train, 0, only, ["person", "car", "car"])
    crowds = [entry for entry in train.coco["annotations"] if entry["iscrowd"]]
    assert [(entry["image_id"], entry["category_id"], entry["area"]) for entry in crowds] == [(1, 24, 30)]
    assert [train.categories.names[k] for k in train.objects(1).labels] == ["train", "bicycle"]
    assert [train.categories.names[k] for k in open_split(tmp_path, "val").objects(0).labels] == ["rider", "bus"]


def test_cityscapes_with_coarse_annotations(tmp_path):
    cityscapes_layout(tmp_path)
    cityscapes_image(tmp_path, "train_extra", "ulm", "ulm_000000_000019", street((27000, (4, 1))), "gtCoarse")
    assert split_names(tmp_path) == ["train", "train_extra", "val"]
    assert [entry["category_id"] for entry in open_split(tmp_path, "train_extra").coco["annotations"]] == [27]


def test_cityscapes_that_cannot_be_used(tmp_path):
    cityscapes_layout(tmp_path)
    (tmp_path / "gtFine/train/zurich/zurich_000001_000019_gtFine_instanceIds.png").unlink()
    fails(["zurich_000001_000019_leftImg8bit.png has no", "instanceIds.png"], open_split, tmp_path, "train")
    for path in tmp_path.glob("gtFine/*/*/*_instanceIds.png"):
        path.unlink()
    fails(["no file *_gtFine_instanceIds.png", "polygons"], open_split, tmp_path, "train")


# ---- Cell Tracking Challenge


def sequence(root, number, frames, annotated, digits=3, truth="GT"):
    for frame in range(frames):
        write(root / number / f"t{frame:0{digits}}.tif", np.full(SIZE, 120, np.uint8))
        write(root / f"{number}_GT/TRA/man_track{frame:0{digits}}.tif", TWO)
    for frame, labels in annotated.items():
        write(root / f"{number}_{truth}/SEG/man_seg{frame:0{digits}}.tif", labels)


@pytest.mark.parametrize(("nested", "digits"), [("", 3), ("", 4), ("train", 3)])
def test_cell_tracking(tmp_path, caplog, nested, digits):
    caplog.set_level(logging.INFO, logger="masklab")
    root = tmp_path / nested
    sequence(root, "01", 3, {0: TWO, 2: THREE}, digits)
    sequence(root, "02", 2, {1: THREE}, digits)
    write(tmp_path / "test/01/t000.tif", np.full(SIZE, 120, np.uint8))
    assert split_names(tmp_path) == ["train", "val"]
    if nested:
        train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
        assert len(train) + len(val) == 3
    else:
        split = open_split(tmp_path, "all")
        names = [entry.path.relative_to(root).as_posix() for entry in split.images]
        assert names == [f"01/t{0:0{digits}}.tif", f"01/t{2:0{digits}}.tif", f"02/t{1:0{digits}}.tif"]
        assert_objects(split, 0, TWO, ["object"] * 2)
        assert_objects(split, 1, THREE)
        assert_objects(split, 2, THREE)
    said = [record.message for record in caplog.records if "frames" in record.message]
    assert said == [f"{root}: 2 of 5 frames have no masks and are left out."]


def test_cell_tracking_dense_and_computed(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="masklab")
    sequence(tmp_path, "01", 3, {0: TWO, 1: TWO, 2: TWO}, truth="ST")
    sequence(tmp_path, "01", 3, {1: THREE})
    split = open_split(tmp_path, "all")
    for index, labels in enumerate((TWO, THREE, TWO)):
        assert_objects(split, index, labels)
    assert "left out" not in caplog.text


def test_cell_tracking_that_cannot_be_used(tmp_path):
    sequence(tmp_path, "01", 2, {1: TWO})
    (tmp_path / "01/t001.tif").unlink()
    fails(["man_seg001.tif has no frame 1"], open_split, tmp_path, "all")
    (tmp_path / "01_GT/SEG/man_seg001.tif").unlink()
    fails(["no masks man_seg000.tif"], open_split, tmp_path, "all")
    write(tmp_path / "01_GT/SEG/man_seg_000_003.tif", TWO)
    fails(["man_seg_000_003.tif is a slice of a volume"], open_split, tmp_path, "all")


# ---- nnU-Net


def nnunet_layout(root):
    for name, labels in (("BL_001", TWO), ("BL_002", THREE)):
        image(root / f"imagesTr/{name}_0000.png")
        write(root / f"labelsTr/{name}.png", labels.astype(np.uint8))
    image(root / "imagesTs/BL_003_0000.png")
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "R"}, "labels": {"background": 0}, "file_ending": ".png"}'
    )


def test_nnunet(tmp_path):
    nnunet_layout(tmp_path)
    assert split_names(tmp_path) == ["train", "val"]
    held = {stems(split)[0]: split for split in (open_split(tmp_path, name) for name in ("train", "val"))}
    assert_objects(held["BL_001_0000"], 0, TWO, ["object"] * 2)
    assert_objects(held["BL_002_0000"], 0, THREE)
    write(tmp_path / "labelsTs/BL_003.png", TWO.astype(np.uint8))
    assert split_names(tmp_path) == ["test", "train", "val"]
    assert_objects(open_split(tmp_path, "test"), 0, TWO)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: image(root / "imagesTr/BL_001_0001.png"), ["BL_001_0001.png", "second channel"]),
        (lambda root: (root / "imagesTr/BL_001_0000.nii.gz").write_bytes(b""), ["BL_001_0000.nii.gz", "volume"]),
        (lambda root: (root / "labelsTr/BL_002.png").unlink(), ["BL_002_0000.png has no counterpart", "labelsTr"]),
        (lambda root: (root / "imagesTr/BL_002_0000.png").unlink(), ["BL_002.png has no counterpart", "imagesTr"]),
        (
            lambda root: [p.unlink() for folder in ("imagesTr", "labelsTr") for p in (root / folder).iterdir()],
            ["imagesTr", "no PNG"],
        ),
    ],
)
def test_nnunet_that_cannot_be_used(tmp_path, change, words):
    nnunet_layout(tmp_path)
    change(tmp_path)
    fails([str(tmp_path), *words], open_split, tmp_path, "train")


# ---- pairs by their names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{}_rgb.png", "{}_label.png"),
        ("{}.png", "{}_label.png"),
        ("{}_image.tif", "{}_mask.tif"),
        ("{}_img.png", "{}_masks.tif"),
        ("{}_raw.tif", "{}_gt.tif"),
        ("{}-image.png", "{}-labels.png"),
        ("{}.jpg", "{}.mask.png"),
        ("img_{}.png", "mask_{}.png"),
        ("Image{}.PNG", "Label{}.png"),
        ("{}_RGB.JPG", "{}_Label.PNG"),
        ("a_{}_rgb.png", "a_{}_rgb_mask.png"),
    ],
)
def test_pairs_in_one_folder(tmp_path, one, other):
    for name, labels in (("001", TWO), ("002", THREE)):
        image(tmp_path / one.format(name))
        write(tmp_path / other.format(name), labels.astype(np.uint8))
    split = open_split(tmp_path, "all")
    assert [entry.path.name for entry in split.images] == [one.format("001"), one.format("002")]
    assert_objects(split, 0, TWO)
    assert_objects(split, 1, THREE)


def test_cvppp_leaves_with_files_that_are_neither(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="masklab")
    for name, labels in (("plant001", TWO), ("plant002", THREE)):
        image(tmp_path / f"A1/{name}_rgb.png")
        write(tmp_path / f"A1/{name}_label.png", labels.astype(np.uint8), VOC_PALETTE)
        write(tmp_path / f"A1/{name}_centers.png", (labels > 0).astype(np.uint8) * 255)
        write(tmp_path / f"A1/{name}_fg.png", (labels > 0).astype(np.uint8) * 255)
    split = open_split(tmp_path / "A1", "all")
    assert stems(split) == ["plant001_rgb", "plant002_rgb"]
    assert_objects(split, 0, TWO)
    assert_objects(split, 1, THREE)
    assert "4 files beside images such as plant001_rgb.png are left out" in caplog.text
    (tmp_path / "A1/plant002_rgb.png").unlink()
    fails(["plant002"], open_split, tmp_path / "A1", "all")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "masks"),
        ("imgs", "gt"),
        ("image", "label"),
        ("raw", "instances"),
        ("img", "annotations"),
        ("Images", "Labels"),
    ],
)
@pytest.mark.parametrize("divided", ["", "{split}/{word}", "{word}/{split}", "{split}_{word}", "{word}-{split}"])
def test_folders_of_pairs(tmp_path, images, labels, divided):
    for split, name, values in (("train", "a", TWO), ("val", "b", THREE)):
        for word, path in ((images, f"{name}.png"), (labels, f"{name}.tif")):
            folder = tmp_path / (divided.format(split=split, word=word) or word)
            if word == images:
                image(folder / path)
            else:
                write(folder / path, values)
    if divided:
        assert split_names(tmp_path) == ["train", "val"]
        found = [open_split(tmp_path, name) for name in ("train", "val")]
        assert [stems(split) for split in found] == [["a"], ["b"]]
        assert_objects(found[0], 0, TWO)
        assert_objects(found[1], 0, THREE)
    else:
        assert_objects(open_split(tmp_path, "all"), 1, THREE)


def test_names_of_another_normal_form_and_words_inside_names(tmp_path):
    image(tmp_path / "images/bla\u0308tter_masked.png")
    write(tmp_path / "masks/bl\u00e4tter_masked.png", TWO.astype(np.uint8))
    image(tmp_path / "images/unmasked.png")
    write(tmp_path / "masks/unmasked_instance.png", THREE.astype(np.uint8))
    split = open_split(tmp_path, "all")
    assert_objects(split, 0, TWO)
    assert_objects(split, 1, THREE)


def test_images_that_only_look_like_pairs_are_none(tmp_path):
    image(tmp_path / "dog.png")
    image(tmp_path / "cat_label.png")
    fails(["holds no data set"], open_split, tmp_path, "train")


def test_two_folders_for_one_thing_are_named(tmp_path):
    for folder in ("images", "raw"):
        image(tmp_path / f"{folder}/a.png")
    write(tmp_path / "masks/a.png", TWO.astype(np.uint8))
    fails([str(tmp_path), "a folder images and a folder raw"], open_split, tmp_path, "train")


def test_a_binary_mask_is_read_as_it_is(tmp_path):
    image(tmp_path / "images/a.png")
    write(tmp_path / "masks/a.png", (THREE > 0).astype(np.uint8) * 255)
    assert_objects(open_split(tmp_path, "all"), 0, THREE > 0)


# ---- all of them


@pytest.mark.parametrize(
    "make",
    [
        lambda root: voc_layout(root, VOC_SPLITS),
        cityscapes_layout,
        nnunet_layout,
        lambda root: sequence(root, "01", 4, {0: TWO, 1: TWO, 2: THREE}),
    ],
    ids=["voc", "cityscapes", "nnunet", "cell_tracking"],
)
def test_conversion_keeps_every_mask(tmp_path, make, capsys):
    make(tmp_path / "src")
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "dst")]) == 0
    for name in split_names(tmp_path / "src"):
        before, after = open_split(tmp_path / "src", name), Split.find(tmp_path / "dst", name)
        assert stems(before) == stems(after)
        assert before.categories == after.categories
        for index in range(len(before)):
            one, other = before.objects(index), after.objects(index)
            assert one.flat_rle.tolist() == other.flat_rle.tolist()
            assert one.labels.tolist() == other.labels.tolist()

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
import tifffile
import yaml
from contracts import fails
from PIL import Image

from masklab.cli.app import main
from masklab.config.nested import merge
from masklab.config.schema import validate
from masklab.datasets.check import check
from masklab.datasets.convert import convert
from masklab.datasets.layouts.masks import read_labels
from masklab.datasets.open import open_split, split_names
from masklab.datasets.problems import CollectingSink
from masklab.datasets.split import Split
from masklab.masks import encode, rle
from masklab.structures import ClassTable

SIZE = (20, 30)
NAMES = ("a", "b", "c", "d", "e")


def label_image(seed, size=SIZE, objects=6):
    """Rectangles over each other, with values that have gaps; one object is in two parts, another has a hole."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.int64)
    for value in rng.permutation(np.arange(1, 4 * objects, 4)).tolist():
        top, left = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        labels[top : top + rng.integers(2, 9), left : left + rng.integers(2, 9)] = value
    labels[1, 1], labels[-1, -1] = 99, 99
    labels[5:10, 5:10], labels[7, 7] = 77, 0
    return labels


LABELS = {name: label_image(seed) for seed, name in enumerate(NAMES)}


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, values)
    else:
        Image.fromarray(values).save(path)


def image(path, size=SIZE):
    write(path, np.full((*size, 3), 120, np.uint8))


def masks(split, index):
    """The masks of an image as whole bitmaps: a slow, plain way."""
    height, width = split.images[index].size
    objects = split.objects(index)
    return [rle.window(objects.rle(row), (height, width), (0, 0, width, height)) for row in range(len(objects))]


def expected(labels):
    return [labels == value for value in np.unique(labels) if value]


def assert_masks(split, labels_by_stem=LABELS):
    for index, entry in enumerate(split.images):
        stem = entry.path.stem.removesuffix("_img")
        found, wanted = masks(split, index), expected(labels_by_stem[stem])
        assert len(found) == len(wanted)
        assert all((a == b).all() for a, b in zip(found, wanted, strict=True))


# ---- the layouts, all with the same objects


def label_layout(folder, words=("images", "masks"), names=NAMES, ending=""):
    for name in names:
        image(folder / words[0] / f"{name}.png")
        write(folder / words[1] / f"{name}{ending}.png", LABELS[name].astype(np.uint8))


def cellpose_layout(folder, names=NAMES):
    for k, name in enumerate(names):
        image(folder / f"{name}{'_img' if k == 1 else ''}.png")
        write(folder / f"{name}_masks.{'tif' if k else 'png'}", LABELS[name].astype(np.uint16))
        write(folder / f"{name}_flows.tif", np.zeros(SIZE, np.float32))


def kaggle_layout(folder, names=NAMES):
    for name in names:
        image(folder / name / "images" / f"{name}.png")
        (folder / name / "masks").mkdir()
        for k, mask in enumerate(expected(LABELS[name])):
            write(folder / name / "masks" / f"{k:032x}.png", mask.astype(np.uint8) * 255)


POLYGONS = {
    "a": "0 0.1 0.2 0.5 0.2 0.5 0.7\n\n3 0.52 0.3 0.9 0.31 0.8 0.93 0.5 0.9\n0 0.1 0.2 0.5 0.2 0.5 0.7\n",
    "b": "3 -0.2 -0.1 0.4 0.5 0.1 0.9\n",
}


def yolo_layout(folder, images="images", labels="labels", table=None, names=("a", "b", "c")):
    for name in names:
        image(folder / images / f"{name}.jpg")
        if name in POLYGONS:
            (folder / labels).mkdir(parents=True, exist_ok=True)
            (folder / labels / f"{name}.txt").write_text(POLYGONS[name])
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": {0: "leaf", 3: "fruit"}, **(table or {})}))


def test_pool_without_objects(tmp_path):
    for name in NAMES:
        image(tmp_path / "images" / f"{name}.png")
        write(tmp_path / "masks" / f"{name}.png", np.zeros(SIZE, np.uint8))
    split = open_split(tmp_path, "all")
    assert len(split) == 5
    assert split.most_objects == 0
    assert split.coco["annotations"] == []
    assert "5 images (5 without objects), 0 objects" in split.summary()
    convert(tmp_path, tmp_path / "out")
    assert len(Split.find(tmp_path / "out", "val")) == 1


@pytest.mark.parametrize(
    "make",
    [
        label_layout,
        lambda folder: label_layout(folder, ("images", "labels")),
        lambda folder: label_layout(folder, ending="_masks"),
        cellpose_layout,
        kaggle_layout,
    ],
    ids=["masks", "labels", "endings", "cellpose", "kaggle"],
)
def test_every_layout_gives_the_same_masks(tmp_path, make):
    make(tmp_path)
    split = open_split(tmp_path, "all")
    assert [p.path.stem.removesuffix("_img") for p in split.images] == list(NAMES)
    assert [p.size for p in split.images] == [SIZE] * 5
    assert split.categories == ClassTable((1,), ("object",))
    assert_masks(split)
    assert split.read(0, 3).shape == (3, *SIZE)
    annotation = split.coco["annotations"][0]
    first = expected(LABELS["a"])[0]
    ys, xs = np.nonzero(first)
    assert annotation["area"] == first.sum()
    assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    json.dumps(split.coco)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, split, names: label_layout(folder / split, names=names),
        lambda folder, split, names: label_layout(folder, (f"images/{split}", f"masks/{split}"), names),
        lambda folder, split, names: cellpose_layout(folder / split, names),
        lambda folder, split, names: kaggle_layout(folder / split, names),
    ],
    ids=["split/images", "images/split", "cellpose", "kaggle"],
)
def test_splits_by_folder(tmp_path, make):
    make(tmp_path, "train", NAMES[:2])
    make(tmp_path, "val", NAMES[2:4])
    make(tmp_path, "test", NAMES[4:])
    assert split_names(tmp_path) == ["test", "train", "val"]
    for name, stems in (("train", NAMES[:2]), ("val", NAMES[2:4]), ("test", NAMES[4:])):
        split = open_split(tmp_path, name)
        assert [p.path.stem.removesuffix("_img") for p in split.images] == list(stems)
        assert split.note == ""
        assert_masks(split)
    fails(["no split fold", "test, train, val"], open_split, tmp_path, "fold")
    fails(["no split all"], open_split, tmp_path, "all")


@pytest.mark.parametrize(
    ("suffix", "dtype", "highest"),
    [
        (".png", np.uint8, 255),
        (".png", np.uint16, 65535),
        (".tif", np.uint8, 255),
        (".tif", np.uint16, 65535),
        (".tif", np.uint32, 2**32 - 1),
        (".tif", np.int32, 2**31 - 1),
        (".tif", np.float32, 2**20),
    ],
)
def test_label_images_of_every_depth(tmp_path, suffix, dtype, highest):
    labels = LABELS["a"].copy()
    labels[2:4, 20:24] = highest
    labels[12:14, 20:24] = highest - 1
    write(tmp_path / f"x{suffix}", labels.astype(dtype))
    assert (read_labels(tmp_path / f"x{suffix}") == labels).all()


def test_label_images_with_a_palette_or_turned(tmp_path):
    labels = LABELS["a"].astype(np.uint8)
    with_palette = Image.fromarray(labels, "P")
    with_palette.putpalette([v for k in range(256) for v in (255 - k, k // 2, 7)])
    for name in ("x.png", "x.tif"):
        with_palette.save(tmp_path / name)
        assert (read_labels(tmp_path / name) == labels).all()
    transposed = Image.fromarray(labels)
    transposed.getexif()[0x0112] = 6
    transposed.save(tmp_path / "turned.png", exif=transposed.getexif())
    assert (read_labels(tmp_path / "turned.png") == np.rot90(labels, -1)).all()
    for dtype in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "white.tif", labels.astype(dtype), photometric="miniswhite")
        assert (read_labels(tmp_path / "white.tif") == labels).all(), "as stored, not as it looks"
    tifffile.imwrite(tmp_path / "packed.tif", LABELS["a"].astype(np.uint16), compression="zlib")
    assert (read_labels(tmp_path / "packed.tif") == labels).all()


# ---- one pass over a label image


def test_encode_labels_of_nothing():
    values, runs = encode.encode_labels(np.zeros((3, 4), np.uint8))
    assert len(values) == len(runs) == 0


def test_encode_labels_equals_one_mask_after_another():
    rng = np.random.default_rng(0)
    for case in range(60):
        height, width = rng.integers(1, 9, 2).tolist()
        labels = rng.integers(0, rng.integers(1, 6), (height, width)) * 70_000
        labels = labels if case % 2 else labels.T.copy().T  # both orders in memory
        values, runs = encode.encode_labels(labels)
        assert values.tolist() == [value for value in np.unique(labels).tolist() if value]
        for value, own in zip(values, runs, strict=True):
            whole = encode.encode_windows([labels == value], [(0, 0)], labels.shape)[0]
            assert own.tolist() == whole.tolist()


def test_a_thousand_objects_need_little_memory(tmp_path):
    side, count = 1024, 32
    labels = np.zeros((side, side), np.uint16)
    cells = labels.reshape(count, side // count, count, side // count)
    cells[:, 4:-4, :, 4:-4] = np.arange(1, count * count + 1).reshape(count, 1, count, 1)
    image(tmp_path / "images/a.png", (side, side))
    write(tmp_path / "masks/a.png", labels)
    tracemalloc.start()
    split = open_split(tmp_path, "all")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(split.objects(0)) == 1024
    assert (split.objects(0).areas == 24 * 24).all()
    assert peak < 40 * 2**20  # N x H x W would be 1024 MiB


# ---- YOLO


def test_yolo_polygons_are_coco_polygons(tmp_path):
    yolo_layout(tmp_path / "yolo")
    split = open_split(tmp_path / "yolo", "all")
    assert split.categories == ClassTable((0, 3), ("leaf", "fruit"))
    annotations = []
    for image_id, name in ((1, "a"), (2, "b")):
        for line in POLYGONS[name].split("\n"):
            if line:
                kind, *places = map(float, line.split())
                polygon = [v * (SIZE[1], SIZE[0])[k % 2] for k, v in enumerate(places)]
                annotations.append({"image_id": image_id, "category_id": int(kind), "segmentation": [polygon]})
    images = [{"id": k, "file_name": f"{n}.jpg", "height": 20, "width": 30} for k, n in enumerate("abc", 1)]
    categories = [{"id": 3, "name": "fruit"}, {"id": 0, "name": "leaf"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(coco))
    same = Split(tmp_path / "train.json", tmp_path / "yolo/images")
    for index in range(3):
        ours, theirs = split.objects(index), same.objects(index)
        assert len(ours) == (3, 1, 0)[index]
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.flat_rle.tolist() == theirs.flat_rle.tolist()


@pytest.mark.parametrize(
    ("places", "table"),
    [
        (("images/train", "labels/train", "images/val", "labels/val"), {}),
        (("train/images", "train/labels", "val/images", "val/labels"), {}),
        (("images/train", "labels/train", "images/val", "labels/val"), {"train": "images/train", "val": "images/val"}),
        (
            ("train/images", "train/labels", "valid/images", "valid/labels"),
            {"train": "../train/images", "val": "../valid/images"},
        ),
        (
            ("in/images/one", "in/labels/one", "in/images/two", "in/labels/two"),
            {"path": "in", "train": ["images/one"], "val": "images/two"},
        ),
        (
            ("images/one", "labels/one", "images/two", "labels/two"),
            {"path": "../data/elsewhere", "train": "images/one", "val": "images/two"},
        ),
    ],
)
def test_yolo_splits(tmp_path, places, table):
    yolo_layout(tmp_path, *places[:2], table, ("a", "c"))
    yolo_layout(tmp_path, *places[2:], table, ("b",))
    assert split_names(tmp_path) == ["train", "val"]
    assert [p.path.stem for p in open_split(tmp_path, "train").images] == ["a", "c"]
    assert [p.path.stem for p in open_split(tmp_path, "val").images] == ["b"]
    assert open_split(tmp_path, "val").objects(0).labels.tolist() == [1]


def test_yolo_splits_by_lists(tmp_path):
    yolo_layout(tmp_path, table={"train": "one.txt", "val": "two.txt"})
    (tmp_path / "one.txt").write_text("./images/a.jpg\n./images/c.jpg\n")
    (tmp_path / "two.txt").write_text(f"{tmp_path}/images/b.jpg\n")
    assert [p.path.name for p in open_split(tmp_path, "train").images] == ["a.jpg", "c.jpg"]
    assert [p.path.name for p in open_split(tmp_path, "val").images] == ["b.jpg"]
    (tmp_path / "two.txt").write_text("../b.jpg\n")
    fails(["two.txt", "../b.jpg", "not in"], open_split, tmp_path, "val")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.1 0.2 0.5 0.2 0.5 0.7 0.9", ["7 coordinates"]),
        ("0 0.1 0.2 0.5 0.2 nan 0.7", ["from 0 to 1"]),
        ("0 0.1 0.2 0.5 0.2 inf 0.7", ["from 0 to 1"]),
        ("0 10 20 50 20 50 70", ["from 0 to 1"]),
        ("0 0.1 0.2 0.5 0.2 x 0.7", ["not a number"]),
        ("1 0.1 0.2 0.5 0.2 0.5 0.7", ["class 1", "names"]),
        ("0.5 0.1 0.2 0.5 0.2 0.5 0.7", ["class 0.5"]),
        ("nan 0.1 0.2 0.5 0.2 0.5 0.7", ["class nan"]),
        ("0 0.5 0.5 0.2 0.2", ["is a box"]),
        ("0 0.5 0.5", ["2 coordinates"]),
        ("0", ["0 coordinates"]),
    ],
)
def test_a_bad_yolo_line_is_named_and_costs_that_line(tmp_path, line, words):
    yolo_layout(tmp_path)
    good = "0 0.1 0.2 0.5 0.2 0.5 0.7\n"
    (tmp_path / "labels/a.txt").write_text(f"{good}{line}\n{good}")
    sink = CollectingSink()
    split = open_split(tmp_path, "all", sink=sink)
    assert [len(split.objects(k)) for k in range(3)] == [2, 1, 0]
    (problem,) = sink.problems
    assert (problem.name, problem.file_name) == ("malformed segmentation", "images/a.jpg")
    assert problem.sentence.startswith(f"{tmp_path}/labels/a.txt line 2 ")
    assert problem.sentence.endswith(problem.detail)
    assert all(word in problem.detail for word in ["line 2", *words])
    assert "skipped 1 annotation (1 malformed segmentation)" in open_split(tmp_path, "all").summary()


def test_polygons_outside_are_skipped_and_counted(tmp_path):
    yolo_layout(tmp_path)
    (tmp_path / "labels/a.txt").write_text("0 1.5 1.5 1.7 1.5 1.7 1.8\n0 0.1 0.2 0.5 0.2 0.5 0.7\n")
    split = open_split(tmp_path, "all")
    assert "skipped 1 annotation (1 empty mask)" in split.summary()
    assert len(split.objects(0)) == 1


# ---- splits that are drawn or listed


def many(folder, count=40):
    for k in range(count):
        image(folder / "images" / f"p{k}.png", (4, 4))
        write(folder / "masks" / f"p{k}.png", np.eye(4, dtype=np.uint8))


def names_of(split):
    return {p.path.name for p in split.images}


def test_drawn_splits_are_a_fair_and_lasting_share(tmp_path):
    many(tmp_path)
    train, val = (names_of(open_split(tmp_path, name)) for name in ("train", "val"))
    assert len(val) == 8
    assert not train & val
    assert len(train | val) == 40
    ranked = sorted(train | val, key=lambda name: hashlib.sha256(f"0/{name}".encode()).hexdigest())
    assert val == set(ranked[:8])
    assert names_of(open_split(tmp_path, "val", None, 0.2, 1)) != val
    assert len(open_split(tmp_path, "val", None, 0.001)) == 1
    assert len(open_split(tmp_path, "train", None, 0.999)) == 1
    assert "val is 8 of 40 images, held out by file name and seed 0" in open_split(tmp_path, "train").summary()
    many(tmp_path, 44)
    assert len(names_of(open_split(tmp_path, "val")) & val) >= 7
    for bad in (0, 1, -0.5, float("nan")):
        fails(["val_fraction"], open_split, tmp_path, "val", None, bad)


@pytest.mark.parametrize("word", ["valid", "validation"])
def test_val_by_its_other_names(tmp_path, word):
    label_layout(tmp_path / "train", names=NAMES[:3])
    label_layout(tmp_path / word, names=NAMES[3:])
    assert split_names(tmp_path) == ["train", "val"]
    assert names_of(open_split(tmp_path, "val")) == {"d.png", "e.png"}
    assert len(open_split(tmp_path, "train")) == 3
    label_layout(tmp_path / "val", names=NAMES[:1])
    assert split_names(tmp_path) == sorted(["train", "val", word])
    assert names_of(open_split(tmp_path, "val")) == {"a.png"}
    convert(tmp_path / "train", tmp_path / "coco")
    (tmp_path / "coco/val").rename(tmp_path / "coco" / word)
    (tmp_path / "coco/val.json").rename(tmp_path / "coco" / f"{word}.json")
    assert split_names(tmp_path / "coco") == ["train", "val"]
    assert [len(open_split(tmp_path / "coco", name)) for name in ("train", "val")] == [2, 1]
    assert set(check(tmp_path / "coco").splits) == {"train", "val"}


def test_an_archive_unpacked_into_a_folder_of_its_own_is_named(tmp_path):
    kaggle_layout(tmp_path / "stage1_train")
    fails(["no split train", f"give {tmp_path}/stage1_train as the data set"], open_split, tmp_path, "train")
    assert len(open_split(tmp_path / "stage1_train", "train")) == 4


def test_train_without_val_lends_it_images(tmp_path):
    many(tmp_path / "train")
    many(tmp_path / "pool")
    (tmp_path / "pool").rename(tmp_path.parent / f"{tmp_path.name}-pool")
    for name in ("train", "val"):
        pool = open_split(tmp_path.parent / f"{tmp_path.name}-pool", name)
        assert names_of(open_split(tmp_path, name)) == names_of(pool)


def test_coco_without_val(tmp_path, shapes):
    source = Split.find(shapes, "train")
    (tmp_path / "train.json").write_text(json.dumps(source.coco))
    (tmp_path / "train").symlink_to(source.folder)
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert len(val) == 2
    assert names_of(train) | names_of(val) == names_of(source)
    assert not names_of(train) & names_of(val)
    objects = {p.path.name: source.objects(k).flat_rle.tolist() for k, p in enumerate(source.images)}
    for split in (train, val):
        for k, p in enumerate(split.images):
            assert split.objects(k).flat_rle.tolist() == objects[p.path.name]
    assert len(open_split(shapes, "train")) == len(source)


def test_splits_by_file(tmp_path):
    kaggle_layout(tmp_path)
    (tmp_path / "train.txt").write_text("c\n\na\n")
    fails(["train.txt", "val.txt"], open_split, tmp_path, "train")
    (tmp_path / "val.txt").write_text("b/images/b.png\r\nd.png\r\n")
    assert names_of(open_split(tmp_path, "train")) == {"a.png", "c.png"}
    assert names_of(open_split(tmp_path, "val")) == {"b.png", "d.png"}
    assert len(open_split(tmp_path, "all")) == 5
    fails(["test.txt"], open_split, tmp_path, "test")
    (tmp_path / "val.txt").write_text("z\n")
    fails(["val.txt", "lists z"], open_split, tmp_path, "val")


def test_one_class_takes_the_name_that_the_model_knows(tmp_path):
    label_layout(tmp_path)
    nuclei = ClassTable((7,), ("nucleus",))
    split = open_split(tmp_path, "all", nuclei)
    assert split.categories == nuclei
    assert set(split.objects(0).labels.tolist()) == {0}
    assert not split.skipped
    fails(["1 (object)"], open_split, tmp_path, "all", ClassTable((1, 2), ("disc", "box")))


# ---- convert


def test_label_images_there_and_back(tmp_path):
    label_layout(tmp_path / "src")
    convert(tmp_path / "src", tmp_path / "dst", 0.4, 3)
    lists = json.loads((tmp_path / "dst/split.json").read_text())
    assert set(lists) == {"train", "val"}
    assert "seed 3" in lists["val"]["held_out"]
    seen = set()
    for name in ("train", "val"):
        split = Split.find(tmp_path / "dst", name)
        assert {f"images/{n}" for n in names_of(split)} == set(lists[name]["images"])
        for index, entry in enumerate(split.images):
            back = np.zeros(SIZE, np.int64)
            for number, mask in enumerate(masks(split, index), 1):
                back[mask != 0] = number
            assert (back == np.unique(LABELS[entry.path.stem], return_inverse=True)[1].reshape(SIZE)).all()
            assert entry.path.read_bytes() == (tmp_path / "src/images" / entry.path.name).read_bytes()
            seen.add(entry.path.stem)
    assert seen == set(NAMES)
    again = open_split(tmp_path / "dst", "val")
    assert names_of(again) == names_of(Split.find(tmp_path / "dst", "val"))


def test_kaggle_keeps_overlaps_and_counts_empty_masks(tmp_path):
    kaggle_layout(tmp_path / "src")
    overlapping = np.zeros(SIZE, np.uint8)
    overlapping[:10, :10] = 255
    write(tmp_path / "src/a/masks/zz.png", np.dstack([overlapping] * 3 + [np.full(SIZE, 255, np.uint8)]))
    write(tmp_path / "src/b/masks/zz.png", np.zeros(SIZE, np.uint8))
    convert(tmp_path / "src", tmp_path / "dst")
    found = {}
    for name in ("train", "val"):
        split = Split.find(tmp_path / "dst", name)
        found |= {p.path.stem: masks(split, k) for k, p in enumerate(split.images)}
        found["skipped"] = found.get("skipped", 0) + split.skipped["empty mask"]
    assert found.pop("skipped") == 1
    assert (found["a"].pop() == (overlapping > 0)).all()
    for name, own in found.items():
        assert all((a == b).all() for a, b in zip(own, expected(LABELS[name]), strict=True))


def test_coco_stays_as_it_is(tmp_path, shapes):
    convert(shapes, tmp_path / "dst")
    for name in ("train", "val"):
        before, after = (Split.find(folder, name) for folder in (shapes, tmp_path / "dst"))
        assert before.coco == after.coco
        assert (before.read(1, 3) == after.read(1, 3)).all()


def test_images_of_the_same_name_stay_apart(tmp_path):
    table = {"train": ["x/images", "y/images"], "val": "x/images"}
    for side, place in ((4, "x"), (6, "y")):
        image(tmp_path / f"src/{place}/images/a.png", (side, side))
        (tmp_path / f"src/{place}/labels").mkdir()
        (tmp_path / f"src/{place}/labels/a.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    (tmp_path / "src/data.yaml").write_text(yaml.safe_dump({"names": ["tile"], **table}))
    convert(tmp_path / "src", tmp_path / "dst")
    split = Split.find(tmp_path / "dst", "train")
    assert [split.read(k, 3).shape[1] for k in range(2)] == [4, 6]
    assert [split.objects(k).areas.tolist() for k in range(2)] == [[16], [36]]


def test_images_in_ome_tiff_find_their_masks(tmp_path):
    for name, mask in zip("abcd", ("a.tif", "b.ome.tif", "c_masks.png", "d.ome.png"), strict=True):
        write(tmp_path / f"images/{name}.ome.tif", np.full(SIZE, 120, np.uint8))
        write(tmp_path / "masks" / mask, LABELS[name].astype(np.uint8))
    split = open_split(tmp_path, "all")
    assert [p.path.name for p in split.images] == [f"{name}.ome.tif" for name in "abcd"]
    for index, name in enumerate("abcd"):
        for found, wanted in zip(masks(split, index), expected(LABELS[name]), strict=True):
            assert (found == wanted).all()


def test_a_new_folder_below_a_file_is_refused(tmp_path, capsys):
    label_layout(tmp_path / "src")
    (tmp_path / "file").write_text("")
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "file" / "new")]) == 2
    assert capsys.readouterr().err.endswith("name another folder.\n")


def test_a_conversion_that_fails_leaves_nothing(tmp_path, capsys):
    label_layout(tmp_path / "src")
    (tmp_path / "src/masks/e.png").write_bytes(b"no image")
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "dst")]) == 2
    assert "e.png" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["src"]
    write(tmp_path / "src/masks/e.png", LABELS["e"].astype(np.uint8))
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "dst"), "--val_fraction", "0.4"]) == 0
    out = capsys.readouterr().out
    assert "val is 2 of 5 images" in out
    assert "" not in out.splitlines(), "no bars where nobody watches"
    assert "3 images (0 without objects)" in out
    assert main(["data", "convert", str(tmp_path / "src"), str(tmp_path / "dst")]) == 2
    assert "not empty" in capsys.readouterr().err


# ---- what cannot be used


def test_a_folder_of_nothing_known(tmp_path):
    words = ["holds no data set", "COCO", "YOLO", "label images", "Cellpose", "Kaggle", str(tmp_path)]
    fails(words, open_split, tmp_path, "train")
    image(tmp_path / "a.png")
    fails(words, open_split, tmp_path, "train")
    fails(["nowhere"], open_split, tmp_path / "nowhere", "train")
    fails(["../x"], open_split, tmp_path, "../x")


def test_a_folder_of_two_formats(tmp_path, shapes):
    label_layout(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cell]\ntrain: images\n")
    fails(["more than one", "YOLO", "label images", str(tmp_path)], open_split, tmp_path, "train")
    (tmp_path / "data.yaml").unlink()
    label_layout(tmp_path, ("images", "labels"))
    fails(["masks", "labels", str(tmp_path)], open_split, tmp_path, "train")


def grey(values):
    return lambda folder: write(folder / "masks/c.png", values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "masks/c.png").unlink(), ["c.png has no mask", "1 of 5"]),
        (lambda folder: (folder / "images/c.png").unlink(), ["masks/c.png", "missing"]),
        (lambda folder: image(folder / "images/c.jpg"), ["c.jpg", "same mask"]),
        (lambda folder: write(folder / "masks/c.tif", LABELS["c"].astype(np.uint8)), ["c.png", "c.tif"]),
        (lambda folder: image(folder / "masks/c.png"), ["masks/c.png", "3 channels", "grey"]),
        (grey(np.zeros((30, 20), np.uint8)), ["masks/c.png is 20 wide and 30 high", "30 wide and 20 high"]),
        (lambda folder: (folder / "masks/c.png").write_bytes(b""), ["masks/c.png"]),
    ],
    ids=["no mask", "no image", "two images", "two masks", "colours", "size", "damaged"],
)
def test_label_images_that_cannot_be_used(tmp_path, change, words):
    label_layout(tmp_path)
    change(tmp_path)
    fails(words, open_split, tmp_path, "all")


def test_what_is_wrong_with_single_images_can_be_collected(tmp_path):
    label_layout(tmp_path)
    (tmp_path / "images/a.png").write_bytes(b"no image")
    write(tmp_path / "masks/b.png", np.zeros((30, 20), np.uint8))
    sink = CollectingSink()
    split = open_split(tmp_path, "all", sink=sink)
    assert [(problem.image_id, problem.file_name, problem.name) for problem in sink.problems] == [
        (1, "images/a.png", "damaged image"),
        (2, "images/b.png", "unusable annotation file"),
    ]
    assert "EXIF orientation applied" in sink.problems[1].sentence
    assert [(p.image_id, p.path.stem) for p in split.images] == list(enumerate("bcde", 2))
    assert len(split.objects(0)) == 0
    assert len(split.objects(1)) == len(expected(LABELS["c"]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full(SIZE, 0.5, np.float32), ["fractions"]),
        (np.full(SIZE, np.nan, np.float32), ["fractions"]),
        (np.full(SIZE, -1, np.int16), ["below 0"]),
        (np.zeros((3, *SIZE), np.uint16), ["3 channels"]),
    ],
)
def test_label_tiffs_that_cannot_be_used(tmp_path, values, words):
    tifffile.imwrite(tmp_path / "m.tif", values, photometric="minisblack")
    fails(["m.tif", *words], read_labels, tmp_path / "m.tif")


def test_masks_that_are_not_exact(tmp_path):
    image(tmp_path / "m.jpg")
    fails(["m.jpg", "PNG or TIFF"], read_labels, tmp_path / "m.jpg")


def test_kaggle_folders_that_cannot_be_used(tmp_path):
    kaggle_layout(tmp_path)
    write(tmp_path / "b/masks/zz.png", np.zeros((3, 3), np.uint8))
    fails(["b/masks/zz.png", "3 wide", "30 wide"], open_split, tmp_path, "all")
    for path in (tmp_path / "c/images/c.png", *(tmp_path / "c/masks").iterdir()):
        path.unlink()
    fails([f"{tmp_path}/c", "0 images"], open_split, tmp_path, "all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [", ["cannot be read"]),
        ("- 3", ["not a YOLO"]),
        ("train: images", ["names"]),
        ("names: []", ["names"]),
        ("names: {a: b}", ["names"]),
        ("names: [leaf, x, y, fruit]\ntrain: /etc\n", ["data.yaml", "/etc", "not in"]),
        ("names: [leaf, x, y, fruit]\ntrain: ../..\n", ["data.yaml", "../..", "not in"]),
        ("names: [leaf, x, y, fruit]\ntrain: labels\n", ["labels", "no image"]),
        ("names: [leaf, x, y, fruit]\ntrain: [images, [5]]\n", ["data.yaml: train", "must be paths"]),
        ("names: [leaf, x, y, fruit]\ntrain: images\npath: [a]\n", ["data.yaml", "path"]),
        ("names: [leaf, [x], y, fruit]\ntrain: images\n", ["data.yaml", "name"]),
        ("names: {true: leaf}\ntrain: images\n", ["names"]),
    ],
)
def test_yolo_tables_that_cannot_be_used(tmp_path, text, words):
    yolo_layout(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    fails([str(tmp_path), *words], open_split, tmp_path, "train")


def test_yolo_labels_that_cannot_be_used(tmp_path):
    yolo_layout(tmp_path)
    (tmp_path / "dataset.yaml").touch()
    fails(["data.yaml", "dataset.yaml"], open_split, tmp_path, "all")
    (tmp_path / "dataset.yaml").unlink()
    (tmp_path / "labels/z.txt").touch()
    fails(["labels/z.txt", "no image"], open_split, tmp_path, "all")
    (tmp_path / "labels/z.txt").unlink()
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    (tmp_path / "data.yaml").write_text("names: [leaf]")
    fails(["none of the images", "labels/a.txt"], open_split, tmp_path, "all")


# ---- training on what was never COCO


def test_training_reads_label_images_and_writes_the_split_down(tmp_path, tiny_config):
    from masklab.evaluation.evaluate import evaluate
    from masklab.training.train import train

    for name in NAMES:
        labels = label_image(ord(name), (64, 72), 4)
        shown = np.repeat(labels[:, :, None] * 2, 3, axis=2).astype(np.uint8)
        write(tmp_path / "data/images" / f"{name}.png", shown)
        write(tmp_path / "data/masks" / f"{name}.png", labels.astype(np.uint8))
    config = validate(merge(tiny_config.model_dump(), {"train": {"steps": 1, "validate_every": 1}}), "tests")
    model = train(config, tmp_path / "data", tmp_path / "run")
    lists = json.loads((tmp_path / "run/split.json").read_text())
    assert len(lists["train"]["images"]) == 4
    assert lists["val"]["images"] == [f"images/{n}" for n in names_of(open_split(tmp_path / "data", "val"))]
    assert model.classes == ClassTable((1,), ("object",))
    metrics = evaluate(model, tmp_path / "data", "all")
    assert metrics["measured"]["images"] == 5

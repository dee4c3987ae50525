"""Broken and hostile files: none may crash, hang, take over 4 GiB or be read in silence; see docs/reliability.md.

Each case is read in a child process (`hostile.Child`).  It is then *refused* in one sentence, or read with the damage
*reported* (annotations skipped and counted, or findings of `data check`), or *unchanged*, or *undetectable*: read as the
whole file that it also is, which a slow and obvious reader here has to agree to.  Anything else fails the test.
"""

import io
import json
import os
import re
import shutil
import struct
import time
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from hostile import (
    Child,
    read_any_data,
    read_any_image,
    read_any_recipe,
    read_any_run,
    read_any_weights,
    same,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from image_files import by_pillow, by_tifffile, deep_png, harmless, surplus
from PIL import Image

from masklab.utils.errors import InputError

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"

# Kinds of files, and how many cases hypothesis draws of each: always the same ones.
CASES = {
    "PNG": 300,
    "JPEG": 200,
    "TIFF": 500,
    "BMP, GIF, WebP, JPEG 2000, PPM, PGM": 300,
    "COCO JSON, its bytes": 200,
    "COCO JSON, its fields": 400,
    "YOLO": 200,
    "label images": 120,
    "Cellpose": 80,
    "Kaggle": 60,
    "recipe": 150,
    "weights file": 120,
    "weights file, its header": 60,
    "run folder": 100,
}
NAMED = "named below"
LEAST = 2000
VERDICTS = ("refused", "reported", "unchanged", "undetectable")
TALLY: Counter[tuple[str, str]] = Counter()


# The harness itself: small limits, and functions that do what must not be


def fine(number):
    return number + 1


def hang():
    while True:
        pass


def sleep():
    time.sleep(600)


def take_memory():
    return len(bytearray(2**30))


def take_memory_and_say_so():
    try:
        return take_memory()
    except MemoryError as error:
        raise InputError("a.png needs more memory than there is: use a smaller image.") from error


def crash():
    os.abort()


def raise_something():
    raise ZeroDivisionError("no sentence for a user")


def read_silently(path):
    """A reader that pads what is missing."""
    content = path.read_bytes()[-600:]
    return {"whole": np.frombuffer(content.ljust(600, b"\0"), np.uint8), "parts agree": True}


def test_the_harness_sees_a_crash_a_hang_and_too_much_memory(tmp_path):
    child = Child((__name__,), seconds=1, gigabytes=0.5)
    try:
        assert child.call(hang).kind == "hang"
        child.seconds = 0.1
        assert child.call(sleep).kind == "hang"
        child.seconds = 1
        assert child.call(fine, 1) == ("read", 2)
        for function in (take_memory, take_memory_and_say_so):
            memory = child.call(function)
            assert memory.kind == "memory"
            assert "take_memory" in memory.value
        assert child.call(crash) == ("crash", -6)
        failed = child.call(raise_something)
        assert failed.kind == "error"
        assert "ZeroDivisionError" in failed.value
        for bad in (memory, failed):
            with pytest.raises(AssertionError, match="must not happen"):
                verdict(bad, None, lambda: True)

        path = tmp_path / "x.raw"
        path.write_bytes(bytes(range(200)) * 3)
        original = child.call(read_silently, path)
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(AssertionError, match="read in silence"):
            verdict(child.call(read_silently, path), original.value, lambda: False)
    finally:
        child.stop()


def verdict(outcome, original, well_formed):
    """What became of a damaged file; fails where that must not be.

    ``well_formed`` says whether the file is, damaged as it is, whole and without fault: then no reader can know.
    """
    assert outcome.kind in ("read", "refused"), f"must not happen: {outcome.kind}\n{outcome.value}"
    if outcome.kind == "refused":
        assert_sentence(outcome.value)
        return "refused"
    assert outcome.value.get("parts agree", True), "a part differs from the whole"
    if same(outcome.value, original):
        return "unchanged"
    assert well_formed(), "read in silence"
    return "undetectable"


def data_verdict(outcome, original, well_formed):
    """`verdict` for `read_any_data`, where `data check` must say what training refuses or skips."""
    assert outcome.kind == "read", f"must not happen: {outcome.kind}\n{outcome.value}"
    found = outcome.value
    if found["refused"]:
        assert_sentence(found["refused"])
        assert found["fault"], "`data check` finds nothing where training stops"
        return "refused"
    if found["skipped"] > original["skipped"]:
        assert found["fault"], "`data check` finds nothing where training skips"
        return "reported"
    if set(found["findings"]) - set(original["findings"]):
        return "reported"
    if same(found["splits"], original["splits"]):
        return "unchanged"
    assert well_formed(), "read in silence"
    return "undetectable"


def assert_sentence(message):
    assert "\n" not in message
    assert message.endswith("."), message
    assert re.search(r"[/:]| field | recipe ", message), f"names neither file nor field: {message}"


@pytest.fixture(scope="module")
def child():
    process = Child(
        ("masklab.datasets.check", "masklab.evaluation.inputs", "masklab.weights.checkpoint", "masklab.training.resume")
    )
    yield process
    process.stop()
    for kind in sorted({kind for kind, _ in TALLY}):
        print(f"{kind:40}", *(f"{name} {TALLY[kind, name]:4}" for name in VERDICTS))


def explore(kind, strategy, look):
    """Look at the cases of a kind: the same in every run."""
    before = sum(number for (name, _), number in TALLY.items() if name == kind)

    @settings(
        max_examples=CASES[kind],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case):
        TALLY[kind, look(case)] += 1

    each()
    assert sum(number for (name, _), number in TALLY.items() if name == kind) - before >= CASES[kind]


# Damage to bytes


def damages(length):
    """Cut off, up to three bits turned over anywhere or in the head, bytes taken out, put in or written over."""
    place, head = st.integers(0, length - 1), st.integers(0, min(length, 200) * 8 - 1)
    few = st.binary(min_size=1, max_size=12)
    return st.one_of(
        st.tuples(st.just("cut"), place, st.none()),
        st.tuples(st.just("flip"), st.lists(st.integers(0, length * 8 - 1), min_size=1, max_size=3), st.none()),
        st.tuples(st.just("flip"), st.lists(head, min_size=1, max_size=3), st.none()),
        st.tuples(st.just("take out"), place, few),
        st.tuples(st.just("put in"), place, few),
        st.tuples(st.just("write over"), place, few),
    )


def damaged(content, damage):
    kind, place, some = damage
    changed = bytearray(content)
    if kind == "cut":
        del changed[place:]
    elif kind == "flip":
        for bit in place:
            changed[bit // 8] ^= 1 << bit % 8
    elif kind == "take out":
        del changed[place : place + len(some)]
    else:
        changed[place : place + (0 if kind == "put in" else len(some))] = some
    return bytes(changed)


def damaged_files(files):
    """One of the files, by name, and what happens to it."""
    return st.sampled_from(sorted(files)).flatmap(lambda name: st.tuples(st.just(name), damages(len(files[name]))))


# Images

HEIGHT, WIDTH = 24, 20


def drawn(channels, top, dtype):
    """A smooth image (H, W, channels), as cameras and microscopes make them."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = np.stack([(np.sin(x / (3 + k)) + np.cos(y / (4 + k)) + 2) / 4 for k in range(channels)], axis=-1)
    return (values * top).astype(dtype)


def images():
    """Small images of every kind, by kind and file name."""
    rgb, grey = drawn(3, 255, np.uint8), drawn(1, 65535, np.uint16)[:, :, 0]
    palette = Image.fromarray(rgb).convert("P")
    planes = drawn(5, 1, np.float32).transpose(2, 0, 1).copy()
    return {
        "PNG": {
            "rgb.png": by_pillow(rgb, "PNG"),
            "grey16.png": by_pillow(grey, "PNG"),
            "palette.png": by_pillow(palette, "PNG"),
            "rgb16.png": deep_png(drawn(3, 65535, np.uint16)),
        },
        "JPEG": {
            "rgb.jpg": by_pillow(rgb, "JPEG"),
            "progressive.jpg": by_pillow(rgb, "JPEG", progressive=True),
            "grey.jpeg": by_pillow(rgb[:, :, 0], "JPEG"),
        },
        "TIFF": {
            "strips.tif": by_tifffile(rgb, rowsperstrip=8, photometric="rgb"),
            "grey16.tif": by_tifffile(grey),
            "float-planes.tif": by_tifffile(planes, planarconfig="separate", photometric="minisblack"),
            "pages.tif": by_tifffile(planes[:3], photometric="minisblack"),
            "tiles.tif": by_tifffile(
                drawn(3, 65535, np.uint16), tile=(16, 16), compression="zlib", photometric="rgb", predictor=True
            ),
            "int32.tif": by_tifffile(drawn(1, 99, np.int32)[:, :, 0], rowsperstrip=8, compression="zlib"),
            "lzw.tiff": by_pillow(rgb, "TIFF", compression="tiff_lzw"),
        },
        "BMP, GIF, WebP, JPEG 2000, PPM, PGM": {
            "rgb.bmp": by_pillow(rgb, "BMP"),
            "palette.gif": by_pillow(palette, "GIF"),
            "lossless.webp": by_pillow(rgb, "WEBP", lossless=True),
            "lossy.webp": by_pillow(rgb, "WEBP"),
            "rgb.jp2": by_pillow(rgb, "JPEG2000"),
            "rgb.ppm": by_pillow(rgb, "PPM"),
            "grey16.pgm": by_pillow(grey.astype(np.int32), "PPM"),
        },
    }


def image_is_well_formed(name, content, damage):
    """Whether a damaged image is a whole image of its kind: in PNG never, elsewhere where nothing is missing."""
    if name.endswith(".png"):
        return False
    if name.endswith((".tif", ".tiff")):
        return tiff_is_consistent(content)
    return damage[0] != "cut"


def tiff_is_consistent(content):
    """Whether the pages of a classic TIFF say what is needed and each strip or tile is there, and whole."""
    try:
        order = {b"II": "<", b"MM": ">"}[content[:2]]
        version, place = struct.unpack_from(order + "HI", content, 2)
        pages = 0
        while place and pages < 10:
            place = consistent_page(content, order, place)
            pages += 1
        return version == 42 and pages > 0 and place == 0
    except (KeyError, IndexError, ValueError, ZeroDivisionError, struct.error, zlib.error):
        return False


def consistent_page(content, order, place):
    """The place of the next page; raises for a page that is at fault."""
    tags = {}
    (number,) = struct.unpack_from(order + "H", content, place)
    for k in range(number):
        tag, kind, count = struct.unpack_from(order + "HHI", content, place + 2 + 12 * k)
        size = {3: 2, 4: 4}.get(kind)
        if size:
            at = place + 10 + 12 * k
            at = at if size * count <= 4 else struct.unpack_from(order + "I", content, at)[0]
            tags[tag] = struct.unpack_from(f"{order}{count}{'H' if size == 2 else 'I'}", content, at)
    (width,), (height,), samples = tags[256], tags[257], tags.get(277, (1,))[0]
    bits, planar = max(tags.get(258, (1,))), tags.get(284, (1,))[0] == 2 and samples > 1
    tile = (tags[323][0], tags[322][0]) if 322 in tags else (min(tags.get(278, (height,))[0], height), width)
    down, across = -(-height // tile[0]), -(-width // tile[1])
    offsets, lengths = (tags[324], tags[325]) if 322 in tags else (tags[273], tags[279])
    if not len(offsets) == len(lengths) == down * across * (samples if planar else 1):
        raise ValueError("strips or tiles are missing")
    for k, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        data = content[offset : offset + length]
        rows = tile[0] if 322 in tags else min(tile[0], height - k % down * tile[0])
        needed = rows * (-(-tile[1] * bits * (1 if planar else samples) // 8))
        if tags.get(259, (1,))[0] in (8, 32946):
            data = zlib.decompress(data)
        elif tags.get(259, (1,))[0] == 1 and length != needed:
            raise ValueError("a strip has another size than its pixels")
        if len(data) < needed and tags.get(259, (1,))[0] in (1, 8, 32946):
            raise ValueError("a strip or tile is cut off")
        if len(data) < min(length, 1):
            raise ValueError("a strip or tile lies outside the file")
    return struct.unpack_from(order + "I", content, place + 2 + 12 * number)[0]


@pytest.mark.parametrize("kind", list(images()))
def test_images(kind, child, tmp_path):
    files, originals = images()[kind], {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        outcome = child.call(read_any_image, tmp_path / name)
        assert outcome.kind == "read", outcome
        assert outcome.value["parts agree"]
        originals[name] = outcome.value

    def look(case):
        name, damage = case
        content = damaged(files[name], damage)
        (tmp_path / name).write_bytes(content)
        outcome = child.call(read_any_image, tmp_path / name)
        return verdict(outcome, originals[name], partial(image_is_well_formed, name, content, damage))

    explore(kind, damaged_files(files), look)


# Data sets


def write_data(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def explore_data(kind, child, folder, files, targets, well_formed, strategy=None):
    """Damage the ``targets`` among the files of a data set, one at a time."""
    write_data(folder, files)
    outcome = child.call(read_any_data, folder)
    assert outcome.kind == "read", outcome
    assert not outcome.value["refused"], outcome.value["refused"]
    assert not outcome.value["fault"], outcome.value["fault"]

    def look(case):
        name, damage = case
        content = damage if isinstance(damage, bytes) else damaged(files[name], damage)
        (folder / name).write_bytes(content)
        try:
            return data_verdict(
                child.call(read_any_data, folder), outcome.value, lambda: well_formed(name, content, damage)
            )
        finally:
            (folder / name).write_bytes(files[name])

    explore(kind, damaged_files({name: files[name] for name in targets}) if strategy is None else strategy, look)


def small_png(number):
    return by_pillow(np.roll(drawn(3, 255, np.uint8)[:10, :12], number, axis=0), "PNG")


def coco_values():
    """A data set with every kind of annotation."""
    string = {"size": [10, 12], "counts": "36444h1"}
    counts = {"size": [10, 12], "counts": [21, 5, 5, 5, 84]}
    boxes = [[2, 3, 4, 6], [1, 1, 5, 5], [2, 1, 2, 5], [6, 5, 5, 4]]
    masks = [[[2, 3, 6, 3, 6, 9, 2, 9]], [[1, 1, 6, 1, 6, 6], [7.5, 1, 9, 1, 9, 4.25]], counts, string]
    annotations = [
        {"id": 4 * image + k + 1, "image_id": image, "category_id": (3, 8)[k % 2], "segmentation": masks[k]}
        | {"bbox": boxes[k], "area": 24.0, "iscrowd": int(k == 3)}
        for image in (1, 2)
        for k in range(4)
    ]
    images = [{"id": k, "file_name": f"{k}.png", "height": 10, "width": 12} for k in (1, 2)]
    return {
        "info": {"year": 2024},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "leaf", "supercategory": "plant"}, {"id": 8, "name": "fruit"}],
    }


def coco_files():
    text = json.dumps(coco_values(), indent=1).encode()
    files = {f"train/{k}.png": small_png(k) for k in (1, 2)} | {f"val/{k}.png": small_png(k + 2) for k in (1, 2)}
    return {"train.json": text, "val.json": text, **files}


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**31


def coco_is_well_formed(name, content, damage):
    """Whether a COCO file of `coco_files` is one in every detail that is read."""
    try:
        values = json.loads(content.decode("utf-8"))
        images, annotations, categories = values["images"], values["annotations"], values["categories"]
        ids = [image["id"] for image in images]
        table = {category["id"]: category["name"] for category in categories}
        return (
            len(set(ids)) == len(ids)
            and len(table) == len(categories)
            and all(type(key) is int and isinstance(name, (str, int, float)) for key, name in table.items())
            and all(type(i["id"]) in (int, str) and i["file_name"] in ("1.png", "2.png") for i in images)
            and all((i["height"], i["width"]) == (10, 12) for i in images)
            and all(annotation_is_well_formed(annotation, ids, table) for annotation in annotations)
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return False


def annotation_is_well_formed(annotation, ids, table):
    mask, box, area = annotation["segmentation"], annotation.get("bbox"), annotation.get("area")
    if isinstance(mask, dict):
        shaped = mask["size"] == [10, 12]
        if isinstance(mask["counts"], list):
            shaped = shaped and sum(mask["counts"]) == 120 and all(type(c) is int and c >= 0 for c in mask["counts"])
    else:
        shaped = bool(mask) and all(len(p) >= 6 and len(p) % 2 == 0 and all(abs(v) <= 2**20 for v in p) for p in mask)
    return (
        shaped
        and (type(annotation["image_id"]), annotation["image_id"]) in [(type(i), i) for i in ids]
        and type(annotation["category_id"]) is int
        and annotation["category_id"] in table
        and annotation.get("iscrowd") in (None, 0, 1)
        and (box is None or (isinstance(box, list) and len(box) == 4 and all(map(number, box))))
        and (area is None or (number(area) and area >= 0))
    )


HOSTILE = [
    *(None, True, False, 0, -1, 1, 3, 0.5, 1e308, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**62, 2**63, 2**64, 10**400, "", "0", "1", "leaf", "1.png", "\ud800", "a" * 5000, "new\nline", "a\0b"),
    *("../1.png", "/etc/passwd", "..\\1.png", "C:\\1.png", "a/" * 3000 + "b.png", "\x1b[2J.png", "2.png/../../../x"),
    *([], [[]], {}, [None], [[None] * 6], [float("nan")] * 6, [[float("nan")] * 6], [[1, 1, 5, 5]], [[1] * 7]),
    *([[1e300] * 6], [[2**70] * 6], [[1, 1, 2**40, 1, 5, 9]], [[-(2**20), 1, 2**20, 1, 5, 2**20]], [[[1, 2], [3, 4]]]),
    {"size": [10, 12], "counts": [2**63, 2**63, 120]},
    {"size": [10, 12], "counts": [2**64 + 120]},
    {"size": [10, 12], "counts": [-1, 121]},
    {"size": [10, 12], "counts": [119]},
    {"size": [12, 10], "counts": [120]},
    {"size": [10, 12], "counts": "oooooooooooooo0"},
    {"size": [10, 12], "counts": "PPPPPPPPPPPPPP"},
    {"size": [10, 12], "counts": "\udcff"},
    {"size": [2**31, 2**31], "counts": [2**62]},
]


def nested_places(values, path=()):
    """Every place in nested lists and dictionaries."""
    for key in values if isinstance(values, dict) else range(len(values)):
        yield (*path, key)
        if isinstance(values[key], (dict, list)):
            yield from nested_places(values[key], (*path, key))


def changed_places(values, hostile):
    """The values with something hostile at one place, or nothing, or once more what is there."""
    fields = {}  # each equally often, however many annotations have it
    for place in nested_places(values):
        fields.setdefault(tuple(step for step in place if isinstance(step, str)), []).append(place)

    def change(drawn_place):
        path, how, value = drawn_place
        copy = json.loads(json.dumps(values))
        node = copy
        for step in path[:-1]:
            node = node[step]
        if how == "remove":
            del node[path[-1]]
        elif how == "repeat" and isinstance(node, list):
            node.append(node[path[-1]])
        else:
            node[path[-1]] = value
        return copy

    places = st.sampled_from(sorted(fields)).flatmap(lambda field: st.sampled_from(fields[field]))
    return st.tuples(places, st.sampled_from(["replace"] * 8 + ["remove", "repeat"]), st.sampled_from(hostile)).map(
        change
    )


def test_coco_bytes(child, tmp_path):
    explore_data("COCO JSON, its bytes", child, tmp_path, coco_files(), ["train.json"], coco_is_well_formed)


def test_coco_fields(child, tmp_path):
    changed = changed_places(coco_values(), HOSTILE).map(lambda values: ("train.json", json.dumps(values).encode()))
    explore_data("COCO JSON, its fields", child, tmp_path, coco_files(), [], coco_is_well_formed, changed)


def yolo_files():
    line = b"0 0.25 0.3 0.75 0.3 0.6 0.85\n"
    files = {
        f"images/{split}/{k}.png": small_png(2 * (split == "val") + k) for split in ("train", "val") for k in (1, 2)
    }
    files |= {f"labels/train/{k}.txt": line + b"1 0 0 0.5 0 0.5 0.4 0.0 0.4\n" for k in (1, 2)}
    files |= {f"labels/val/{k}.txt": line for k in (1, 2)}
    return files | {"data.yaml": b"path: .\ntrain: images/train\nval: images/val\nnames:\n  0: leaf\n  1: fruit\n"}


def yolo_is_well_formed(name, content, damage):
    try:
        text = content.decode("utf-8-sig")
        if name == "data.yaml":
            table = yaml.safe_load(text)
            return isinstance(table["names"], (list, dict))  # without splits, the folders tell
        for line in filter(str.strip, text.splitlines()):
            kind, *places = map(float, line.split())
            if kind not in (0, 1) or len(places) < 6 or len(places) % 2 or not all(-1 <= p <= 2 for p in places):
                return False
        return True
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError):
        return False


def test_yolo(child, tmp_path):
    targets = ["labels/train/1.txt", "labels/train/2.txt", "data.yaml"]
    explore_data("YOLO", child, tmp_path, yolo_files(), targets, yolo_is_well_formed)


def labels(number, dtype):
    values = np.zeros((10, 12), dtype)
    values[1:4, 1:5], values[5:9, 2:6], values[2:7, 8:11] = 1, 2 + number, 300 if dtype != np.uint8 else 9
    return values


def label_files(kind):
    """A data set of one of the formats that keep masks as images."""
    png = {k: by_pillow(labels(k, np.uint16), "PNG") for k in range(4)}
    tiff = {k: by_tifffile(labels(k, np.int32), rowsperstrip=4) for k in range(4)}
    zipped = {k: by_tifffile(labels(k, np.uint16), compression="zlib") for k in range(4)}
    if kind == "label images":
        files = {f"images/{k}.png": small_png(k) for k in range(4)}
        return files | {"masks/0.png": png[0], "masks/1.tif": tiff[1], "masks/2.tif": zipped[2], "masks/3.png": png[3]}
    if kind == "Cellpose":
        files = {f"{k}_img.png": small_png(k) for k in range(4)}
        return files | {"0_masks.tif": tiff[0], "1_masks.png": png[1], "2_masks.tif": zipped[2], "3_masks.png": png[3]}
    files = {f"id{k}/images/x{k}.png": small_png(k) for k in range(4)}
    bits = {f"id{k}/masks/{m}.png": labels(k, np.uint8) == v for k in range(4) for m, v in (("a", 1), ("b", 9))}
    return files | {name: by_pillow((values * 255).astype(np.uint8), "PNG") for name, values in bits.items()}


@pytest.mark.parametrize("kind", ["label images", "Cellpose", "Kaggle"])
def test_masks_kept_as_images(kind, child, tmp_path):
    files = label_files(kind)
    explore_data(kind, child, tmp_path, files, sorted(files), image_is_well_formed)


# Recipes, weights and run folders

RECIPE = b"""\
description: for a test
base: nuclei
model:
  backbone: {name: resnet18, pretrained: false, width: 0.25}
  rpn:
    anchor_sizes: [12, 24, 48]
    channels: 32
  box: {roi_size: 6, max_detections: 20}
image:
  scale: 1.0
  mean: [0.5, 0.25, 0.125]
train: {steps: 400, learning_rate: 1.5e-3, seed: 7}
"""


def alike(found, given):
    """Whether a field holds what the file says, of which pydantic may have made a number or a list."""
    if isinstance(given, list):
        return isinstance(found, (list, tuple)) and len(found) == len(given) and all(map(alike, found, given))
    return (
        found == given
        or str(found) == str(given)
        or (isinstance(given, str) and number(found) and float(given) == found)
    )


def recipe_is_well_formed(content, found):
    """Whether everything in the file is in the configuration."""
    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except (ValueError, yaml.YAMLError):
        return False
    places = (
        [path for path in nested_places(values) if path[0] not in ("description", "base", "paper")] if values else []
    )
    return all(holds(values, path, found) for path in places if all(isinstance(step, str) for step in path))


def holds(values, path, flat):
    for step in path:
        values = values[step]
    return isinstance(values, dict) or alike(flat.get(".".join(path)), values)


def test_recipes(child, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(RECIPE)
    original = child.call(read_any_recipe, path)
    assert original.kind == "read", original

    def look(case):
        content = damaged(RECIPE, case[1])
        path.write_bytes(content)
        outcome = child.call(read_any_recipe, path)
        return verdict(outcome, original.value, lambda: recipe_is_well_formed(content, outcome.value))

    explore("recipe", damaged_files({"mine.yaml": RECIPE}), look)


@pytest.fixture(scope="module")
def weights(tiny_config, classes, tmp_path_factory):
    """The bytes of a small weights file."""
    from masklab.model.build import build_model
    from masklab.weights.checkpoint import save_model

    small = {"backbone": tiny_config.model.backbone.model_copy(update={"width": 0.0625})}
    config = tiny_config.model_copy(update={"model": tiny_config.model.model_copy(update=small)})
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(build_model(config, classes), path, {"step": 3})
    return path.read_bytes()


def test_weights(child, weights, tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(weights)
    original = child.call(read_any_weights, path)
    assert original.kind == "read", original

    def look(case):
        path.write_bytes(damaged(weights, case[1]))
        return verdict(child.call(read_any_weights, path), original.value, lambda: False)

    explore("weights file", damaged_files({"small.safetensors": weights}), look)


def with_header(weights, facts):
    """A weights file with another header, and no checksum over it."""
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    header["__metadata__"] = {name: value for name, value in facts.items() if name != "sha256"}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + weights[8 + length :]


def header_is_well_formed(facts, found, original):
    """Whether what was read is what the header says, of a kind that it may be, over the same tensors."""
    from masklab.config.nested import flatten

    threshold, table, config = (json.loads(facts[name]) for name in ("score_threshold", "classes", "config"))
    there = flatten(found["config"])
    return (
        same(found["tensors"], original["tensors"])
        and (threshold is None or (number(threshold) and 0 <= threshold <= 1))
        and found["threshold"] == threshold
        and [type(i) for i in table["ids"]] == [int] * 3
        and (list(found["classes"].ids), list(found["classes"].names)) == (table["ids"], list(map(str, table["names"])))
        and found["notes"] == json.loads(facts["notes"])
        and all(alike(there[field], value) for field, value in flatten(config).items())
    )


def test_headers_of_weights(child, weights, tmp_path):
    path = tmp_path / "small.safetensors"
    length = int.from_bytes(weights[:8], "little")
    facts = json.loads(weights[8 : 8 + length])["__metadata__"]
    path.write_bytes(with_header(weights, facts))
    original = child.call(read_any_weights, path)
    assert original.kind == "read", original
    parsed = {name: json.loads(facts[name]) for name in ("config", "classes", "score_threshold", "notes")}

    def look(values):
        edited = facts | {name: json.dumps(value) for name, value in values.items()}
        edited = {name: value for name, value in edited.items() if name in values or name == "format"}
        path.write_bytes(with_header(weights, edited))
        outcome = child.call(read_any_weights, path)
        return verdict(outcome, original.value, lambda: header_is_well_formed(edited, outcome.value, original.value))

    explore("weights file, its header", changed_places(parsed, [v for v in HOSTILE if v != "\ud800"]), look)


def test_run_folders(child, tiny_config, tmp_path):
    import torch

    record = {"checkpoint": "resume.ckpt", "data": {"train": {"annotations_sha256": "ab", "images": 3}}, "starts": []}
    buffer = io.BytesIO()
    torch.save({"global_step": 2, "network": {"weight": torch.arange(600.0)}}, buffer)
    files = {
        "run.json": json.dumps(record).encode(),
        "config.yaml": yaml.safe_dump(tiny_config.model_dump(mode="json"), sort_keys=False).encode(),
        "resume.ckpt": buffer.getvalue(),
        "metrics.csv": b"step,loss\n1,0.5\n2,0.25\n",
    }
    write_data(tmp_path, files)
    original = child.call(read_any_run, tmp_path, tiny_config)
    assert original.kind == "read", original

    def look(case):
        name, damage = case
        content = damaged(files[name], damage)
        (tmp_path / name).write_bytes(content)
        try:
            outcome = child.call(read_any_run, tmp_path, tiny_config)
            return verdict(outcome, original.value, lambda: name in ("run.json", "metrics.csv"))
        finally:
            (tmp_path / name).write_bytes(files[name])

    explore("run folder", damaged_files(files), look)


# Cases with names


def claims_to_be_huge():
    """Images of a few hundred bytes whose headers claim 100,000 x 100,000, or as much as they can."""
    rgb, side = drawn(3, 255, np.uint8), 100_000
    jpeg, bmp = bytearray(by_pillow(rgb, "JPEG")), bytearray(by_pillow(rgb, "BMP"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65500, 65500)
    bmp[18:26] = struct.pack("<ii", side, side)
    gif, jp2 = bytearray(by_pillow(Image.fromarray(rgb).convert("P"), "GIF")), bytearray(by_pillow(rgb, "JPEG2000"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    for box, at in ((b"ihdr", 4), (b"\xff\x51", 6)):
        place = jp2.index(box) + at
        jp2[place : place + 8] = struct.pack(">II", side, side)
    ppm = by_pillow(rgb, "PPM").replace(b"20 24", b"100000 100000")
    files = {
        "a.png": deep_png(rgb, (side, side)),
        "b.jpg": jpeg,
        "c.bmp": bmp,
        "d.gif": gif,
        "e.jp2": jp2,
        "f.ppm": ppm,
    }
    tiffs = {
        "strips.tif": {"rowsperstrip": 8},
        "strip.tif": {},
        "zipped-strips.tif": {"rowsperstrip": 8, "compression": "zlib"},
        "zipped-strip.tif": {"compression": "zlib"},
        "tiles.tif": {"tile": (16, 16)},
        "zipped-tiles.tif": {"tile": (16, 16), "compression": "zlib"},
    }
    for name, options in tiffs.items():
        files[name] = taller(by_tifffile(rgb, photometric="rgb", **options), side)
        files[f"whole-{name}"] = taller(by_tifffile(rgb, photometric="rgb", **options), side, one_segment=True)
    return files


def taller(content, side, one_segment=False):
    """A TIFF whose header claims another size; with ``one_segment`` its first strip or tile is said to be all of it."""
    buffer = io.BytesIO(content)
    with tifffile.TiffFile(buffer, mode="r+b") as tiff:
        tags = tiff.pages[0].tags
        sides = ["ImageWidth", "ImageLength", *(["TileWidth", "TileLength", "RowsPerStrip"] if one_segment else [])]
        for name in sides:
            if name in tags:
                code = tags[name].dtype
                tags[name].overwrite(side if code == tifffile.DATATYPE.LONG else 65520)
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(claims_to_be_huge()))
def test_a_header_that_claims_too_much_is_refused(name, child, tmp_path):
    path = tmp_path / name
    path.write_bytes(claims_to_be_huge()[name])
    outcome = child.call(read_any_image, path)
    assert outcome.kind == "refused", outcome
    assert_sentence(outcome.value)
    assert str(path) in outcome.value
    TALLY[NAMED, "refused"] += 1


@pytest.mark.parametrize("name", sorted(surplus()))
def test_surplus_data_are_refused(name, child, tmp_path):
    """Strips that share a block, data that are far more than the pixels can need, and the like."""
    (tmp_path / name).write_bytes(surplus()[name])
    outcome = child.call(read_any_image, tmp_path / name)
    assert outcome.kind == "refused", outcome
    assert_sentence(outcome.value)
    assert name in outcome.value
    TALLY[NAMED, "refused"] += 1


@pytest.mark.parametrize("name", sorted(harmless()))
def test_rare_kinds_of_images_are_read(name, child, tmp_path):
    content, values = harmless()[name]
    (tmp_path / name).write_bytes(content)
    outcome = child.call(read_any_image, tmp_path / name)
    assert outcome.kind == "read", outcome
    assert outcome.value["parts agree"]
    assert (outcome.value["whole"] == values).all()
    TALLY[NAMED, "unchanged"] += 1


OTHERS = {
    "a program in an image's clothes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "an icon": by_pillow(Image.new("RGB", (16, 16)), "ICO"),
    "a bomb": zlib.compress(bytes(10**6)),
    "nothing": b"",
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_known_image_is_refused(what, child, tmp_path):
    for name in ("x.png", "x.jpg", "x.tif"):
        (tmp_path / name).write_bytes(OTHERS[what])
        outcome = child.call(read_any_image, tmp_path / name)
        assert outcome.kind == "refused", outcome
        assert_sentence(outcome.value)
        TALLY[NAMED, "refused"] += 1


def annotated(**fields):
    return lambda values: values["annotations"][0].update(fields)


def shown(**fields):
    return lambda values: values["images"][0].update(fields)


BROKEN = {  # what is wrong in a COCO file, and whether it is refused or reported
    **{
        f"a path that climbs out: {name[:30]!r}": (shown(file_name=name), "refused")
        for name in ("../../etc/passwd", "a/../../x", "/etc/passwd", "..\\x.png", "C:\\x.png", "1.png\0", "..", "C:")
    },
    "a name too long for a file": (shown(file_name="a/" * 5000), "refused"),
    "a name of two lines": (shown(file_name="1.png\n2.png"), "refused"),
    "100,000 x 100,000": (shown(height=100_000, width=100_000), "refused"),
    "no pixels": (shown(height=0), "refused"),
    "NaN points": (annotated(segmentation=[[float("nan")] * 8]), "reported"),
    "two points": (annotated(segmentation=[[1, 1, 5, 5]]), "reported"),
    "points at infinity": (annotated(segmentation=[[1, 1, float("inf"), 1, 5, 5]]), "reported"),
    "points far away": (annotated(segmentation=[[1, 1, 1e18, 1, 5, 5]]), "reported"),
    "counts over 64 bits": (annotated(segmentation={"size": [10, 12], "counts": [2**64, 120]}), "reported"),
    "counts that sum to 120 in 64 bits": (
        annotated(segmentation={"size": [10, 12], "counts": [2**63, 2**63, 120]}),
        "reported",
    ),
    "counts below 0": (annotated(segmentation={"size": [10, 12], "counts": [130, -10]}), "reported"),
    "a string of too many bits": (annotated(segmentation={"size": [10, 12], "counts": "o" * 20 + "0"}), "reported"),
    "a string that ends inside a number": (annotated(segmentation={"size": [10, 12], "counts": "o"}), "reported"),
    "iscrowd is text": (annotated(iscrowd="0"), "reported"),
    "area is text": (annotated(area="large"), "reported"),
    "area is NaN": (annotated(area=float("nan")), "reported"),
    "a box of text": (annotated(bbox=["1", "2", "3", "4"]), "reported"),
    "an image id that is true": (annotated(image_id=True), "refused"),
    "a category id that is true": (annotated(category_id=True), "reported"),
    "a category without a name": (lambda values: values["categories"][0].update(name=None), "refused"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_coco_file_is_refused_or_reported(what, child, tmp_path):
    change, expected = BROKEN[what]
    files, values = coco_files(), coco_values()
    write_data(tmp_path, files)
    original = child.call(read_any_data, tmp_path)
    change(values)
    (tmp_path / "train.json").write_text(json.dumps(values))
    assert data_verdict(child.call(read_any_data, tmp_path), original.value, lambda: False) == expected
    TALLY[NAMED, expected] += 1


DEEP = 100_000
TEXTS = {  # YAML that takes for ever, or is more than YAML
    "deep lists": "[" * DEEP,
    "deep mappings": "{a: " * DEEP,
    "itself": "train: &a {steps: *a}",
    "itself as a base": "base: &a [*a]",
    "a billion": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "a billion as a base": "base: [&a [x,x,x,x,x,x,x,x,x]"
    + "".join(f", &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]\n",
    "a program": "!!python/object/apply:os.system ['true']",
    "no such day": "train: {steps: 2024-13-45}",
    "not text": "\udcff\udcfe",
    "numbers as names": "1: 2",
    "a huge number": "train: {steps: " + "9" * 5000 + "}",
}


@pytest.mark.parametrize("what", TEXTS)
def test_hostile_yaml_is_refused(what, child, tmp_path):
    content = TEXTS[what].encode("utf-8", "surrogateescape")
    (tmp_path / "mine.yaml").write_bytes(content)
    outcome = child.call(read_any_recipe, tmp_path / "mine.yaml")
    assert outcome.kind == "refused", outcome
    assert_sentence(outcome.value)
    write_data(tmp_path / "set", yolo_files())
    (tmp_path / "set" / "data.yaml").write_bytes(content)
    outcome = child.call(read_any_data, tmp_path / "set")
    assert outcome.kind == "read", outcome
    assert_sentence(outcome.value["refused"])
    TALLY[NAMED, "refused"] += 2


@pytest.mark.parametrize("where", ["train: '../train'", "train: /etc", "path: '../..'\ntrain: etc", 'train: "a\\0b"'])
def test_yolo_paths_that_climb_out_are_refused(where, child, tmp_path):
    write_data(tmp_path / "set", yolo_files())
    shutil.copytree(tmp_path / "set" / "images" / "train", tmp_path / "train")
    (tmp_path / "set" / "data.yaml").write_text(f"{where}\nval: images/val\nnames: [leaf, fruit]\n")
    outcome = child.call(read_any_data, tmp_path / "set")
    assert outcome.kind == "read", outcome
    assert_sentence(outcome.value["refused"])
    TALLY[NAMED, "refused"] += 1


def test_json_as_deep_as_the_stack_is_refused(child, tmp_path):
    write_data(tmp_path, coco_files())
    for text in ("[" * DEEP, '{"images": ' * DEEP, '{"images": [' + "9" * 5000 + "]}"):
        (tmp_path / "train.json").write_text(text)
        outcome = child.call(read_any_data, tmp_path)
        assert outcome.kind == "read", outcome
        assert_sentence(outcome.value["refused"])
        TALLY[NAMED, "refused"] += 1


def test_ten_thousand_categories_are_read(child, tmp_path):
    values, numbers = coco_values(), range(1, 10_001)
    values["categories"] = [{"id": k, "name": f"kind {k}"} for k in numbers]
    write_data(tmp_path, coco_files() | dict.fromkeys(("train.json", "val.json"), json.dumps(values).encode()))
    outcome = child.call(read_any_data, tmp_path)
    assert outcome.kind == "read", outcome
    assert outcome.value["splits"]["train"]["classes"].ids == tuple(numbers)
    assert len([finding for finding in outcome.value["findings"] if finding[1] == "unused category"]) == 2 * 9998
    TALLY[NAMED, "unchanged"] += 1


@pytest.mark.parametrize("kind", ["COCO", "YOLO", "label images"])
def test_five_thousand_objects_in_an_image_are_read(kind, child, tmp_path):
    """A grid of 100 x 50 squares, two pixels wide and two apart."""
    corners = [(4 * column + 1, 4 * row + 1) for row in range(50) for column in range(100)]
    image = by_pillow(np.zeros((201, 402, 3), np.uint8), "PNG")
    outlines = [[x, y, x + 2, y, x + 2, y + 2, x, y + 2] for x, y in corners]
    files = {"images/train/1.png": image, "images/val/1.png": small_png(1)}
    if kind == "COCO":
        values, files = coco_values(), coco_files() | {"train/1.png": image}
        values["images"][0].update(width=402, height=201)
        values["annotations"] = [
            {"id": k, "image_id": 1, "category_id": 3, "segmentation": [outline]} for k, outline in enumerate(outlines)
        ]
        files["train.json"] = json.dumps(values).encode()
    elif kind == "YOLO":
        lines = [" ".join(["0", *(f"{v / s:.8f}" for v, s in zip(o, [402, 201] * 4, strict=True))]) for o in outlines]
        files |= {"labels/train/1.txt": "\n".join(lines).encode(), "labels/val/1.txt": b""}
        files["data.yaml"] = yolo_files()["data.yaml"]
    else:
        mask = np.zeros((201, 402), np.uint16)
        for k, (x, y) in enumerate(corners, 1):
            mask[y : y + 2, x : x + 2] = k
        files |= {"masks/train/1.png": by_pillow(mask, "PNG")}
        files |= {"masks/val/1.png": by_pillow(labels(1, np.uint16), "PNG")}
    write_data(tmp_path, files)
    outcome = child.call(read_any_data, tmp_path)
    assert outcome.kind == "read", outcome
    _, _, boxes, found, masks, _ = outcome.value["splits"]["train"]["images"][0]
    assert len(boxes) == len(masks) == len(found) == 5000, outcome.value["refused"]
    expected = np.array([(x, y, x + 2, y + 2) for x, y in corners], np.float32)
    assert np.array_equal(boxes[np.lexsort((boxes[:, 0], boxes[:, 1]))], expected)
    TALLY[NAMED, "unchanged"] += 1


def test_the_document_says_how_many_cases_there_are():
    assert sum(CASES.values()) >= LEAST
    rows = dict(re.findall(r"^\| ([^|]+?) +\| (\d+) ", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    assert {kind: int(number) for kind, number in rows.items() if kind in CASES} == CASES

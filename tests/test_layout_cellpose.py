"""Cellpose's ``_seg.npy`` is read as it writes it, alone and beside ``_masks`` images, and never runs code."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
import tifffile
from contracts import fails
from PIL import Image

from masklab.datasets.layouts.cellpose import CELLPOSE
from masklab.datasets.layouts.cellpose_npy import label_image
from masklab.datasets.open import open_split
from masklab.masks import rle

SIZE = (20, 30)


def labels(seed, size=SIZE):
    rng = np.random.default_rng(seed)
    values = np.zeros(size, np.int64)
    for value in (1, 2, 3, 7):
        top, left = rng.integers(0, size[0] - 6), rng.integers(0, size[1] - 6)
        values[top : top + 6, left : left + 5] = value
    return values


def image(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 120, np.uint8)).save(path)


def seg(masks, filename="x.png", **more):
    """The dictionary of cellpose.io.masks_flows_to_seg."""
    return {
        "outlines": np.zeros_like(masks),
        "masks": masks,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(int(masks.max(initial=0)), bool),
        "filename": filename,
        "flows": [np.zeros((1, *SIZE, 3), np.uint8), np.zeros((1, *SIZE), np.uint8), []],
        "diameter": np.nan,
        **more,
    }


def gui_seg(masks):
    """The dictionary of the graphical interface's _save_sets."""
    return seg(
        masks,
        colors=np.zeros((3, 3), np.uint8),
        manual_changes=[[1, 2, {"k": np.float32(2)}], None, True],
        model_path=0,
        flow_threshold=0.4,
        cellprob_threshold=np.float64(0.0),
        normalize_params={"lowhigh": None, "percentile": [1.0, 99.0], "norm3D": False, "tile_norm": np.int64(0)},
        restore=None,
        ratio=1.0,
    )


def header():
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    return buffer.getvalue()


def found(split):
    return [
        [
            rle.window(split.objects(k).rle(row), SIZE, (0, 0, SIZE[1], SIZE[0])) > 0
            for row in range(len(split.objects(k)))
        ]
        for k in range(len(split.images))
    ]


def check(split, *expected):
    assert [len(objects) for objects in found(split)] == [len(np.unique(values)) - 1 for values in expected]
    for objects, values in zip(found(split), expected, strict=True):
        for mask, value in zip(objects, np.unique(values)[1:], strict=True):
            assert (mask == (values == value)).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint8, ">u2", np.int64])
@pytest.mark.parametrize("make", [seg, gui_seg])
def test_seg_file(tmp_path, dtype, make):
    for name in "ab":
        image(tmp_path / f"{name}.png")
        np.save(tmp_path / f"{name}_seg.npy", make(labels(ord(name)).astype(dtype)))
    check(open_split(tmp_path, "all"), labels(97), labels(98))


def test_older_numpy(tmp_path):
    """numpy 1 wrote other module names, in protocol 3."""
    image(tmp_path / "a.png")
    body = pickle.dumps(np.array(seg(labels(3).astype(np.uint16)), object), protocol=3)
    assert b"numpy._core.multiarray" in body
    (tmp_path / "a_seg.npy").write_bytes(header() + body.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    check(open_split(tmp_path, "all"), labels(3))


def test_planes_order_and_start(tmp_path):
    values = labels(4).astype(np.int32)
    for masks in (values[None], np.asfortranarray(values), values - 1, values.astype(">i4")):
        np.save(tmp_path / "a_seg.npy", seg(masks))
        assert (label_image(tmp_path / "a_seg.npy") == values).all()
    np.save(tmp_path / "a_seg.npy", seg(np.stack([values, values])))
    fails(("a_seg.npy", "(2, 20, 30)", "plane"), label_image, tmp_path / "a_seg.npy")


def test_names_of_images(tmp_path):
    """By name, with _img, with .ome, by ``filename`` from another machine; in splits; suffixes in capitals."""
    image(tmp_path / "train" / "a_img.png")
    np.save(tmp_path / "train" / "a_seg.npy", seg(labels(1)))
    image(tmp_path / "train" / "b.PNG")
    np.save(tmp_path / "train" / "c_seg.npy", seg(labels(2), "C:\\scans\\b.PNG"))
    tifffile.imwrite(tmp_path / "train" / "ü.ome.tif", np.zeros(SIZE, np.uint8))
    np.save(tmp_path / "train" / "ü.ome_seg.npy", seg(labels(3)))
    image(tmp_path / "val" / "a.png")
    np.save(tmp_path / "val" / "a_seg.npy", seg(labels(4)))
    check(open_split(tmp_path, "train"), labels(1), labels(2), labels(3))
    check(open_split(tmp_path, "val"), labels(4))


def test_beside_label_images(tmp_path):
    """One data set: the label image of an image wins, others are read from their ``_seg.npy``."""
    for name in "abc":
        image(tmp_path / f"{name}.png")
        np.save(tmp_path / f"{name}_seg.npy", seg(labels(5)))
    Image.fromarray(labels(6).astype(np.uint8)).save(tmp_path / "a_masks.png")
    Image.fromarray(labels(7).astype(np.uint8)).save(tmp_path / "b_cp_masks.png")
    check(open_split(tmp_path, "all"), labels(6), labels(7), labels(5))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("HERE",)


def test_hostile_pickle(tmp_path, monkeypatch):
    """No form of a pickle that calls something runs it."""
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "a.png")
    good = seg(labels(1))
    bodies = [pickle.dumps(np.array(good | {"x": Bomb()}, object), protocol) for protocol in range(6)]
    bodies += [pickle.dumps(Bomb(), protocol) for protocol in range(6)]
    bodies += [b"cos\nmkdir\n(S'HERE'\ntR.", b"(S'HERE'\nios\nmkdir\n.", b"\x80\x02(cos\nmkdir\nX\x04\0\0\0HEREo."]
    bodies += [b"\x80\x04\x8c\x0dnumpy.ndarray\x8c\x04load\x93)R.", b"\x80\x02cnumpy\nload\nX\x01\0\0\0a\x85R."]
    for body in bodies:
        (tmp_path / "a_seg.npy").write_bytes(header() + body)
        fails(("a_seg.npy", "Cellpose"), label_image, tmp_path / "a_seg.npy")
        assert not (tmp_path / "HERE").exists()
    fails(("a_seg.npy",), lambda: open_split(tmp_path, "all"))
    pickle.loads(bodies[-6])  # the proof that such a file would do it elsewhere
    assert (tmp_path / "HERE").exists()


def test_damaged_and_other_files(tmp_path):
    path = tmp_path / "a_seg.npy"
    np.save(path, seg(labels(1).astype(np.uint16)))
    whole = path.read_bytes()
    for end in (0, 5, 60, len(header()), len(header()) + 40, len(whole) - 1):
        path.write_bytes(whole[:end])
        fails(("a_seg.npy",), label_image, path)
    few = {"outlines": []}, seg(np.zeros(SIZE, np.float32)), {"masks": [1]}, {"masks": np.array([None, 1])}, [1], {1: 2}
    for values in few:
        np.save(path, np.array(values, object) if isinstance(values, dict) else np.array([values], object))
        fails(("a_seg.npy",), label_image, path)
    np.save(path, labels(1))
    fails(("a_seg.npy", "no dictionary"), label_image, path)
    for line in (b"{'descr': '|O', 'shape': (", b"-" * 9000, b"(" * 9000, b"\xff", b""):
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line + whole[len(header()) :])
        fails(("a_seg.npy", "no dictionary"), label_image, path)
    for body in (
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memory of two thousand million entries
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # a terabyte of bytes
        b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x.",
        b"\x80\x02" + b")" + b"\x85" * 300_000 + b"}q\0h\0.",  # tuples in tuples in tuples
        b"\x80\x02}(" + b")" + b"\x85" * 300_000 + b"Ku.",
        b"\x80\x02e.",
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"I" + b"9" * 100_000 + b"\n.",
    ):
        path.write_bytes(header() + body)
        fails(("a_seg.npy",), label_image, path)


def test_missing_image_and_size(tmp_path):
    image(tmp_path / "a.png")
    np.save(tmp_path / "a_seg.npy", seg(labels(1, (20, 31))))
    fails(("a_seg.npy", "31 wide", "30 wide"), lambda: open_split(tmp_path, "all"))
    np.save(tmp_path / "b_seg.npy", seg(labels(1), "../a.png"))
    np.save(tmp_path / "a_seg.npy", seg(labels(1)))
    (tmp_path / "b_seg.npy").unlink()
    np.save(tmp_path / "c_seg.npy", seg(labels(1), "/etc/other.png"))
    fails(("c_seg.npy", "missing"), lambda: open_split(tmp_path, "all"))
    (tmp_path / "c_seg.npy").unlink()
    image(tmp_path / "z.png")
    fails(("z.png", "no mask"), lambda: open_split(tmp_path, "all"))


def test_other_folders(tmp_path):
    image(tmp_path / "a.png")
    assert CELLPOSE.find(tmp_path) == {}

"""Annotation files and the images that they name."""

import os

import pytest

from masklab.datasets.layouts.places import ImageIndex, annotation_files, public_splits, split_in
from masklab.utils.errors import InputError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (["images", "Train2017"], "train"),
        (["valid"], "val"),
        (["validation"], "val"),
        (["training", "test"], "train"),
        (["via_region_data_val"], "val"),
        (["train-val", "test"], "test"),
        (["latest"], ""),
        (["trainer", "values"], ""),
        ([], ""),
    ],
)
def test_names_tell_a_split(words, split):
    assert split_in(words) == split


def test_public_names_of_splits():
    assert public_splits(["a", "", "b"]) == {"a": "", "": "", "b": ""}
    assert public_splits(["", "test"]) == {"": "train", "test": "test"}
    assert public_splits(["", "train", "b"]) == {"": "default", "train": "train", "b": "b"}


def test_files_of_a_tool(tmp_path):
    touch(tmp_path, "a/b/c/d.json", "a/b/c/d/e.json", ".hidden/x.json", "image.png")
    for name, text in (("one.json", "mine"), ("two.JSON", "other"), ("three.txt", "mine")):
        (tmp_path / "a" / name).write_text(text)
    os.symlink(tmp_path, tmp_path / "loop")
    os.symlink(tmp_path / "gone", tmp_path / "a" / "gone.json")
    found = annotation_files(tmp_path, (".json",), lambda head: head == "mine")
    assert found == {tmp_path / "a": [(tmp_path / "a" / "one.json", True), (tmp_path / "a" / "two.JSON", False)]}


def test_few_files_of_another_layout_are_read(tmp_path):
    touch(tmp_path, *(f"{number}.json" for number in range(200)))
    seen = []
    assert annotation_files(tmp_path, (".json",), lambda head: bool(seen.append(head))) == {}
    assert len(seen) == 20


@pytest.mark.parametrize(
    ("name", "source", "image"),
    [
        ("x.png", "train/via.json", "train/x.png"),
        ("x.png", "annotations/val.json", "images/val/x.png"),
        ("val\\x.png", "annotations.xml", "images/val/x.png"),
        ("C:\\data\\train\\x.png", "annotations.xml", "train/x.png"),
        ("../images/val/x.png", "train/x.json", "images/val/x.png"),
        ("only.PNG", "train/via.json", "images/val/only.png"),
        ("cafe\u0301.png", "train/via.json", "images/val/caf\u00e9.png"),
        ("missing.png", "train/via.json", None),
        ("../../etc/hostname", "train/via.json", None),
        ("", "train/via.json", None),
        ("x.png\0", "train/via.json", None),
    ],
)
def test_the_image_of_a_name(tmp_path, name, source, image):
    touch(
        tmp_path, "train/x.png", "images/val/x.png", "images/val/only.png", "images/val/caf\u00e9.png", "etc/hostname"
    )
    found = ImageIndex(tmp_path).find(name, tmp_path / source)
    assert found == (None if image is None else tmp_path / image)


def test_images_that_cannot_be_told_apart(tmp_path):
    touch(tmp_path, "one/x.png", "two/x.png", "images/y.png", "shown/y.png")
    index = ImageIndex(tmp_path)
    with pytest.raises(InputError, match=r"a\.json names the image x\.png, which may be .*one.* or .*two.*: move one"):
        index.find("x.png", tmp_path / "a.json")
    assert index.find("y.png", tmp_path / "a.json") == tmp_path / "images" / "y.png"
    assert index.find("y", tmp_path / "a.json", stem=True) == tmp_path / "images" / "y.png"

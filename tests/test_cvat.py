"""CVAT for images 1.1, written as its `dump_as_cvat_annotation` does."""

import logging
import tracemalloc
from xml.sax.saxutils import quoteattr

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

from masklab.datasets.open import open_split, split_names
from masklab.utils.errors import InputError


def element(tag, label, **attributes):
    own = {"label": label, "source": "manual", "occluded": "0", **attributes, "z_order": "0"}
    text = " ".join(f"{key}={quoteattr(str(value))}" for key, value in own.items())
    return f'    <{tag} {text}>\n      <attribute name="age">3</attribute>\n    </{tag}>\n'


def points(corners):
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in corners)


def polygon(label, corners, **other):
    return element("polygon", label, points=points(corners), **other)


def mask(label, bits, left, top):
    """As the tool counts: row by row in the mask's box, background first."""
    values = bits.ravel().astype(int)
    edges = np.flatnonzero(np.diff(values)) + 1
    runs = np.diff([0, *edges, values.size]).tolist()
    rle = ", ".join(map(str, [0, *runs] if values[0] else runs))
    return element("mask", label, rle=rle, left=left, top=top, width=bits.shape[1], height=bits.shape[0])


LABEL = (
    "<label><name>{}</name><color>#fa3253</color><type>any</type><attributes><attribute><name>age</name>"
    "<mutable>False</mutable><input_type>number</input_type></attribute></attributes>{}</label>"
)


def write(path, images, labels=("leaf", "door"), size=SIZE, subsets=None, extra=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = "".join(LABEL.format(name, "") for name in labels) + extra
    lines = ['<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n']
    lines.append(
        f"      <name>bäume</name><size>{len(images)}</size><labels>{table}</labels>\n    </task>\n  </meta>\n"
    )
    for number, (name, shapes) in enumerate(images.items()):
        subset = f' subset="{subsets[number]}" task_id="4"' if subsets else ""
        head = f'  <image id="{number}" name={quoteattr(name)}{subset} width="{size[1]}" height="{size[0]}">\n'
        lines.append(head + "".join(shapes) + "  </image>\n")
    path.write_text("".join(lines) + "</annotations>\n", encoding="utf-8")


def test_every_shape(tmp_path):
    image(tmp_path / "images" / "a.png")
    image(tmp_path / "images" / "empty.png")
    parts = f"    <skeleton label='man' source='manual' z_order='0'>\n{polygon('arm', BLOB)}    </skeleton>\n"
    shapes = [
        polygon("leaf", BLOB, group_id=1),
        polygon("leaf", STAR, group_id=1),
        mask("door", BITMAP, 40, 60),
        mask("door", ~BITMAP, 250, 200),
        element("box", "door", xtl="30.00", ytl="20.00", xbr="250.00", ybr="200.00"),
        element("box", "door", xtl="100.00", ytl="80.00", xbr="220.00", ybr="160.00", rotation="90.00"),
        element("ellipse", "door", cx="150.00", cy="120.00", rx="120.00", ry="60.00"),
        element("ellipse", "door", cx="150.00", cy="120.00", rx="100.00", ry="60.00", rotation="30.00"),
        element("polyline", "leaf", points=points(BLOB)),
        element("points", "leaf", points=points(BLOB)),
        element("cuboid", "leaf", xtl1="1"),
        parts,
        "    <tag label='leaf' source='manual'></tag>\n",
    ]
    inner = LABEL.format("arm", "<parent>man</parent>")
    write(
        tmp_path / "annotations.xml", {"a.png": shapes, "empty.png": []}, ("leaf", "unused", "door", "man"), extra=inner
    )
    split, problems = opened(tmp_path)
    assert_objects(
        split,
        "images/a.png",
        ("leaf", raster(BLOB)),
        ("leaf", raster(STAR)),
        ("door", placed(BITMAP, 40, 60)),
        ("door", placed(~BITMAP, 250, 200)),
        ("door", rectangle(30, 20, 250, 200)),
        ("door", rectangle(120, 60, 200, 180)),
        ("door", ellipse(150, 120, 120, 60)),
        ("door", ellipse(150, 120, 100, 60, 30)),
    )
    assert (objects(split, "images/a.png")[2][1] == placed(BITMAP, 40, 60)).all()
    assert (objects(split, "images/a.png")[3][1] == placed(~BITMAP, 250, 200)).all()
    assert objects(split, "images/empty.png") == []
    assert [detail.split("'")[1] for _, detail in problems] == ["polyline", "points", "cuboid", "skeleton"]
    assert split.categories.names == ("leaf", "unused", "door", "man")


def test_splits_are_the_subsets_of_a_project(tmp_path):
    for subset in ("Train", "Validation", "Test"):
        image(tmp_path / "images" / subset / "img 0.png")
    write(
        tmp_path / "annotations.xml",
        {f"img {n}.png": [polygon("leaf", BLOB)] for n in range(3)},
        subsets=("Train", "Validation", "Test"),
    )
    text = (tmp_path / "annotations.xml").read_text(encoding="utf-8")
    (tmp_path / "annotations.xml").write_text(
        text.replace("img 1", "img 0").replace("img 2", "img 0"), encoding="utf-8"
    )
    assert split_names(tmp_path) == ["test", "train", "val"]
    for subset, name in (("Train", "train"), ("Validation", "val"), ("Test", "test")):
        assert_objects(opened(tmp_path, name)[0], f"images/{subset}/img 0.png", ("leaf", raster(BLOB)))


@pytest.mark.parametrize(
    ("subsets", "names"),
    [
        (("default", "default"), {"train", "val"}),
        (("Train", "default"), {"default", "train", "val"}),
        (("part one", "part two"), {"train", "val"}),
        (("Train", "part two"), {"part_two", "train", "val"}),
        (("Test", "default"), {"test", "train", "val"}),
    ],
)
def test_other_subsets(tmp_path, subsets, names):
    images = {}
    for name in ("a.png", "b.png"):
        image(tmp_path / "images" / name)
        images[name] = [polygon("leaf", BLOB)]
    write(tmp_path / "annotations.xml", images, subsets=subsets)
    assert set(split_names(tmp_path)) == names
    if "Train" not in subsets and "Test" not in subsets:
        assert len(open_split(tmp_path, "all")) == 2


def test_images_in_subfolders_of_the_name(tmp_path):
    for place in ("one", "two"):
        image(tmp_path / "images" / place / "a.png")
    write(tmp_path / "annotations.xml", {"one/a.png": [polygon("leaf", BLOB)], "two\\a.png": [polygon("leaf", STAR)]})
    split, _ = opened(tmp_path)
    assert_objects(split, "images/one/a.png", ("leaf", raster(BLOB)))
    assert_objects(split, "images/two/a.png", ("leaf", raster(STAR)))


def test_several_files(tmp_path):
    for place in ("train", "val"):
        image(tmp_path / place / "images" / "a.png")
        write(tmp_path / place / "annotations.xml", {"a.png": [polygon(place, BLOB)]}, (place,))
    assert split_names(tmp_path) == ["train", "val"]
    split, _ = opened(tmp_path, "val")
    assert_objects(split, "val/images/a.png", ("val", raster(BLOB)))
    assert split.categories.names == ("train", "val")


def test_broken_shapes_are_reported(tmp_path):
    image(tmp_path / "a.png")
    bits = np.ones((4, 5), bool)
    bad = [
        polygon("leaf", BLOB[:2]),
        element("polygon", "leaf", points="1,2;3;4,5"),
        element("polygon", "leaf", points="1,2;nan,3;4,5"),
        element("polygon", "leaf"),
        element("box", "leaf", xtl="1", ytl="2", xbr="x", ybr="9"),
        element("box", "leaf", xtl="1", ytl="2", xbr="inf", ybr="9"),
        element("ellipse", "leaf", cx="1", cy="2", rx="3"),
        mask("leaf", bits, 0, 0).replace('rle="0, 20"', 'rle="0, 19"'),
        mask("leaf", bits, 0, 0).replace('rle="0, 20"', 'rle="-1, 21"'),
        mask("leaf", bits, 0, 0).replace('rle="0, 20"', 'rle="0; 20"'),
        mask("leaf", bits, 0, 0).replace('width="5"', 'width="99999"'),
        mask("leaf", bits, 0, 0).replace('width="5"', 'width="-5"'),
        polygon("", BLOB),
    ]
    write(tmp_path / "annotations.xml", {"a.png": [*bad, polygon("new", BLOB)]})
    split, problems = opened(tmp_path)
    assert_objects(split, "a.png", ("new", raster(BLOB)))
    assert split.categories.names == ("leaf", "door", "new")
    assert [name for name, _ in problems] == ["a.png"] * len(bad)
    words = ["2 points", "list of points", "not finite", "no points", "xbr is 'x'", "xbr is 'inf'", "no ry"]
    words += ["covers 19 of", "covers 20 of", "no list of whole", "do not fit", "do not fit", "no class"]
    for (_, detail), word in zip(problems, words, strict=True):
        assert word in detail


def test_boxes_only_are_refused_and_some_are_warned_of(tmp_path, caplog):
    image(tmp_path / "a.png")
    box = element("box", "leaf", xtl="30", ytl="20", xbr="250", ybr="200")
    write(tmp_path / "annotations.xml", {"a.png": [box]})
    with pytest.raises(InputError, match=r"holds boxes only \(1 rectangles of CVAT\).*draw polygons or masks"):
        open_split(tmp_path, "all")
    write(tmp_path / "annotations.xml", {"a.png": [box, polygon("leaf", BLOB)]})
    with caplog.at_level(logging.WARNING):
        opened(tmp_path)
    assert "1 of 2 shapes are rectangles" in caplog.text


def test_an_export_for_video_is_told(tmp_path):
    track = '<track id="0" label="leaf"><polygon frame="0" outside="0" points="1,2;3,4;5,6"></polygon></track>'
    (tmp_path / "annotations.xml").write_text(f"<annotations><version>1.1</version>{track}</annotations>")
    with pytest.raises(InputError, match=r"is an export for video.*'CVAT for images 1\.1'"):
        open_split(tmp_path, "all")
    (tmp_path / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(InputError, match="lists no images"):
        open_split(tmp_path, "all")


def test_an_image_of_another_size(tmp_path):
    image(tmp_path / "a.png")
    write(tmp_path / "annotations.xml", {"a.png": [polygon("leaf", BLOB)]}, size=(480, 640))
    with pytest.raises(InputError, match=r"annotations\.xml was drawn on a\.png at 640 x 480 pixels"):
        open_split(tmp_path, "all")


@pytest.mark.parametrize("cut", [40, 200, 700])
def test_a_file_that_is_cut_off(tmp_path, cut):
    image(tmp_path / "a.png")
    write(tmp_path / "annotations.xml", {"a.png": [polygon("leaf", BLOB)]})
    text = (tmp_path / "annotations.xml").read_bytes()
    (tmp_path / "annotations.xml").write_bytes(text[:cut] if cut > 60 else text[: text.index(b"<version")])
    with pytest.raises(InputError, match=r"annotations\.xml is not XML that can be read"):
        open_split(tmp_path, "all")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "iso-8859-1"])
def test_other_encodings(tmp_path, encoding):
    image(tmp_path / "ä.png")
    write(tmp_path / "annotations.xml", {"ä.png": [polygon("leaf", BLOB)]})
    text = (tmp_path / "annotations.xml").read_text(encoding="utf-8")
    text = text.replace('encoding="utf-8"', f'encoding="{encoding.removesuffix("-sig")}"')
    (tmp_path / "annotations.xml").write_text(text, encoding=encoding)
    assert_objects(opened(tmp_path)[0], "ä.png", ("leaf", raster(BLOB)))


def test_entities_are_not_read(tmp_path):
    """Neither those that grow without bound nor those that are files."""
    image(tmp_path / "a.png")
    (tmp_path / "secret").write_text("secret")
    grow = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    for inner in (f'<!ENTITY e0 "leafleafleaf">{grow}', f'<!ENTITY e11 SYSTEM "file://{tmp_path}/secret">'):
        write(tmp_path / "annotations.xml", {"a.png": [polygon("leaf", BLOB)]}, ("&e11;",))
        text = (tmp_path / "annotations.xml").read_text(encoding="utf-8")
        text = text.replace("<annotations>", f"<!DOCTYPE annotations [{inner}]>\n<annotations>", 1)
        (tmp_path / "annotations.xml").write_text(text, encoding="utf-8")
        tracemalloc.start()
        with pytest.raises(InputError, match=r"annotations\.xml is not XML that can be read \(it has a document type"):
            open_split(tmp_path, "all")
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


def test_elements_in_elements_without_end(tmp_path):
    image(tmp_path / "a.png")
    write(tmp_path / "annotations.xml", {"a.png": [polygon("leaf", BLOB), "<a>" * 200_000 + "</a>" * 200_000]})
    assert_objects(opened(tmp_path)[0], "a.png", ("leaf", raster(BLOB)))

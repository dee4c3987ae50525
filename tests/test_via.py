"""VGG Image Annotator's files, written as its functions `pack_via_metadata` and `project_save_with_confirm` do."""

import json
import logging

import pytest
from outlines import BLOB, STAR, assert_objects, ellipse, image, objects, opened, raster, rectangle

from masklab.datasets.open import open_split, split_names
from masklab.utils.errors import InputError

LEAF = {"name": "leaf"}


def polygon(points, name="polygon"):
    return {"name": name, "all_points_x": [x for x, _ in points], "all_points_y": [y for _, y in points]}


def region(shape, attributes=LEAF):
    return {"shape_attributes": shape, "region_attributes": attributes}


def metadata(folder, images, version):
    """The entries of images by name and size of the file, with their regions."""
    found = {}
    for name, regions in images.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        entry = {"size": size, "filename": name}
        if version == 1:
            numbered = {str(number): one for number, one in enumerate(regions)}
            entry = {"fileref": "", **entry, "base64_img_data": "", "file_attributes": {}, "regions": numbered}
        else:
            entry = {"filename": name, "size": size, "regions": regions, "file_attributes": {}}
        found[f"{name}{size}"] = entry
    return found


def write_json(path, images, version=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(metadata(path.parent, images, version), separators=(",", ":")), encoding="utf-8")


def write_project(path, images):
    found = metadata(path.parent, images, 2)
    settings = {"ui": {"annotation_editor_height": 25}, "core": {}, "project": {"name": "p"}}
    project = {"_via_settings": settings, "_via_img_metadata": found, "_via_attributes": {"region": {}, "file": {}}}
    path.write_text(json.dumps(project | {"_via_data_format_version": "2.0.10", "_via_image_id_list": list(found)}))


def write_csv(path, images, version=2):
    def quoted(values):
        return '"' + json.dumps(values, separators=(",", ":")).replace('"', '""') + '"'

    head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    lines = [f"#{head}" if version == 1 else head]
    for name, regions in images.items():
        for number, one in enumerate(regions):
            shape, attributes = quoted(one["shape_attributes"]), quoted(one["region_attributes"])
            lines.append(f'{name},1,"{{}}",{len(regions)},{number},{shape},{attributes}')
        if not regions:
            lines.append(f'{name},1,"{{}}",0,0,"{{}}","{{}}"')
    path.write_text("\n".join(lines), encoding="utf-8")


WRITERS = {
    "json 1": lambda path, images: write_json(path, images, 1),
    "json 2": write_json,
    "project": write_project,
    "csv 1": lambda path, images: write_csv(path.with_suffix(".csv"), images, 1),
    "csv 2": lambda path, images: write_csv(path.with_suffix(".csv"), images),
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_shape_in_every_form(tmp_path, form):
    image(tmp_path / "a.png")
    image(tmp_path / "empty.png")
    shapes = [
        region(polygon(BLOB)),
        region({"name": "rect", "x": 30, "y": 20, "width": 220, "height": 180}, {"name": 'a "door"'}),
        region({"name": "circle", "cx": 150, "cy": 120, "r": 90.5}),
        region({"name": "ellipse", "cx": 150, "cy": 120, "rx": 130, "ry": 60}),
        region({"name": "ellipse", "cx": 150, "cy": 120, "rx": 100, "ry": 60, "theta": 0.6}),
        region(polygon(BLOB, "polyline")),
        region({"name": "point", "cx": 1, "cy": 2}),
    ]
    WRITERS[form](tmp_path / "via_region_data.json", {"a.png": shapes, "empty.png": []})
    split, problems = opened(tmp_path)
    assert_objects(
        split,
        "a.png",
        ("leaf", raster(BLOB)),
        ('a "door"', rectangle(30, 20, 250, 200)),
        ("leaf", ellipse(150, 120, 90.5, 90.5)),
        ("leaf", ellipse(150, 120, 130, 60)),
        ("leaf", ellipse(150, 120, 100, 60, 0.6 * 180 / 3.14159265)),
    )
    assert objects(split, "empty.png") == []
    assert [detail for _, detail in problems] == [
        "shape 6 makes no mask (a shape 'polyline' encloses no area)",
        "shape 7 makes no mask (a shape 'point' encloses no area)",
    ]


def test_balloons(tmp_path):
    """The well-known data set: a file beside the images of each split, and regions without attributes."""
    for place, points in (("train", BLOB), ("val", STAR)):
        image(tmp_path / place / f"{place}.jpg")
        write_json(tmp_path / place / "via_region_data.json", {f"{place}.jpg": [region(polygon(points), {})]}, 1)
    assert split_names(tmp_path) == ["train", "val"]
    split, problems = opened(tmp_path, "val")
    assert not problems
    assert_objects(split, "val/val.jpg", ("object", raster(STAR)))


@pytest.mark.parametrize("attribute", ["class", "Label", "name", "type", "labels", "class_id", "category name", "kind"])
def test_the_class_is_an_attribute_of_any_name(tmp_path, attribute):
    image(tmp_path / "a.png")
    values = ["b", " a ", {"c": True, "d": False}, 7]
    write_json(tmp_path / "x.json", {"a.png": [region(polygon(BLOB), {attribute: value}) for value in values]})
    split, problems = opened(tmp_path)
    assert not problems
    assert [name for name, _, _ in objects(split, "a.png")] == ["b", "a", "c", "7"]
    assert split.categories.names == ("7", "a", "b", "c")


def test_attributes_that_tell_no_class(tmp_path):
    image(tmp_path / "a.png")
    for attributes in ({"age": "3", "class": "cat"}, {"class": "cat", "name": "Tom"}):
        write_json(tmp_path / "x.json", {"a.png": [region(polygon(BLOB), attributes)]})
        assert opened(tmp_path)[0].categories.names == ("cat",)
    write_json(tmp_path / "x.json", {"a.png": [region(polygon(BLOB), {"age": "3", "state": "ill", "empty": ""})]})
    with pytest.raises(InputError, match="attributes age, state, and none is called class: rename"):
        open_split(tmp_path, "all")
    none = [{"class": ""}, {}, {"class": {}}, {"class": {"a": True, "b": True}}, {"class": None}, {"class": ["a"]}]
    regions = [region(polygon(BLOB), attributes) for attributes in [{"class": "a"}, *none]]
    write_json(tmp_path / "x.json", {"a.png": regions})
    split, problems = opened(tmp_path)
    assert_objects(split, "a.png", ("a", raster(BLOB)))
    details = [detail.split(" ", 2)[2] for _, detail in problems]
    assert details == ["has no class"] * 3 + ["has the class 'a, b'"] + ["has no class"] * 2


def test_broken_regions_are_reported(tmp_path):
    image(tmp_path / "a.png")
    bad = [
        region(polygon(BLOB[:2])),
        region({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}),
        region({"name": "polygon"}),
        region({"name": "circle", "cx": 1, "cy": 2, "r": float("nan")}),
        region({"name": "circle", "cx": "1", "cy": 2, "r": 3}),
        region({"name": "rect", "x": 1, "y": 2, "width": 1e300, "height": 3}),
        region({"name": "rect", "x": 10**400, "y": 2, "width": 3, "height": 3}),
        region(polygon([(1, 2), (3, 10**400), (5, 6)])),
        region({"name": ["polygon"]}),
        region({}),
    ]
    write_json(tmp_path / "x.json", {"a.png": [*bad, region(polygon(BLOB))]})
    split, problems = opened(tmp_path)
    assert_objects(split, "a.png", ("leaf", raster(BLOB)))
    assert [name for name, _ in problems] == ["a.png"] * len(bad)
    write_json(tmp_path / "x.json", {"a.png": [7, region(polygon(BLOB)), {"shape_attributes": 3}]})
    assert [detail.split(" ", 2)[2] for _, detail in opened(tmp_path)[1]] == ["has no class"] * 2


def test_files_of_the_same_images(tmp_path):
    image(tmp_path / "a.png")
    images = {"a.png": [region(polygon(BLOB))]}
    write_json(tmp_path / "via_export_json.json", images)
    write_csv(tmp_path / "via_export_csv.csv", images)
    write_project(tmp_path / "via_project_1Jan2026.json", images)
    assert_objects(opened(tmp_path)[0], "a.png", ("leaf", raster(BLOB)))
    write_csv(tmp_path / "via_export_csv.csv", {"a.png": [region(polygon(STAR))]})
    with pytest.raises(InputError, match=r"via_export_.* and .*via_.* annotate .*a\.png differently: keep one"):
        open_split(tmp_path, "all")


@pytest.mark.parametrize("name", ["a.png", "pictures/a.png", "C:\\pics\\A.PNG", "https://example.org/x/a.png"])
def test_images_are_found_by_their_name(tmp_path, name):
    image(tmp_path / "images" / "a.png")
    write_json(tmp_path / "annotations" / "x.json", {name: [region(polygon(BLOB))]})
    assert_objects(opened(tmp_path)[0], "images/a.png", ("leaf", raster(BLOB)))


def test_one_file_above_the_folders_of_splits(tmp_path):
    for place in ("train", "val"):
        image(tmp_path / "images" / place / f"{place}.png")
    write_json(tmp_path / "x.json", {f"{place}.png": [region(polygon(BLOB))] for place in ("train", "val")})
    assert split_names(tmp_path) == ["train", "val"]
    for place in ("train", "val"):
        write_json(tmp_path / "two" / f"via_{place}.json", {f"{place}.png": [region(polygon(BLOB))]})
        image(tmp_path / "two" / f"{place}.png")
    assert split_names(tmp_path / "two") == ["train", "val"]


def test_missing_images_and_boxes_only(tmp_path, caplog):
    image(tmp_path / "a.png")
    write_json(tmp_path / "x.json", {name: [region(polygon(BLOB))] for name in ("a.png", "b.png", "../../c.png")})
    with pytest.raises(InputError, match=r"x\.json names the image b\.png, which is not in .* \(2 of 3 are not\)"):
        open_split(tmp_path, "all")
    box = region({"name": "rect", "x": 1, "y": 2, "width": 30, "height": 40})
    write_json(tmp_path / "x.json", {"a.png": [box, region({"name": "point", "cx": 1, "cy": 2})]})
    with pytest.raises(InputError, match=r"holds boxes only \(1 rectangles of VGG Image Annotator\)"):
        open_split(tmp_path, "all")
    write_json(tmp_path / "x.json", {"a.png": [box, region(polygon(BLOB))]})
    with caplog.at_level(logging.WARNING):
        opened(tmp_path)
    assert "1 of 2 shapes are rectangles" in caplog.text
    write_json(tmp_path / "x.json", {"a.png": []})
    with pytest.raises(InputError, match=r"holds no outlines \(0 shapes"):
        open_split(tmp_path, "all")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '{"_via_settings": {}}'),
        ("x.json", '{"_via_settings": {'),
        ("x.json", '{"a": {"filename": 3, "regions": []}}'),
        ("x.json", '{"a": {"filename": "a.png", "regions": "none"}}'),
        ("x.csv", "filename,region_shape_attributes,region_attributes\na.png,{,{}"),
        ("x.csv", "filename,region_shape_attributes,region_attributes\n,{},{}"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text):
    image(tmp_path / "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        open_split(tmp_path, "all")


def test_a_byte_order_mark(tmp_path):
    image(tmp_path / "a.png")
    for name, writer in (("x.json", write_json), ("x.csv", write_csv)):
        writer(tmp_path / name, {"a.png": [region(polygon(BLOB))]})
        text = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig")
        assert_objects(opened(tmp_path)[0], "a.png", ("leaf", raster(BLOB)))
        (tmp_path / name).unlink()

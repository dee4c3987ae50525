"""A small data set of each layout, to be damaged by `test_fuzz_layouts`: a function that writes it into a folder.

A new layout joins by one line in `SEEDS`, with the functions by which its own test writes what its tool writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import test_convert
import test_cvat
import test_datumaro
import test_fuzz
import test_labelme
import test_layout_cellpose
import test_layout_geojson
import test_layout_imagej
import test_layout_supervisely
import test_layouts_coco
import test_layouts_rasters as rasters
import test_layouts_yolo
import test_unknown
import test_via
from outlines import BITMAP, BLOB, STAR, image, placed
from roifile import ROI_TYPE, roiwrite

from masklab.datasets.convert import convert

Seed = Callable[[Path], object]

NAMES = ("a", "b", "c")


def files(contents: dict[str, bytes]) -> Seed:
    return lambda folder: test_fuzz.write_data(folder, contents)


def converted(format: str) -> Seed:
    """What `masklab data convert` writes."""

    def write(folder: Path) -> None:
        source = folder.with_name(f"{folder.name}-source")
        test_convert.dataset(source, test_convert.IMAGES, crowds=[test_convert.ISLAND])
        convert(source, folder, format=format)

    return write


def unknown(folder: Path) -> None:
    """Files of tools that are not read, from the tests of what is said about them."""
    image(folder / "pictures/0.png", (9, 9))
    for name in ("boxes in XML", "panoptic", "CreateML", "CSV", "BDD", "arrays"):
        path, content, _ = test_unknown.FILES[name]
        test_unknown.put(folder / path, content)


def labelme(folder: Path) -> None:
    shape = test_labelme.shape
    test_labelme.data_set(folder, NAMES)
    data = test_labelme.png(np.zeros((240, 320)))
    shapes = [
        shape("leaf", BLOB, group=1),
        shape("leaf", STAR, group=1),
        shape("door", [(30, 20), (250, 200)], "rectangle"),
        shape("door", [(150, 120), (180, 160)], "circle"),
        shape("door", [(40, 60), (90, 96)], "mask", mask=test_labelme.png(BITMAP)),
    ]
    test_labelme.write(folder / "a.json", shapes)
    test_labelme.write(folder / "d.json", shapes[:1], data=data)


def via(form: str) -> Seed:
    def write(folder: Path) -> None:
        for name in NAMES:
            image(folder / f"{name}.png")
        region, polygon = test_via.region, test_via.polygon
        shapes = [
            region(polygon(BLOB)),
            region({"name": "rect", "x": 30, "y": 20, "width": 220, "height": 180}, {"name": "door"}),
            region({"name": "ellipse", "cx": 150, "cy": 120, "rx": 100, "ry": 60, "theta": 0.6}),
        ]
        regions = {"a.png": shapes, "b.png": shapes[:1], "c.png": []}
        test_via.WRITERS[form](folder / "via_region_data.json", regions)

    return write


def cvat(folder: Path) -> None:
    polygon, element = test_cvat.polygon, test_cvat.element
    for name in NAMES:
        image(folder / f"images/{name}.png")
    shapes = [
        polygon("leaf", BLOB, group_id=1),
        polygon("leaf", STAR, group_id=1),
        test_cvat.mask("door", BITMAP, 40, 60),
        element("box", "door", xtl="30.00", ytl="20.00", xbr="250.00", ybr="200.00", rotation="90.00"),
        element("ellipse", "door", cx="150.00", cy="120.00", rx="120.00", ry="60.00"),
    ]
    test_cvat.write(folder / "annotations.xml", {"a.png": shapes, "b.png": shapes[2:], "c.png": []})


def datumaro(folder: Path) -> None:
    item, polygon = test_datumaro.item, test_datumaro.polygon
    found = [
        polygon(BLOB),
        test_datumaro.mask(placed(BITMAP, 40, 60), 1),
        test_datumaro.annotation("ellipse", 1, points=[30.0, 40.0, 270.0, 200.0]),
        polygon(STAR, is_crowd=True),
    ]
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            image(folder / f"images/{split}/{name}.png")
        test_datumaro.write(folder / f"annotations/{split}.json", [item(name, found) for name in names])


def cellpose_seg(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(NAMES):
        test_layout_cellpose.image(folder / f"{name}.png")
        make = test_layout_cellpose.seg if number else test_layout_cellpose.gui_seg
        np.save(folder / f"{name}_seg.npy", make(test_layout_cellpose.labels(number).astype(np.uint16)))  # type: ignore


def geojson(folder: Path) -> None:
    own = test_layout_geojson
    several = {"type": "MultiPolygon", "coordinates": [[own.SQUARE, own.HOLE], [own.FAR]]}
    features = [own.feature(name="leaf"), own.feature(name="fruit", geometry=several), own.feature("cell")]
    for name in NAMES:
        own.image(folder / f"{name}.tif")
        own.write(folder / f"{name}.geojson", own.collection(*features))


def imagej(folder: Path) -> None:
    own = test_layout_imagej
    rois = [
        own.polygon(),
        own.box(ROI_TYPE.OVAL),
        own.composite(own.ring_path(own.ISLAND)),
        own.polygon([[1, 1], [30, 2], [20, 40]], ROI_TYPE.FREEHAND, group=2),
    ]
    for name in NAMES:
        own.image(folder / f"{name}.tif")
    roiwrite(folder / "a.zip", rois, name=["1", "2", "3", "4"])
    roiwrite(folder / "b.zip", rois[:2], name=["1", "2"])
    (folder / "c.roi").write_bytes(own.polygon().tobytes())


def supervisely(folder: Path) -> None:
    own = test_layout_supervisely
    shapes = [own.polygon(own.SQUARE, [own.HOLE]), own.bitmap(), own.bitmap(form="alpha mask"), own.box()]
    own.project(folder, *shapes)
    for name in NAMES:
        own.add(folder / "ds1", f"{name}.png", *shapes[:2])


def penn_fudan(folder: Path) -> None:
    for name, labels in (
        ("FudanPed00001", rasters.TWO),
        ("PennPed00096", rasters.THREE),
        ("PennPed00097", rasters.TWO),
    ):
        rasters.image(folder / f"PNGImages/{name}.png")
        rasters.write(folder / f"PedMasks/{name}_mask.png", labels.astype(np.uint8), rasters.VOC_PALETTE)


def cell_tracking(folder: Path) -> None:
    rasters.sequence(folder, "01", 3, {0: rasters.TWO, 2: rasters.THREE})
    rasters.sequence(folder, "02", 2, {1: rasters.THREE})


def pairs(folder: Path) -> None:
    for name, labels in zip(NAMES, (rasters.TWO, rasters.THREE, rasters.TWO), strict=True):
        rasters.image(folder / f"{name}_rgb.png")
        rasters.write(folder / f"{name}_label.png", labels.astype(np.uint8))


YOLOS = ("roboflow", "ultralytics", "cvat", "darknet", "label_studio", "beside", "classes_among_labels")

SEEDS: dict[str, Seed] = {
    "COCO": files(test_fuzz.coco_files()),
    **{f"COCO, {write.__name__.replace('_', ' ')}": write for write in test_layouts_coco.LAYOUTS},
    "YOLO": files(test_fuzz.yolo_files()),
    **{f"YOLO, {name.replace('_', ' ')}": getattr(test_layouts_yolo, name) for name in YOLOS},
    "label images": files(test_fuzz.label_files("label images")),
    "label images, pairs": pairs,
    "Cellpose": files(test_fuzz.label_files("Cellpose")),
    "Cellpose, _seg.npy": cellpose_seg,
    "Kaggle": files(test_fuzz.label_files("Kaggle")),
    "Pascal VOC": lambda folder: rasters.voc_layout(folder, rasters.VOC_SPLITS),
    "Penn-Fudan": penn_fudan,
    "Cityscapes": rasters.cityscapes_layout,
    "Cell Tracking Challenge": cell_tracking,
    "nnU-Net": rasters.nnunet_layout,
    "labelme": labelme,
    **{f"VIA, {form}": via(form) for form in test_via.WRITERS},
    "CVAT for images": cvat,
    "Datumaro": datumaro,
    "Supervisely": supervisely,
    "GeoJSON": geojson,
    "ImageJ": imagej,
    "converted to YOLO": converted("yolo"),
    "converted to label images": converted("label_images"),
    "other tools": unknown,
}

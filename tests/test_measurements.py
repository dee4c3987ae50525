"""Measurements of objects, against scikit-image on one full mask at a time and plain loops."""

import numpy as np
import pytest
import scenes
import skimage.measure

from masklab.results import measurements
from masklab.results.pixels import ArrayImage

SHAPE = ("area", "perimeter", "axis_major_length", "axis_minor_length", "eccentricity", "solidity", "orientation")
ALL = scenes.scene(70)
MASKS = scenes.full(ALL)
IMAGE = np.random.default_rng(2).normal(900, 300, (2, *scenes.SIZE)).clip(0).astype(np.uint16)


def close(values, wanted):
    np.testing.assert_allclose(values, np.where(np.isfinite(wanted), wanted, np.nan), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("canvas", [1, 3000, 1 << 20])
def test_shapes_are_those_of_scikit_image_on_full_masks(canvas, monkeypatch):
    """Whether objects are measured one at a time, or some or all of them side by side."""
    monkeypatch.setattr(measurements, "_CANVAS", canvas)
    table = ALL.measurements()
    assert len(table["label"]) == len(ALL)
    for n, mask in enumerate(MASKS):
        assert table["area"][n] == mask.sum()
        found = skimage.measure.regionprops(mask.astype(np.uint8))
        for name in SHAPE[1:]:
            close(table[name][n], getattr(found[0], name) if found else np.nan)
        y, x = found[0].centroid if found else (np.nan, np.nan)
        close((table["centroid_x"][n], table["centroid_y"][n]), (x + 0.5, y + 0.5))


def test_neighbours_and_borders_are_those_of_plain_loops():
    table = ALL.measurements()
    places = [np.argwhere(mask).mean(axis=0) if mask.any() else None for mask in MASKS]
    for n, (place, mask) in enumerate(zip(places, MASKS, strict=True)):
        others = [other for m, other in enumerate(places) if m != n and other is not None]
        wanted = np.nan if place is None else min(np.hypot(*(place - other)) for other in others)
        close(table["nearest_neighbour"][n], wanted)
        edge = mask.copy()
        edge[1:-1, 1:-1] = False
        assert table["touches_border"][n] == edge.any()
    assert 5 < table["touches_border"].sum() < 60


def test_intensities_are_those_of_the_image_as_it_is():
    table = ALL.measurements(IMAGE)
    for n, mask in enumerate(MASKS):
        for channel, values in enumerate(IMAGE, 1):
            inside = values[mask].astype(np.float64)
            wanted = (inside.mean(), inside.min(), inside.max(), inside.sum()) if inside.size else (np.nan,) * 4
            close([table[f"channel_{channel}_{name}"][n] for name in ("mean", "min", "max", "sum")], wanted)
    assert not any(name.startswith("channel_3") for name in table)
    assert not any(name.startswith("channel") for name in ALL.measurements())


def test_intensities_are_read_window_by_window():
    few = scenes.scene(40, empty=False)
    reader = scenes.Windows(IMAGE)
    windowed, whole = few.measurements(reader), few.measurements(IMAGE)
    assert windowed.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(windowed[name], values)
    assert reader.largest <= 30 * 30


def test_square_pixels_scale_what_is_measured():
    table = ALL.measurements(pixel_size=0.5)
    for name in (
        "perimeter",
        "axis_major_length",
        "axis_minor_length",
        "nearest_neighbour",
        "centroid_x",
        "centroid_y",
    ):
        close(table[f"{name}_um"], table[name] * 0.5)
    close(table["area_um2"], table["area"] * 0.25)
    assert not any("_um" in name for name in ALL.measurements())


@pytest.mark.filterwarnings("ignore")
def test_pixels_that_are_not_square_are_measured_as_they_are():
    table = ALL.measurements(pixel_size=(2.0, 0.5))
    for n, mask in enumerate(MASKS):
        found = skimage.measure.regionprops(mask.astype(np.uint8), spacing=(2.0, 0.5))
        for name in ("axis_major_length", "axis_minor_length"):
            close(table[f"{name}_um"][n], getattr(found[0], name) if found else np.nan)
    close(table["area_um2"], table["area"])
    close(table["centroid_x_um"], table["centroid_x"] * 0.5)
    close(table["centroid_y_um"], table["centroid_y"] * 2)
    places = np.stack((table["centroid_x_um"], table["centroid_y_um"]), axis=1)[:2]
    assert table["nearest_neighbour_um"][0] <= np.hypot(*(places[0] - places[1]))
    assert np.isnan(table["perimeter_um"]).all()


def test_of_one_object_or_none_there_is_no_neighbour():
    assert np.isnan(scenes.scene(1, empty=False).measurements()["nearest_neighbour"]).all()
    none = scenes.scene(0, empty=False)
    table = none.measurements(IMAGE, 0.5)
    assert {len(values) for values in table.values()} == {0}
    assert table.keys() == ALL.measurements(IMAGE, 0.5).keys()


def test_columns_are_in_the_order_of_the_objects_and_labels_in_that_of_scores():
    table = ALL.measurements()
    labels = ALL.label_map()
    for n in np.argsort(-ALL.scores, kind="stable")[:5].tolist():
        if MASKS[n].any():
            y, x = np.argwhere(MASKS[n])[0]
            assert labels[y, x] == min(table["label"][m] for m in range(len(ALL)) if MASKS[m][y, x])
    np.testing.assert_array_equal(table["score"], ALL.scores)
    np.testing.assert_array_equal(np.stack([table[k] for k in ("x1", "y1", "x2", "y2")], axis=1), ALL.boxes)
    assert table["class"].tolist() == [scenes.NAMES[label] for label in ALL.labels]


def test_a_window_of_an_array_is_a_view():
    values = np.zeros((3, 9, 9))
    assert ArrayImage(values).read((1, 2, 3, 4)).base is values

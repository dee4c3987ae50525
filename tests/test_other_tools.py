"""Results as objects of supervision, napari and FiftyOne."""

import sys
from types import ModuleType

import numpy as np
import pytest
import scenes
import supervision
from supervision.detection.compact_mask import CompactMask

from masklab.utils.errors import InputError

ALL = scenes.scene()


@pytest.mark.parametrize("size", [scenes.SIZE, (700, 900)])
def test_supervision_gets_the_same_masks_as_run_lengths(size):
    """Below and above the number of pixels from which supervision reads run lengths in another way."""
    found = scenes.scene(size=size)
    detections = found.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert isinstance(detections.mask, CompactMask)
    np.testing.assert_array_equal(np.asarray(detections.mask), scenes.full(found))
    np.testing.assert_array_equal(detections.xyxy, found.boxes)
    np.testing.assert_array_equal(detections.confidence, found.scores)
    np.testing.assert_array_equal(detections.class_id, found.labels)
    assert detections.data["class_name"].tolist() == [scenes.NAMES[label] for label in found.labels]
    assert len(detections[detections.confidence > 0.5]) == (found.scores > 0.5).sum()
    assert len(scenes.scene(0, empty=False).to_supervision()) == 0


def test_napari_gets_a_label_map_with_a_row_for_each_label():
    (values, options, kind), (corners, shapes, second) = ALL.to_napari(pixel_size=(0.5, 0.25), boxes=True)
    assert (kind, second) == ("labels", "shapes")
    np.testing.assert_array_equal(values, ALL.label_map())
    assert options["scale"] == shapes["scale"] == (0.5, 0.25)
    features = options["features"]
    assert features["index"].tolist() == list(range(len(ALL) + 1))
    best = int(np.argmax(ALL.scores))
    assert features["class"][1] == scenes.NAMES[ALL.labels[best]]
    assert features["score"][1] == ALL.scores[best]
    assert features["class"][0] == "background"
    assert np.isnan(features["score"][0])
    assert corners.shape == (len(ALL), 4, 2)
    np.testing.assert_allclose(corners[0].min(axis=0), ALL.boxes[best][[1, 0]] - 0.5)
    np.testing.assert_allclose(corners[0].max(axis=0), ALL.boxes[best][[3, 2]] - 0.5)
    assert {len(each) for each in shapes["features"].values()} == {len(ALL)}
    assert [layer[2] for layer in ALL.to_napari()] == ["labels"]
    assert "scale" not in ALL.to_napari()[0][1]


def test_fiftyone_gets_a_mask_over_each_box(monkeypatch):
    """FiftyOne needs a database, so a module of its name takes the values."""
    module = ModuleType("fiftyone")
    module.Detection, module.Detections = dict, lambda detections: detections
    monkeypatch.setitem(sys.modules, "fiftyone", module)
    height, width = ALL.size
    rows = [n for n in range(len(ALL)) if ALL.mask(n).any()]
    for n, each in zip(rows, ALL.to_fiftyone(), strict=True):
        x, y, w, h = np.rint(np.array(each["bounding_box"]) * (width, height, width, height)).astype(int)
        assert each["mask"].shape == (h, w)
        pasted = np.zeros(ALL.size, bool)
        pasted[y : y + h, x : x + w] = each["mask"]
        np.testing.assert_array_equal(pasted, ALL.mask(n))
        assert each["label"] == scenes.NAMES[ALL.labels[n]]
        assert each["confidence"] == ALL.scores[n]


@pytest.mark.parametrize(
    ("module", "method", "package"),
    [
        ("supervision", "to_supervision", "supervision"),
        ("supervision.detection.compact_mask", "to_supervision", "supervision>=0.28"),
        ("fiftyone", "to_fiftyone", "fiftyone"),
    ],
)
def test_a_missing_tool_is_named(module, method, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f'pip install "{package}"'):
        getattr(ALL, method)()

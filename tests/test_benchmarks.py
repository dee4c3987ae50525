"""Each benchmark says what it measures and how to run it, and a trained peer gets what is its due; no timings here."""

import importlib
import runpy
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from masklab.config.nested import flatten
from masklab.config.recipe import load_recipe
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.objects import Objects
from masklab.images.resize import resize
from masklab.masks import encode
from masklab.structures import ClassTable
from masklab.training.data.targets import visible_boxes
from masklab.training.data.transforms import Geometry, quarter_turn

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "side_by_side.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # the scripts set it
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code in (None, 0)
    assert f"uv run python benchmarks/{script.name}" in capsys.readouterr().out


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("peers")


def draw_discs(size=(60, 80), places=((20.3, 18.6, 9.4), (55.1, 40.2, 13.7), (76.0, 10.0, 7.2), (40.5, 57.0, 6.1))):
    """Discs (x, y, radius), the last two cut by the border: bits (n, H, W) and `Objects`."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    bits = np.stack([(x - a) ** 2 + (y - b) ** 2 < r**2 for a, b, r in places])
    whole = np.tile([0, 0, size[1], size[0]], (len(bits), 1))
    return bits, Objects.build(size, encode.encode_windows(list(bits), whole, size), [0] * len(bits))


@pytest.mark.parametrize("turns", range(4))
def test_masks_of_the_crop(peers, turns):
    bits, objects = draw_discs()
    geometry = quarter_turn(resize(Geometry.identity((60, 80)), (120, 160)), turns)
    wanted = np.rot90(bits.repeat(2, axis=1).repeat(2, axis=2), turns, (1, 2))
    np.testing.assert_array_equal(peers.crop_masks(objects, np.arange(4), geometry), wanted)
    assert peers.crop_masks(objects, np.arange(0), geometry).shape == (0, *wanted.shape[1:])


@pytest.mark.parametrize(("scale", "least"), [(1, 0.93), (2, 0.98)])
def test_what_torchvision_is_taught_comes_back(peers, tmp_path, scale, least):
    """Its mask targets as its result: the exact paste gives the objects back, its own moves their edges.

    At scale 1 the half pixel between its targets and their boxes is half a pixel of the image: 0.91 without it.
    """
    bits, objects = draw_discs()
    Image.new("L", (80, 60)).save(tmp_path / "dark.png")
    geometry = resize(Geometry.identity((60, 80)), (60 * scale, 80 * scale))
    boxes, rows = visible_boxes(objects, geometry)
    boxes, masks = torch.from_numpy(boxes).float(), torch.from_numpy(peers.crop_masks(objects, rows, geometry))
    taught = project_masks_on_boxes(masks, boxes, torch.arange(4), 28)
    found = {
        "boxes": boxes,
        "masks": taught[:, None],
        "scores": torch.ones(4),
        "labels": torch.ones(4, dtype=torch.long),
    }
    image = ImageRecord(7, tmp_path / "dark.png", (60, 80))
    config = load_recipe("nuclei", {"image": {"scale": scale}})
    find = partial(peers.find_with_torchvision, lambda images: [found], config, ClassTable((5,), ("disc",)))
    overlaps = []
    for paste in (peers.paste_exactly, peers.paste_and_encode):
        results = find(paste, image)
        assert [(entry["image_id"], entry["category_id"]) for entry in results] == [(7, 5)] * 4
        corners = np.array([entry["bbox"] for entry in results])
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, objects.boxes)
        pasted = np.stack([coco.decode(entry["segmentation"]) for entry in results]).astype(bool)
        overlaps.append((pasted & bits).sum(axis=(1, 2)) / (pasted | bits).sum(axis=(1, 2)))
    exact, theirs = overlaps
    assert exact.mean() > least
    assert theirs.mean() < exact.mean() - 0.02


def test_a_small_row_of_table_6_keeps_what_its_row_changes(monkeypatch, tmp_path):
    """Each row differs from the one before by its switch alone."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.syspath_prepend(str(FOLDER))
    chain = importlib.import_module("table6_chain")
    made = {name.removeprefix("table6-"): chain.small(name, 40, tmp_path / "weights") for name in chain.ROWS}
    flat = {name: flatten(config.model_dump()) for name, config in made.items()}
    switches = {
        ("base", "bc"): {"model.box.from_imagenet"},
        ("bc", "seg"): {"model.backbone.segmentation_weights"},
        ("seg", "mg"): {"model.mask.dilations", "model.box.dilations"},
        ("mg", "anc"): {"model.rpn.anchor_sizes", "image.min_side", "image.max_side"},
        ("anc", "dc"): {"model.box.deformable"},
        ("dc", "rs"): {"image.augment.min_sides"},
        ("rs", "os16"): {"model.backbone.output_stride", "model.rpn.dilation", "model.mask.dilations"},
        ("rs", "jft"): {"model.backbone.name"},
    }
    for (before, after), fields in switches.items():
        assert {f for f, value in flat[after].items() if flat[before][f] != value} == fields
    assert made["anc"].model.rpn.anchor_sizes == [6.4, 12.8, 25.6, 51.2, 102.4]
    assert made["rs"].image.augment.min_sides == [96, 115, 137, 160, 186]

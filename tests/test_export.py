"""Exported models: the same objects as the model's, in other libraries and without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from contracts import assert_instances, changed
from PIL import Image

from masklab.export.compare import EXACT, Agreement
from masklab.export.export import compare, export
from masklab.export.network import ExportedNetwork
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.ops.crop import crop_and_resize
from masklab.ops.crop_channels import crop_channels
from masklab.ops.operators import hard_nms, soft_nms
from masklab.ops.portable import aligned_crop, gathered_channels
from masklab.ops.rois import Rois
from masklab.runtime import load
from masklab.runtime.sessions import GIVEN, OWN, TOGETHER
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model, save_model

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "lightning"):
            raise ImportError(f"{name} is not installed")

sys.meta_path.insert(0, Blocked())
from masklab.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def sentence(action, *arguments):
    """What an `InputError` says."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    return str(caught.value)


def without_torch(*words):
    """The command line in a process that cannot import torch."""
    return subprocess.run([sys.executable, "-c", BLOCKED, *map(str, words)], capture_output=True, text=True)


def inputs(count=2, height=97, width=113):
    images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    return images, torch.tensor([[height, width], [height - 7, width - 20]])[:count]


def image(seed, height=120, width=140):
    values = np.random.default_rng(seed).integers(0, 256, (3, height // 8, width // 8), np.uint8)
    return np.ascontiguousarray(np.kron(values, np.ones((1, 8, 8), np.uint8)))


def made(tiny_config, classes, **changes):
    torch.manual_seed(0)
    nested = {}
    for name, value in changes.items():
        *sections, field = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return build_model(changed(tiny_config, **nested), classes).eval()


VARIANTS = {
    "group norm, paper's refinement": {},
    "frozen norm, shared refinement": {
        "model.backbone.norm": "frozen_batch",
        "model.mask.refinement": "shared",
        "model.rpn.drop_crossing_anchors": True,
    },
    "Soft-NMS, no refinement": {"model.box.soft_nms": 0.5, "model.mask.refine_levels": []},
    "deformable crop": {"model.box.deformable": "grid"},
    "Mask R-CNN": {"model.mask.head": "mask_rcnn", "model.mask.refine_levels": [], "model.mask.mask_size": 16},
    "FCIS": {"model.mask.head": "fcis", "model.mask.refine_levels": []},
    "light box head": {
        "model.box.head": "light",
        "model.box.light_maps": 6,
        "model.box.light_hidden": 12,
        "model.rpn.score_threshold": 0.49,
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_network_finds_what_the_model_finds(tiny_config, classes, changes):
    model = made(tiny_config, classes, **changes)
    images, sizes = inputs()
    with torch.inference_mode():
        wanted, found = model(images, sizes), ExportedNetwork(model)(images, sizes)
    assert wanted.num_valid.min() > 3
    for n, count in enumerate(wanted.num_valid.tolist()):
        own = found.image == n
        torch.testing.assert_close(found.boxes[own], wanted.boxes[n, :count], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores[own], wanted.scores[n, :count], atol=1e-5, rtol=0)
        assert found.labels[own].tolist() == wanted.labels[n, :count].tolist()
        torch.testing.assert_close(found.masks[own], wanted.masks[n, :count], atol=1e-4, rtol=0)


def test_norms_show_their_statistics_and_take_them(tiny_config, classes):
    from masklab.model.fixed_norm import measure_norms, with_fixed_norms

    model = made(tiny_config, classes)
    network = ExportedNetwork(model)
    images, sizes = inputs()
    with torch.inference_mode():
        own = network(images, sizes, torch.tensor(OWN), torch.zeros(2, network.groups))
        plain = network(images, sizes)
        torch.testing.assert_close(own.masks, plain.masks, atol=1e-4, rtol=0)
        statistics = network(images, sizes, torch.tensor(TOGETHER), torch.zeros(2, network.groups)).statistics
        measured = measure_norms(model, images)
        wanted = torch.stack([torch.cat(parts) for parts in zip(*measured.values(), strict=True)])
        torch.testing.assert_close(statistics, wanted, atol=1e-4, rtol=1e-4)
        given = network(images[:1], sizes[:1], torch.tensor(GIVEN), statistics)
        fixed = with_fixed_norms(model, measured)(images[:1], sizes[:1])
    count = int(fixed.num_valid[0])
    torch.testing.assert_close(given.boxes, fixed.boxes[0, :count], atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(7, 7), (1, 5), (15, 4)])
def test_crops_in_operators_of_other_runtimes_are_the_crops(size):
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 6, 9, 13, generator=generator)
    corners = torch.rand(50, 2, 2, generator=generator) * torch.tensor([97.0, 65.0])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    rois = Rois.from_pixels(torch.cat([boxes, torch.tensor([[0.0, 0, 97, 65]])]), torch.arange(51) % 2, (65, 97))
    torch.testing.assert_close(
        aligned_crop(features, rois, size), crop_and_resize(features, rois, size), atol=1e-5, rtol=0
    )
    for channels in (
        torch.arange(51) % 6,
        torch.randint(6, size, generator=generator),
        torch.randint(6, (51, *size), generator=generator),
    ):
        found = gathered_channels(features, rois, size, channels)
        torch.testing.assert_close(found, crop_channels(features, rois, size, channels), atol=1e-5, rtol=0)


class _Suppression(torch.nn.Module):
    def forward(self, boxes, scores):
        kept = hard_nms(boxes, scores, 0.6, 0.02, 40)
        group, row = kept.unbind(1)
        return kept, soft_nms(boxes[group, row], scores[group, row], group, 0.5, 0.02)


def test_suppression_in_onnx_is_that_of_the_model(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from masklab.export import onnx_operators

    def drawn(groups, count):
        corner = torch.rand(groups, count, 2) * 100
        return torch.cat([corner, corner + 5 + torch.rand(groups, count, 2) * 40], dim=-1), torch.rand(groups, count)

    torch.manual_seed(0)
    moving = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    table = {
        torch.ops.masklab.hard_nms.default: onnx_operators.hard_nms,
        torch.ops.masklab.soft_nms.default: onnx_operators.soft_nms,
    }
    program = torch.onnx.export(
        _Suppression().eval(),
        drawn(3, 50),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=(moving, moving),
        custom_translation_table=table,
        verbose=False,
    )
    program.save(tmp_path / "suppression.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "suppression.onnx")
    names = [given.name for given in session.get_inputs()]
    for groups, count in ((1, 300), (4, 60), (2, 1)):
        boxes, scores = drawn(groups, count)
        kept, softened = _Suppression()(boxes, scores)
        kept_, softened_ = session.run(None, dict(zip(names, (boxes.numpy(), scores.numpy()), strict=True)))
        assert np.array_equal(kept_, kept)
        above = softened.numpy() > 0.02
        assert np.array_equal(above, softened_ > 0.02)
        assert np.abs(softened.numpy() - softened_)[above].max() < 1e-6
    none = session.run(None, dict(zip(names, (boxes.numpy(), np.zeros_like(scores)), strict=True)))
    assert [part.shape[0] for part in none] == [0, 0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_config, classes):
    """Weights of three classes, with group norm and Soft-NMS, and the ONNX file of them."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported")
    model = made(tiny_config, classes, **{"model.box.soft_nms": 0.5, "model.mask.refinement": "shared"})
    model.score_threshold = 0.3
    save_model(model, folder / "model.safetensors")
    agreement = export(folder / "model.safetensors", "onnx", folder / "model.onnx")
    assert agreement.objects > 10
    assert [path.name for path in sorted(folder.iterdir())] == ["model.onnx", "model.safetensors"]
    return folder


def eager(folder, **options):
    return Predictor(load_model(folder / "model.safetensors", "cpu"), PredictionOptions(precision="float32", **options))


def test_predict_takes_the_file_where_torch_cannot_be_imported(exported, tmp_path):
    """Images of several sizes and depths: the same objects, and every format of results that needs no extra."""
    (tmp_path / "images").mkdir()
    for n, size in enumerate([(120, 140), (97, 64), (33, 200)]):
        Image.fromarray(image(n, *size).transpose(1, 2, 0)).save(tmp_path / f"images/{n}.png")
    words = ["predict", exported / "model.onnx", tmp_path / "images", "--output", tmp_path / "out"]
    done = without_torch(*words, "--save", "coco", "overlay", "geojson", "labels", "yolo", "rois")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    agreement, model = Agreement(), eager(exported)
    runtime = load(exported / "model.onnx")
    for n in range(3):
        values = np.asarray(Image.open(tmp_path / f"images/{n}.png")).transpose(2, 0, 1)
        wanted = model.predict(values)
        assert len(wanted) == sum(entry["file_name"] == f"{n}.png" for entry in found)
        agreement.add(str(n), wanted, runtime.predict(values), EXACT)
        assert_instances(runtime.predict(values))
    agreement.check(EXACT, "the file")
    assert agreement.objects > 10


def test_tiles_take_the_statistics_of_their_image(exported, monkeypatch):
    monkeypatch.setattr("masklab.inference.tiles.plan.TILE", 160)
    model, runtime = eager(exported), load(exported / "model.onnx")
    values = image(5, 240, 330)
    values[:, :, :150] //= 9  # tiles of other brightness: norms of their own would differ
    assert len(runtime.tile_plan((240, 330)).tiles()) > 3
    wanted, found = model.predict(values), runtime.predict(values)
    assert abs(len(wanted) - len(found)) <= 1
    agreement = Agreement()
    agreement.add("tiles", wanted, found, EXACT)
    assert agreement.unmatched <= 2
    assert agreement.boxes < 0.5


def test_a_batch_runs_as_its_images_do(exported):
    session = load(exported / "model.onnx").session
    images, sizes = (part.numpy() for part in inputs())
    both = session.run(images, sizes)
    for n in range(2):
        one = session.run(images[n : n + 1], sizes[n : n + 1])
        assert np.abs(both.boxes[both.image == n] - one.boxes).max() < 1e-2
        assert np.abs(both.masks[both.image == n] - one.masks).max() < 1e-3


def test_the_file_says_what_it_was_made_of(exported, classes):
    runtime, model = load(exported / "model.onnx"), eager(exported)
    assert runtime.classes == classes
    assert runtime.threshold == 0.3
    assert runtime.max_detections == model.max_detections
    assert runtime.config.image == model.config.image
    assert len(runtime.session.metadata["weights_sha256"]) == 64


def test_an_export_that_differs_is_refused_and_its_worst_object_shown(exported):
    model = eager(exported)
    with torch.no_grad():
        model.model.box_head.deltas.bias += 0.3
    text = sentence(compare, model, exported / "model.onnx", [("cells.png", image(0))], EXACT)
    assert "cells.png" in text
    assert "object" in text


def test_what_cannot_be_done_is_said(exported, tmp_path):
    file = exported / "model.onnx"
    assert "test-time augmentation" in sentence(load, file, PredictionOptions(flips="both"))
    assert "at most 20" in sentence(load, file, PredictionOptions(max_detections=99))
    assert "precision is bf16" in sentence(load, file, PredictionOptions(precision="bf16"))
    assert "no such file" in sentence(load, tmp_path / "none.onnx")
    (tmp_path / "damaged.onnx").write_bytes(file.read_bytes()[:5000])
    assert "damaged" in sentence(load, tmp_path / "damaged.onnx")
    assert "exported model" in sentence(load_model, file)
    assert "ends in .onnx" in sentence(export, exported / "model.safetensors", "onnx", tmp_path / "model.pt")
    assert "--images" in sentence(export, exported / "model.safetensors", "onnx", tmp_path / "a.onnx", None, True)
    assert not list(tmp_path.glob("*.pt"))


def test_fewer_detections_are_the_best(exported):
    few = load(exported / "model.onnx", PredictionOptions(max_detections=3)).predict(image(0))
    every = load(exported / "model.onnx").predict(image(0))
    assert len(few) == 3
    assert np.array_equal(few.scores, every.scores[:3])

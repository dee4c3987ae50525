"""Exported models: the same objects as the model's, in other libraries and without torch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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
from masklab.masks.rle import rle_from_string
from masklab.model.build import build_model
from masklab.ops.crop import crop_and_resize
from masklab.ops.crop_channels import crop_channels
from masklab.ops.operators import hard_nms, soft_nms
from masklab.ops.portable import aligned_crop, gathered_channels
from masklab.ops.rois import Rois
from masklab.runtime import load
from masklab.runtime.sessions import GIVEN, OWN, TOGETHER
from masklab.structures import Looks, TrainingData
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model, save_model

ROOT = Path(__file__).parents[1]
NUCLEI = ROOT.parent / "shared/data/nuclei/val"
RUNTIME_ALONE = """
import re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def plain(name):
    return re.sub("[-_.]+", "-", re.match(r"[\\w.-]+", name.strip())[0]).lower()

wanted = [plain(line) for line in open(sys.argv[1]) if line[0] not in "#\\n"]
there = {"masklab", "onnxruntime"}  # they are installed without their dependencies
while wanted:
    name = wanted.pop()
    there.add(name)
    try:
        lines = [line for line in requires(name) or [] if "extra ==" not in line]
    except PackageNotFoundError:
        continue
    wanted += {plain(line) for line in lines} - there
missing = {module for module, owners in packages_distributions().items() if not there & set(map(plain, owners))}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in missing else found(name, package)
if sys.argv[2] != "-":
    import masklab.inference.tiles.plan
    masklab.inference.tiles.plan.TILE = int(sys.argv[2])
from masklab.cli.app import main
sys.exit(main(sys.argv[3:]))
"""
"""The command line where only what the documents install for prediction can be imported."""


def sentence(action, *arguments):
    """What an `InputError` says."""
    with pytest.raises(InputError) as caught:
        action(*arguments)
    return str(caught.value)


def without_torch(*words, tile="-"):
    """The command line in a process that can import nothing but the packages of requirements-runtime.txt."""
    command = [sys.executable, "-c", RUNTIME_ALONE, ROOT / "requirements-runtime.txt", tile, *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def assert_agrees(wanted, entries, tolerance=EXACT):
    """COCO results of one image are the objects of the model; returns how many there are."""
    agreement = Agreement()
    agreement.add("the image", wanted, read_back(entries, wanted), tolerance)
    agreement.check(tolerance, "the file")
    assert agreement.unmatched <= 1
    return len(wanted)


def read_back(entries, like):
    """`Instances` of one image from its entries of a COCO file."""
    boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return replace(
        like,
        boxes=boxes,
        scores=np.array([entry["score"] for entry in entries], np.float32),
        labels=np.array([like.category_ids.index(entry["category_id"]) for entry in entries], np.int64),
        masks=np.zeros((len(entries), 0, 0), np.float32),
        _rle=[rle_from_string(entry["segmentation"]["counts"]) for entry in entries],
    )


def inputs(count=2, height=97, width=113):
    images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    return images, torch.tensor([[height, width], [height - 7, width - 20]])[:count]


def image(seed, height=120, width=140):
    values = np.random.default_rng(seed).integers(0, 256, (3, height // 8, width // 8), np.uint8)
    return np.ascontiguousarray(np.kron(values, np.ones((1, 8, 8), np.uint8)))


def made(tiny_config, classes, seed=0, **changes):
    torch.manual_seed(seed)
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
    endings = [path.name[1:] for path in (tmp_path / "out").iterdir() if path.name[0] == "0"]
    assert sorted(set(endings)) == [".geojson", ".png", ".txt", ".zip", "_masks.tif"]
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len({entry["category_id"] for entry in found}) > 1
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


OTHER_HEADS = {
    "light head, paper's refinement, no norm statistics": {
        "model.backbone.norm": "frozen_batch",
        "model.box.head": "light",
        "model.box.light_maps": 6,
        "model.box.light_hidden": 12,
    },
    "paper's head and refinement, group norm": {"model.box.max_detections": 12, "seed": 6},
}


@pytest.mark.parametrize("changes", OTHER_HEADS.values(), ids=OTHER_HEADS)
def test_large_images_in_tiles_without_torch(tiny_config, classes, tmp_path, monkeypatch, changes):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = made(tiny_config, classes, **changes)
    save_model(model, tmp_path / "model.safetensors")
    export(tmp_path / "model.safetensors", "onnx", tmp_path / "model.onnx")
    values = image(5, 200, 290)
    Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "large.png")
    words = ["predict", tmp_path / "model.onnx", tmp_path / "large.png", "--output", tmp_path / "out"]
    done = without_torch(*words, "--save", "coco", tile=160)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("masklab.inference.tiles.plan.TILE", 160)
    wanted = eager(tmp_path).predict(values)
    assert eager(tmp_path).tile_plan((200, 290)) is not None
    assert_agrees(wanted, json.loads((tmp_path / "out/predictions.json").read_text()))


def test_the_released_model_on_real_images_without_torch(tmp_path):
    """Of the paper's head, three crops of real images: all objects of the model, masks of IoU .99."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    if not NUCLEI.is_dir():
        pytest.skip(f"the data set {NUCLEI} is not here")
    files = sorted(NUCLEI.glob("*.png"))[::30]
    (tmp_path / "images").mkdir()
    for file in files:
        Image.open(file).convert("RGB").crop((0, 0, 200, 170)).save(tmp_path / "images" / file.name)
    export("nuclei", "onnx", tmp_path / "model.onnx", tmp_path / "images")
    words = ["predict", tmp_path / "model.onnx", tmp_path / "images", "--output", tmp_path / "out"]
    done = without_torch(*words, "--save", "coco")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    model = Predictor(load_model("nuclei", "cpu"), PredictionOptions(precision="float32"))
    count = 0
    for file in files:
        values = np.asarray(Image.open(tmp_path / "images" / file.name)).transpose(2, 0, 1)
        entries = [entry for entry in found if entry["file_name"] == file.name]
        count += assert_agrees(model.predict(values), entries)
    assert count > 20


@pytest.mark.parametrize(
    ("format", "suffix", "library"), [("openvino", ".xml", "openvino"), ("torch_export", ".pt2", "torch")]
)
@pytest.mark.parametrize(
    "changes",
    [{"model.box.soft_nms": 0.5}, OTHER_HEADS["light head, paper's refinement, no norm statistics"]],
    ids=["group norm, Soft-NMS", "light"],
)
def test_other_formats_find_what_the_model_finds(tiny_config, classes, tmp_path, format, suffix, library, changes):
    pytest.importorskip(library)
    pytest.importorskip("onnxscript")
    model = made(tiny_config, classes, **changes)
    save_model(model, tmp_path / "model.safetensors")
    assert export(tmp_path / "model.safetensors", format, tmp_path / f"model{suffix}").objects > 10
    runtime, agreement = load(tmp_path / f"model{suffix}"), Agreement()
    assert len(runtime.session.metadata["weights_sha256"]) == 64
    assert runtime.classes == classes
    for n, size in enumerate([(97, 64), (40, 210)]):
        values = image(n, *size)
        agreement.add(str(n), eager(tmp_path).predict(values), runtime.predict(values), EXACT)
    agreement.check(EXACT, "the file")
    assert agreement.objects > 10


def test_the_drawn_images_of_the_comparison_are_not_told_of(tiny_config, classes, tmp_path, caplog):
    pytest.importorskip("onnxscript")
    model = made(tiny_config, classes)
    model.training_data = TrainingData((64, 80), 1.0, 2.0, Looks(0.0, 1.0, 1e9))  # no drawn image is like these
    save_model(model, tmp_path / "model.safetensors")
    export(tmp_path / "model.safetensors", "onnx", tmp_path / "model.onnx")
    assert "WARNING" not in caplog.text


def test_a_tolerance_may_leave_out_a_share_of_the_objects(exported):
    model = eager(exported)
    wanted = model.predict(image(0))
    moved = replace(wanted, boxes=wanted.boxes + np.eye(len(wanted), 4, dtype=np.float32))  # four objects
    for share, allowed in ((3.5, False), (4, True)):
        tolerance, agreement = replace(EXACT, beyond=share / len(wanted)), Agreement()
        agreement.add("cells.png", wanted, moved, tolerance)
        assert agreement.beyond == 4
        if allowed:
            agreement.check(tolerance, "the file")
        else:
            assert "object" in sentence(agreement.check, tolerance, "the file")


def test_a_faulty_export_is_not_written(exported, tmp_path, monkeypatch):
    class Faulty(ExportedNetwork):
        def forward(self, images, sizes, norm_mode=None, norm_statistics=None):
            found = super().forward(images, sizes, norm_mode, norm_statistics)
            return found._replace(boxes=found.boxes + 3)

    monkeypatch.setattr("masklab.export.export.ExportedNetwork", Faulty)
    text = sentence(export, exported / "model.safetensors", "onnx", tmp_path / "model.onnx")
    assert "not written" in text
    assert "its box is" in text
    assert not list(tmp_path.iterdir())


def test_eight_bits_are_in_the_convolutions_and_not_in_the_logits(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    from masklab.export.quantise import exact_layers, quantise

    file = tmp_path / "model.onnx"
    file.write_bytes((exported / "model.onnx").read_bytes())
    exact = exact_layers(onnx.load(file))
    quantise(file, [(images[None], size[None]) for images, size in zip(*inputs(), strict=True)])
    made = onnx.load(file)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    makers = {output: node for node in made.graph.node for output in node.output}
    layers = [node for node in made.graph.node if node.op_type == "Conv"]
    for node in layers:
        maker = makers.get(node.input[1])
        assert (maker is None) == (node.name in exact)
        if maker is not None:
            values = weights[maker.input[0]]
            assert values.dtype == np.int8
            assert np.abs(values.astype(int)).max() <= 64  # 7 bits
            assert weights[maker.input[1]].shape == values.shape[:1]  # a scale for each filter
    assert 0 < len(exact) < len(layers)
    assert load(file).session.metadata == load(exported / "model.onnx").session.metadata
    assert_instances(load(file).predict(image(0)))


def test_objects_below_min_score_are_left_out(exported):
    every = load(exported / "model.onnx").predict(image(0))
    score = float(np.median(every.scores))
    some = load(exported / "model.onnx", PredictionOptions(min_score=score)).predict(image(0))
    assert 0 < len(some) < len(every)
    assert np.array_equal(some.scores, every.scores[every.scores >= score])


def test_fewer_detections_are_the_best(exported):
    few = load(exported / "model.onnx", PredictionOptions(max_detections=3)).predict(image(0))
    every = load(exported / "model.onnx").predict(image(0))
    assert len(few) == 3
    assert np.array_equal(few.scores, every.scores[:3])

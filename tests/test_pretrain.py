import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts import broken_at, changed
from PIL import Image
from safetensors import safe_open
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from masklab.cli.app import main
from masklab.config.recipe import load_recipe
from masklab.config.schema import validate
from masklab.datasets.objects import Objects
from masklab.datasets.split import Split
from masklab.masks import encode
from masklab.model.norms import FrozenBatchNorm
from masklab.model.segmentation import build_segmentation
from masklab.training import pretrain as module
from masklab.training.data.semantic import IGNORED, collate_semantic, rasterize, semantic_loader, warp
from masklab.training.data.transforms import Geometry, quarter_turn
from masklab.training.pretrain import SegmentationTask, class_map, confusion, pixel_loss, pretrain, segmentation_scores
from masklab.training.train import train
from masklab.utils.errors import BrokenLossError, InputError
from masklab.weights.checkpoint import load_model, save_model
from masklab.weights.segmentation import initial_model, save_segmentation

BACKGROUND = 7


def runs_of(mask):
    height, width = mask.shape
    return encode.encode_windows([mask], [(0, 0, width, height)], (height, width))[0]


def drawing(*lines, ink="#"):
    return np.array([[character == ink for character in line] for line in lines])


@pytest.fixture(scope="module")
def run(shapes, tiny_config, tmp_path_factory):
    """A pretraining of a network whose batch norm MaskLab freezes."""
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    return pretrain(changed(tiny_config, model={"backbone": {"norm": "frozen_batch"}}), shapes, folder)


@pytest.fixture
def from_run(run, tiny_config):
    return changed(tiny_config, model={"backbone": {"norm": "frozen_batch", "segmentation_weights": str(run)}})


def tensors_of(path):
    with safe_open(path, framework="pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


# Maps of classes


def test_an_image_without_objects_is_background():
    labels = rasterize(Objects.build((3, 5), [], []), BACKGROUND)
    assert labels.shape == (3, 5)
    assert labels.dtype == np.uint8
    assert (labels == BACKGROUND).all()


def test_small_objects_lie_over_large_ones_and_both_over_crowds():
    large = drawing("####..", "####..", "####..", "......")
    small = drawing("......", "..###.", "......", "......")
    crowd = drawing(".....#", "....##", "...###", "....##")
    for masks, labels in (([large, small], [0, 1]), ([small, large], [1, 0])):
        objects = Objects.build((4, 6), [runs_of(m) for m in masks], labels, [(3, 0, 6, 4)], [runs_of(crowd)])
        found = ["".join("?" if v == IGNORED else str(v) for v in row) for row in rasterize(objects, BACKGROUND)]
        assert found == ["00007?", "00111?", "0000??", "7777??"]


def test_a_crowd_of_which_only_the_box_is_known_is_ignored_by_its_box():
    labels = rasterize(Objects.build((4, 6), [], [], [(2.5, 1, 4.2, 3)]), BACKGROUND)
    assert (labels == IGNORED).nonzero()[0].tolist() == [1, 1, 1, 2, 2, 2]
    assert (labels == IGNORED).nonzero()[1].tolist() == [2, 3, 4, 2, 3, 4]


def coco_split(folder, image, annotations):
    """A split of one image."""
    (folder / "train").mkdir()
    Image.fromarray(image).convert("RGB").save(folder / "train" / "a.png")
    height, width = image.shape
    values = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 3} | a for i, a in enumerate(annotations)],
        "categories": [{"id": 3, "name": "thing"}],
    }
    (folder / "train.json").write_text(json.dumps(values))
    return Split.find(folder, "train")


def test_crowds_of_a_coco_file_are_ignored_where_they_are(tmp_path):
    crowd = np.zeros((6, 8), bool)
    crowd[0, 0] = crowd[3, 4] = True
    annotations = [
        {"segmentation": {"size": [6, 8], "counts": runs_of(crowd).tolist()}, "iscrowd": 1},
        {"segmentation": "?", "bbox": [6, 4, 2, 2], "iscrowd": 1},
        {"segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "iscrowd": 0},
    ]
    labels = rasterize(coco_split(tmp_path, np.zeros((6, 8), np.uint8), annotations).objects(0), 1)
    expected = np.ones((6, 8), np.uint8)
    expected[3, 4] = expected[4:, 6:] = IGNORED
    expected[:2, :2] = 0
    np.testing.assert_array_equal(labels, expected)


def test_painting_equals_painting_whole_masks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        masks = rng.random((5, 9, 11)) < rng.random((5, 1, 1))
        masks[:, 0, 0] = True
        classes = rng.integers(0, 6, 5)
        expected = np.full((9, 11), BACKGROUND)
        for area in sorted({int(mask.sum()) for mask in masks}, reverse=True):
            for mask, label in zip(masks, classes, strict=True):
                if mask.sum() == area:
                    expected[mask] = label
        objects = Objects.build((9, 11), [runs_of(mask) for mask in masks], classes.tolist())
        np.testing.assert_array_equal(rasterize(objects, BACKGROUND), expected)


@pytest.mark.parametrize(
    "change",
    [
        transforms.horizontal_flip,
        transforms.vertical_flip,
        lambda x: quarter_turn(x, 1),
        lambda x: quarter_turn(x, 3),
        lambda x: transforms.crop(x, 2, 1, 4, 5),
        lambda x: transforms.horizontal_flip(quarter_turn(transforms.crop(x, 0, 3, 6, 4), 1)),
    ],
)
def test_a_map_follows_its_image(change):
    for size in ((7, 10), (15, 8)):
        labels = torch.from_numpy(np.random.default_rng(0).integers(0, 9, size).astype(np.uint8))
        np.testing.assert_array_equal(warp(labels.numpy(), change(Geometry.identity(size))), change(labels[None])[0])


def test_a_resized_map_takes_the_nearest_pixel():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    grown = warp(labels, transforms.resize(Geometry.identity((3, 4)), [6, 8]))
    np.testing.assert_array_equal(grown, labels.repeat(2, 0).repeat(2, 1))
    shrunk = warp(grown, transforms.resize(Geometry.identity((6, 8)), [2, 2]))
    np.testing.assert_array_equal(shrunk, grown[[1, 4]][:, [2, 6]])


def test_padding_is_ignored():
    samples = [(torch.ones(3, 9, 5), torch.zeros(9, 5, dtype=torch.uint8), 1)]
    samples += [(torch.ones(3, 4, 20), torch.ones(4, 20, dtype=torch.uint8), "b")]
    batch = collate_semantic(samples, 8)
    assert batch.images.shape == (2, 3, 9, 25)
    assert batch.labels.shape == (2, 9, 25)
    assert (batch.labels == IGNORED).sum(dim=(1, 2)).tolist() == [9 * 20, 9 * 25 - 4 * 20]
    assert batch.image_ids == [1, "b"]


def test_image_and_map_stay_together(tmp_path, tiny_config):
    """Objects are white and the rest is black, whatever the augmentation does."""
    image = np.zeros((40, 60), np.uint8)
    image[5:25, 10:22] = image[20:38, 40:45] = 255
    segmentation = {"size": [40, 60], "counts": runs_of(image > 0).tolist()}
    split = coco_split(tmp_path, image, [{"segmentation": segmentation, "iscrowd": 0}])
    changes = {"vertical_flip": True, "quarter_turns": True, "crop_size": 32}
    config = changed(tiny_config, image={"augment": changes}, train={"steps": 20})
    seen = set()
    for batch in semantic_loader(split, config):
        known = batch.labels != IGNORED
        assert torch.equal((batch.labels == 0)[known], (batch.images[:, 0] > 0)[known])
        seen |= {labels.numpy().tobytes() for labels in batch.labels}
    assert len(seen) > 20, "and it does something"


# Loss and scores


def test_pixel_loss_is_the_mean_over_known_pixels():
    labels = torch.tensor([[[0, 1, 255]] + [[255] * 3] * 2], dtype=torch.uint8)
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    logits.data[0, 0, 0, 0] = 50.0  # right at the first pixel, 25 against 0 and wrong at the second
    assert pixel_loss(logits, labels).item() == pytest.approx(12.5)
    nothing = pixel_loss(logits, torch.full((1, 3, 3), IGNORED, dtype=torch.uint8))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad.abs().sum() == 0


def test_confusion_and_scores_equal_counting():
    rng = np.random.default_rng(0)
    wanted, found = rng.integers(0, 4, (2, 30, 40))
    wanted[rng.random((30, 40)) < 0.2] = IGNORED
    counts = confusion(torch.from_numpy(found), torch.from_numpy(wanted.astype(np.uint8)), 5)
    iou, accuracy = segmentation_scores(counts)
    known = wanted != IGNORED
    for label in range(4):
        a, b = (wanted == label) & known, (found == label) & known
        assert iou[label] == pytest.approx((a & b).sum() / (a | b).sum())
    assert iou[4].isnan(), "a class that is neither there nor found has no IoU"
    assert accuracy == pytest.approx((wanted == found)[known].mean())


class Cells(nn.Module):
    """A network whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.values = nn.Parameter(logits)

    def forward(self, images):
        assert [(side - 1) // 8 + 1 for side in images.shape[2:]] == list(self.values.shape[2:])
        return self.values


def test_class_maps_have_cell_i_on_pixel_8_i(tiny_config, monkeypatch):
    logits = torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(3, 25, 41, dtype=torch.uint8)
    labels = class_map(Cells(logits), image, tiny_config)
    assert torch.equal(labels[::8, ::8], logits[0].argmax(dim=0))
    dense = F.interpolate(logits, size=(25, 41), mode="bilinear", align_corners=True)
    assert torch.equal(labels, dense[0].argmax(dim=0)), "as in training"
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 41 * 5 * 3)
    assert torch.equal(labels, class_map(Cells(logits), image, tiny_config)), "strip by strip it is the same"


def test_class_maps_are_made_at_the_images_own_size(tiny_config):
    """A network input of half the size: own pixel x is at (x + 0.5) / 2 - 0.5."""
    config = changed(tiny_config, image={"scale": 0.5})
    ramp = torch.stack([torch.zeros(3, 4), torch.arange(4.0).expand(3, 4) - 1.2])[None]  # class 1 beyond cell 1.2
    labels = class_map(Cells(ramp), torch.zeros(3, 34, 50, dtype=torch.uint8), config)
    assert labels.shape == (34, 50)
    x = (torch.arange(50) + 0.5) / 2 - 0.5
    assert torch.equal(labels, (x / 8 > 1.2).long().expand(34, 50))


def test_validation_equals_a_slow_version(shapes, tiny_config):
    split = Split.find(shapes, "val")
    torch.manual_seed(0)
    network = build_segmentation(tiny_config.model, 4).eval()
    nn.init.normal_(network.logits.weight, std=3)
    logged = SegmentationTask(network, tiny_config, split).validate(network, range(len(split)))
    wanted, found = [], []
    for i in range(len(split)):
        image = torch.from_numpy(split.read(i, 3))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_config.image.mean, tiny_config.image.std))
        tensor = F.pad((image / 255 - mean) / std, (0, 1, 0, 1))
        with torch.no_grad():
            dense = F.interpolate(network(tensor[None]), size=(97, 113), mode="bilinear", align_corners=True)
        found.append(dense[0].argmax(dim=0)[:96, :112].flatten())
        wanted.append(torch.from_numpy(rasterize(split.objects(i), 4)).flatten())
    wanted, found = torch.cat(wanted), torch.cat(found)
    iou = [((wanted == c) & (found == c)).sum() / ((wanted == c) | (found == c)).sum() for c in range(5)]
    assert logged["val/mean_IoU"] == pytest.approx(float(torch.stack(iou).nanmean()), abs=1e-3)
    assert logged["val/pixel_accuracy"] == pytest.approx(float((wanted == found).float().mean()), abs=1e-3)
    assert len({round(float(v), 3) for v in iou}) > 1, "the test sees classes apart"


# Whole runs


def test_a_run_leaves_what_it_promises(run, capsys):
    header, tensors = tensors_of(run)
    assert json.loads(header["backbone"]) == {"name": "resnet18", "norm": "batch", "width": 0.25, "in_channels": 3}
    assert json.loads(header["classes"])["names"] == ["disc", "box", "triangle", "ring"]
    notes = json.loads(header["notes"])
    assert set(notes["IoU"]) == {"disc", "box", "triangle", "ring", "background"}
    known = [value for value in notes["IoU"].values() if value is not None]
    assert notes["val"]["mean_IoU"] == pytest.approx(np.mean(known), abs=1e-3)
    assert 0 < notes["val"]["pixel_accuracy"] < 1
    assert not any("logits" in name for name in tensors)
    rows = list(csv.DictReader((run.parent / "metrics.csv").read_text().splitlines()))
    assert {"loss", "val/mean_IoU", "IoU/disc"} <= set(rows[0])
    assert not list(run.parent.glob("*.part"))


def test_the_weights_land_in_conv1_to_conv4_and_both_copies_of_conv5(run, from_run, classes):
    _, saved = tensors_of(run)
    model = initial_model(from_run, classes)
    lower = model.backbone.state_dict()
    assert set(lower) == {name for name in saved if not name.startswith("conv5.")}
    for name, value in lower.items():
        assert torch.equal(value, saved[name]), name
    for conv5 in (model.mask_head.conv5, model.box_head.conv5):
        assert set(conv5.state_dict()) == {n.removeprefix("conv5.") for n in saved if n.startswith("conv5.")}
        for name, value in conv5.state_dict().items():
            assert torch.equal(value, saved[f"conv5.{name}"]), name


def test_a_box_classifier_drawn_anew_stays_so(run, from_run, classes):
    _, saved = tensors_of(run)
    values = from_run.model_dump()
    values["model"]["box"]["from_imagenet"] = False
    model = initial_model(validate(values, "test"), classes)
    name = "0.conv1.weight"
    assert torch.equal(model.mask_head.conv5.state_dict()[name], saved[f"conv5.{name}"])
    assert not torch.equal(model.box_head.conv5.state_dict()[name], saved[f"conv5.{name}"])


def test_batch_norm_is_trained_and_then_frozen(run, from_run, shapes, tmp_path):
    header, saved = tensors_of(run)
    assert saved["conv1.1.running_mean"].abs().sum() > 0, "pretraining learnt its statistics"
    assert saved["conv1.1.num_batches_tracked"] == json.loads(header["notes"])["step"] > 0
    model = train(from_run, shapes, tmp_path / "run").model
    norm = model.backbone.conv1[1]
    assert isinstance(norm, FrozenBatchNorm)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, saved[f"conv1.1.{name}"]), name
    assert not torch.equal(model.backbone.conv1[0].weight, saved["conv1.0.weight"]), "the rest learns on"


def test_a_model_opens_without_the_file_it_started_from(run, from_run, classes, tmp_path):
    save_model(initial_model(from_run, classes), tmp_path / "model.safetensors")
    assert str(run).encode() not in (tmp_path / "model.safetensors").read_bytes()
    assert load_model(tmp_path / "model.safetensors").config.model.backbone.segmentation_weights is None


def test_imagenet_weights_are_not_looked_for(classes, tmp_path):
    """They could not be had: there is no such file."""
    config = validate({"model": {"backbone": {"name": "resnet18", "pretrained": False}}}, "test")
    network = build_segmentation(config.model, 3)
    save_segmentation(network, config.model.backbone, classes, tmp_path / "seg.safetensors")
    there, gone = str(tmp_path / "seg.safetensors"), str(tmp_path / "none.safetensors")
    config = changed(config, model={"backbone": {"pretrained": True, "weights": gone, "segmentation_weights": there}})
    assert torch.equal(initial_model(config, classes).backbone.conv1[0].weight, network.backbone.conv1[0].weight)


@pytest.mark.parametrize(
    ("field", "value", "has"),
    [("name", "resnet34", "resnet18"), ("norm", "group", "batch"), ("width", 0.5, 0.25), ("in_channels", 1, 3)],
)
def test_weights_of_another_network_are_refused(from_run, shapes, tmp_path, field, value, has):
    grey = {"image": {"mean": [0.5], "std": [0.2]}} if field == "in_channels" else {}
    config = changed(from_run, model={"backbone": {field: value}}, **grey)
    message = rf"model\.backbone\.{field} is {value} but model\.backbone\.segmentation_weights, .*best\.safetensors, was pretrained with {has}"
    with pytest.raises(InputError, match=message):
        train(config, shapes, tmp_path)
    assert not (tmp_path / "config.yaml").exists(), "before the training starts"


def test_other_output_strides_rates_and_weights_tags_are_welcome(from_run, classes):
    config = changed(from_run, model={"backbone": {"output_stride": 16, "name": "resnet18.tv_in1k"}})
    values = config.model_dump()
    values["model"]["mask"]["dilations"] = [2, 4]
    initial_model(validate(values, "test"), classes)


def test_files_of_another_kind_are_refused(from_run, classes, tmp_path):
    model = initial_model(from_run, classes)
    save_model(model, tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("model", "text", "missing"):
        config = changed(from_run, model={"backbone": {"segmentation_weights": str(tmp_path / f"{name}.safetensors")}})
        with pytest.raises(InputError, match=rf"{name}\.safetensors.*`masklab pretrain`"):
            initial_model(config, classes)


def test_a_pretrained_backbone_is_no_model(run):
    with pytest.raises(InputError, match="`masklab train` wrote"):
        load_model(run)


def test_a_resumed_run_is_the_uninterrupted_one(shapes, tiny_config, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "masklab")
    whole = pretrain(tiny_config, shapes, tmp_path / "whole")
    assert "train.json: 8 images" in caplog.text

    with monkeypatch.context() as patch:
        broken_at(patch, 3)
        with pytest.raises(BrokenLossError):
            pretrain(tiny_config, shapes, tmp_path / "parts")
    with pytest.raises(InputError, match="already holds a run"):
        pretrain(tiny_config, shapes, tmp_path / "parts")
    with pytest.raises(InputError, match=r"no resume\.ckpt"):
        train(tiny_config, shapes, tmp_path / "parts", resume=True)
    pretrain(tiny_config, shapes, tmp_path / "parts", resume=True)
    expected, found = (tensors_of(path / "last.safetensors")[1] for path in (whole.parent, tmp_path / "parts"))
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_the_loss_falls(shapes, tiny_config):
    config = changed(tiny_config, train={"steps": 24})
    torch.manual_seed(0)
    network = build_segmentation(config.model, 4).train()
    optimizer, losses = torch.optim.AdamW(network.parameters(), lr=3e-3), []
    for batch in semantic_loader(Split.find(shapes, "train"), config):
        loss = pixel_loss(network(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(5), abs=0.1)
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])


def test_too_many_classes_are_refused(shapes, tiny_config, tmp_path):
    folder = tmp_path / "data"
    categories = [{"id": i, "name": str(i)} for i in range(255)]
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        (folder / f"{split}.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(InputError, match="255 categories but pretraining takes at most 254"):
        pretrain(tiny_config, folder, tmp_path / "run")


def test_command_line(shapes, tmp_path, capsys, caplog):
    words = ["pretrain", "shapes", "--data", str(shapes), "--output", str(tmp_path / "run"), "--train.workers", "0"]
    words += ["--train.steps", "1", "--train.batch_size", "1", "--model.backbone.width", "0.25"]
    with caplog.at_level("INFO", "masklab"):
        assert main([*words, "--train.validate_images", "1"]) == 0
    out = caplog.text
    assert "mean IoU" in out
    assert "pixel accuracy" in out
    assert "triangle" in out
    assert main(["pretrain", "shapes", "--output", str(tmp_path / "other")]) == 2
    assert "--data DIR" in capsys.readouterr().err


def test_logits_have_the_cells_of_the_last_feature_map(tiny_config):
    network = build_segmentation(tiny_config.model, 4).eval()
    assert network(torch.zeros(1, 3, 97, 113)).shape == (1, 5, 13, 15)


def test_as_many_classes_as_a_map_can_name_are_taken(shapes, tmp_path, monkeypatch):
    class OpenedSplits(Exception):
        pass

    def reached(*_):
        raise OpenedSplits

    config = load_recipe("shapes")
    monkeypatch.setattr("masklab.training.pretrain.build_fabric", reached)
    monkeypatch.setattr("masklab.training.pretrain.MOST_CLASSES", 4)
    with pytest.raises(OpenedSplits):
        pretrain(config, shapes, tmp_path / "run")
    monkeypatch.setattr("masklab.training.pretrain.MOST_CLASSES", 3)
    with pytest.raises(InputError, match="4 categories but pretraining takes at most 3"):
        pretrain(config, shapes, tmp_path / "run")

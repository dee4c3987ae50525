"""The `nuclei` model against its peers, trained here from random weights on the same images for the same time.

    uv run python benchmarks/peers.py DIR [--output runs/peers] [--minutes 25] [--rows ours torchvision]
    uv run python benchmarks/peers.py --quick

DIR is a data set folder of any format, of colour or grey images.  The rows:

- `ours`: the recipe `nuclei`, by `masklab train`'s own function;
- `mask_rcnn_head`: the same detector with Mask R-CNN's mask head in place of MaskLab's (`model.mask.head`), likewise;
- `torchvision`: torchvision's Mask R-CNN with a ResNet-18-FPN, group norm in body and pyramid.  It has the recipe's
  loader, augmentation, scale, optimiser, schedule and number format, its own learning rate (`--learning_rate`), and
  half as many masks an image in a step: they are the dearest part of it;
- `torchvision_half`: the same with 128 channels, not 256, in pyramid, RPN and mask head, as the recipe's own network is
  of half width: the mask head is most of a step, so it learns from many more images in the time.

A row's number of steps is fixed before it is trained: its share of `--minutes` by the time of a step, measured with the
row's own network and loader after it has learnt a little, since a detector that finds more has more to do.  Run it on a
machine that does nothing else.  Each row is then measured on val by the same code at the same cap of detections, with a
score threshold tuned on training images as `masklab train` tunes it, and by the recipe's suppression, Soft-NMS
included.  torchvision's masks are brought to the image in two ways: by its own `paste_masks_in_image`, which cuts
boxes to whole pixels, and exactly, by masklab's run lengths on the box as it was found, with the half pixel undone by
which torchvision's mask targets lie beside their boxes.

A row that is finished is kept, one that was stopped goes on.  Prints the table and writes it to
`OUTPUT/seedS/peers.md`.  `--quick` draws a few images and takes two steps, to see that it runs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from masks_to_rle import encode_ours, paste_and_encode
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from side_by_side import mask_rcnn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from masklab.config.fields import resolved
from masklab.config.nested import merge
from masklab.config.recipe import load_recipe
from masklab.config.schema import Config
from masklab.datasets.annotations import ImageRecord
from masklab.datasets.objects import Objects
from masklab.datasets.open import open_split
from masklab.datasets.split import Split
from masklab.datasets.synthetic.shapes import draw_shapes
from masklab.evaluation.coco import coco_metrics
from masklab.evaluation.matching import matching_metrics, overlaps
from masklab.evaluation.report import write_metrics
from masklab.images.read import read_image
from masklab.images.resize import network_image
from masklab.masks import rle
from masklab.model.build import build_model
from masklab.ops.nms import soft_nms
from masklab.structures import ClassTable
from masklab.training.auto import resolve_auto
from masklab.training.data.loader import open_training_image, stream_loader, train_loader
from masklab.training.data.targets import visible_boxes
from masklab.training.data.transforms import Geometry
from masklab.training.distributed import build_fabric
from masklab.training.gradients import BatchGradients
from masklab.training.loop import fit
from masklab.training.optimizer import build_optimizer, clip_gradients
from masklab.training.resume import CHECKPOINT, open_run
from masklab.training.task import InstanceTask, Task
from masklab.training.train import train, tune_threshold
from masklab.utils.device import autocast, default_device
from masklab.utils.files import atomic_write, make_folder
from masklab.utils.progress import track
from masklab.weights.facts import read_notes

CHANGES: dict[str, dict[str, Any]] = {
    "ours": {},
    "mask_rcnn_head": {"model": {"mask": {"head": "mask_rcnn", "refine_levels": [], "mask_size": 28}}},
    "torchvision": {},
    "torchvision_half": {},
}
WIDTHS = {"torchvision": 256, "torchvision_half": 128}
QUICK = {"model": {"box": {"max_detections": 10}, "rpn": {"proposals_test": 20}}, "train": {"batch_size": 2}}
WARM, MEASURED = 40, 20  # steps before and while the time of one is taken
WEIGHTS, METRICS, PLAN = "last.safetensors", "metrics.json", "plan.json"
HALF_PIXEL = 0.5  # torchvision samples masks at x where their pixel's centre is x + 0.5

Find = Callable[[ImageRecord], list[dict[str, Any]]]
"""An image's detections as COCO results."""

COLUMNS = {
    "mask AP": "mask_AP",
    "AP50": "mask_AP50",
    "AP75": "mask_AP75",
    "box AP": "box_AP",
    "Kaggle": "kaggle",
    "s / image": "seconds_a_image",
    "M parameters": "parameters",
    "steps": "steps",
    "s / step": "seconds_a_step",
    "minutes": "minutes",
}


class Row(NamedTuple):
    """One row: its settings, the folder it is trained in, and its data."""

    name: str
    config: Config
    folder: Path
    data: Path
    train: Split
    val: Split

    @property
    def run(self) -> Path:
        return self.folder / "run"


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.data = draw_shapes(Path(scratch) / "data", {"train": 2, "val": 1}, size=(64, 64))
            options.output = Path(scratch) / "runs"
        folder = make_folder(options.output / f"seed{options.seed}")
        splits = open_split(options.data, "train"), open_split(options.data, "val")
        rows = []
        for name in options.rows:
            row = Row(name, row_config(name, options, splits[0]), make_folder(folder / name), options.data, *splits)
            rows += finished(row, options)
            text = table(rows, options)
            with atomic_write(folder / "peers.md") as path:
                path.write_text(text, encoding="utf-8")
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("runs/peers"))
    parser.add_argument("--minutes", type=float, default=25.0, help="training of each row")
    parser.add_argument("--rows", nargs="+", choices=list(CHANGES), default=list(CHANGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of torchvision's rows")
    parser.add_argument("--quick", action="store_true", help="drawn images and two steps: under 50 seconds")
    options = parser.parse_args()
    if (options.data is None) != options.quick:
        parser.error("give either DIR, or --quick, which draws its own images")
    return options


def row_config(name: str, options: argparse.Namespace, split: Split) -> Config:
    """The recipe as a row changes it; training ends with a look at one image, as each row is measured afterwards."""
    changes = merge({"train": {"seed": options.seed, "validate_images": 1}}, CHANGES[name])
    if name in WIDTHS:
        changes = merge(changes, {"train": {"learning_rate": options.learning_rate}})
    return resolve_auto(load_recipe("nuclei", merge(changes, QUICK) if options.quick else changes), split)


def finished(row: Row, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of a row, one dictionary a paste; trains and measures what is missing of it."""
    settings = {"minutes": options.minutes, "learning_rate": row.config.train.learning_rate, "data": str(row.data)}
    plan = planned(row, settings, options.quick)
    if plan["settings"] != settings:
        raise SystemExit(f"{row.folder} holds a row of {plan['settings']}, not {settings}: give another --output.")
    path = row.folder / METRICS
    if not path.is_file():
        print(f"\n{row.name}: {plan['steps']} steps of {plan['seconds_a_step']:.3g} s", flush=True)
        row = row._replace(config=with_steps(row.config, plan["steps"]))
        figures = train_torchvision(row) if row.name in WIDTHS else train_ours(row)
        write_metrics(path, {"rows": [each | plan for each in figures]})
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def planned(row: Row, settings: dict[str, Any], quick: bool) -> dict[str, Any]:
    """How many steps a row is trained, measured once and kept in its folder."""
    path = row.folder / PLAN
    if not path.is_file():
        warm, measured = (1, 1) if quick else (WARM, MEASURED)
        print(f"\n{row.name}: taking the time of {measured} steps", flush=True)
        seconds = seconds_a_step(row._replace(config=with_steps(row.config, warm + measured)), warm)
        steps = 2 if quick else max(1, round(settings["minutes"] * 60 / seconds))
        write_metrics(path, {"settings": settings, "seconds_a_step": seconds, "steps": steps})
    plan: dict[str, Any] = json.loads(path.read_text())
    return plan


def with_steps(config: Config, steps: int) -> Config:
    settings = config.train.model_copy(update={"steps": steps, "validate_every": steps})
    return config.model_copy(update={"train": settings})


def seconds_a_step(row: Row, warm: int) -> float:
    """Mean seconds of a step, waiting for its images included, after ``warm`` others at the full learning rate."""
    torch.manual_seed(row.config.train.seed)
    task, batches = build(row, first_step=0)
    fabric, network, settings = build_fabric(row.config.train), task.network, row.config.train
    optimizer = build_optimizer(network.to(fabric.device), settings)
    gradients = BatchGradients(task, fabric.device)
    ends = []
    for batch in islice(batches, settings.steps):
        optimizer.zero_grad()
        gradients.add(fabric.to_device(batch))
        clip_gradients(network, settings)
        optimizer.step()
        ends.append(time.perf_counter())
    gradients.close()
    return (ends[-1] - ends[warm - 1]) / (len(ends) - warm)


def build(row: Row, first_step: int) -> tuple[Task, DataLoader[Any]]:
    """A row's untrained network and its batches."""
    if row.name in WIDTHS:
        dataset, task = PeerDataset(row.train, row.config), PeerTask(build_torchvision(row), row.config, row.val)
        return task, stream_loader(dataset, PeerBatch.collate, row.train, row.config, first_step, (0, 1))
    model = build_model(row.config, row.train.categories).to(memory_format=torch.channels_last)
    return InstanceTask(model, row.val), train_loader(row.train, row.config, first_step)


def train_ours(row: Row) -> list[dict[str, Any]]:
    predictor = train(row.config, row.data, row.run, resume=clear_or_resume(row.run))
    return [
        {"row": row.name, "paste": "exact", "minutes": read_notes(row.run)["minutes"]}
        | measure(
            row,
            predictor.model,
            lambda image: predictor.predict(image.path).to_coco(image.image_id),
            predictor.threshold,
        )
    ]


def train_torchvision(row: Row) -> list[dict[str, Any]]:
    if not (row.run / WEIGHTS).is_file():  # they are written once, at the end
        with open_run(row.run, clear_or_resume(row.run)) as start:
            torch.manual_seed(row.config.train.seed)
            task, batches = build(row, start.step)
            fit(build_fabric(row.config.train), task, batches, row.train, row.run, start)
    model = build_torchvision(row)
    model.load_state_dict(load_file(row.run / WEIGHTS))
    model = model.to(default_device(), memory_format=torch.channels_last).eval()
    with safe_open(row.run / WEIGHTS, "pt") as opened:
        minutes = json.loads(opened.metadata()["minutes"])
    figures = []
    for name, paste in {"torchvision's": paste_and_encode, "exact": paste_exactly}.items():
        find = partial(find_with_torchvision, model, row.config, row.train.categories, paste)
        found = measure(row, model, find, tune_threshold(find, row.train))
        figures.append({"row": row.name, "paste": name, "minutes": minutes} | found)
    return figures


def clear_or_resume(run: Path) -> bool:
    """Whether there is a checkpoint to go on from; without one, what a stopped run left is removed."""
    there = (run / CHECKPOINT).is_file()
    if not there:
        shutil.rmtree(run, ignore_errors=True)
    return there


def measure(row: Row, model: nn.Module, find: Find, threshold: float) -> dict[str, Any]:
    """Figures on val, from files to run lengths."""
    results: list[dict[str, Any]] = []
    began = time.perf_counter()
    for image in track(row.val.images, "predicting"):
        results += find(image)
    seconds = time.perf_counter() - began
    cap = resolved(row.config.model.box.max_detections, "model.box.max_detections")
    metrics = coco_metrics(row.val.truth, results, cap)
    matching = matching_metrics(overlaps(row.val.truth, results), threshold)
    return {
        **{f"{kind}_{name}": metrics[kind][name] for kind in ("mask", "box") for name in ("AP", "AP50", "AP75")},
        "kaggle": matching["kaggle"]["mean"],
        "score_threshold": threshold,
        "seconds_a_image": seconds / len(row.val),
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "images": len(row.val),
    }


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The figures in Markdown."""
    lines = [["row", "paste", *COLUMNS], ["---", "---", *["---:"] * len(COLUMNS)]]
    for row in rows:
        lines.append([row["row"], row["paste"], *(shown(row[key]) for key in COLUMNS.values())])
    budget = "two steps" if options.quick else f"{options.minutes:g} minutes"
    about = (
        f"Trained for {budget} each on {options.data}, seed {options.seed}, {torch.get_num_threads()} "
        f"threads, torchvision's at learning rate {options.learning_rate:g}; measured on {rows[0]['images']} images of val."
    )
    return "\n".join([about, "", *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"


def shown(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


class AsGiven(GeneralizedRCNNTransform):
    """Puts images together; changes neither them, which are at scale and normalised, nor what is found in them."""

    def normalize(self, tensor: Tensor) -> Tensor:
        return tensor

    def resize(self, tensor: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return tensor, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        return super().batch_images(images, size_divisible).contiguous(memory_format=torch.channels_last)

    def postprocess(self, result: list[dict[str, Tensor]], *_: Any) -> list[dict[str, Tensor]]:
        return result


def build_torchvision(row: Row) -> MaskRCNN:
    """The peer with the recipe's anchors, one size a level, and its numbers of proposals, masks and detections."""
    model, rpn, box = row.config.model, row.config.model.rpn, row.config.model.box
    sizes = resolved(rpn.anchor_sizes, "model.rpn.anchor_sizes")
    ratios = (tuple(rpn.anchor_ratios),)
    peer = mask_rcnn(
        len(row.train.categories),
        partial(nn.GroupNorm, 32),
        WIDTHS[row.name],
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in sizes), ratios * len(sizes)),
        rpn_pre_nms_top_n_train=rpn.pre_nms_train,
        rpn_pre_nms_top_n_test=rpn.pre_nms_test,
        rpn_post_nms_top_n_train=rpn.proposals_train,
        rpn_post_nms_top_n_test=resolved(rpn.proposals_test, "model.rpn.proposals_test"),
        box_score_thresh=box.score_threshold,
        box_nms_thresh=box.nms_iou,
        box_detections_per_img=resolved(box.max_detections, "model.box.max_detections"),
        box_batch_size_per_image=2 * model.mask.train_masks,
        box_positive_fraction=0.25,  # each with its mask, the dearest part of a step
    )
    peer.transform = AsGiven(1, 1, [], [])
    if box.soft_nms is not None:
        soften(peer.roi_heads, box.soft_nms, box.score_threshold)
    return peer.to(memory_format=torch.channels_last)


def soften(heads: RoIHeads, sigma: float, least: float) -> None:
    """Let Soft-NMS follow the suppression of ``heads``, before their cap of detections."""
    hard, most = heads.postprocess_detections, heads.detections_per_img

    def soft(*values: Any) -> tuple[list[Tensor], ...]:
        found = []
        for boxes, scores, labels in zip(*hard(*values), strict=True):
            softened = soft_nms(boxes, scores, labels, sigma)
            order = softened.argsort(descending=True, stable=True)
            order = order[softened[order] > least][:most]
            found.append((boxes[order], softened[order], labels[order]))
        return tuple(map(list, zip(*found, strict=True)))

    heads.detections_per_img = sys.maxsize
    heads.postprocess_detections = soft


class PeerBatch(NamedTuple):
    """Images ``(C, H, W)``, torchvision's targets for them, and their ids."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    image_ids: list[int | str]

    @classmethod
    def collate(cls, samples: list[Any]) -> PeerBatch:
        return cls(*map(list, zip(*samples, strict=True)))


class PeerDataset(Dataset[Any]):
    """The recipe's images with the same boxes as ours and, as torchvision wants them, masks of the whole crop."""

    def __init__(self, split: Split, config: Config) -> None:
        self.split, self.config = split, config

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor], int | str]:
        position, index = key
        tensor, geometry, _ = open_training_image(self.split, self.config, position, index)
        objects = self.split.objects(index)
        boxes, rows = visible_boxes(objects, geometry)
        targets = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.from_numpy(objects.labels[rows]) + 1,
            "masks": torch.from_numpy(crop_masks(objects, rows, geometry)),
        }
        return tensor, targets, self.split.images[index].image_id


def crop_masks(objects: Objects, rows: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The masks of some objects in the pixels of a transformed image, ``(n, H, W)`` uint8."""
    height, width = geometry.canvas_size
    middles = (np.arange(0.5, width), np.arange(0.5, height))
    across, down, transposed = geometry.axes_to_source(*middles)
    columns = np.floor(across).astype(np.int64).clip(0, objects.size[1] - 1)
    lines = np.floor(down).astype(np.int64).clip(0, objects.size[0] - 1)
    left, top = int(columns.min()), int(lines.min())
    view = (left, top, int(columns.max()) + 1, int(lines.max()) + 1)
    masks = np.zeros((len(rows), height, width), np.uint8)
    for mask, row in zip(masks, rows.tolist(), strict=True):
        bits = rle.window(objects.rle(row), objects.size, view)[np.ix_(lines - top, columns - left)]
        mask[:] = bits.T if transposed else bits
    return masks


class PeerTask(Task):
    """Torchvision's model, trained as `InstanceTask` trains ours and evaluated after training."""

    figure = "mask_AP"
    thread_safe = True

    def losses(self, batch: PeerBatch, first: int) -> dict[str, Tensor]:
        return {name: loss.float() for name, loss in self.network(batch.images, batch.targets).items()}

    def validate(self, network: nn.Module, indices: Sequence[int]) -> dict[str, float]:
        return {}

    def save(self, network: nn.Module, path: Path, notes: dict[str, Any]) -> None:
        tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"minutes": json.dumps(notes["minutes"])})


def find_with_torchvision(
    model: MaskRCNN, config: Config, classes: ClassTable, paste: Callable[..., list[dict[str, Any]]], image: ImageRecord
) -> list[dict[str, Any]]:
    """Detections of one image in its own pixels, as COCO results."""
    values = torch.from_numpy(read_image(image.path, config.model.backbone.channels))
    tensor, device = network_image(values, config.image), default_device()
    with torch.inference_mode(), autocast(device, config.train.precision):
        (found,) = model([tensor.to(device)])
    height, width = image.size
    scale = torch.tensor([width / tensor.shape[2], height / tensor.shape[1]] * 2)
    boxes = found["boxes"].float().cpu() * scale
    moved = boxes + HALF_PIXEL * scale if paste is paste_exactly else boxes
    masks = paste(found["masks"][:, 0].float().cpu(), moved, image.size)
    corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
    scores, labels = found["scores"].tolist(), (found["labels"] - 1).tolist()
    return [
        {
            "image_id": image.image_id,
            "category_id": classes.ids[label],
            "bbox": box,
            "score": score,
            "segmentation": mask,
        }
        for label, box, score, mask in zip(labels, corners, scores, masks, strict=True)
    ]


def paste_exactly(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Run lengths of masks ``(n, P, P)`` whose samples are centres of cells, on boxes ``(n, 4)`` of any place.

    As in `paste_masks_in_image` there is background beside the outermost cells.  Masklab's samples begin and end on the
    box's edges, so there are two of them to a cell, at its centre and its edge; between them the mask is the same.
    """
    cells = masks.shape[-1]
    ringed = F.pad(masks, (1, 1, 1, 1))[:, None]
    samples = F.interpolate(ringed, size=(2 * cells + 3,) * 2, mode="bilinear", align_corners=True)[:, 0, 1:-1, 1:-1]
    return encode_ours(samples.numpy(), boxes.numpy(), size)


if __name__ == "__main__":
    main()

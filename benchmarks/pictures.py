"""The pictures of the documents: dense masks and their directions, a field in tiles, its results in other formats.

uv run python benchmarks/pictures.py [docs/images]
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

import masklab
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.plots.inspection import Inspection
from masklab.plots.logit_maps import strongest_directions
from masklab.results.colours import PALETTE
from masklab.results.instances import Instances
from masklab.results.overlay import overlay

SIZE, COUNT = (1300, 1900), 900
PART = (700, 950, 400, 700)  # rows and columns of the part of the field that is shown enlarged
PIXEL = 0.5  # micrometres
DENSE = (140, 3, (256, 320))  # nuclei, seed and size of the picture of masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"))
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    predictor = masklab.load("nuclei", "cpu")
    draw_masks(predictor, folder / "masks.png")
    image, _ = draw_nuclei(COUNT, 0, SIZE)
    found = predictor.predict(image).above(predictor.threshold)
    plan = predictor.tile_plan(SIZE)
    assert plan is not None
    tiles = plan.tiles()
    print(f"{len(found)} of {COUNT} objects in {len(tiles)} tiles")
    draw_tiles(image, found, tiles, folder / "tiles.png")
    draw_formats(image, found, folder / "formats.png")


def draw_masks(predictor: masklab.Predictor, path: Path) -> None:
    """A dense image, the strongest direction at each pixel inside its objects, and the masks found."""
    image, _ = draw_nuclei(*DENSE)
    inspection = Inspection.of(predictor, "drawn", image)
    maps = inspection.logits("direction")
    assert maps is not None
    directions = np.asarray(strongest_directions(inspection, maps, inspection.found.size)[0]).copy()
    directions[inspection.found.label_map() == 0] //= 6
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.55), dpi=100, layout="constrained")
    titles = ("image", "direction to the centre, by colour", f"{len(inspection.found)} masks")
    shown = (image[0], directions, overlay(image, inspection.found, 0.0, enlarge=False))
    for each, title, values in zip(axes, titles, shown, strict=True):
        each.imshow(values, cmap="gray")
        each.set_title(title, fontsize=11)
        each.axis("off")
    save(figure, path, 256)


def draw_tiles(image: Any, found: Instances, tiles: list[Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 6.3), dpi=100, layout="constrained")
    axes.imshow(overlay(image, found, 0.0, enlarge=False))
    for n, (x1, y1, x2, y2) in enumerate(tiles):
        colour = np.divide(PALETTE[n % len(PALETTE)], 255)
        inset = 6 * (n % 3)
        frame = (x1 + inset, y1 + inset), x2 - x1 - 2 * inset, y2 - y1 - 2 * inset
        axes.add_patch(Rectangle(*frame, fill=False, edgecolor=colour, linewidth=2.5, linestyle="--"))
    axes.set_title(f"{len(found)} objects, {len(tiles)} overlapping tiles (dashed)", fontsize=11)
    axes.axis("off")
    save(figure, path)


def draw_formats(image: Any, found: Instances, path: Path) -> None:
    top, bottom, left, right = PART
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), dpi=100, layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        files = {
            name: Path(folder, f"x{suffix}")
            for name, suffix in (("labels", ".tif"), ("geojson", ".geojson"), ("csv", ".csv"))
        }
        for file in files.values():
            found.save(file, image=image, pixel_size=PIXEL)
        labels = tifffile.imread(files["labels"])[top:bottom, left:right]
        features = json.loads(files["geojson"].read_text(encoding="utf-8"))["features"]
        table = files["csv"].read_text(encoding="utf-8-sig").splitlines()
        areas = [float(row["area_um2"]) for row in csv.DictReader(table)]
    colours = np.array([(0, 0, 0), *PALETTE], np.uint8)
    axes[0].imshow(colours[np.where(labels > 0, labels % len(PALETTE) + 1, 0)])
    axes[0].set_title("labels: each object its number")
    axes[1].imshow(image[0, top:bottom, left:right], cmap="gray")
    for feature in features:
        shape = feature["geometry"]
        for ring in (
            shape["coordinates"] if shape["type"] == "Polygon" else [r for part in shape["coordinates"] for r in part]
        ):
            corners = np.array(ring) - (left + 0.5, top + 0.5)
            axes[1].add_patch(Polygon(corners, fill=False, edgecolor=np.divide(PALETTE[0], 255), linewidth=1))
    axes[1].set_xlim(0, right - left)
    axes[1].set_ylim(bottom - top, 0)
    axes[1].set_title("geojson: outlines")
    axes[2].hist(areas, bins=40, color=np.divide(PALETTE[4], 255))
    axes[2].set_xlabel("area_um2")
    axes[2].set_ylabel("objects")
    axes[2].set_title("csv: measurements")
    for each in axes[:2]:
        each.axis("off")
    save(figure, path)


def save(figure: Figure, path: Path, colours: int = 64) -> None:
    """Write a figure as PNG of few colours, a third of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()

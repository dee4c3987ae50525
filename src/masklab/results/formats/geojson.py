"""GeoJSON as QuPath reads it: a feature for each object, outlines along the edges of the pixels, holes kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from masklab.masks import rle
from masklab.masks.polygons import Polygon, rle_to_polygons
from masklab.results.colours import PALETTE
from masklab.results.formats.base import Format, Result


def _write(path: Path, result: Result) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for feature in _features(result):
            file.write(separator + json.dumps(feature))
            separator = ",\n"
        file.write("\n]}\n")


def _features(result: Result) -> Iterator[dict[str, Any]]:
    """Objects without a pixel are left out: QuPath has no empty outlines."""
    found = result.instances
    for mask, score, label in zip(found.rle, found.scores.tolist(), found.labels.tolist(), strict=True):
        parts = rle_to_polygons(mask, found.size)
        if parts:
            yield {
                "type": "Feature",
                "geometry": _geometry(parts),
                "properties": {
                    "objectType": "detection",
                    "classification": {
                        "name": found.class_names[label],
                        "color": list(PALETTE[label % len(PALETTE)]),
                    },
                    "measurements": {"score": score, "area px^2": rle.area(mask)},
                },
            }


def _geometry(parts: list[Polygon]) -> dict[str, Any]:
    coordinates = [[np.concatenate((ring, ring[:1])).tolist() for ring in polygon] for polygon in parts]
    if len(parts) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


GEOJSON = Format(
    "geojson",
    ".geojson",
    "NAME.geojson: outlines with holes, for QuPath",
    _write,
    (".geojson",),
    media_type="application/geo+json",
)

"""Record of how a run was made: ``config.yaml``, ``run.json`` and ``split.json``."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from masklab.config.migrate import migrate_config
from masklab.config.nested import flatten
from masklab.config.schema import Config
from masklab.datasets.convert import write_lists
from masklab.datasets.split import Split
from masklab.utils.errors import InputError
from masklab.utils.files import atomic_write, read_yaml
from masklab.utils.versions import versions

RECORD = "run.json"
_RENAMED_FACTS = {"pictures": "images", "pictures_sha256": "images_sha256"}  # version 0.1 -> now
# fields that do not change the result, and may change when a run is resumed
_FREE = (
    "data",
    "layout",
    "annotations",
    "images",
    "output",
    "train.workers",
    "train.threads",
    "train.devices",
    "train.nodes",
    "train.log_every",
    "train.loggers",
    "train.checkpoint_every",
)


def write_record(
    run: Path, config: Config, splits: dict[str, Split], checkpoint: str, step: int, processes: int
) -> None:
    """Write the resolved configuration, how the run was started and on which data it is trained.

    ``run.json`` holds the ``checkpoint``'s name, the fingerprints of the ``data`` (see `fingerprint`) and one entry of
    ``starts`` for each time the run was started or resumed: step, time, command, versions and device.
    ``split.json`` lists the images of each split.

    Raises `InputError` if the run was started on other data or with other settings.
    """
    if step:
        refuse_other_settings(run, config)
    data = {name: fingerprint(split) for name, split in splits.items()}
    before = read_record(run) if step else {}
    for name, then in before.get("data", {}).items():
        if name in data and any(then.get(key) != data[name][key] for key in ("annotations_sha256", "images_sha256")):
            raise InputError(
                f"{data[name]['annotations']} or its images have changed since {run} was started: "
                "bring them back to resume it, or give another output folder."
            )
    starts = [
        *before.get("starts", []),
        {
            "step": step,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(sys.argv),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "processes": processes,
            "versions": versions(),
        },
    ]
    _write(run / RECORD, json.dumps({"checkpoint": checkpoint, "data": data, "starts": starts}, indent=2) + "\n")
    _write(run / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_lists(splits, run / "split.json")


def refuse_other_settings(run: Path, config: Config) -> None:
    """Raise `InputError` if the folder holds a run with other settings."""
    written = run / "config.yaml"
    before = read_yaml(written, written) if written.is_file() else {}
    there, here = (
        flatten(migrate_config(before)) if isinstance(before, dict) else {},
        flatten(config.model_dump(mode="json")),
    )
    if written.is_file() and "train.batch_size" not in there:
        raise InputError(f"{written} is damaged: bring it back to go on, or give another output folder.")
    for field, value in here.items():
        if field not in _FREE and value != "auto" and there.get(field, value) != value:
            raise InputError(
                f"{run} holds a run with {field} {there[field]}, not {value}: give --{field} {there[field]} to go on "
                "with it, or another output folder."
            )


def read_record(run: Path) -> dict[str, Any]:
    """The content of ``run.json``, empty where there is none; `InputError` for a damaged one."""
    path = run / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        is_complete = isinstance(record["starts"], list) and all(isinstance(d, dict) for d in record["data"].values())
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        is_complete = False
    if not is_complete:
        raise InputError(f"{path} is damaged: bring it back to go on, or give another output folder.")
    data = {
        name: {_RENAMED_FACTS.get(key, key): value for key, value in facts.items()}
        for name, facts in record["data"].items()
    }
    return {**record, "data": data}


def fingerprint(split: Split) -> dict[str, Any]:
    """SHA-256 of a split's annotations, and of the names and sizes in bytes of its images."""
    images = hashlib.sha256()
    for name, image in zip(split.images.names(), split.images, strict=True):
        images.update(f"{name} {image.path.stat().st_size}\n".encode())
    return {
        "annotations": str(split.json_path),
        "annotations_sha256": _annotations(split),
        "images": len(split),
        "images_sha256": images.hexdigest(),
    }


def _annotations(split: Split) -> str:
    digest = hashlib.sha256()
    if split.json_path.suffix == ".json" and split.json_path.is_file():
        with open(split.json_path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    else:  # another format
        digest.update(json.dumps(split.coco, sort_keys=True).encode())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""Selection of the images of a split: by folder, by lists of file names, or held out by a hash of the names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from masklab.utils.errors import InputError
from masklab.utils.files import read_text
from masklab.utils.words import counted


def choose(
    folder: Path,
    present: Collection[str],
    names_of: Callable[[str], Sequence[str]],
    split: str,
    val_fraction: float,
    seed: int,
) -> tuple[str, list[int], str]:
    """The images of a split: which of the splits that are ``present`` they belong to, and their places in it.

    ``names_of(name)`` lists the images of a split that is present, by their paths relative to ``folder``; "" is the
    name of an undivided one.  Also returns a note on how they were held out, or "".
    """
    held_out = "val" not in present and split in ("train", "val")
    if split in present and not held_out:
        return split, list(range(len(names_of(split)))), ""
    pool = "train" if "train" in present and held_out else ""
    if pool not in present:
        own = next(
            (p for name in sorted(present) for p in (folder / name, folder / f"{name}.json") if p.exists()), None
        )
        advice = "correct the name" if own is None else f"correct the name or give {own} as the data set"
        raise InputError(f"{folder} holds no split {split}: there is {', '.join(sorted(present))}; {advice}.")
    names = names_of(pool)
    lists = {} if pool else split_lists(folder)
    if split in lists:
        kept, note = _listed(lists[split], names), ""
    elif held_out and not lists:
        kept, note = hold_out(names, split, folder, val_fraction, seed)
    elif split == "all":
        kept, note = set(names), ""
    else:
        raise InputError(f"{folder} holds no split {split}: write {split}.txt with one image name per line.")
    return pool, [index for index, name in enumerate(names) if name in kept], note


def split_lists(folder: Path) -> dict[str, Path]:
    """The files ``train.txt``, ``val.txt`` and ``test.txt`` beside an undivided folder of images, by split.

    Raises `InputError` where one of the first two is missing.
    """
    lists = {path.stem: path for path in folder.glob("*.txt") if path.stem in ("train", "val", "test")}
    if lists and not {"train", "val"} <= set(lists):
        raise InputError(f"{folder} has {min(lists)}.txt, but needs both train.txt and val.txt: write both or none.")
    return lists


def _listed(path: Path, names: Sequence[str]) -> set[str]:
    """The images that a file lists, one per line, as path in the data set folder or file name with or without suffix."""
    known: dict[str, str] = {}
    for name in names:
        known |= dict.fromkeys((name, Path(name).name, Path(name).stem), name)
    lines = [line.strip().removeprefix("./") for line in read_text(path).splitlines()]
    strange = [line for line in lines if line and line not in known]
    if strange:
        raise InputError(f"{path} lists {strange[0]}, which is not among the images: correct the line.")
    return {known[line] for line in lines if line}


def hold_out(names: Sequence[str], split: str, folder: Path, val_fraction: float, seed: int) -> tuple[set[str], str]:
    """The images of ``val``, the first by a hash of ``seed`` and file name, or the rest for ``train``; and a note."""
    if len(names) < 2:
        raise InputError(
            f"{folder} has no val, and {counted(len(names), 'image')} {'is' if len(names) == 1 else 'are'} too few to hold some out: add images."
        )

    def rank(name: str) -> tuple[bytes, str]:
        return hashlib.sha256(f"{seed}/{Path(name).name}".encode()).digest(), name

    held_out = set(sorted(names, key=rank)[: min(max(1, round(val_fraction * len(names))), len(names) - 1)])
    note = f"val is {len(held_out)} of {counted(len(names), 'image')}, held out by file name and seed {seed}"
    return (held_out if split == "val" else set(names) - held_out), note

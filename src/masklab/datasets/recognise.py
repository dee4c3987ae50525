"""Recognition of a data set's layout by its files."""

from __future__ import annotations

from pathlib import Path

from masklab.datasets.layouts.base import VAL_NAMES, SplitSource, check_names, subfolders
from masklab.datasets.layouts.coco import DESCRIPTION, NAME, CocoFiles, is_coco
from masklab.datasets.layouts.registry import LAYOUTS
from masklab.datasets.source import Data, as_source
from masklab.datasets.unknown import explain_file, explain_folder, is_of_other_tool
from masklab.utils.errors import InputError


def recognise(data: Data, split: str = "all") -> tuple[Path, dict[str, SplitSource] | CocoFiles]:
    """The folder of a data set, which may lie in the one that is named, and the splits of the one layout that fits."""
    source = as_source(data)
    layout = source.layout
    if layout not in (None, NAME, *(each.name for each in LAYOUTS)):
        names = ", ".join([NAME, *(each.name for each in LAYOUTS)])
        raise InputError(f"layout {layout!r} is not known; name one of {names}.")
    if source.path is None or _is_single_file(source.path, layout):
        files = CocoFiles.of_files(source) if source.path is None else CocoFiles.of_file(source.path)
        check_names(files.folder, split)
        return files.folder, files
    path = folder = source.path
    if folder.suffix.lower() in (".yaml", ".yml") and folder.is_file():
        folder = folder.parent  # YOLO's table, whose folder it is
    check_names(folder, split)
    while (found := _fitting(folder, layout)) is None:
        inside = subfolders(folder)
        if len(inside) != 1:
            raise InputError(explain_folder(path, [each.partition(" (")[0] for each in _descriptions(layout)]))
        folder = inside[0]  # as archives unpack
    return folder, found


def _is_single_file(path: Path, layout: str | None) -> bool:
    """Whether a path is a COCO file; `InputError` for one that is neither that nor a table of YOLO."""
    if not path.is_file() or path.suffix.lower() in (".yaml", ".yml"):
        return False
    if path.suffix.lower() != ".json" or layout not in (None, NAME) or (not is_coco(path) and is_of_other_tool(path)):
        raise InputError(explain_file(path))
    return True


def _descriptions(layout: str | None) -> list[str]:
    """The descriptions of the layouts, or of the one that is named."""
    known = {NAME: DESCRIPTION} | {each.name: each.description for each in LAYOUTS}
    return [known[layout]] if layout else list(known.values())


def _fitting(folder: Path, chosen: str | None = None) -> dict[str, SplitSource] | CocoFiles | None:
    """The splits of the layout that fits a folder, or of the one that is ``chosen``; None where it does not."""
    fitting: dict[str, dict[str, SplitSource] | CocoFiles] = {}
    errors: list[InputError] = []
    if chosen in (None, NAME) and (coco := CocoFiles.find(folder)).splits:
        fitting[NAME] = coco
    for layout in (layout for layout in LAYOUTS if chosen in (None, layout.name)):
        try:
            if splits := layout.find(folder):
                fitting[layout.name] = _with_val(splits)
        except InputError as error:
            errors.append(error)
    if not fitting and errors:
        raise errors[0]
    if len(fitting) > 1:
        described = " and ".join(_descriptions(name)[0] for name in fitting)
        options = " or ".join(f"--layout {name}" for name in fitting)
        raise InputError(f"{folder} fits more than one layout: {described}; say which one you mean ({options}).")
    return next(iter(fitting.values()), None)


def _with_val(found: dict[str, SplitSource]) -> dict[str, SplitSource]:
    """The splits, with ``valid`` or ``validation`` as ``val`` where there is no other."""
    other = next((name for name in VAL_NAMES if name in found), None)
    if other is None or "val" in found:
        return found
    return {"val" if name == other else name: own for name, own in found.items()}

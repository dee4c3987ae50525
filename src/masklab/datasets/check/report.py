"""Report of the data check: findings, table and JSON."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from masklab.datasets.problems import IN_PART, KEPT, PROBLEMS, SKIPPED, STOPS, Problem
from masklab.utils.files import atomic_write
from masklab.utils.words import counted

_EXAMPLES = 4  # of each problem, in the table
_CONSEQUENCES = (STOPS, SKIPPED, IN_PART, KEPT)
_NARROW = 22  # letters of the table's first column
_LISTS = {"images": ("image",), "annotations": ("annotation",), "categories": ("category", "categories")}


class Finding(NamedTuple):
    """One problem of a split: ``problem`` is a key of `PROBLEMS`; ids are the data set's own, where it has any."""

    split: str
    problem: str
    image_id: int | str | None
    annotation_id: int | str | None
    detail: str
    file_name: str | None = None

    @property
    def consequence(self) -> str:
        return PROBLEMS[self.problem]


@dataclass
class Report:
    """What `check` found in ``folder``; ``splits`` has the number of images, annotations and categories of each."""

    folder: Path
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def add(self, split: str, problem: Problem) -> None:
        """Take a problem of a split as a finding."""
        name, detail, image_id, annotation_id, file_name, _ = problem
        self.findings.append(Finding(split, name, image_id, annotation_id, detail, file_name))

    @property
    def count(self) -> Counter[str]:
        """How many findings there are of each consequence."""
        return Counter(finding.consequence for finding in self.findings)

    @property
    def fault(self) -> str | None:
        """A sentence on what training would stop at or skip; None where it takes everything."""
        stops, skipped, in_part = (self.count[consequence] for consequence in (STOPS, SKIPPED, IN_PART))
        left_out = [counted(skipped, "annotation")] * bool(skipped)
        left_out += [f"a part of {counted(in_part, 'mask')}"] * bool(in_part)
        parts = [f"stops at {counted(stops, 'fault')}"] * bool(stops)
        parts += [f"skips {' and '.join(left_out)}"] * bool(left_out)
        if not parts:
            return None
        return f"{self.folder}: training {' and '.join(parts)}: correct them, the table says where."

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every finding, its consequence beside it."""
        findings = [finding._asdict() | {"consequence": finding.consequence} for finding in self.findings]
        counts = {consequence: self.count[consequence] for consequence in _CONSEQUENCES}
        return {"folder": str(self.folder), "splits": self.splits, "counts": counts, "findings": findings}


def print_check(report: Report, console: Console | None = None) -> None:
    """Print a table with a row for each problem of each split: its consequence for training, and where it is."""
    console = console or Console()
    for name, counts in report.splits.items():
        console.print(f"{_shown(name)}: " + ", ".join(counted(counts[what], *forms) for what, forms in _LISTS.items()))
    if not report.findings:
        console.print("nothing is wrong")
        return
    title = f"what is wrong in {_shown(str(report.folder))}"
    table = Table("problem", "count", "training", "where", title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[0].max_width, table.columns[1].justify, table.columns[3].overflow = _NARROW, "right", "fold"
    groups: defaultdict[str, defaultdict[str, list[Finding]]] = defaultdict(lambda: defaultdict(list))
    for finding in report.findings:
        groups[finding.split][finding.problem].append(finding)
    for name, problems in groups.items():
        table.add_section()
        table.add_row(f"[bold]{_shown(name)}[/bold]")
        for problem, group in problems.items():
            places = [_place(finding) for finding in group[:_EXAMPLES]]
            if len(group) > _EXAMPLES:
                places.append(f"... and {len(group) - _EXAMPLES} more; --output FILE lists all")
            words = (problem, str(len(group)), PROBLEMS[problem].removesuffix(" training"), "\n".join(places))
            table.add_row(*map(_shown, words))
    console.print(table)
    console.print(", ".join(f"{consequence}: {report.count[consequence]}" for consequence in _CONSEQUENCES))


def _shown(text: str) -> str:
    """Text for the console, with markup and lone surrogates, which JSON may hold, escaped."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def write_check(path: str | Path, report: Report) -> None:
    """Write every finding as JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")


def _place(finding: Finding) -> str:
    image = "" if finding.image_id is None else f"image {finding.image_id}"
    image += f" ({Path(finding.file_name).name})" if finding.file_name else ""
    number = "" if finding.annotation_id is None else f"annotation {finding.annotation_id}"
    place = ", ".join(part for part in (image, number) if part)
    return f"{place}: {finding.detail}" if place and finding.detail else place or finding.detail

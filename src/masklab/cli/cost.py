"""Table of a model's cost, as `masklab info` prints it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from masklab.model.cost import PartCost


def print_cost(costs: dict[str, PartCost], title: str) -> None:
    """Print the table of `model_cost` under a ``title``, which should say what image and how many classes."""
    table = Table("part", "parameters (M)", "multiply-adds (G)", "share", title=title)
    total = costs["total"].macs
    for name, cost in costs.items():
        if name == "total":
            table.add_section()
        table.add_row(name, f"{cost.parameters / 1e6:.3f}", f"{cost.macs / 1e9:.1f}", f"{cost.macs / total:.0%}")
    for column in table.columns[1:]:
        column.justify = "right"
    Console().print(table)

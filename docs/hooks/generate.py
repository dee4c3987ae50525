"""Pages that are made when the site is built: the reference from the code, and notebooks as Markdown."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pydantic import BaseModel

import masklab
from masklab.cli.parser import new_parser
from masklab.cli.registry import GROUPS, VERBS
from masklab.config import Config
from masklab.config.recipe import read_recipe, recipe_names
from masklab.config.words import allowed

ROOT = Path(__file__).resolve().parents[2]
WIDTH = "78"  # characters of a line of help


def on_files(files: Files, config: Any) -> Files:
    """Add the pages; called by mkdocs before it reads any."""
    pages: dict[str, str | bytes] = {
        "reference/api.md": api(),
        "reference/command-line.md": command_line(),
        "reference/configuration.md": configuration(),
        "reference/recipes.md": recipes(),
        "changelog.md": beside("CHANGELOG.md"),
        "contributing.md": beside("CONTRIBUTING.md"),
    }
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            pages |= notebook(Path(file.abs_src_path or ""), file.src_uri.removesuffix(".ipynb"))
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Keep options whole, in text and in commands: browsers break a line after each hyphen."""

    def kept(code: re.Match[str]) -> str:
        return re.sub(r"(?<![^\s>])-[\w.-]{1,40}(?![^\s<])", r'<span class="option">\g<0></span>', code[0])

    return re.sub(r'<code>[^<\n]+</code>|<div class="language-sh highlight">.*?</code>', kept, html, flags=re.DOTALL)


def beside(name: str) -> str:
    """A document that stands beside ``docs``, with links that hold inside it."""
    return (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")


def api() -> str:
    """A page of everything in ``masklab.__all__``, and of the runtime without torch."""
    head = (
        "# Python\n\n`import masklab` is the stable interface: these names do not change without a word in the changelog. Other "
        "modules are there to be read and may change. What functions share, such as the order of axes, is in "
        "[conventions](conventions.md).\n"
    )
    names = [f"masklab.{name}" for name in sorted(masklab.__all__, key=str.lower) if name != "Config"]
    parts = [f"::: {name}\n    options: {{heading_level: 2}}\n" for name in names]
    parts.append("::: masklab.runtime.load\n    options: {heading_level: 2, show_root_full_path: true}\n")
    config = "## Config\n\nA frozen pydantic model; its fields are those of [the configuration](configuration.md).\n"
    return "\n".join([head, *parts, config])


def command_line() -> str:
    """What ``--help`` of each verb says; of verbs that take the configuration, without its fields."""
    os.environ["COLUMNS"] = WIDTH
    parts = [
        "# Command line\n\n`masklab VERB --help` prints the same. Verbs that end with other codes than 0: "
        "[exit codes](exit-codes.md).\n"
    ]
    parts += [f"`masklab {group} ...`: {text}.\n" for group, text in GROUPS.items() if group]
    for name, verb in VERBS.items():
        parser = new_parser(name, "")
        verb.add_arguments(parser)
        fields = (
            "Every field of [the configuration](configuration.md) is an option too, such as `--train.steps 1000`.\n"
        )
        # options as code, but for those that stand in code already
        about = re.sub(r"(`[^`]*`)|(--[\w.]+)", lambda m: m[1] or f"`{m[2]}`", inspect.getdoc(verb.run) or "")
        parts += [f"## masklab {name}\n", f"{about}\n", fields if verb.config else ""]
        parts.append(f"```text\n{parser.format_help().strip()}\n```\n")
    return "\n".join(parts)


def configuration() -> str:
    """Every field: what it means, what it may hold and its default."""
    parts = [
        "# Configuration\n",
        "A configuration is what a recipe changes of the defaults below, which are the paper's. On the command line a field is an "
        "option, `--model.mask.directions 4`; in a recipe it stands in its group:\n",
        "```yaml\nbase: nuclei   # another recipe to start from\nmodel:\n  mask: {directions: 4}\ntrain:\n  steps: 3000\n```\n",
        "`masklab train RECIPE --help` prints the fields with the values of a recipe. `null` means none. The fields of version 0.1 are "
        "read under their old names, which [the changelog](../changelog.md) lists.\n",
        *_section(Config, ""),
    ]
    return "\n".join(parts)


def _section(section: type[BaseModel], prefix: str) -> Iterator[str]:
    fields = section.model_fields.items()
    plain = [(name, field) for name, field in fields if not _nested(field.annotation)]
    if plain:
        yield f"## {prefix.rstrip('.') or 'Data and output'}\n"
        for name, field in plain:
            default = field.get_default(call_default_factory=True)
            shown = {None: "null", True: "true", False: "false"}.get(default, default) if _simple(default) else default
            yield f"`{prefix}{name}`"
            yield f":   {field.description}<br>*{allowed(field.annotation, field.metadata)}; default* `{shown}`\n"
    for name, field in fields:
        if _nested(field.annotation):
            yield from _section(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]


def _simple(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _nested(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def recipes() -> str:
    """The recipes and what each is for."""
    rows = [f"| `{name}` | {read_recipe(name).description} |" for name in recipe_names()]
    return f"{RECIPES}\n" + "\n".join(["| recipe | |", "|---|---|", *rows, ""])


RECIPES = """# Recipes

A recipe is a YAML file of the fields that differ from [the defaults](configuration.md). `masklab train RECIPE` takes a name of the list
below or a file of your own; `masklab recipes` lists them, and `masklab info RECIPE` counts parameters and multiply-adds part by part
(`masklab info nuclei --cost`, as a model has the same name).

| for | take |
|---|---|
| small, dense objects | `nuclei` |
| the drawn data set of `masklab demo` | `shapes` |
| the paper's model at full size, from ImageNet weights | `resnet101` |
| the paper's final models, from weights of `masklab pretrain` | `masklab`, `masklab-plus` |
| a row of the paper's Tables 1 to 6 | `table1-21` ... `table6-jft` |
| other mask heads in the same detector; the two refinements | `heads-...`, `refinement-...` |

To train and evaluate a whole table of the paper on your images, each row with three seeds (run the command again after an
interruption; finished rows are kept):

```sh
masklab ablate table3 --recipe nuclei --data DIR --output runs/table3 --seeds 3
```

## All
"""


def notebook(path: Path, name: str) -> dict[str, str | bytes]:
    """A notebook as a page with its output, and its pictures."""
    from nbconvert import MarkdownExporter

    body, resources = MarkdownExporter().from_filename(str(path))
    folder = name.rpartition("/")[0]
    note = f"\n\nThis page is the notebook `docs/{name}.ipynb`.\n"
    title, _, rest = body.partition("\n")
    return {f"{name}.md": f"{title}{note}{rest}"} | {
        f"{folder}/{key}": data for key, data in resources["outputs"].items()
    }

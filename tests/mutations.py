"""Damage to the files of a data set, whatever its layout: text, JSON, XML, and bytes, and the files themselves.

`mutate` changes one file of a folder, chosen by a random generator; the same generator makes the same change.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Random = np.random.Generator

TEXTS = (".json", ".geojson", ".xml", ".txt", ".csv", ".yaml", ".yml", ".data", ".names")
NUMBERS = (
    "0",
    "-1",
    "1e308",
    "nan",
    "inf",
    "-inf",
    str(2**31),
    str(2**63),
    str(2**64),
    "9" * 400,
    "0.5",
    "1_0",
    "\u0661",
)
WORDS = (
    *(
        "",
        "\ud800",
        "a" * 5000,
        "new\nline",
        "a\0b",
        "../1.png",
        "/etc/passwd",
        "..\\1.png",
        "C:\\1.png",
        "é",
        "\x1b[2J",
    ),
    *("a/" * 3000 + "b.png", "1", "true", "null", "&#0;", "<![CDATA[", "&x;", '"', "[", "{", "---", "!!python/name:os"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**400),
    *(
        "",
        "0",
        "1",
        "nan",
        "\ud800",
        "a" * 5000,
        "new\nline",
        "a\0b",
        "../1.png",
        "/etc/passwd",
        "C:\\1.png",
        "eJxjYGBg",
    ),
    *([], [[]], {}, [None], {"a": None}, [[None, None]] * 3, [[0, 0]] * 3, [[float("nan")] * 2] * 3, [[1e300, 2]] * 4),
    *([[2**70, 0]] * 3, [0] * 7, [[0, 0], [2**40, 0], [5, 9]], [[[[[[[[1]]]]]]]], {"x": 1, "y": float("inf")}),
    *("5,5;" * 2000, "1,2;nan,4;5,6", [-1, 2**40, 2**40, 2**40], [[1, 2]] * 20_000),
)
DEEP = 100_000


def mutate(folder: Path, random: Random) -> str:
    """Damage one file of a folder that is written anew for each case; says what was done, to repeat it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix.lower() in TEXTS]
    others = [path for path in files if path.suffix.lower() not in TEXTS]
    pool = texts if texts and (not others or random.random() < 0.75) else others
    path = pool[random.integers(len(pool))]
    ways = [*BYTES, *FILES] if path.suffix.lower() not in TEXTS else [*BYTES, *FILES, *(TEXT * 3)]
    if path.suffix.lower() in (".json", ".geojson"):
        ways += [at_a_place_of_json] * 3 * len(ways)
    elif path.suffix.lower() == ".xml":
        ways += XML * len(ways)
    way = ways[random.integers(len(ways))]
    way(path, random)
    return f"{way.__name__} of {path.relative_to(folder)}"


def pick(random: Random, values: Any) -> Any:
    return values[random.integers(len(values))]


# Bytes


def cut(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.integers(len(content) + 1)])


def flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.integers(1, 4)):
        if content:
            length = len(content) if random.random() < 0.5 else min(len(content), 200)
            content[random.integers(length)] ^= 1 << int(random.integers(8))
    path.write_bytes(content)


def write_over(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    place, length = random.integers(len(content) + 1), random.integers(1, 13)
    taken, given = random.integers(0, 2, 2) * length
    content[place : place + taken] = random.bytes(int(given))
    path.write_bytes(content)


# Files


def empty(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def remove(path: Path, random: Random) -> None:
    path.unlink()


def rename(path: Path, random: Random) -> None:
    names = (path.name.upper(), f"x{path.name}", path.stem, f"{path.stem}.png", f"{path.stem} é.txt", f".{path.name}")
    target = path.with_name(pick(random, names))
    if not target.is_dir():  # such as val.json beside val
        path.rename(target)


def duplicate(path: Path, random: Random) -> None:
    others = (
        f"{path.stem}2{path.suffix}",
        f"{path.stem}.png",
        f"{path.stem}.tif",
        f"{path.stem}.json",
        f"a{path.name}",
    )
    shutil.copy(path, path.with_name(pick(random, [name for name in others if name != path.name])))


def make_folder(path: Path, random: Random) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path, random: Random) -> None:
    path.unlink()
    path.symlink_to(pick(random, ("/etc/passwd", "nothing", path.name, "..", "/dev/zero")))


def make_pipe(path: Path, random: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def swap(path: Path, random: Random) -> None:
    """The content of another file of the data set."""
    others = sorted(other for other in path.parent.rglob("*") if other.is_file() and other != path)
    if others:
        path.write_bytes(pick(random, others).read_bytes())


# Text


def of_text(change: Callable[[str, Random], str]) -> Callable[[Path, Random], None]:
    def way(path: Path, random: Random) -> None:
        text = change(path.read_text(encoding="utf-8", errors="surrogateescape"), random)
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))

    way.__name__ = change.__name__
    return way


def a_number(text: str, random: Random) -> str:
    return one_match(r"-?\d+(\.\d+)?", text, random, pick(random, NUMBERS))


def a_word(text: str, random: Random) -> str:
    return one_match(r"[^\W\d]\w*", text, random, pick(random, WORDS))


def one_match(pattern: str, text: str, random: Random, new: str) -> str:
    places = list(re.finditer(pattern, text))
    if not places:
        return text + new
    place = pick(random, places)
    return text[: place.start()] + new + text[place.end() :]


def lines(text: str, random: Random) -> str:
    """A line is taken out, said twice or moved."""
    rows = text.split("\n")
    row = rows.pop(random.integers(len(rows)))
    for _ in range(random.integers(3)):
        rows.insert(random.integers(len(rows) + 1), row)
    return "\n".join(rows)


def deep(text: str, random: Random) -> str:
    head = pick(random, ("[", '{"a":', "<a>", "{a: ", "- ", "("))
    return head * DEEP + pick(random, ("", text))


def encoding(path: Path, random: Random) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    name = pick(random, ("utf-16", "utf-8-sig", "utf-32", "latin-1", "utf-16-be", "cp037"))
    path.write_bytes(text.encode(name, errors="replace"))


# JSON


def at_a_place_of_json(path: Path, random: Random) -> None:
    """Something hostile, nothing, or what is there once more, at one place, fields by name equally often."""
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    fields: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for place in places_of(values):
        fields.setdefault(tuple(step for step in place if isinstance(step, str)), []).append(place)
    if not fields:
        return empty(path, random)
    place = pick(random, pick(random, list(fields.values())))
    node = values
    for step in place[:-1]:
        node = node[step]
    how = random.random()
    if how < 0.1:
        del node[place[-1]]
    elif how < 0.2 and isinstance(node, list):
        node.append(copy.deepcopy(node[place[-1]]))
    elif how < 0.3 and isinstance(node, dict):
        node[pick(random, WORDS)] = node.pop(place[-1])
    else:
        node[place[-1]] = pick(random, VALUES)
    path.write_text(json.dumps(values))


def places_of(values: Any, path: tuple[Any, ...] = ()) -> Any:
    if isinstance(values, (dict, list)):
        for key in values if isinstance(values, dict) else range(len(values)):
            yield (*path, key)
            yield from places_of(values[key], (*path, key))


# XML


def tag_out(text: str, random: Random) -> str:
    return one_match(r"<[^>]*>", text, random, "")


def tag_renamed(text: str, random: Random) -> str:
    return one_match(r"(?<=<)\w+", text, random, pick(random, ("a", "image", "object", "", "1")))


def attribute(text: str, random: Random) -> str:
    """A value of an attribute, or the text of an element."""
    return one_match(r'(?<=")[^"<>]*(?=")|(?<=>)[^<>\s][^<>]*(?=<)', text, random, pick(random, (*NUMBERS, *WORDS)))


def attribute_out(text: str, random: Random) -> str:
    return one_match(r'\w+="[^"]*"', text, random, "")


def entities(text: str, random: Random) -> str:
    """A billion laughs, or a file of the computer."""
    laughs = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    bomb = f'<!DOCTYPE x [<!ENTITY a "lol">{laughs}]>'
    file = '<!DOCTYPE x [<!ENTITY j SYSTEM "file:///etc/passwd">]>'
    body = re.sub(r"<\?xml[^>]*\?>", "", text)
    return pick(random, (bomb, file)) + attribute_by(body, "&j;")


def attribute_by(text: str, new: str) -> str:
    return re.sub(r"(?<=>)[^<>\s][^<>]*(?=<)", new, text, count=1)


BYTES = [cut, flip, write_over]
FILES = [empty, remove, rename, duplicate, make_folder, make_link, make_pipe, swap]
TEXT = [encoding, *map(of_text, (a_number, a_word, lines, deep))]
XML = [*map(of_text, (tag_out, tag_renamed, attribute, attribute_out, entities))]

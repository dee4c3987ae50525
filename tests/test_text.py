"""Text of any script: in pictures, and on terminals of any encoding."""

import io
import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw, ImageFont

from masklab.datasets.statistics import Statistics
from masklab.masks import rle
from masklab.model.build import build_model
from masklab.plots import sheets
from masklab.plots.charts import statistics_chart
from masklab.results import text
from masklab.results.instances import Instances
from masklab.results.overlay import overlay
from masklab.results.text import drawable
from masklab.structures import ClassTable
from masklab.utils.log import any_encoding, terminal_messages
from masklab.weights.checkpoint import save_model

CELL = "細胞"
AWKWARD = (
    "Zellkörper",
    "клетка",
    CELL,
    "صورة",
    "a\nb",
    "tab\t\x1b[31m",
    "😀‍👩",
    "e\u0301",
    "",
    "\udcff",
    "$x_1^{",
    "﷽",
)


@pytest.fixture
def fonts(monkeypatch):
    """Choose the fonts of the system."""

    def choose(*paths):
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(path) for path in paths])
        text._system_fonts.cache_clear()

    yield choose
    monkeypatch.undo()
    text._system_fonts.cache_clear()


def write_font(path, letters):
    """A font in which each of the letters, and what `drawable` needs, is a block."""
    pen = TTGlyphPen(None)
    for point, draw in (((0, 0), pen.moveTo), ((0, 700), pen.lineTo), ((500, 700), pen.lineTo), ((500, 0), pen.lineTo)):
        draw(point)
    pen.closePath()
    block = pen.glyph()
    codes = sorted({*map(ord, letters), *text._NEEDED})
    names = [".notdef", *(f"u{code:04X}" for code in codes)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict(zip(codes, names[1:], strict=True)))
    font.setupGlyf({name: block if name != ".notdef" else TTGlyphPen(None).glyph() for name in names})
    font.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return path


# ---- fonts


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cell 0.93", "cell 0.93"),
        ("Zellkörper", "Zellkörper"),
        ("e\u0301", "é"),
        ("клетка λ", "клетка λ"),
        (f"a {CELL}", "a U+7D30U+80DE"),
        ("a\nb\tc", "a b c"),
        ("a\x1b[1m", "aU+001B[1m"),
        ("\udcff", "U+DCFF"),
        ("a\u200db\ufe0f", "ab"),
        ("", ""),
    ],
)
def test_what_no_font_has_is_written_as_its_code(fonts, name, shown):
    fonts()
    written, font = drawable(name, 17)
    assert written == shown
    assert font.size == 17
    missing = {letter for letter in written if ord(letter) not in text._letters(getattr(font, "path", None))}
    assert isinstance(font.path, io.BytesIO) or not missing


def test_plain_text_stays_in_the_font_of_all_figures(fonts):
    fonts()
    assert isinstance(drawable("cell: 5", 17)[1].path, io.BytesIO)
    assert drawable("Zelle ß", 17)[1].path.endswith("DejaVuSans.ttf")


def test_a_font_of_the_system_is_found(fonts, tmp_path):
    (tmp_path / "broken-cjk.ttf").write_bytes(b"no font")
    some = write_font(tmp_path / "some-cjk.ttf", CELL[0])
    both = write_font(tmp_path / "z.ttf", CELL)
    blank = write_font(tmp_path / "LastResort.ttf", CELL + "語")
    fonts(tmp_path / "broken-cjk.ttf", some, blank, both)
    written, font = drawable(CELL, 20)
    assert (written, font.path) == (CELL, str(both))
    assert drawable(f"{CELL}語", 20)[0] == f"{CELL}U+8A9E"
    assert drawable(CELL[0], 20)[1].path == str(some)


def test_a_font_that_has_no_such_size_is_passed_over(fonts, tmp_path, monkeypatch):
    first, second = (write_font(tmp_path / f"{name}.ttf", CELL) for name in ("cjk-bitmap", "other"))
    opened = ImageFont.truetype

    def refuse(path, *args, **kwargs):
        if path == str(first):
            raise OSError("invalid pixel size")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(ImageFont, "truetype", refuse)
    fonts(first, second)
    assert drawable(CELL, 23)[1].path == str(second)


# ---- pictures


def scene(names):
    """An object of each class, side by side."""
    count = len(names)
    boxes = np.array([[400 * k, 100, 400 * k + 380, 390] for k in range(count)], np.float32)
    ones = np.ones((count, 3, 3), np.float32)
    scores = np.full(count, 0.9, np.float32)
    return Instances((400, 400 * count), boxes, scores, np.arange(count), ones, tuple(names), tuple(range(count)))


def test_labels_of_any_script_are_drawn(fonts, tmp_path):
    """The label of a class is what its letters are in the font that was found: here blocks."""
    fonts(write_font(tmp_path / "cjk.ttf", f"{CELL}.9"))
    grey = np.full((3, 400, 800), 90, np.uint8)
    above = (slice(150, 200), slice(0, 300))  # of the first box, on an image twice as large
    label = np.asarray(overlay(grey, scene([CELL, "cell"])))[above]
    ink = (label == 0).all(axis=2)
    assert ink.sum() > 0.3 * (label != 90).any(axis=2).sum(), "blocks fill the label"
    fonts()
    assert not (np.asarray(overlay(grey, scene([CELL, "cell"])))[above] == label).all()


def test_no_name_breaks_a_picture(fonts):
    fonts()
    drawn = overlay(np.full((3, 400, 400 * len(AWKWARD)), 90, np.uint8), scene(AWKWARD))
    assert drawn.width >= 400 * len(AWKWARD)
    counts = np.arange(len(AWKWARD))
    chart = statistics_chart(AWKWARD[2], Statistics(np.geomspace(3, 9, 5), counts, counts), AWKWARD, "as they are")
    assert chart.width == sheets.PAGE
    for name in AWKWARD:
        assert sheets.text_block(f"{name} {name}", 60).width <= 60
    canvas = Image.new("RGB", (900, 900))
    labels = sheets.Labels(canvas)
    for row, name in enumerate(AWKWARD):
        labels.add(name, np.array([20.0, 40.0 * row + 30]))
    labels.draw()
    assert len(labels.placed) == len(AWKWARD) - 1, "all but the empty one"


def test_paragraphs_stay_apart(fonts):
    fonts()
    one, two = (sheets.text_block(words, 900) for words in ("Zelle ö Zelle ö", "Zelle ö\nZelle ö"))
    assert two.height == 2 * one.height


def test_a_chart_names_classes_in_a_font_that_has_them(fonts, tmp_path):
    def names_column():
        chart = statistics_chart("a", Statistics(np.ones(3), np.ones(3), np.array([2, 1])), [CELL, "b"], "b")
        return np.asarray(chart)[-90:-30, :140]

    fonts()
    as_codes = names_column()
    fonts(write_font(tmp_path / "cjk.ttf", CELL))
    found = names_column()
    assert not (as_codes == found).all()
    assert (found.max(axis=2) < 60).sum() > 100


# ---- terminals


def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch):
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="cp437", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    with any_encoding(), terminal_messages():
        logging.getLogger("masklab.test").info("%s é \udcff \x1b[2J", CELL)
        print(CELL)
    assert terminal.errors == "strict"
    assert raw.getvalue().decode("cp437") == f"{ascii(CELL)[1:-1]} é \\udcff \\x1b[2J\n{ascii(CELL)[1:-1]}\n"


@pytest.fixture(scope="module")
def abroad(tmp_path_factory, tiny_config):
    """A data set and a model whose names are beyond ASCII."""
    folder = tmp_path_factory.mktemp("abroad") / f"Bilder {CELL}"
    (folder / "val").mkdir(parents=True)
    names = (CELL, "Zellkörper")
    square = {"counts": rle.rle_to_coco([np.array([800, 20, 20, 360])], (30, 40))[0]["counts"], "size": [30, 40]}
    images, annotations = [], []
    for number, name in enumerate(("ä.png", f"{CELL}\u0301.png"), 1):
        Image.new("RGB", (40, 30), (90, 90, 90)).save(folder / "val" / name)
        images.append({"id": number, "file_name": name, "width": 40, "height": 30})
        annotations.append(
            {"id": number, "image_id": number, "category_id": number, "segmentation": square, "iscrowd": 0}
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    split = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(split, ensure_ascii=False), encoding="utf-8")
    (folder / "val" / "é.czi").touch()
    save_model(build_model(tiny_config, ClassTable((1, 2), names)), folder / "modèle.safetensors")
    return folder


VERBS = {
    "predict": ["predict", "{model}", "{data}/val", "--score", "0"],
    "evaluate": ["evaluate", "{model}", "--data", "{data}", "--output", "{out}/ä.json"],
    "show": ["show", "{model}", "{data}/val/ä.png", "--score", "0"],
    "check": ["data", "check", "{data}"],
    "data show": ["data", "show", "{data}", "--split", "val"],
    "info": ["info", "{model}"],
    "unknown": ["predict", "{model}", "{data}/日本.png"],
    "help": ["predict", "--help"],
}


RUN_ALL = """
import json, sys
from masklab.cli.app import main
codes = {}
for name, words in json.loads(sys.argv[1]).items():
    try:
        codes[name] = main(words)
    except SystemExit as end:
        codes[name] = end.code or 0
print(json.dumps(codes))
"""


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict"])
def test_no_encoding_of_a_terminal_ends_a_verb(abroad, tmp_path, encoding):
    """One process runs all verbs, as each start takes seconds."""
    values = {"model": abroad / "modèle.safetensors", "data": abroad, "out": tmp_path}
    verbs = {verb: [word.format(**values) for word in words] for verb, words in VERBS.items()}
    for verb in ("predict", "show", "data show"):
        verbs[verb] += ["--output", str(tmp_path / f"Ausgabe ö 細 {verb}")]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN_ALL, json.dumps(verbs)]
    done = subprocess.run(command, capture_output=True, env=environment, cwd=tmp_path, check=False)
    said = (done.stdout + done.stderr).decode(encoding.split(":")[0], "backslashreplace")
    assert done.returncode == 0, said
    codes = json.loads(done.stdout.splitlines()[-1])
    refused = {"unknown": 2, "check": 1}  # no such image, no training split
    assert codes == dict.fromkeys(VERBS, 0) | refused, said
    assert r"\u7d30" in said, "what the encoding lacks is escaped"
    assert "Traceback" not in said


def test_a_label_is_as_wide_as_its_text(fonts):
    fonts()
    written, font = drawable("клетка 0.90", 17)
    box = ImageDraw.Draw(Image.new("RGB", (300, 40))).textbbox((0, 0), written, font=font)
    assert box[2] == pytest.approx(font.getlength(written), abs=2)

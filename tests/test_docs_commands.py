"""The commands of the documents run: on drawn data, with a step of training."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from masklab.cli.app import main, parse
from masklab.datasets.synthetic.nuclei import draw_nuclei

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
HOW_TO = [
    *sorted((DOCS / "howto").glob("*.md")),
    *(DOCS / f"{name}.md" for name in ("opening-results", "large-images", "report")),
]
LEARN = sorted((DOCS / "learn").glob("*.md"))

SMALLER = {  # what the pages draw, so that it is drawn in no time
    "masklab data shapes shapes": "masklab data shapes shapes --train 2 --val 1",
    '(("train", 12, 0), ("val", 4, 100))': '(("train", 2, 0), ("val", 1, 100))',
    "count=60,": "count=8, size=(72, 72),",
    '(("train", 40), ("val", 8))': '(("train", 2), ("val", 1))',
    "HEIGHT, WIDTH = 224, 288": "HEIGHT, WIDTH = 88, 96",
}
SHORT = shlex.split("--train.steps 1 --train.warmup_steps 0 --train.batch_size 1 --train.workers 0 --train.log_every 1")
LENGTH = re.compile(r" --train\.(minutes|steps|warmup_steps|validate_every|batch_size) \S+")
ELSEWHERE = (  # tested in test_export, test_many_machines, test_download, test_ablate, test_cli, test_long_runs, test_serve
    "export", "data download", "demo", "ablate", "pretrain", "--engine ray", "serve", "--train.devices", "resnet101", "wandb",
)  # fmt: skip


def blocks(path):
    """The code blocks of a page: language, title and text, also those indented under an admonition."""
    pattern = r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$"
    for indent, language, title, text in re.findall(
        pattern, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    ):
        yield language, title, re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def commands(text):
    """The lines of a shell block, those that go on joined, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line.partition(" # ")[0].split()) for line in lines if line.strip() and line[0] not in "# "]


def masklab_commands(path):
    return [
        command
        for language, _, text in blocks(path)
        if language in ("sh", "bash")
        for command in commands(text)
        if command.startswith("masklab ")
    ]


def run(command):
    if command.startswith("masklab train "):
        command = " ".join([LENGTH.sub("", command), *SHORT])
    assert main(shlex.split(command)[1:]) == 0, command


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_every_command_is_understood(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for recipe in (
        "runs/a/config.yaml",
        "runs/first/config.yaml",
        "runs/mine/config.yaml",
        "figures/train_suggestion.yaml",
    ):
        Path(recipe).parent.mkdir(parents=True)
        Path(recipe).write_text("base: nuclei\n")
    for command in masklab_commands(path):
        words = shlex.split(command)[1:]
        if words[0] != "..." and "$" not in command and "--help" not in words and "--version" not in words:
            parse(words)


def test_what_is_drawn_smaller_is_on_a_page():
    text = "\n".join(path.read_text(encoding="utf-8") for path in LEARN)
    assert [large for large in SMALLER if large not in text] == []


@pytest.mark.parametrize("path", LEARN, ids=lambda path: path.stem)
def test_what_is_to_be_learned_runs(path, tmp_path, monkeypatch):
    """A page from its first command to its last, with the programs that it shows."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    for language, title, text in blocks(path):
        for large, small in SMALLER.items():
            text = text.replace(large, small)
        if title:
            Path(title).write_text(text)
        elif language == "python":
            exec(compile(text, path.name, "exec"), {})
        elif language == "sh":
            for command in commands(text):
                if command.startswith("python "):
                    script = Path(command.split()[1])
                    exec(compile(script.read_text(), script.name, "exec"), {})
                elif command.startswith("masklab "):
                    run(command)
                    ran += 1
                else:
                    assert command.startswith("pip install "), command
    assert ran >= 5


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with what the pages name: DIR, IMAGE, FILE, runs/mine and so on."""
    folder = tmp_path_factory.mktemp("howto")
    for split, count in (("train", 2), ("val", 1)):
        for kind in ("images", "masks"):
            (folder / "DIR" / split / kind).mkdir(parents=True)
        for n in range(count):
            image, labels = draw_nuclei(8, n, (72, 72))
            Image.fromarray(image[0]).save(folder / "DIR" / split / "images" / f"{n}.png")
            Image.fromarray(labels.astype("uint16")).save(folder / "DIR" / split / "masks" / f"{n}.png")
    image = draw_nuclei(8, 5, (72, 72))[0][0]
    (folder / "IMAGE_OR_FOLDER").mkdir()
    (folder / "IMAGES").mkdir()
    for name in ("IMAGE", "IMAGE_OR_FOLDER/x.png", "IMAGES/x.png"):
        Image.fromarray(image).save(folder / name, "PNG")
    tifffile.imwrite(folder / "SLIDE.svs", np.repeat(image[..., None], 3, axis=2))
    (folder / "FILE").write_text("file,x1,y1,x2,y2,class,score\nx.png,10,10,30,30,nucleus,0.9\n")
    coco = {
        "images": [{"id": 7, "file_name": "x.png", "width": 72, "height": 72}],
        "categories": [{"id": 1, "name": "object"}],
    }
    (folder / "val.json").write_text(str(coco | {"annotations": []}).replace("'", '"'))
    words = ["train", "nuclei", "--data", str(folder / "DIR"), "--output", str(folder / "runs" / "mine")]
    assert main([*words, *SHORT, "--model.backbone.width", "0.25"]) == 0
    for name in ("old", "new"):
        shutil.copytree(folder / "runs" / "mine", folder / "runs" / name)
    return folder


@pytest.mark.parametrize("path", HOW_TO, ids=lambda path: path.stem)
def test_how_to_commands_run(path, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    for command in masklab_commands(path):
        if not any(word in command for word in ELSEWHERE):
            run(command)

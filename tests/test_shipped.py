"""Trained models that come with the package, weights in half precision, and the drawn image they are tried on."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import assert_instances, fails
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import masklab
from masklab.cli.app import main
from masklab.cli.demo import try_nuclei
from masklab.cli.options import MODEL_HELP
from masklab.config.schema import DATA_AND_OUTPUT
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model, save_model
from masklab.weights.facts import describe, find_weights, model_names, read_notes

MEGABYTES = 12


@pytest.fixture(scope="module")
def shipped():
    return masklab.load("nuclei", "cpu")


@pytest.fixture(scope="module")
def drawn():
    return draw_nuclei()


@pytest.fixture(scope="module")
def found(shipped, drawn):
    return shipped.predict(drawn[0])


@pytest.fixture
def tiny(tiny_config, classes):
    torch.manual_seed(0)
    return build_model(tiny_config, classes)


def ious(labels, masks):
    """IoU of every object of a label image with every mask, pixel by pixel: (objects, masks)."""
    objects = [labels == label for label in range(1, labels.max() + 1)]
    return np.array([[(a & b).sum() / (a | b).sum() for b in masks] for a in objects])


# The image


def test_nothing_drawn_is_dark_noise():
    image, labels = draw_nuclei(0, size=(64, 80))
    assert image.shape == (3, 64, 80)
    assert labels.shape == (64, 80)
    assert labels.max() == 0
    assert 4 < image.mean() < 12
    assert image.std() > 1
    assert image.max() < 30


def test_the_same_seed_draws_the_same_image(drawn):
    again, labels = draw_nuclei(seed=0)
    assert (again == drawn[0]).all()
    assert (labels == drawn[1]).all()
    assert (draw_nuclei(seed=1)[0] != drawn[0]).any()


def test_labels_are_where_the_light_is(drawn):
    image, labels = drawn
    assert (image == image[:1]).all(), "grey"
    assert sorted(np.unique(labels)) == list(range(33))
    assert np.bincount(labels.ravel())[1:].min() > 80
    light = image[0].astype(float)
    touching = set()
    for label in range(1, 33):
        own = labels == label
        shifted = [np.roll(own, (dy, dx), (0, 1)) for dy in range(-2, 3) for dx in range(-2, 3)]
        around = np.any(shifted, axis=0) & (labels != label)
        assert light[own].mean() > 1.5 * light[around & (labels == 0)].mean()
        core = np.all(shifted, axis=0)
        assert light[core].min() > 25, "as bright as a nucleus to two pixels from its edge"
        touching |= {(label, other) for other in np.unique(labels[around]) if other}
    assert len({label for label, _ in touching}) > 12
    apart = ~np.any([np.roll(labels > 0, (dy, dx), (0, 1)) for dy in range(-4, 5) for dx in range(-4, 5)], axis=0)
    assert light[apart].max() < 25, "and dark everywhere else"


def test_where_there_is_no_room_there_are_fewer():
    _, labels = draw_nuclei(50, size=(48, 48))
    assert 3 < labels.max() < 20


# Half precision


def test_half_precision_comes_back_as_it_was_rounded(tiny, tmp_path):
    tiny.register_buffer("counted", torch.tensor([70001]))
    tiny.score_threshold = 0.35
    for half in (False, True):
        save_model(tiny, tmp_path / f"{half}.safetensors", {"step": 3}, half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (True, False)]
    assert sizes[0] < 0.65 * sizes[1]
    stored = load_file(tmp_path / "True.safetensors")
    for name, tensor in tiny.state_dict().items():
        if tensor.is_floating_point():
            assert stored[name].dtype == torch.float16
            assert ((stored[name].float() - tensor).abs() <= tensor.abs() * 2**-11 + 2**-25).all(), name
        else:
            assert torch.equal(stored[name], tensor)
    del tiny.counted
    save_model(tiny, tmp_path / "half.safetensors", {"step": 3}, half=True)
    again = load_model(tmp_path / "half.safetensors", "cpu")
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, tiny.state_dict()[name].half().float()) for name, value in again.state_dict().items())
    assert again.score_threshold == 0.35
    assert again.classes == tiny.classes
    assert read_notes(tmp_path / "half.safetensors") == {"step": 3}
    save_model(again, tmp_path / "twice.safetensors", half=True)
    assert torch.equal(load_model(tmp_path / "twice.safetensors", "cpu").rpn.conv.weight, again.rpn.conv.weight)


def test_a_half_file_that_was_changed_is_refused(tiny, tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(tiny, path, half=True)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    fails(["half.safetensors was changed"], load_model, path)


def test_weights_beyond_half_precision_are_refused(tiny, tmp_path):
    name, weight = next(iter(tiny.named_parameters()))
    torch.nn.init.constant_(weight, 70000.0)
    fails([name, "65504"], lambda: save_model(tiny, tmp_path / "half.safetensors", half=True))
    assert not list(tmp_path.iterdir())


def full_masks(instances):
    return [instances.mask(n) for n in range(len(instances))]


def test_rounding_to_half_precision_changes_no_object(shipped, drawn, found, tmp_path):
    """Weights that half precision rounds to the shipped ones find the same objects: the same number, masks at an
    IoU of 0.95 and scores to 0.05."""
    full = load_model("nuclei", "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for value in full.parameters():
            value += value * (torch.rand_like(value) * 2 - 1) * 0.99 * 2**-12
    save_model(full, tmp_path / "half.safetensors", half=True)
    rounded, own = load_file(tmp_path / "half.safetensors"), load_file(find_weights("nuclei"))
    assert all(torch.equal(rounded[name], own[name]) for name in own)
    assert not torch.equal(full.rpn.conv.weight, shipped.model.rpn.conv.weight)
    before, after = (x.above(shipped.threshold) for x in (Predictor(full).predict(drawn[0]), found))
    assert len(before) == len(after)
    shares = np.array([[(a & b).sum() / (a | b).sum() for b in full_masks(after)] for a in full_masks(before)])
    assert shares.max(axis=1).min() > 0.95
    assert sorted(shares.argmax(axis=1)) == list(range(len(after))), "one for one"
    assert np.abs(before.scores - after.scores[shares.argmax(axis=1)]).max() < 0.05


# The model


def test_the_shipped_model_outlines_what_is_drawn(shipped, drawn, found, tmp_path):
    assert_instances(found, shipped)
    sure = found.above(shipped.threshold)
    shares = ious(drawn[1], full_masks(sure))
    count = int((shares.max(axis=1) >= 0.5).sum())
    assert count >= 0.8 * 32, f"{count} of 32 nuclei found"
    assert len(sure) <= 1.1 * 32, "hardly anything else"
    assert np.median(shares.max(axis=1)) > 0.8
    assert try_nuclei(tmp_path / "nuclei.png") == (count, 32)
    overlay = np.asarray(Image.open(tmp_path / "nuclei.png").convert("RGB")).astype(int)
    coloured = overlay.max(axis=2) - overlay.min(axis=2) > 20
    assert coloured[::2, ::2][drawn[1] > 0].mean() > 0.8
    assert coloured[::2, ::2][drawn[1] == 0].mean() < 0.05


def test_the_shipped_model_finds_nothing_in_darkness(shipped):
    assert len(shipped.predict(draw_nuclei(0, size=(128, 128))[0]).above(shipped.threshold)) == 0


def test_packaged_files_are_small_halved_and_complete():
    assert "nuclei" in model_names()
    for name in model_names():
        path = find_weights(name)
        assert path.stat().st_size <= MEGABYTES * 1e6
        with safe_open(path, framework="pt") as opened:
            header = opened.metadata()
            assert {opened.get_slice(key).get_dtype() for key in opened.keys()} <= {"F16", "I64"}  # noqa: SIM118
        assert set(header) == {"format", "config", "classes", "score_threshold", "training_data", "notes", "sha256"}
        assert not {"data", "output"} & set(json.loads(header["config"])), "no path of the training machine"
        assert json.loads(header["classes"])["names"]
        assert 0 < json.loads(header["score_threshold"]) < 1
        notes = json.loads(header["notes"])
        assert notes["step"] > 0
        assert notes["val"]["mask_AP"] > 0.5
        model = load_model(name, "cpu")
        assert {value.dtype for value in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", model_names())
def test_the_header_of_a_packaged_file_holds_exactly_the_present_fields(name):
    """No field that reading would migrate, and none that would take its default."""
    with safe_open(find_weights(name), framework="pt") as opened:
        stored = json.loads(opened.metadata()["config"])
    assert stored == load_model(name, "cpu").config.model_dump(mode="json", exclude=set(DATA_AND_OUTPUT))


def test_every_packaged_model_has_a_card_of_its_own_figures():
    for name in model_names():
        card = find_weights(name).with_suffix(".md").read_text(encoding="utf-8")
        for word in ("## Data", "CC0", "## How it was made", "masklab train", "seed", "## What it scored", "## Limits"):
            assert word in card, f"{name}.md lacks {word}"
        notes = read_notes(name)
        assert f"{notes['step']} steps" in card
        for figure in ("mask_AP", "mask_AP50", "mask_AP75", "box_AP"):
            assert f"{notes['val'][figure]:.3f}" in card, f"{name}.md is of other weights: {figure}"
        assert hashlib.sha256(find_weights(name).read_bytes()).hexdigest() in card, f"{name}.md is of another file"
        assert card in describe(name)


def test_the_documents_give_the_figures_of_the_card():
    root = Path(__file__).resolve().parents[1]
    card, readme, results = (
        " ".join(path.read_text(encoding="utf-8").split())
        for path in (find_weights("nuclei").with_suffix(".md"), root / "README.md", root / "docs" / "results.md")
    )
    ap, ap50, ap75, box, *matched = re.search(r"\| this file \|([^a-z]*) \|", card)[1].replace("|", "").split()
    kaggle, stardist, cellpose = matched
    assert f"mask AP {ap}, AP50 {ap50}, AP75 {ap75}; box AP {box}; Kaggle score {kaggle} |" in readme
    assert f"| masks | {ap} | {ap50} | {ap75} |" in results
    assert f"| boxes | {box} |" in results
    assert f"Kaggle {kaggle}, StarDist {stardist}, Cellpose {cellpose}." in results
    stained = re.search(
        r"the (\d+) such images of val, with (\d+) nuclei, mask AP is ([\d.]+) and AP50 ([\d.]+)\. ", card
    )
    assert f"| colour: stained tissue | {' | '.join(stained.groups())} |" in results
    annotated = re.search(r"\| masks in the annotated boxes \| (\S+) \| (\S+) \| (\S+) \|", results).groups()
    assert "mask AP {}, AP50 {}, AP75 {} |".format(*annotated) in readme


# Its name


def test_a_file_or_a_run_of_the_name_wins(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = find_weights("nuclei")
    assert packaged.parent.parent.parent.name == "masklab"
    with pytest.raises(InputError):
        find_weights("./nuclei")
    (tmp_path / "nuclei").mkdir()  # of data, say
    assert find_weights("nuclei") == packaged
    (tmp_path / "nuclei" / "config.yaml").touch()
    fails(["nuclei holds no best.safetensors"], find_weights, "nuclei")
    save_model(tiny, tmp_path / "nuclei" / "last.safetensors")
    assert find_weights("nuclei").resolve() == tmp_path / "nuclei" / "last.safetensors"
    assert load_model("nuclei").classes == tiny.classes
    (tmp_path / "nuclei" / "last.safetensors").rename(tmp_path / "file")
    (tmp_path / "nuclei" / "config.yaml").unlink()
    (tmp_path / "nuclei").rmdir()
    (tmp_path / "file").rename(tmp_path / "nuclei")
    assert find_weights("nuclei").resolve() == tmp_path / "nuclei"


def test_an_unknown_name_lists_the_models():
    fails(["nucleus: there is no such run folder", *model_names()], find_weights, "nucleus")
    assert all(name in MODEL_HELP for name in model_names())


def test_the_command_line_knows_the_name(drawn, found, shipped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(drawn[0].transpose(1, 2, 0)).save("image.png")
    assert main(["predict", "nuclei", "image.png"]) == 0
    assert len(json.loads((tmp_path / "predictions" / "predictions.json").read_text())) == len(found)
    capsys.readouterr()
    assert main(["info", "nuclei"]) == 0
    said = capsys.readouterr().out
    assert "score_threshold: 0." in said
    assert "## Limits" in said
    assert "masklab info nuclei --cost" in said
    assert "multiply-adds" not in said, "which needs torch"
    assert main(["info", "nuclei", "--cost", "--height", "96", "--width", "96"]) == 0
    said = capsys.readouterr().out
    assert "score_threshold: 0." in said
    assert "multiply-adds" in said, "and what the recipe of that name costs"


def test_share_writes_half_of_a_run_and_info_shows_it(tiny, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    save_model(tiny, tmp_path / "run" / "best.safetensors", {"step": 7})
    target = tmp_path / "new" / "mine.safetensors"
    assert main(["share", str(tmp_path / "run"), str(target)]) == 0
    assert "mine.md" in capsys.readouterr().out
    again = load_model(target, "cpu")
    assert all(torch.equal(value, tiny.state_dict()[name].half().float()) for name, value in again.state_dict().items())
    assert describe(target).rstrip().endswith("step: 7")
    target.with_suffix(".md").write_text("# Mine\n")
    assert main(["info", str(target)]) == 0
    said = capsys.readouterr().out
    assert "step: 7" in said
    assert said.rstrip().endswith("# Mine")
    assert "multiply-adds" not in said, "not a recipe"
    assert main(["share", str(tmp_path / "run"), str(tmp_path / "mine.pt")]) == 2
    assert "mine.pt is to be a weights file" in capsys.readouterr().err

"""A wrong value, on the command line or in a recipe, ends with one sentence: the field, the value, what is allowed."""

import json

import pytest
from pydantic import BaseModel

from masklab.cli.app import main, parse
from masklab.cli.errors import field_fault
from masklab.config import Config, load_recipe
from masklab.config.nested import flatten
from masklab.utils.errors import InputError
from masklab.utils.words import as_written, counted, listed, nearest

MANY = "a whole number from 1 to 1000000000"
WRONG = [
    ("train.steps", "many", "'many'", MANY),
    ("train.steps", "1.5", "1.5", MANY),
    ("train.steps", "0", "0", MANY),
    ("train.steps", "[1]", "[1]", MANY),
    ("train.steps", "null", "null", MANY),
    ("train.batch_size", "big", "'big'", "a whole number from 1 to 100000, or auto"),
    ("train.seed", "-1", "-1", "a whole number of 0 or more and below 2147483648"),
    ("train.ema", "2", "2", "a number above 0 and below 1, or null"),
    ("train.learning_rate", "0", "0", "a number above 0 and of at most 1000000"),
    ("train.optimizer", "adam", "'adam'", "one of sgd, adamw"),
    (
        "train.loggers",
        "[csv, paper]",
        '["csv", "paper"]',
        "a list in brackets, with at most 4 entries, each one of csv, tensorboard, wandb, mlflow",
    ),
    ("train.milestones", "[a]", '["a"]', "a list in brackets, with at most 1000 entries, each a number from 0 to 1000"),
    ("model.backbone.output_stride", "7", "7", "one of 8, 16, 32"),
    ("model.backbone.width", "3", "3", "a number above 0 and of at most 2"),
    ("model.backbone.norm.x", "3", '{"x": 3}', "one of frozen_batch, batch, group"),
    ("model.rpn.nms_iou", "nan", "'nan'", "a number from 0 to 1"),
    (
        "model.rpn.anchor_sizes",
        "big",
        "'big'",
        "a list in brackets, with 1 to 64 entries, each a number above 0 and of at most 1000000, or auto",
    ),
    ("model.box.roi_size", "3", "3", "a whole number from 2 to 256 and divisible by 2"),
    ("model.box.deformable", "cells", "'cells'", "one of grid, cell, or null"),
    ("image.percentiles", "[1, 2, 3]", "[1, 2, 3]", "a list in brackets of 2 entries, each a number, or null"),
    ("image.augment.horizontal_flip", "maybe", "'maybe'", "true or false"),
    ("image", "3", "3", "a group of fields, such as scale"),
]


def said(capsys, *words):
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("masklab: ")
    assert err.count("\n") == 1
    for foreign in ("typing", "class '", "Traceback", "Input should", "Union", "Expected"):
        assert foreign not in err
    return err.removeprefix("masklab: ").strip()


@pytest.mark.parametrize(("field", "given", "written", "allowed"), WRONG)
def test_the_command_line_says_what_a_field_allows(field, given, written, allowed, capsys):
    expected = f"{field.removesuffix('.x')} is {written} but must be {allowed}"
    assert field_fault([f"--{field}={given}"]) == expected
    sentence = said(capsys, "train", "shapes", "--data", "/no/such", "--output", "/no/such/out", f"--{field}", given)
    assert sentence in (f"{expected}; see `masklab train --help`.", f"{expected}.")


@pytest.mark.parametrize(("field", "given", "written", "allowed"), WRONG)
def test_a_recipe_says_what_a_field_allows(field, given, written, allowed, tmp_path):
    text = given
    for part in reversed(field.split(".")):
        text = f"{{{part}: {text}}}"
    path = tmp_path / "own.yaml"
    path.write_text(text.replace("nan", "'nan'"))
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert str(error.value) == f"recipe {path}: {field.removesuffix('.x')} is {written} but must be {allowed}."


def leaves(section, prefix=""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        elif "Path" not in str(field.annotation) and field.annotation is not str:
            yield f"{prefix}{name}"


def test_every_field_is_named_with_its_value():
    names = list(leaves(Config))
    assert len(names) > 80
    for name in names:
        assert field_fault([f"--{name}", "{x: 1}"]).startswith(f'{name} is {{"x": 1}} but must be ')


def test_files_may_have_numbers_as_names():
    _, parsed = parse(["train", "shapes", "--data", "2024", "--output", "7"])
    assert (str(parsed.data), str(parsed.output)) == ("2024", "7")


UNKNOWN = [
    ("train.stepz", "did you mean train.steps?"),
    ("trian.steps", "did you mean train?"),
    ("train.nms_iou", "did you mean model.box.nms_iou?"),
    ("image.horizontal_flip", "did you mean image.augment.horizontal_flip?"),
    ("model.mask.quux", "`masklab train --help` lists the fields of model.mask."),
]


@pytest.mark.parametrize(("field", "hint"), UNKNOWN)
def test_an_unknown_field_names_the_nearest_known_one(field, hint, capsys):
    sentence = said(capsys, "train", "shapes", "--data", "/no/such", "--output", "/no/such/out", f"--{field}", "1")
    assert "no such field" in sentence
    assert hint in sentence


OTHERS = [
    (
        "evaluate nuclei --data x --max_detections many",
        "--max_detections is 'many' but must be a whole number, or null;",
    ),
    ("evaluate nuclei --data x --precision fp8", "--precision is 'fp8' but must be one of auto, bf16, fp16, float32;"),
    ("predict nuclei x --score=hi", "--score is 'hi' but must be a number, or null;"),
    ("predict nuclei x --scales 1 a", "--scales is 'a' but must be a number;"),
    ("predict nuclei x --outptu y", "unrecognized arguments: --outptu y (did you mean --output?);"),
    ("predict nuclei x --score", "--score has no value: write it after the name;"),
    ("train shapes --train.steps", "--train.steps has no value: write it after the name;"),
    ("ablate table3 --seeds 0", "--seeds is 0 but must be a whole number from 1 to 100000;"),
    ("ablate table99", "table is 'table99' but must be one of table1, table2,"),
    ("train shapes --train.optimizer='sgd'", "--train.optimizer is \"'sgd'\" but must be one of sgd, adamw;"),
    ("data shapes x --train a", "--train is 'a' but must be a whole number;"),
]


@pytest.mark.parametrize(("words", "sentence"), OTHERS)
def test_other_options_say_what_they_allow(words, sentence, capsys):
    found = said(capsys, *words.split())
    assert found.startswith(sentence)
    verb = words.split(" x ")[0] if words.startswith("data") else words.split()[0]
    assert found.endswith(f"; see `masklab {verb} --help`.")


def test_a_recipes_own_values_are_accepted():
    words = ["--data", "in", "--output", "out"]
    for name, value in flatten(load_recipe("shapes").model_dump(mode="json")).items():
        if name not in ("data", "output"):
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    assert parse(["train", "shapes", *words])[1].model.backbone.norm == load_recipe("shapes").model.backbone.norm


def test_numbers_values_and_names_in_messages():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    values = ["1", 1, 1.0, True, None, [1, "a"], float("nan"), {1: 2}]
    assert list(map(as_written, values)) == ["'1'", "1", "1.0", "true", "null", '[1, "a"]', "NaN", '{"1": 2}']
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert as_written(deep) == "a list"
    assert len(as_written([7] * 10_000)) < 70
    assert listed("abcdef") == "a, b, c, d, e and 1 more"
    assert (nearest("stpes", ["steps", "seed"]), nearest("x", ["steps"])) == ("steps", None)

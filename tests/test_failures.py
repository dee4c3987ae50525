"""Full disks, lacking rights and lacking memory: one sentence each, and nothing half written."""

import errno
import json
import os
import resource

import numpy as np
import pytest
import torch
from contracts import changed
from processes import in_another_process, in_folder_without_rights, needs_fork, on_small_disk, recipe_file
from safetensors.torch import load_file

import masklab.cli.app
import masklab.training.loop
import masklab.training.train
from masklab.cli.app import main
from masklab.cli.registry import Verb
from masklab.inference.folder import predict_folder
from masklab.inference.predictor import load
from masklab.model.build import build_model
from masklab.training.train import train
from masklab.utils.errors import InputError, MachineError
from masklab.utils.failures import machine_error
from masklab.utils.files import atomic_write
from masklab.weights.checkpoint import save_model

FULL = "cannot be written (No space left on device): make room on that disk, then run the same command again"


@pytest.fixture(scope="module")
def weights(tiny_config, classes, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = build_model(tiny_config, classes)
    save_model(model, path)
    return path


def assert_a_sentence(text, code, log, expected=1):
    """Check what a verb printed into ``log``; returns its last error."""
    said = log.read_text()
    assert code == expected, said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("masklab: ")]
    assert text in errors[-1]
    assert ".part" not in errors[-1]
    assert errors[-1].endswith(".")
    left = said.splitlines()[-1]
    assert left.startswith("left ")
    assert "part" not in left
    assert not any(name in left for name in ("'.shapes", "'.set", "'.lock", "/.")), "nothing half written stays"
    return errors[-1]


@needs_fork
@pytest.mark.parametrize(
    ("size", "words", "file"),
    [
        (8 << 10, ["predict", "MODEL", "DATA/val", "--output", "DISK/out"], "out/00001.png"),
        (56 << 10, ["predict", "MODEL", "DATA/val", "--output", "DISK/out"], "/0000"),
        (1, ["evaluate", "MODEL", "--data", "DATA", "--output", "DISK/m.json"], "m.json"),
        (1, ["data", "check", "DATA", "--output", "DISK/sub/c.json"], "DISK/sub cannot"),
        (40 << 10, ["data", "convert", "DATA", "DISK/set"], "set"),
        (40 << 10, ["data", "shapes", "DISK/shapes"], "shapes"),
        (16 << 10, ["data", "show", "DATA", "--output", "DISK/figures"], "train_images.png"),
        (1 << 20, ["share", "MODEL", "DISK/s.safetensors"], "s.safetensors"),
        (64 << 10, ["show", "MODEL", "DATA/val/00001.png", "--output", "DISK/figures"], "figures/00001_"),
        (8 << 10, ["show", "MODEL", "--data", "DATA", "--output", "DISK/figures"], "failures.png"),
        (
            4 << 10,
            ["submit", "MODEL", "--list", "DATA/val.json", "--images", "DATA/val", "--output", "DISK/out"],
            ".zip",
        ),
        (3 << 20, ["pretrain", "RECIPE", "--data", "DATA", "--output", "DISK/run"], "run/best.safetensors"),
        (3 << 20, ["train", "RECIPE", "--data", "DATA", "--output", "DISK/run"], "run/last.safetensors"),
        (12 << 20, ["train", "RECIPE", "--data", "DATA", "--output", "DISK/run"], "run/resume.ckpt"),
        (20 << 10, ["train", "RECIPE", "--data", "DATA", "--output", "DISK/run"], "DISK/run"),
        (4 << 10, ["train", "RECIPE", "--data", "DATA", "--output", "DISK/run"], "run/run.json"),
        (
            3 << 20,
            ["ablate", "refinement", "--recipe", "RECIPE", "--data", "DATA", "--output", "DISK/out"],
            "last.safet",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_full_disk_is_one_sentence_in_every_verb(size, words, file, weights, shapes, tiny_config, tmp_path):
    disk, config = tmp_path / "disk", changed(tiny_config, train={"steps": 2})
    for name, path in (
        ("MODEL", weights),
        ("DATA", shapes),
        ("DISK", disk),
        ("RECIPE", recipe_file(config, tmp_path / "tiny.yaml")),
    ):
        words, file = [word.replace(name, str(path)) for word in words], file.replace(name, str(path))
    code = on_small_disk(disk, size, tmp_path / "log", words)
    assert_a_sentence(file, code, tmp_path / "log")
    assert FULL in (tmp_path / "log").read_text()


@needs_fork
@pytest.mark.parametrize(
    "words",
    [
        ["share", "MODEL", "DISK/s.safetensors"],
        ["predict", "MODEL", "DATA/val", "--output", "DISK"],
        ["train", "RECIPE", "--data", "DATA", "--output", "DISK"],
        ["evaluate", "MODEL", "--data", "DATA", "--output", "DISK/m.json"],
    ],
    ids=lambda words: words[0],
)
def test_a_read_only_disk_is_one_sentence(words, weights, shapes, tiny_config, tmp_path):
    disk = tmp_path / "disk"
    names = {"MODEL": weights, "DATA": shapes, "DISK": disk, "RECIPE": recipe_file(tiny_config, tmp_path / "a.yaml")}
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    code = on_small_disk(disk, 0, tmp_path / "log", words)
    said = assert_a_sentence(str(disk), code, tmp_path / "log", 2)
    assert "(Read-only file system): name a" in said


@needs_fork
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["predict", "MODEL", "DATA/val"], "predictions cannot be a folder to write to"),
        (["segment", "MODEL", "DATA/val", "--boxes", "BOXES"], "segmented cannot be a folder to write to"),
        (["evaluate", "MODEL", "--data", "DATA", "--output", "m.json"], "m.json cannot be written, as the folder HERE"),
        (["show", "MODEL", "DATA/val/00001.png"], "figures cannot be a folder to write to"),
        (["show", "MODEL", "--data", "DATA"], "figures cannot be a folder to write to"),
        (
            ["submit", "MODEL", "--list", "DATA/val.json", "--images", "DATA/val"],
            "submission/mask cannot be a folder to write to",
        ),
        (["predict", "MODEL", "DATA/val", "--output", "."], ". cannot be a folder to write to"),
        (["submit", "MODEL", "--list", "DATA/val.json", "--images", "DATA/val", "--output", "."], "mask cannot be a"),
        (["data", "show", "DATA"], "figures cannot be a folder to write to"),
        (["data", "show", "DATA", "--output", "."], ". cannot be a folder to write to"),
        (["data", "check", "DATA", "--output", "c.json"], "c.json cannot be written, as the folder HERE"),
        (["data", "convert", "DATA", "set"], "set cannot be made"),
        (["data", "shapes", "set"], "set cannot be made"),
        (["data", "download", "nuclei", "set"], "set"),
        (["demo"], "demo/shapes cannot be made"),
        (["share", "MODEL", "s.safetensors"], "s.safetensors cannot be written, as the folder HERE"),
        (["train", "RECIPE", "--data", "DATA", "--output", "run"], "run cannot be a folder to write to"),
        (["train", "RECIPE", "--data", "DATA", "--output", "."], ". cannot be a folder to write to"),
        (["pretrain", "RECIPE", "--data", "DATA", "--output", "run"], "run cannot be a folder to write to"),
        (
            ["ablate", "refinement", "--recipe", "RECIPE", "--data", "DATA", "--output", "out"],
            "out cannot be a folder to write to",
        ),
        (["evaluate", "MODEL", "--data", "DATA"], None),
        (["data", "check", "DATA"], None),
        (["info", "MODEL"], None),
        (["recipes"], None),
        (["doctor"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_working_folder_that_nobody_may_write_to(words, named, weights, shapes, tiny_config, tmp_path):
    """One sentence before any work for each verb that writes; the others do their work."""
    here, boxes = tmp_path / "here", tmp_path / "boxes.json"
    annotations = json.loads((shapes / "val.json").read_text())["annotations"]
    boxes.write_text(json.dumps([{key: a[key] for key in ("image_id", "category_id", "bbox")} for a in annotations]))
    names = {"MODEL": weights, "DATA": shapes, "BOXES": boxes, "RECIPE": recipe_file(tiny_config, tmp_path / "a.yaml")}
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    words += ["--annotations", str(shapes / "val.json")] * (words[0] == "segment")
    code = in_folder_without_rights(here, tmp_path / "log", words)
    said = (tmp_path / "log").read_text()
    assert said.splitlines()[-1] == "left []"
    if named is None:
        assert code == 0, said
        return
    error = assert_a_sentence(named.replace("HERE", str(here)), code, tmp_path / "log", 2)
    assert "(Permission denied): name a" in error
    assert "predicting" not in said
    assert "objects," not in said


def limited(most, words):
    """The command line, which can write no file of more than ``most`` bytes, as a disk that fills at that byte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        return main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize("most", [6 << 10, 1 << 20, 5_500_000, 14_000_000])
def test_training_goes_on_once_there_is_room(most, shapes, tiny_config, tmp_path, capsys):
    run, recipe = tmp_path / "run", recipe_file(tiny_config, tmp_path / "tiny.yaml")
    words = ["train", recipe, "--data", str(shapes), "--output", str(run)]
    assert limited(most, words) == 1
    said = capsys.readouterr().err
    assert "cannot be written (File too large): raise the limit of a file's size (ulimit -f)" in said
    assert "--resume goes on from the last checkpoint." in said
    assert not list(run.glob(".*")), "nothing half written"
    assert main([*words, "--resume"]) == 0
    train(tiny_config, shapes, tmp_path / "whole")
    for name in ("last", "best"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (run, tmp_path / "whole"))
        assert all(torch.equal(one[key], other[key]) for key in other), name
    (*_, last) = json.loads((run / "run.json").read_text())["starts"]
    assert last["step"] == 0, "no checkpoint was finished"


def test_no_checkpoint_passes_through_the_temporary_folder(shapes, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    train(changed(tiny_config, train={"steps": 1}), shapes, tmp_path / "run")
    train(changed(tiny_config, train={"steps": 1}), shapes, tmp_path / "run", resume=True)


def raising(error):
    """A verb that fails with an error."""

    def run(_):
        raise error

    return {"recipes": Verb("", lambda _: None, run)}


def os_error(number, *names):
    return OSError(number, os.strerror(number), *names)


LACKING_MEMORY = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((10**6, 10**6), np.dtype("u1")),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8000000000000 bytes. Error code 12 (Cannot allocate memory)\nException raised from ..."
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried to allocate 8"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError(
        "Caught _ArrayMemoryError in DataLoader worker process 0.\nOriginal Traceback (most recent call last)"
    ),
    RuntimeError("could not create a primitive"),
    os_error(errno.ENOMEM),
]


@pytest.mark.parametrize("error", LACKING_MEMORY, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_lacking_memory_is_one_sentence(error, monkeypatch, capsys):
    monkeypatch.setattr(masklab.cli.app, "VERBS", raising(error))
    assert main(["recipes"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("masklab: the machine has no memory for this (")
    assert said.count("\n") == 1
    assert said.endswith("a smaller train.batch_size or train.workers.\n")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (os_error(errno.EACCES, "a"), "a cannot be read or written (Permission denied): change its rights"),
        (os_error(errno.ENOENT, "a"), "a cannot be read or written (No such file or directory): it or its folder was"),
        (os_error(errno.EIO, "a"), "a cannot be read or written (Input/output error): check the disk"),
        (os_error(errno.EDQUOT, "a"), "a cannot be written (Disk quota exceeded): make room within your quota"),
        (os_error(errno.EMFILE), "the output cannot be read or written (Too many open files): raise the limit"),
        (os_error(errno.EXDEV, "a", None, "b"), "b cannot be read or written"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"), "train.workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "as a rule for want of memory"),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_one_sentence(error, said, monkeypatch, capsys):
    monkeypatch.setattr(masklab.cli.app, "VERBS", raising(error))
    assert main(["recipes"]) == 1
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("required rank 4 tensor to use channels_last memory format"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ValueError("out of memory"),
        OSError("of a library, without a file or a number"),
        TypeError("a fault of ours"),
    ],
    ids=str,
)
def test_a_fault_of_ours_keeps_its_stack_trace(error, monkeypatch):
    assert machine_error(error) is None
    monkeypatch.setattr(masklab.cli.app, "VERBS", raising(error))
    with pytest.raises(type(error)):
        main(["recipes"])


def test_an_error_raised_from_another_is_what_that_is():
    """Lightning's logger raises a `ValueError` from the error of the disk."""
    error = ValueError("you tried to log 5.2")
    error.__cause__ = os_error(errno.ENOSPC, "a")
    assert "a cannot be written" in str(machine_error(error))


def test_lacking_memory_in_a_step_says_how_to_go_on(shapes, tiny_config, tmp_path, monkeypatch):
    def check_step(losses, step, image_ids):
        if step == 1:
            torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(masklab.training.loop, "check_finite", check_step)
    with pytest.raises(
        MachineError, match=r"^stopped after step 1: the machine has no memory .*; --resume goes on from"
    ):
        train(tiny_config, shapes, tmp_path / "run")


def test_errors_of_writing_name_the_file_and_those_of_reading_theirs(tmp_path):
    with pytest.raises(OSError, match="full") as caught, atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "no" / "a") as temporary:
        temporary.write_text("")
    assert caught.value.filename == str(tmp_path / "no" / "a")
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
    assert not list(tmp_path.iterdir())


def print_to_full(code):
    with open("/dev/full", "w") as full:
        os.dup2(full.fileno(), 1)
    return main(["recipes"]) - code


@needs_fork
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_printed_is_failed_work():
    process = in_another_process(print_to_full, 1)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ENOSPC])
def test_a_name_that_the_disk_refuses_costs_one_image_and_a_full_disk_all(
    number, weights, shapes, tmp_path, monkeypatch
):
    """A file system may take shorter names than others do."""

    def refusing(path):
        if path.name == "00002.png":
            raise os_error(number, str(path))
        return atomic_write(path)

    monkeypatch.setattr("masklab.inference.output.atomic_write", refusing)
    error = InputError if number == errno.ENAMETOOLONG else OSError
    with pytest.raises(error):
        predict_folder(load(weights), [shapes / "val"], tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert ("00003.png" in written) == (number == errno.ENAMETOOLONG)

"""One process at a time in a run folder, and what becomes of a folder that is taken away."""

import errno
import json
import os
import shutil
import signal
import socket
import time
import zipfile

import pytest
import torch
from contracts import changed, fails
from processes import in_another_process, needs_fork, recipe_file

import masklab.training.loop
from masklab.cli.app import main
from masklab.training.resume import open_run
from masklab.training.train import train
from masklab.utils import lock
from masklab.utils.errors import MachineError
from masklab.utils.lock import LOCK, locked


def hold(folder, says):
    """Hold a folder, and have a child that outlives this process."""
    with locked(folder):
        child = os.fork()
        if child == 0:
            time.sleep(10)
            os._exit(0)
        says.write_text(str(child))
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds a folder."""
    started, children = [], []

    def start(folder):
        says = tmp_path / f"child of {folder.name}"
        process = in_another_process(hold, folder, says)
        started.append(process)
        deadline = time.monotonic() + 60
        while not (says.is_file() and says.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children.append(int(says.read_text()))
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
    for child in children:
        os.kill(child, signal.SIGKILL)


def there(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@needs_fork
@pytest.mark.parametrize(
    "words", [["train"], ["train", "--resume"], ["pretrain"], ["pretrain", "--resume"]], ids=" ".join
)
def test_a_second_process_is_refused_and_changes_nothing(words, holder, shapes, tiny_config, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".best.safetensors.1.part").write_text("what the first one is writing")
    first = holder(run)
    before = there(run)
    recipe = recipe_file(tiny_config, tmp_path / "tiny.yaml")
    verb, *options = words
    assert main([verb, recipe, "--data", str(shapes), "--output", str(run), *options]) == 2
    said = capsys.readouterr().err
    assert f"{run} is being written by process {first.pid} on host {socket.gethostname()} since 20" in said
    assert "give another output folder." in said
    assert there(run) == before


@needs_fork
def test_ablate_leaves_the_run_of_another_process_alone_and_does_the_others(
    holder, shapes, tiny_config, tmp_path, capsys
):
    run = tmp_path / "out" / "refinement-paper" / "seed0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("step\n")
    first = holder(run)
    recipe = recipe_file(changed(tiny_config, train={"steps": 1}), tmp_path / "tiny.yaml")
    words = ["ablate", "refinement", "--recipe", recipe, "--data", str(shapes), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert f"1 of 2 runs failed ({run}: {run} is being written by process {first.pid}" in capsys.readouterr().err
    assert (run / "metrics.csv").read_text() == "step\n"
    assert (tmp_path / "out" / "refinement-shared" / "seed0" / "metrics.json").is_file()


@needs_fork
def test_the_lock_of_a_killed_process_is_taken_over_at_once(holder, tmp_path):
    """Also while a process that it forked, such as one that loads images, still lives."""
    first = holder(tmp_path / "run")
    fails([f"process {first.pid}"], locked(tmp_path / "run").__enter__)
    first.kill()
    first.join()
    assert (tmp_path / "run" / LOCK).is_file()
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()


def test_within_a_process_too_there_is_one_holder(tmp_path):
    with locked(tmp_path):
        fails([f"process {os.getpid()}", str(tmp_path)], locked(tmp_path).__enter__)
    with locked(tmp_path):
        pass


def test_of_another_host_the_sentence_says_what_to_remove(tmp_path):
    left = {"host": "gpu7", "process": 4711, "since": "2026-01-01T00:00:00+00:00", "boot": "other"}
    (tmp_path / LOCK).write_text(json.dumps(left))
    said = ["process 4711 on host gpu7 since 2026-01-01", "cannot be asked", f"remove {tmp_path / LOCK} and run"]
    fails(said, locked(tmp_path).__enter__)
    assert json.loads((tmp_path / LOCK).read_text()) == left
    (tmp_path / LOCK).unlink()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("same", ["host", "boot"])
def test_of_this_host_or_another_container_of_it_it_is_taken_over(tmp_path, same):
    """A host that was started anew has ended all its processes; the kernel knows those of its containers."""
    with locked(tmp_path):
        here = json.loads((tmp_path / LOCK).read_text())
    (tmp_path / LOCK).write_text(
        json.dumps({"host": "a", "boot": "b", "process": 1, "since": "2026"} | {same: here[same]})
    )
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("left", ["", "{", "[]", "null", "\0" * 100])
def test_a_damaged_record_does_not_matter(tmp_path, left):
    (tmp_path / LOCK).write_text(left)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


@pytest.mark.parametrize("without", ["flock", "fcntl"])
def test_without_locks_of_the_file_system_the_record_decides(tmp_path, monkeypatch, without):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if without == "flock":
        monkeypatch.setattr(lock.fcntl, "flock", flock)
    else:
        monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path):
        fails([f"process {os.getpid()}", f"remove {tmp_path / LOCK}"], locked(tmp_path).__enter__)
    assert not (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass


def test_a_lock_that_was_released_while_it_was_waited_for_is_not_the_lock(tmp_path, monkeypatch):
    """Its file is gone then, and another process may have made a new one."""
    take, holders = lock._take, []

    def late(path, descriptor):
        if not holders:
            path.unlink()
            holders.append(None)
            holders[0] = locked(tmp_path)
            holders[0].__enter__()
        return take(path, descriptor)

    monkeypatch.setattr(lock, "_take", late)
    fails(["is being written"], locked(tmp_path).__enter__)
    holders[0].__exit__(None, None, None)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_run_whose_folder_is_taken_away_stops_with_a_sentence(
    shapes, tiny_config, tmp_path, monkeypatch, capsys, how
):
    run, recipe, steps = tmp_path / "run", recipe_file(tiny_config, tmp_path / "tiny.yaml"), []

    def check_step(losses, step, image_ids):
        steps.append(step)
        if step == 1 and how == "removed":
            shutil.rmtree(run)
        elif step == 1:
            run.rename(tmp_path / "elsewhere")
            if how == "replaced":
                run.mkdir()

    monkeypatch.setattr(masklab.training.loop, "check_finite", check_step)
    assert main(["train", recipe, "--data", str(shapes), "--output", str(run)]) == 1
    said = capsys.readouterr().err
    assert f"stopped after step 2: {run} was removed or moved while it was written to" in said
    assert "Traceback" not in said
    assert steps == [0, 1]
    assert not run.exists() or not list(run.iterdir()), "nothing is made anew"


def test_a_folder_that_is_gone_when_the_threshold_is_tuned_is_named(shapes, tiny_config, tmp_path, monkeypatch, capsys):
    run, recipe = tmp_path / "run", recipe_file(changed(tiny_config, train={"steps": 1}), tmp_path / "tiny.yaml")
    monkeypatch.setattr("masklab.training.train.tune_threshold", lambda *_: shutil.rmtree(run))
    assert main(["train", recipe, "--data", str(shapes), "--output", str(run)]) == 1
    assert (
        f"{run / 'best.safetensors'} cannot be read or written (No such file or directory)" in capsys.readouterr().err
    )
    assert not run.exists()


def test_what_was_verified_of_a_checkpoint_is_what_is_read(tmp_path, monkeypatch):
    torch.save({"global_step": 3}, tmp_path / "resume.ckpt")
    torch.save({"global_step": 4}, tmp_path / "other")
    verify = zipfile.ZipFile.testzip

    def replaced_meanwhile(archive):
        os.replace(tmp_path / "other", tmp_path / "resume.ckpt")
        return verify(archive)

    monkeypatch.setattr(zipfile.ZipFile, "testzip", replaced_meanwhile)
    with open_run(tmp_path, resume=True) as start:
        assert start.step == 3


def test_a_finished_run_is_free_and_has_no_lock(shapes, tiny_config, tmp_path):
    train(changed(tiny_config, train={"steps": 1}), shapes, tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()
    train(changed(tiny_config, train={"steps": 1}), shapes, tmp_path / "run", resume=True)


def test_a_lock_that_is_held_is_checked_by_its_file(tmp_path):
    with locked(tmp_path / "run") as held:
        held.check()
        (tmp_path / "run" / LOCK).unlink()
        with pytest.raises(MachineError, match="was removed or moved"):
            held.check()

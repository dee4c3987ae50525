"""A check by several processes, or one that is stopped and goes on, reports what one process reports in one go."""

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.check import check, work
from masklab.datasets.check.progress import Progress
from masklab.utils.errors import InputError

SIZE = (24, 30)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """100 small images in three splits, with a fault in every fifth of them."""
    folder = tmp_path_factory.mktemp("many") / "set"
    rng = np.random.default_rng(0)
    for split, count in (("train", 70), ("val", 20), ("test", 10)):
        (folder / split).mkdir(parents=True)
        entries, annotations = [], []
        for k in range(count):
            pixels = rng.integers(0, 255, (*SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{k}.png")
            entries.append({"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]})
            for left in (2, 14):
                polygon = [left, 3, left + 8, 3, left + 8, 15, left, 15]
                own = {"id": 2 * k + left // 14, "image_id": k, "category_id": 1 + k % 2, "segmentation": [polygon]}
                annotations.append(own)
        for k in range(3, count, 5):
            match k % 4:
                case 0:
                    (folder / split / f"{k}.png").write_bytes(b"no image")
                case 1:
                    annotations[2 * k]["segmentation"] = [[1, 2]]
                case 2:
                    annotations[2 * k + 1]["id"] = 1
                case 3:
                    shutil.copy(folder / "train" / "0.png", folder / split / f"{k}.png")
        values = {"images": entries, "annotations": annotations}
        values["categories"] = [{"id": 1, "name": "\ud800 round"}, {"id": 2, "name": "long"}]
        (folder / f"{split}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def data(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "set")


def inspected(monkeypatch, stop_after=None):
    """The images that are checked from now on, by this process; Ctrl-C after some."""
    seen, original = [], work.Work.inspect

    def inspect(self, index):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(self.images[index].path)
        return original(self, index)

    monkeypatch.setattr(work.Work, "inspect", inspect)
    return seen


def test_several_processes_find_what_one_finds(drawn):
    one, several = check(drawn, workers=1), check(drawn, workers=3)
    assert several.as_dict() == one.as_dict()
    assert len({finding.problem for finding in one.findings}) >= 5
    assert len(one.findings) >= 20


def test_a_stopped_check_goes_on(data, tmp_path, monkeypatch):
    whole, unfinished = check(data, 1).as_dict(), tmp_path / "report.json.unfinished"
    for stop_after in (40, 45):  # in train, then in test
        with monkeypatch.context() as patch:
            seen = inspected(patch, stop_after)
            with pytest.raises(KeyboardInterrupt):
                check(data, 1, unfinished)
            assert len(seen) == stop_after
            assert unfinished.is_file()
    with monkeypatch.context() as patch:
        seen = inspected(patch)
        assert check(data, 1, unfinished).as_dict() == whole
        assert [path.parent.name for path in seen] == ["test"] * 10 + ["val"] * 20
    assert not unfinished.exists()


def stopped(data, unfinished, monkeypatch, stop_after=75):
    """A check that is stopped in the first block of the second split."""
    with monkeypatch.context() as patch:
        inspected(patch, stop_after)
        with pytest.raises(KeyboardInterrupt):
            check(data, 1, unfinished)


CHANGES = {
    "an image": lambda data: Image.new("RGB", SIZE[::-1]).save(data / "train" / "7.png"),
    "an annotation": lambda data: (data / "train.json").write_text(
        (data / "train.json").read_text().replace('"category_id": 2', '"category_id": 1', 1)
    ),
    "a class": lambda data: (data / "train.json").write_text(
        (data / "train.json").read_text().replace('{"id": 2, "name"', '{"id": 3, "name"')
    ),
    "an image that is gone": lambda data: (data / "train" / "7.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_split_that_has_changed_begins_anew(data, tmp_path, monkeypatch, caplog, change):
    caplog.set_level(logging.INFO, "masklab")
    stopped(data, tmp_path / "unfinished", monkeypatch)
    CHANGES[change](data)
    with monkeypatch.context() as patch:
        seen = inspected(patch)
        report = check(data, 1, tmp_path / "unfinished")
    assert len(seen) == 100, "a block that was begun counts for nothing"
    assert "train has changed since the check was stopped" in caplog.text
    assert report.as_dict() == check(data, 1).as_dict()


def test_a_split_that_has_not_changed_is_kept(data, tmp_path, monkeypatch):
    stopped(data, tmp_path / "unfinished", monkeypatch, 95)  # in val
    CHANGES["an image"](data)
    seen = inspected(monkeypatch)
    check(data, 1, tmp_path / "unfinished")
    assert {path.parent.name for path in seen} == {"train", "val"}


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "bytes": lambda _: bytes(range(256)),
    "other JSON": lambda _: b'{"a": 1}\n',
    "other lines": lambda content: content.splitlines()[0] + b"\n" + b"[1, 2]\n" * 5,
    "other fields": lambda content: content.replace(b'"duplicate object"', b"17").replace(b"[[[", b"[[7, "),
    "nothing": lambda _: b"",
    "a huge number of blocks": lambda content: content.replace(b", 5]", b", 1e400]", 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_used(data, tmp_path, monkeypatch, damage):
    path = tmp_path / "unfinished"
    stopped(data, path, monkeypatch)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    seen = inspected(monkeypatch)
    report = check(data, 1, path)
    assert len(seen) == 100
    assert report.as_dict() == check(data, 1).as_dict()


def test_it_is_written_from_time_to_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr("masklab.datasets.check.progress._SECONDS", 0)
    sizes, original = [], Progress.add

    def add(self, split, line):
        original(self, split, line)
        sizes.append(self.path.stat().st_size)

    monkeypatch.setattr(Progress, "add", add)
    check(data, 1, tmp_path / "unfinished")
    assert len(sizes) == 5 + 2 + 1
    assert sizes == sorted(set(sizes))


def test_a_process_of_any_system_can_take_the_work(data, monkeypatch):
    """Where processes are not forked, the work is pickled."""
    taken = []
    monkeypatch.setattr(work.Work, "block", lambda self, first: taken.append(self) or "[]")
    with pytest.raises(ValueError, match="shorter"):
        check(data, 1)
    monkeypatch.undo()
    for copied in (taken[0], pickle.loads(pickle.dumps(taken[0]))):
        assert len(work.read_block(copied.block(0))) == 16
    assert pickle.loads(pickle.dumps(taken[0])).block(16) == taken[0].block(16)


def test_without_a_file_nothing_is_written(data, monkeypatch):
    before = sorted(data.rglob("*"))
    inspected(monkeypatch, 40)
    with pytest.raises(KeyboardInterrupt):
        check(data, 1)
    assert sorted(data.rglob("*")) == before


def run(data, output, patch):
    """The verb in a process group of its own, whose workers run ``patch`` for each image."""
    code = (
        "import multiprocessing, os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell has its background jobs ignore it
        "from masklab.cli.app import main\n"
        "from masklab.datasets.check.work import Work\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('fork')\n"
        "    inspect = Work.inspect\n"
        f"    Work.inspect = lambda self, index: ({patch}, inspect(self, index))[-1]\n"
        f"    sys.exit(main(['data', 'check', {str(data)!r}, '--output', {str(output)!r}, '--workers', '2']))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the workers take over the patch")
def test_ctrl_c_stops_all_processes_soon(data, tmp_path):
    output, begun = tmp_path / "report.json", tmp_path / "begun"
    begun.mkdir()
    told = f"open(os.path.join({str(begun)!r}, str(os.getpid())), 'w').close(), time.sleep(1)"
    process = run(data, output, told)
    began = time.monotonic()
    while len(list(begun.iterdir())) < 2 and time.monotonic() - began < 60:
        time.sleep(0.1)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30, "all images take 50 s"
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].endswith("stopped; the same command goes on.")
    assert "Traceback" not in errors
    assert not output.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the workers take over the patch")
def test_a_check_that_is_killed_takes_its_processes_with_it(data, tmp_path):
    """They write their numbers when they begin an image, and hold the pipe of what the check prints."""
    begun = tmp_path / "begun"
    begun.mkdir()
    process = run(data, tmp_path / "report.json", f"open(os.path.join({str(begun)!r}, str(os.getpid())), 'w').close()")
    while len(list(begun.iterdir())) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the workers take over the patch")
def test_a_process_that_is_killed_is_said(data, tmp_path):
    process = run(data, tmp_path / "report.json", "os._exit(9) if index == 40 else 0")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was killed" in errors
    assert "--workers" in errors
    assert "Traceback" not in errors


def test_the_verb_leaves_the_report_alone(data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report.json"
    with monkeypatch.context() as patch:
        inspected(patch, 40)
        assert main(["data", "check", str(data), "--output", str(output), "--workers", "1"]) == 130
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.json.unfinished"]
    assert main(["data", "check", str(data), "--output", str(output)]) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.json"]
    assert json.loads(output.read_text()) == json.loads(json.dumps(check(data).as_dict()))


def test_few_images_need_no_process(data, monkeypatch):
    monkeypatch.setattr(work, "ProcessPoolExecutor", None)
    monkeypatch.setattr(work, "_FEW", 1000)
    check(data)


def test_errors_of_a_worker_are_raised(data, monkeypatch):
    monkeypatch.setattr(work, "read_objects", lambda *_: (_ for _ in ()).throw(InputError("as it is.")))
    with pytest.raises(InputError, match="as it is"):
        check(data, 2)

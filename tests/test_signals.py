"""Ctrl-C, SIGTERM and a closed terminal: work is undone, one sentence, and the exit code that shells expect."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from contracts import changed
from processes import in_another_process, needs_fork, recipe_file

import masklab.cli.app
import masklab.training.loop
from masklab.cli.app import main
from masklab.cli.registry import Verb
from masklab.model.build import build_model
from masklab.utils.signals import Stopped, stop_signals
from masklab.weights.checkpoint import save_model

ASKING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(scope="module")
def weights(tiny_config, classes, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(build_model(tiny_config, classes), path)
    return path


def stopped_while_writing(told, log, words):
    """The command line, which is told to stop when a file is half written; returns its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    replace = os.replace

    def asked(source, target):
        if not str(target).endswith((".json", ".yaml", ".csv")) or words[0] not in ("train", "pretrain"):
            os.kill(os.getpid(), told)
            time.sleep(5)
        replace(source, target)

    os.replace = asked
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    return code


@needs_fork
@pytest.mark.parametrize(
    ("told", "words"),
    [
        *((told, ["data", "shapes", "OUT/set", "--train", "2", "--val", "1"]) for told in ASKING),
        (signal.SIGTERM, ["data", "convert", "DATA", "OUT/set"]),
        (signal.SIGTERM, ["data", "show", "DATA", "--output", "OUT"]),
        (signal.SIGTERM, ["data", "check", "DATA", "--output", "OUT/c.json"]),
        (signal.SIGTERM, ["predict", "MODEL", "DATA/val", "--output", "OUT"]),
        (signal.SIGTERM, ["evaluate", "MODEL", "--data", "DATA", "--output", "OUT/m.json"]),
        (signal.SIGTERM, ["share", "MODEL", "OUT/s.safetensors"]),
        (signal.SIGTERM, ["show", "MODEL", "DATA/val/00001.png", "--output", "OUT"]),
        (signal.SIGTERM, ["submit", "MODEL", "--list", "DATA/val.json", "--images", "DATA/val", "--output", "OUT"]),
        (signal.SIGTERM, ["train", "RECIPE", "--data", "DATA", "--output", "OUT"]),
        (signal.SIGHUP, ["pretrain", "RECIPE", "--data", "DATA", "--output", "OUT"]),
        (signal.SIGTERM, ["ablate", "refinement", "--recipe", "RECIPE", "--data", "DATA", "--output", "OUT"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value.name,
)
def test_what_is_half_written_is_undone(told, words, weights, shapes, tiny_config, tmp_path):
    (tmp_path / "out").mkdir()
    names = {"MODEL": weights, "DATA": shapes, "OUT": tmp_path / "out"}
    names["RECIPE"] = recipe_file(tiny_config, tmp_path / "tiny.yaml")
    for name, path in names.items():
        words = [word.replace(name, str(path)) for word in words]
    process = in_another_process(stopped_while_writing, told, str(tmp_path / "log"), words)
    process.join()
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 128 + told, said
    assert re.fullmatch(r"masklab: stopped( after step \d+: resume .*)?\.", said.splitlines()[-1])
    assert "Traceback" not in said
    left = [path.name for path in (tmp_path / "out").rglob("*")]
    assert not [name for name in left if name[0] == "."], left


def all_stopped_in_training(told, log, words):
    """The command line; after its first step the signal reaches it and the processes that load images, at once."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    check = masklab.training.loop.check_finite

    def asked(losses, step, image_ids):
        if step == 1:
            os.killpg(0, told)
            time.sleep(1)
        check(losses, step, image_ids)

    masklab.training.loop.check_finite = asked
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    return main(words)


@needs_fork
@pytest.mark.parametrize("told", ASKING, ids=lambda told: told.name)
def test_a_signal_to_all_processes_is_answered_by_the_first(told, shapes, tiny_config, tmp_path):
    """As a scheduler and a terminal send it."""
    config = changed(tiny_config, train={"workers": 2, "steps": 50})
    words = [
        "train",
        recipe_file(config, tmp_path / "tiny.yaml"),
        "--data",
        str(shapes),
        "--output",
        str(tmp_path / "r"),
    ]
    process = in_another_process(all_stopped_in_training, told, str(tmp_path / "log"), words)
    process.join()
    said = (tmp_path / "log").read_text()
    assert process.exitcode == 128 + told, said
    assert re.fullmatch(r"masklab: stopped after step 1: resume .*\.", said.splitlines()[-1])
    assert "Traceback" not in said


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("masklab.cli.registry", ["info", "nuclei"]),
        ("jsonargparse", ["info", "nuclei"]),
        ("torch", ["info", "nuclei", "--cost"]),
        ("torchvision", ["doctor"]),
    ],
)
def test_no_stack_trace_while_modules_are_imported(told, module, words):
    """The process is told to stop at the import of a module; shells see 130 and 143 whether it exits or is ended."""
    program = f"""if True:
        import os, signal, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == {module!r}:
                    os.kill(os.getpid(), {int(told)})

        sys.meta_path.insert(0, Finder())
        sys.argv = ["masklab", *{words!r}]
        from masklab.cli import main
        sys.exit(main())
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert ended.returncode in (-told, 128 + told), ended.stderr
    assert ended.stderr in ("", "masklab: stopped.\n")


def test_the_package_imports_little_before_signals_are_handled():
    program = "import sys; before = set(sys.modules); import masklab.cli; print(*sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert not loaded & {"importlib.metadata", "masklab.cli.app", "argparse", "numpy", "torch"}, loaded


def raised(number):
    with stop_signals():
        os.kill(os.getpid(), number)
        time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_says_its_exit_code(number):
    with pytest.raises(Stopped) as stop:
        raised(number)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_signal_that_is_ignored_or_handled_elsewhere_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        assert seen == [1]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_a_verb_runs_in_a_thread_too(monkeypatch):
    codes = []
    monkeypatch.setattr(masklab.cli.app, "VERBS", {"recipes": Verb("", lambda _: None, lambda _: None)})
    thread = threading.Thread(target=lambda: codes.append(main(["recipes"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_signal_that_c_code_turned_into_an_error_of_its_own_is_a_signal():
    """As torch does: its `ValueError` of a storage that has no shape stood in the place of what was raised."""

    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException:
            raise ValueError("could not determine the shape") from None

    with pytest.raises(Stopped) as stopped, stop_signals():
        swallow()
    assert stopped.value.code == 143
    with pytest.raises(ValueError, match="own"), stop_signals():
        raise ValueError("own")


def test_a_signal_is_not_lost_where_python_raises_nothing(capsys):
    class Signalled:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def deleted():
        Signalled()
        time.sleep(10)

    hook = sys.unraisablehook
    with pytest.raises(Stopped), stop_signals():
        deleted()
    assert "Traceback" not in capsys.readouterr().err
    assert sys.unraisablehook is hook

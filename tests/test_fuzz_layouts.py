"""Damaged data sets of every layout: each ends in a result or an `InputError`, soon, and in little memory.

By default a small share of the cases is drawn.  ``FUZZ_CASES=3000`` draws that many, the first of them the same, and
``-s`` prints what became of them; see docs/reliability.md.
"""

import os
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from hostile import Child, Outcome, read_any_data
from mutations import mutate
from seeds import SEEDS
from test_fuzz import assert_sentence

CASES = int(os.environ.get("FUZZ_CASES", "0"))  # 0: as many as the time allows
SECONDS = 10
VERDICTS = ("refused", "reported", "read")


@pytest.fixture(scope="module")
def child():
    process = Child(("masklab.datasets.check", "masklab.evaluation.inputs"))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The undamaged data sets, by name."""
    folders = {}
    for number, (name, write) in enumerate(SEEDS.items()):
        folders[name] = tmp_path_factory.mktemp("seeds") / str(number)
        folders[name].mkdir()
        write(folders[name])
    return folders


def verdict(outcome):
    """What became of a damaged data set; fails where that must not be."""
    assert outcome.kind == "read", f"must not happen: {outcome.kind}\n{outcome.value}"
    found = outcome.value
    if found["refused"]:
        assert_sentence(found["refused"])
        assert found["fault"], "`data check` finds nothing where training stops"
        return "refused"
    assert found["fault"] or not found["skipped"], "`data check` finds nothing where training skips"
    return "reported" if found["findings"] else "read"


def damaged(case, pristine, folder):
    """The data set of a case, damaged; and what it is and what was done to it."""
    name = list(pristine)[case % len(pristine)]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine[name], folder)
    return name, mutate(folder, np.random.default_rng(case))


def test_damaged_data_sets_of_every_layout(child, pristine, tmp_path):
    tally, failures, slowest = Counter(), [], 0.0
    began = time.monotonic()
    case = 0
    while case < CASES or (not CASES and time.monotonic() - began < SECONDS):
        name, damage = damaged(case, pristine, tmp_path / "set")
        start = time.monotonic()
        try:
            tally[name, verdict(child.call(read_any_data, tmp_path / "set"))] += 1
        except AssertionError as error:
            failures.append(f"case {case}, {name}, {damage}: {str(error)[:4000]}")
        slowest = max(slowest, time.monotonic() - start)
        case += 1
    for name in pristine:
        print(f"{name:40}", *(f"{each} {tally[name, each]:4}" for each in VERDICTS))
    print(f"{case} cases, the slowest {slowest:.1f} s")
    assert case > len(pristine) or not CASES
    if failures:
        pytest.fail(f"{len(failures)} of {case} cases\n" + "\n".join(failures), pytrace=False)


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_read_undamaged(name, child, pristine):
    """Otherwise damage would not reach a reader."""
    found = child.call(read_any_data, pristine[name])
    assert found.kind == "read", found
    if name != "other tools":
        assert not found.value["refused"]
        assert found.value["splits"]["train"]["images"]


def test_the_same_case_is_the_same_damage(pristine, tmp_path):
    for case in range(0, 3 * len(pristine), 5):
        one, two = (damaged(case, pristine, tmp_path / name) for name in ("one", "two"))
        assert one == two
        files = [sorted((tmp_path / name).rglob("*")) for name in ("one", "two")]
        pairs = list(zip(*files, strict=True))
        assert [a.relative_to(tmp_path / "one") for a, _ in pairs] == [
            b.relative_to(tmp_path / "two") for _, b in pairs
        ]
        assert all(a.read_bytes() == b.read_bytes() for a, b in pairs if a.is_file() and not a.is_symlink())


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("error", "Traceback"),
        Outcome("hang", "over 10 s"),
        Outcome("memory", "MemoryError"),
        Outcome("crash", -11),
        Outcome("read", {"refused": "it is wrong", "fault": "x", "findings": [], "skipped": 0}),
        Outcome("read", {"refused": "a.json: wrong; correct it.", "fault": "", "findings": [], "skipped": 0}),
        Outcome("read", {"refused": None, "fault": "", "findings": [], "skipped": 1}),
    ],
)
def test_what_must_not_happen_is_noticed(outcome):
    with pytest.raises(AssertionError):
        verdict(outcome)

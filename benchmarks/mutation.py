"""A mutation run of our own: single faults are put into copies of the code, and the tests that know the line are run.

    uv run python benchmarks/mutation.py [--faults 200] [--seed 0] [--folders ops model training evaluation]
        [--output runs/mutation.json] [--jobs 1] [--seconds 600] [--resume]

Folders (or modules) are below the package.  The faults are drawn by the seed, over the files by their lines.  One run
of the suite under coverage tells which test runs which line; it is kept in `.mutation/` until code or tests change.  A
fault meets the tests that ran its statement, until one fails: the fastest first, those of files named like it still
sooner.  A fork of one parent that has imported torch and the like, but never masklab, imports the copy.  Code that runs
at import (constants, fields, defaults) meets the tests that run the lines naming it, the 60 fastest that use its module
and the test files named like it.

A time-out or a crash is a kill.  A statement that no test runs is a survivor.  `--seconds` is how much of the suite's
recorded time a fault may meet.  Prints a line a fault, then the share killed and the survivors as a Markdown table, to
be judged by hand: some faults change nothing.  A test that kills for the first time must pass in the same order without
the fault, or it is left out.  OUTPUT is written after each fault; `--resume` goes on from it.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import copy
import hashlib
import importlib
import json
import multiprocessing.forkserver
import operator
import os
import py_compile
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PRELOAD = "pytest coverage pytest_cov torch torchvision timm lightning.pytorch hypothesis hotcoco jsonargparse tifffile"
QUIET = {"print", "warn", "warning", "info", "debug", "error", "exception"}  # a call of these says, it does not do
WORDS = {"description", "help", "metavar", "title", "stacklevel", "strict"}  # keywords whose values are for people
WORDS |= {"frozen", "slots", "device"}  # guards, memory, and the place of a tensor: on a CPU no result depends on them
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div},
    **{ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr},
}
PAIRS = [
    *[("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("clamp_min", "clamp_max")],
    *[("floor", "ceil"), ("any", "all"), ("zeros", "ones"), ("zeros_like", "ones_like"), ("sin", "cos")],
    *[("logical_and", "logical_or"), ("startswith", "endswith"), ("rfind", "find"), ("cumsum", "cumprod")],
]
OTHER = dict(PAIRS) | {b: a for a, b in PAIRS}


class Place(NamedTuple):
    """The lines whose tests a fault meets, and the names bound by them if they run at import."""

    first: int
    last: int
    names: tuple[str, ...]


class Fault(NamedTuple):
    path: str
    line: int
    kind: str
    before: str
    after: str
    start: int  # the bytes replaced
    end: int
    text: str
    place: Place

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.start}:{self.end}:{self.text}"

    def put_into(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


def variants(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Kind and text of what may stand in place of an expression."""

    def changed(**fields: Any) -> str:
        other = copy.copy(node)
        for name, value in fields.items():
            setattr(other, name, value)
        return ast.unparse(other)

    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                yield "comparison", changed(ops=[*ops[:i], SWAPS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op, left=left, right=right) if type(op) in SWAPS:
            texts = (ast.JoinedStr, ast.List, ast.Tuple)
            if not any(isinstance(side, texts) or is_constant(side, str) for side in (left, right)):
                yield "arithmetic", f"({changed(op=SWAPS[type(op)]())})"
        case ast.BoolOp(op=op):
            yield "boolean", changed(op=SWAPS[type(op)]())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", f"({ast.unparse(operand)})"
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not is_constant(operand, int, float):
            yield "arithmetic", f"({ast.unparse(operand)})"
        case ast.Constant(value=bool() as value):
            yield "flag", str(not value)
        case ast.Constant(value=int() as value):
            yield "constant", str(value + 1)
        case ast.Constant(value=float() as value):
            yield "constant", repr(float(f"{value * 1.1:.6g}") if value else 1.0)
        case ast.Name(id=name, ctx=ast.Load()) if name in OTHER:
            yield "pair", OTHER[name]
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in OTHER:
            yield "pair", changed(attr=OTHER[name])
        case ast.Subscript(slice=ast.Slice() as cut):
            for side in ("lower", "upper", "step"):
                if getattr(cut, side) is not None:
                    part = copy.copy(cut)
                    setattr(part, side, None)
                    yield "index", changed(slice=part)
        case ast.Call(func=func, args=args, keywords=keywords):
            for i, keyword in enumerate(keywords):
                if keyword.arg not in WORDS:
                    yield "keyword", f"({changed(keywords=[*keywords[:i], *keywords[i + 1 :]])})"
            if called(func).startswith(("clamp", "clip")):
                if len(args) >= 2:
                    yield "pair", changed(args=[*args[:-2], args[-1], args[-2]])
                turned = [ast.keyword(OTHER.get(k.arg or "", k.arg), k.value) for k in keywords]
                if [k.arg for k in turned] != [k.arg for k in keywords]:
                    yield "pair", changed(keywords=turned)


def is_constant(node: ast.AST, *types: type) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, types)


def called(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def conditions(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """The conditions of a node made constant, and turned round where no variant of their own does that."""
    turns = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    tests = (
        node.ifs
        if isinstance(node, ast.comprehension)
        else [node.test]
        if isinstance(node, ast.If | ast.IfExp | ast.While)
        else []
    )
    for test in tests:
        if not isinstance(node, ast.While):  # it would run for ever
            yield from ((test, text) for text in ("True", "False"))
        turned = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], turns)
        if not turned and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            yield test, f"not ({ast.unparse(test)})"


class Finder:
    """All single faults of one module."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: dict[tuple[int, int, str], Fault] = {}
        for statement in ast.parse(source).body:
            self.statement(statement, None)

    def note(self, node: ast.expr | ast.stmt, place: Place, kind: str, text: str) -> None:
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        left, right = self.starts[node.lineno - 1], self.starts[node.end_lineno or 0]
        around = self.source[max(left, start - 50) : start], self.source[end : min(right, end + 50)]
        texts = (self.source[start:end], text.encode())
        before, after = (" ".join(middle.join(around).decode(errors="ignore").split()) for middle in texts)
        fault = Fault(self.path, node.lineno, kind, before, after, start, end, text, place)
        self.found.setdefault((start, end, text.strip("()")), fault)

    def statement(self, node: ast.stmt, function: ast.FunctionDef | ast.AsyncFunctionDef | None) -> None:
        body = getattr(node, "body", None)
        last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
        names = () if function else tuple(bound(node))
        place = Place(node.lineno, last, names)
        match node:
            case ast.Raise() | ast.Import() | ast.ImportFrom():
                return
            case ast.If(test=test) if "TYPE_CHECKING" in ast.unparse(test):
                return
            case ast.Assign() if names == ("__all__",):
                return
            case ast.Expr(value=ast.Call(func=func)) if called(func) in QUIET:
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.name == "__repr__":
                    return
                whole = place if function else Place(node.lineno, node.end_lineno or 0, names)
                heads: list[ast.AST | None] = [*node.decorator_list]
                if isinstance(node, ast.ClassDef):
                    heads += [*node.bases, *(keyword.value for keyword in node.keywords)]
                else:
                    heads += [*node.args.defaults, *node.args.kw_defaults]
                for head in heads:
                    if head is not None:
                        self.walk(head, whole, function)
                for child in node.body:
                    self.statement(child, function if isinstance(node, ast.ClassDef) else node)
                return
            case ast.Expr(value=ast.Call()):
                self.note(node, place, "removed", "pass")
            case ast.AugAssign(target=target, op=op, value=value):
                self.note(node, place, "removed", "pass")
                if type(op) in SWAPS:
                    other = ast.AugAssign(target, SWAPS[type(op)](), value)  # type: ignore[arg-type]
                    self.note(node, place, "arithmetic", ast.unparse(other))
            case ast.Return(value=value) if value is not None and not is_constant(value, type(None)):
                if function and function.returns and re.search(r"\bNone\b|Optional", ast.unparse(function.returns)):
                    self.note(value, place, "return", "None")
        self.children(node, place, function)

    def children(self, node: ast.AST, place: Place, function: Any) -> None:
        for test, text in conditions(node):
            self.note(test, place, "condition", text)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "msg"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.stmt):
                    self.statement(child, function)
                elif isinstance(child, ast.AST):
                    self.walk(child, place, function)

    def walk(self, node: ast.AST, place: Place, function: Any) -> None:
        match node:
            case ast.JoinedStr():
                return
            case ast.keyword(arg=name) if name in WORDS:
                return
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=args):
                return self.walk(args[0], place, function)
            case ast.Call(func=ast.Name(id="cast"), args=args):
                return self.walk(args[1], place, function)
            case ast.BinOp(op=ast.BitOr()) if place.names:
                return None  # a type
        if isinstance(node, ast.expr):
            for kind, text in variants(node):
                self.note(node, place, kind, text)
        self.children(node, place, function)


def bound(node: ast.stmt) -> list[str]:
    """The names that a statement binds, or a made-up one: it runs at import all the same."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return names if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and names else [" "]


def draw(sources: dict[str, bytes], count: int, seed: int) -> list[Fault]:
    """Faults over the files by their lines, and in a file over its lines, in an order drawn by the seed."""
    faults: dict[str, list[Fault]] = {}
    for path, source in sources.items():
        rng = random.Random(f"{seed} {path}")
        every = list(Finder(path, source).found.values())
        rng.shuffle(every)
        seen: Counter[int] = Counter()
        turns = []
        for fault in every:
            turns.append(seen[fault.line])
            seen[fault.line] += 1
        order = sorted(range(len(every)), key=turns.__getitem__)  # a second fault of a line after all first ones
        faults[path] = [every[i] for i in order]
    lines = {path: len(source.splitlines()) for path, source in sources.items()}
    share = count / max(1, sum(lines[path] for path, every in faults.items() if every))
    drawn: dict[str, list[Fault]] = {path: [] for path in faults}
    while sum(map(len, drawn.values())) < count and any(faults.values()):
        path = max((p for p in faults if faults[p]), key=lambda p: (share * lines[p] - len(drawn[p]), p))
        fault = faults[path].pop(0)
        with contextlib.suppress(SyntaxError):
            compile(fault.put_into(sources[path]), path, "exec")
            drawn[path].append(fault)
    chosen = [fault for every in drawn.values() for fault in every]
    random.Random(seed).shuffle(chosen)
    return chosen


def copy_tree(root: Path, place: Path) -> Path:
    """A copy of what git would see, with `shared` beside it as beside the original."""
    tree = place / "tree"
    names = [path.relative_to(root) for path in root.rglob("*") if path.is_file() and ".mutation" not in path.parts]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        names = [Path(name) for name in listed if name and (root / name).is_file()]
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, tree / name)
    if (root.parent / "shared").exists():
        (place / "shared").symlink_to((root.parent / "shared").resolve())
    compileall.compile_dir(tree / "src", quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return tree


def fork(tree: Path, work: Callable[[], object], write_bytecode: bool = False) -> int:
    """Start a child that does the work in the copy and in no other place; its output lies beside the copy."""
    (tree.parent / "result.json").unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(tree.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(tree)
        sys.path[:] = [str(tree / "src"), *(p for p in sys.path if p and Path(p).name not in ("src", "benchmarks"))]
        os.environ["PYTHONPATH"] = sys.path[0]
        os.environ["COVERAGE_FILE"] = str(tree.parent / "coverage")
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        sys.argv = ["pytest"]
        sys.dont_write_bytecode = not write_bytecode
        os.environ["PYTHONDONTWRITEBYTECODE"] = "" if write_bytecode else "1"
        if "hypothesis" in sys.modules:
            from hypothesis import settings

            settings.register_profile("mutation", deadline=None, database=None, derandomize=True)
            settings.load_profile("mutation")
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def stop(pid: int) -> None:
    """End a child and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def test_with(arguments: list[str], plugin: object) -> int:
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", *arguments], plugins=[plugin, Seeded()]))


class Seeded:
    """The global generators at the start of each test and shared fixture: no test depends on which ran before it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        seed_all()

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> None:
        if fixturedef.scope != "function":
            seed_all()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        seed_all()


def seed_all() -> None:
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "random.manual_seed")):
        if name in sys.modules:
            operator.attrgetter(seed)(sys.modules[name])(0)


class Recorder:
    """Seconds of each test, what it needs of fixtures that others made, and who else needs what it made."""

    def __init__(self, package: str) -> None:
        self.package, self.passed, self.spent = package, set[str](), 0.0
        self.seconds: dict[str, float] = defaultdict(float)
        self.needs: dict[str, list[str]] = {}
        self.made: dict[str, list[str]] = {}
        self.cost: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            fixtures = item._fixtureinfo.name2fixturedefs.values()
            shared = [f[-1] for f in fixtures if f and f[-1].scope != "function" and f[-1].baseid]  # none of pytest's
            self.needs[item.nodeid] = [f"{fixture.baseid} {fixture.argname}" for fixture in shared]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # the next one is this test's own, and says so
        self.made[nodeid] = [need for need in self.needs[nodeid] if need not in self.cost]
        self.cost |= dict.fromkeys(self.made[nodeid], 0.0)
        for name in [name for name in sys.modules if name.split(".")[0] == self.package]:
            for value in list(vars(sys.modules[name]).values()):
                if callable(getattr(value, "cache_clear", None)):
                    value.cache_clear()  # so that not only the first test runs a remembered function

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        began = time.perf_counter()
        value = yield
        if fixturedef.scope != "function":
            self.cost[f"{fixturedef.baseid} {fixturedef.argname}"] = took = time.perf_counter() - began
            self.spent += took
        return value

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration - self.spent
        self.spent = 0.0
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        if report.failed:
            self.passed.discard(report.nodeid)


def record(tree: Path, package: str) -> dict[str, Any]:
    """One run of the suite under coverage: the tests that passed, and which of them run which line."""
    recorder, result = Recorder(package), tree.parent / "result.json"
    settings = tree.parent / "coverage.ini"  # processes that a test starts say whose they are
    settings.write_text("[run]\nparallel = true\npatch = fork, _exit\ncontext = ${PYTEST_CURRENT_TEST-}\n")

    def work() -> None:
        os.environ["COVERAGE_PROCESS_START"] = str(settings)
        options = [f"--cov={tree / 'src'}", "--cov-context=test", f"--cov-config={settings}", "--cov-report="]
        status = test_with(options, recorder)
        values = {name: getattr(recorder, name) for name in ("seconds", "needs", "made", "cost")}
        result.write_text(json.dumps({**values, "passed": sorted(recorder.passed), "status": status}))

    _, status = os.waitpid(fork(tree, work, write_bytecode=True), 0)
    log = (tree.parent / "log").read_text()
    if not result.exists():
        raise SystemExit(f"The suite could not be recorded (status {status}):\n{log[-3000:]}")
    values = json.loads(result.read_text())
    print("\n".join(log.strip().splitlines()[-12:]))
    from coverage import CoverageData

    tests = values["passed"]
    index = {test: i for i, test in enumerate(tests)}
    users = defaultdict(set)
    for test, needs in values["needs"].items():
        for need in needs:
            users[need].add(test)
    lines: dict[str, dict[int, list[int]]] = {}
    data = CoverageData(str(tree.parent / "coverage"))
    data.read()
    for file in data.measured_files():
        path = Path(file).relative_to(tree).as_posix()
        lines[path] = {}
        for line, contexts in data.contexts_by_lineno(file).items():
            met: set[int] = set()
            for context in contexts:
                test, _, phase = re.sub(r" \((setup|call|teardown)\)$", r"|\1", context.strip("|")).rpartition("|")
                known = {test} | ({t for need in values["made"].get(test, []) for t in users[need]} - {""})
                met |= {index[t] for t in (known if phase == "setup" else {test}) if t in index}
                met |= {-1} if not test else set()  # ran at import
            lines[path][line] = sorted(met)
    needed = {test: sum(values["cost"][need] for need in values["needs"][test]) for test in tests}
    return {"tests": {t: [values["seconds"][t], needed[t]] for t in tests}, "lines": lines}


class Suite:
    """Which tests a fault should meet."""

    def __init__(self, values: dict[str, Any], sources: dict[str, str]) -> None:
        self.cost: dict[str, list[float]] = values["tests"]
        self.tests = list(self.cost)
        self.lines = {path: {int(n): met for n, met in of.items()} for path, of in values["lines"].items()}
        self.sources = sources
        self.sound, self.doubted = set[str](), set[str]()

    def on(self, path: str, first: int = 1, last: int = sys.maxsize) -> set[int]:
        return {test for n, met in self.lines.get(path, {}).items() if first <= n <= last for test in met}

    def choose(self, fault: Fault, most: float) -> tuple[list[list[str]], int]:
        """The tests in groups of shared fixtures, the fastest group first, and how many were left out."""
        chosen = self.on(fault.path, fault.place.first, fault.place.last)
        words = {Path(fault.path).stem, Path(fault.path).parent.name}
        own = {test for test in self.tests if words & {*Path(test.split("::")[0]).stem.split("_")}}
        if fault.place.names or -1 in chosen:
            for name in filter(str.strip, fault.place.names):
                for path, source in self.sources.items():
                    for number, line in enumerate(source.splitlines(), 1):
                        if re.search(rf"\b{name}\b", line):
                            chosen |= self.on(path, number, number)
            users = sorted(self.on(fault.path) - {-1}, key=lambda test: sum(self.cost[self.tests[test]]))
            chosen |= {*users[:60], *(i for i, test in enumerate(self.tests) if test in own)}
        groups: dict[str, list[str]] = defaultdict(list)
        for test in sorted({self.tests[i] for i in chosen - {-1}} - self.doubted, key=lambda test: self.cost[test][0]):
            groups[test.split("::")[0] if self.cost[test][1] > 0.5 else test].append(test)

        def seconds(group: list[str]) -> float:
            return sum(self.cost[test][0] for test in group) + max(self.cost[test][1] for test in group)

        kept: list[list[str]] = []
        spent = 0.0
        for group in sorted(groups.values(), key=lambda group: seconds(group) * (0.1 if own & {*group} else 1)):
            spent += seconds(group)
            if kept and spent > most:
                break
            kept.append(group)
        return kept, sum(map(len, groups.values())) - sum(map(len, kept))

    def limits(self, groups: list[list[str]]) -> dict[str, float]:
        """Seconds that each test may take, in the order in which to run them."""
        return {test: 20 + 6 * sum(self.cost[test]) for group in groups for test in group}


class Chosen:
    """Runs the chosen tests only, in their order, each with its own limit, and notes what fails."""

    def __init__(self, limits: dict[str, float]) -> None:
        self.limits, self.ran, self.failed = limits, 0, list[str]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        order = {test: i for i, test in enumerate(self.limits)}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(self.limits[item.nodeid]))

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(f"{report.nodeid} (collection)")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.ran += report.when == "call"
        if report.failed:
            self.failed.append(report.nodeid)


def meet(tree: Path, limits: dict[str, float], package: str, *options: str) -> Callable[[], None]:
    """What a child does: run the chosen tests and write down who failed."""

    def work() -> None:
        plugin = Chosen(limits)
        status = test_with([*options, *sorted({test.split("::")[0] for test in limits})], plugin)
        home = str(getattr(sys.modules.get(package), "__file__", tree))
        values = {"failed": plugin.failed, "ran": plugin.ran, "home": home, "status": status}
        (tree.parent / "result.json").write_text(json.dumps(values))

    return work


def verdict(tree: Path, status: int | None) -> dict[str, Any]:
    """Who killed the fault, "" if nobody, and how many tests ran; no status: it was out of time."""
    if status is None:
        return {"by": "time-out", "ran": 0}
    result = tree.parent / "result.json"
    if not result.exists():
        return {"by": f"crash (status {status})", "ran": 0}
    values = json.loads(result.read_text())
    if not Path(values["home"]).is_relative_to(tree):
        raise SystemExit(f"The tests imported {values['home']}, not the copy in {tree}.")
    if not values["failed"] and values["status"]:
        if values["status"] in (2, 5):
            raise SystemExit(f"pytest ended with {values['status']}:\n{(tree.parent / 'log').read_text()[-3000:]}")
        values["failed"] = ["pytest could not start"]
    return {"by": next(iter(values["failed"]), ""), "ran": values["ran"]}


def unharmed(tree: Path, limits: dict[str, float], package: str) -> list[str]:
    """The tests that fail in the copy as it is."""
    _, status = os.waitpid(fork(tree, meet(tree, limits, package), write_bytecode=True), 0)
    first = verdict(tree, status)["by"]
    return json.loads((tree.parent / "result.json").read_text())["failed"] if first in limits else [first] * bool(first)


def cell(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`"


def summary(results: list[dict[str, Any]], package: str) -> str:
    """Shares killed and the survivors, in Markdown."""
    folders: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        inside = result["path"].split(f"{package}/", 1)[-1]
        for name in (inside.split("/")[0], "all"):
            folders[name].append(result["verdict"] == "killed")
    lines = ["", "| folder | faults | killed | share |", "|---|---|---|---|"]
    for name, killed in sorted(folders.items(), key=lambda entry: (entry[0] == "all", entry[0])):
        lines.append(f"| {name} | {len(killed)} | {sum(killed)} | {sum(killed) / len(killed):.1%} |")
    lines += ["", "| place | kind | before | after | tests | reason |", "|---|---|---|---|---|---|"]
    for result in sorted(results, key=lambda result: (result["path"], result["line"])):
        if result["verdict"] != "killed":
            tests = result["ran"] if result["verdict"] == "LIVED" else result["verdict"]
            change = f"{cell(result['before'])} | {cell(result['after'])}"
            lines.append(f"| {result['path']}:{result['line']} | {result['kind']} | {change} | {tests} | |")
    return "\n".join(lines)


def run(
    faults: list[Fault], suite: Suite, trees: list[Path], options: argparse.Namespace, package: str
) -> Iterator[tuple[Fault, dict[str, Any]]]:
    """Faults and their verdicts, as they come, with a copy a job."""
    waiting, free, busy = (
        list(faults),
        list(trees),
        dict[int, tuple[Fault, Path, dict[str, float], float, float, int]](),
    )
    try:
        while waiting or busy:
            while waiting and free:
                fault = waiting.pop(0)
                groups, left = suite.choose(fault, options.seconds)
                if not groups:
                    yield fault, {"by": "", "ran": 0, "left": 0, "seconds": 0.0}
                    continue
                tree, limits, now = free.pop(), suite.limits(groups), time.monotonic()
                source = suite.sources[fault.path].encode()
                (tree / fault.path).write_bytes(fault.put_into(source))
                most = 60 + 4 * sum(sum(suite.cost[group[0]]) + len(group) for group in groups)
                most += 4 * sum(suite.cost[test][0] for test in limits)
                busy[fork(tree, meet(tree, limits, package, "-x"))] = (fault, tree, limits, now, now + most, left)
            for pid, (fault, tree, limits, began, end, left) in list(busy.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if not done and time.monotonic() < end:
                    continue
                stop(pid)
                if not done:
                    os.waitpid(pid, 0)
                del busy[pid]
                (tree / fault.path).write_bytes(suite.sources[fault.path].encode())
                free.append(tree)
                values = verdict(tree, status if done else None)
                killer = values["by"]
                if killer in limits and killer not in suite.sound:
                    until = dict(list(limits.items())[: list(limits).index(killer) + 1])
                    doubted = set(unharmed(tree, until, package)) & {*until}
                    suite.sound |= {*until} - doubted
                    suite.doubted |= doubted
                    if killer in doubted:
                        print(f"{killer} fails without a fault: it is left out from now on", flush=True)
                        waiting.insert(0, fault)
                        continue
                yield fault, {**values, "left": left, "seconds": round(time.monotonic() - began, 2)}
            time.sleep(0.02)
    finally:
        for pid in busy:
            stop(pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=["ops", "model", "training", "evaluation"])
    parser.add_argument("--output", type=Path, default=Path("runs/mutation.json"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--resume", action="store_true", help="keep the verdicts in OUTPUT")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help=argparse.SUPPRESS)
    parser.add_argument("--preload", default=PRELOAD, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ended from outside, it leaves no child and no copy
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    for name in options.preload.split():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        investigate(options, Path(folder))


def investigate(options: argparse.Namespace, folder: Path) -> None:
    root = options.root = options.root.resolve()
    trees = [copy_tree(root, folder / f"job{i}") for i in range(options.jobs)]
    source = next(path.parent for path in sorted((trees[0] / "src").glob("*/__init__.py")))
    package = source.name
    assert package not in sys.modules
    texts = {path.relative_to(trees[0]).as_posix(): path.read_bytes() for path in sorted(trees[0].rglob("*.py"))}
    of_code = [entry for entry in texts.items() if entry[0].startswith(("src", "tests"))]
    key = hashlib.sha256(repr(of_code).encode()).hexdigest()
    kept = root / ".mutation" / "tests.json"
    values = json.loads(kept.read_text()) if kept.exists() else {}
    if values.get("key") != key:
        print("recording which test runs which line", flush=True)
        values = {**record(trees[0], package), "key": key}
        write(kept, values)
    inside = f"src/{package}/"
    suite = Suite(values, {path: text.decode() for path, text in texts.items() if path.startswith(inside)})
    names = [part if part.endswith(".py") or part == "." else f"{part}/" for part in options.folders]
    sources = {p: t for p, t in texts.items() if p.startswith(tuple(inside + n.removeprefix(".") for n in names))}
    faults = draw(sources, options.faults, options.seed)
    settings = {"key": key, "faults": options.faults, "seed": options.seed, "folders": options.folders}
    results: dict[str, dict[str, Any]] = {}
    if options.resume and options.output.exists():
        old = json.loads(options.output.read_text())
        if old["settings"] != settings:
            raise SystemExit(f"{options.output} is of other code, tests or options; give another --output.")
        results = {result["name"]: result for result in old["results"]}
    fastest = sorted(suite.tests, key=lambda test: sum(suite.cost[test]))[:10]
    for tree in trees:  # the code as it is must live
        if failed := unharmed(tree, suite.limits([fastest]), package):
            raise SystemExit(f"Failed without a fault: {failed}\n{(tree.parent / 'log').read_text()[-3000:]}")
    print(f"{len(suite.tests)} tests, {len(faults)} faults, {len(results)} of them known", flush=True)
    for fault, seen in run([f for f in faults if f.name not in results], suite, trees, options, package):
        killed = "killed" if seen["by"] else "LIVED" if seen["ran"] else "not covered"
        fields = {name: getattr(fault, name) for name in ("name", "path", "line", "kind", "before", "after")}
        results[fault.name] = {**fields, "verdict": killed, **seen}
        by = f"by {seen['by']}" if seen["by"] else f"after {seen['ran']} tests" + ", not all" * bool(seen["left"])
        place = f"{fault.path.removeprefix(inside)}:{fault.line}"
        print(f"{len(results):3} {killed} {place} {fault.kind}: {fault.before}  ->  {fault.after}  {by}", end=" ")
        print(f"({seen['seconds']:.1f} s)", flush=True)
        write(options.output, {"settings": settings, "results": list(results.values())})
    print(summary(list(results.values()), package))


def write(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values))
    part.replace(path)


if __name__ == "__main__":
    main()

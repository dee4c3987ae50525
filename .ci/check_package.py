"""Build the package, look into it, install it into an empty environment and use it there.

    uv run python .ci/check_package.py

Takes about a minute, once the libraries are in uv's cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".yaml", ".html", ".svg", ".css", ".js", ".typed", ".safetensors", ".md"}
DEVELOPMENT = {"matplotlib", "tensorboard", "pytest", "pycocotools", "ray", "onnx", "openvino", "mkdocs"}
"""Of extras and tools: a plain installation must not bring them."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="masklab-package-") as folder:
        dist = Path(folder, "dist")
        run("uv", "build", "--quiet", "--out-dir", dist, ROOT)
        (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
        check_wheel(wheel)
        check_sdist(sdist)
        run("uvx", "--quiet", "twine", "check", "--strict", wheel, sdist)
        use(wheel, Path(folder, "empty"))
    print("the package is good")


def check_wheel(wheel: Path) -> None:
    """The files of src/masklab, all of them and nothing else, and the metadata."""
    names = set(zipfile.ZipFile(wheel).namelist())
    own = {name for name in names if ".dist-info/" not in name}
    tracked = set(run("git", "-C", ROOT, "ls-files", "src/masklab").split())
    expected = {name.removeprefix("src/") for name in tracked}
    # before a commit, files that git does not know yet are in the wheel too
    untracked = run("git", "-C", ROOT, "ls-files", "--others", "--exclude-standard", "src/masklab").split()
    expected |= {name.removeprefix("src/") for name in untracked}
    expect(own == expected, f"the wheel differs from src/masklab in {sorted(own ^ expected)}")
    odd = sorted(name for name in own if Path(name).suffix not in SUFFIXES)
    expect(not odd, f"files of unknown kinds are in the wheel: {odd}")
    for needed in (
        "masklab/py.typed",
        "masklab/config/recipes/nuclei.yaml",
        "masklab/report/script.js",
        "masklab/report/style.css",
        "masklab/weights/released/nuclei.md",
        "masklab/weights/released/nuclei.safetensors",
    ):
        expect(needed in own, f"the wheel lacks {needed}")
    expect(any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks the licence")


def check_sdist(sdist: Path) -> None:
    """What the wheel is built from and the tests, but no data sets, results or environments."""
    with tarfile.open(sdist) as archive:
        members = [(member.name.partition("/")[2], member.size) for member in archive.getmembers()]
    names = {name for name, _ in members}
    for needed in ("pyproject.toml", "README.md", "LICENSE", "tests/test_model.py", "src/masklab/py.typed"):
        expect(needed in names, f"the sdist lacks {needed}")
    known = set(run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines())
    expect(names - known <= {"PKG-INFO"}, f"the sdist has files that git does not: {sorted(names - known)}")
    large = [name for name, size in members if size > 2**20 and not name.startswith("src/masklab/weights/released/")]
    expect(not large, f"the sdist has large files: {large}")


def use(wheel: Path, folder: Path) -> None:
    """Install the wheel alone, check it, predict an image in every format that needs no extra, and train a step."""
    run("uv", "venv", "--quiet", "--python", sys.executable, folder / "env")
    binaries = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    python = next(binaries.glob("python*"))
    run("uv", "pip", "install", "--quiet", "--python", python, wheel)
    run("uv", "pip", "check", "--quiet", "--python", python)
    listed = {line.partition("==")[0] for line in run("uv", "pip", "freeze", "--quiet", "--python", python).split("\n")}
    expect(not listed & DEVELOPMENT, f"a plain installation brings {sorted(listed & DEVELOPMENT)}")
    data, image = folder / "shapes", folder / "nuclei.png"

    def masklab(*words: str | Path) -> str:
        return run(binaries / "masklab", *words, cwd=folder)

    print(masklab("doctor"))
    masklab("data", "shapes", data, "--train", "2", "--val", "1")
    code = "from masklab.cli.demo import try_nuclei; found, drawn = try_nuclei('nuclei.png'); assert found > drawn / 2"
    run(python, "-c", code, cwd=folder)
    masklab("predict", "nuclei", image, "--save", "coco", "overlay", "labels", "geojson", "rois", "yolo")
    quick = ["--train.steps", "1", "--train.batch_size", "1", "--train.workers", "0", "--model.backbone.width", "0.25"]
    masklab("train", "shapes", "--data", data, "--output", folder / "run", *quick)
    expect((folder / "run" / "best.safetensors").is_file(), "training wrote no weights")


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output; where it fails, show all it said and stop."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}\nended with code {done.returncode}")
    return done.stdout


def expect(holds: bool, message: str) -> None:
    if not holds:
        sys.exit(message)


if __name__ == "__main__":
    main()

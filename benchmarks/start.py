"""What a start costs: the command line, the library and the first prediction, beside `import torch`.

    uv run python benchmarks/start.py [--quick]

Each row is a process of its own, run in turn with the others; the figures are medians of processor time, user and
system, in one thread, as other work on the machine makes wall time long.  Bars, on a machine that imports torch in about
a second: `import masklab` under 0.1 s, `--help` and `info` under 1 s, and at most 1 s between `import torch` and the end
of the first prediction of the model that comes with masklab, of which the second prediction alone is shown too.  The last
line is the ratio of that first prediction, from start to end, to `import torch`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

PREDICT = "; ".join(
    (
        "import masklab, numpy",
        "predictor, image = masklab.load('nuclei'), numpy.zeros((3, 256, 256), numpy.uint8)",
        "predictor.predict(image)",
    )
)
VERB = "from masklab.cli.app import main; main({})"
ROWS = {
    "python": "pass",
    "import torch": "import torch",
    "import masklab": "import masklab",
    "masklab --help": VERB.format(["--help"]),
    "masklab info nuclei": VERB.format(["info", "nuclei"]),
    "first prediction, 256 x 256": PREDICT,
    "the same and a second": f"{PREDICT}; predictor.predict(image)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of each row after the one that warms up")
    rounds = 1 if parser.parse_args().quick else 5
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for turn in range(rounds + 1):
        for name, code in ROWS.items():
            took = processor_seconds(code)
            if turn:  # the first warms up the disk
                seconds[name].append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    whole = median["import torch"]
    for name, took in median.items():
        print(f"{name:30} {took:6.2f} s  {took / whole:5.2f} of import torch")
    first, both = list(median.values())[-2:]
    print(f"first prediction beyond import torch {first - whole:.2f} s, of it the network {both - first:.2f} s")
    print(f"ratio: {first / whole:.2f}")


def processor_seconds(code: str) -> float:
    """User and system time of a Python that runs ``code``."""
    before = getrusage(RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, env=environment, check=True)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()

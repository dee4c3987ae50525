import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # equality bit for bit is a promise of the CPU
# nohup and shells ignore these for what they start in the background, and what the tests start would inherit that
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from pathlib import Path

import pytest

WORKERS = 4  # at most: each has torch in memory


def pytest_xdist_auto_num_workers(config):
    """Processes for the whole suite; a part of it, and one whose output is to be seen (-s), runs in this process."""
    whole = config.args == config.getini("testpaths") and config.option.capture != "no"
    return min(WORKERS, os.cpu_count() or 1) if whole else 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test wrote, in letters that a worker can send: some write bytes that are no text."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def real_data():
    """Folder of the real data sets beside the checkout; tests that need it say so where it is missing."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A small drawn data set."""
    from masklab.datasets.synthetic.shapes import draw_shapes

    return draw_shapes(tmp_path_factory.mktemp("drawn") / "shapes", {"train": 8, "val": 4}, seed=1, size=(96, 112))


@pytest.fixture(scope="session")
def tiny_config():
    """A model of a few thousand parameters that trains on drawn images in seconds."""
    from masklab.config.schema import validate

    return validate(
        {
            "model": {
                "backbone": {"name": "resnet18", "pretrained": False, "norm": "group", "width": 0.25},
                "rpn": {
                    "anchor_sizes": [12, 24, 48],
                    "channels": 32,
                    "drop_crossing_anchors": False,
                    "pre_nms_train": 200,
                    "pre_nms_test": 200,
                    "proposals_train": 50,
                    "proposals_test": 40,
                },
                "box": {"roi_size": 6, "samples": 16, "append_ground_truth": True, "max_detections": 20},
                "mask": {"mask_size": 15, "train_masks": 8, "train_refined": 4, "refine_channels": 8},
            },
            "image": {"scale": 1.0},
            "train": {
                "steps": 4,
                "batch_size": 2,
                "optimizer": "adamw",
                "learning_rate": 1e-3,
                "validate_every": 2,
                "log_every": 1,
                "workers": 0,
                "precision": "float32",
            },
        },
        "tests",
    )


@pytest.fixture(scope="session")
def classes():
    from masklab.structures import ClassTable

    return ClassTable((2, 5, 9), ("disc", "box", "ring"))


@pytest.fixture
def one_thread():
    """One thread for each operation: how many there are changes the last digits, and a folder has one for each image."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

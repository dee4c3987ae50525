"""The files for COCO's server: pycocotools reads them, with the listing's ids and nothing beyond 100 an image."""

import contextlib
import io
import json
import re
import zipfile

import pytest
import torch
from pycocotools.coco import COCO

from masklab.cli.app import main
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.paper import submission
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import save_model


@pytest.fixture
def listing(shapes, tmp_path):
    """A test split as COCO gives it out: images and categories, no annotations."""
    truth = json.loads((shapes / "val.json").read_text())
    del truth["annotations"]
    path = tmp_path / "image_info_test-dev2017.json"
    path.write_text(json.dumps(truth))
    return path


def test_pycocotools_reads_both_files(listing, shapes, tiny_config, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    truth = json.loads((shapes / "val.json").read_text())
    model = build_model(tiny_config, ClassTable.from_categories(truth["categories"], listing))
    save_model(model, tmp_path / "model.safetensors")
    monkeypatch.setattr(submission, "DETECTIONS", 3)
    arguments = ["submit", str(tmp_path / "model.safetensors"), "--list", str(listing), "--images"]
    assert main([*arguments, str(shapes / "val"), "--output", str(tmp_path / "out")]) == 0
    written = capsys.readouterr().out
    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(shapes / "val.json"))
    for kind, field, other in (("mask", "segmentation", "bbox"), ("box", "bbox", "segmentation")):
        path = tmp_path / "out" / kind / "detections_test-dev2017_masklab_results.zip"
        assert str(path) in written
        with zipfile.ZipFile(path) as archive:
            assert archive.namelist() == ["detections_test-dev2017_masklab_results.json"]
            rows = json.loads(archive.read(archive.namelist()[0]))
        assert rows
        assert all(field in row and other not in row for row in rows)
        counts = [sum(row["image_id"] == image["id"] for row in rows) for image in truth["images"]]
        assert sum(counts) == len(rows)
        assert max(counts) == 3
        with contextlib.redirect_stdout(io.StringIO()):
            assert len(oracle.loadRes(rows).anns) == len(rows)


def test_a_listing_that_is_not_coco_is_refused(tmp_path, shapes):
    path = tmp_path / "list.json"
    path.write_text("[]")
    with pytest.raises(InputError, match=r"list\.json.*images"):
        submission.write_submission(None, path, shapes / "val", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_another_size_are_refused(listing, shapes, tiny_config, classes, tmp_path, caplog):
    truth = json.loads(listing.read_text())
    truth["images"][1]["height"] += 1
    listing.write_text(json.dumps(truth))
    with pytest.raises(InputError, match="1 of 4 images could not be used"):
        submission.write_submission(
            Predictor(build_model(tiny_config, classes)), listing, shapes / "val", tmp_path / "out"
        )
    assert len(list((tmp_path / "out").rglob("*.zip"))) == 2
    assert re.search(r"00002\.png has 96 x 112 pixels but .* says 97 x 112", caplog.text)

"""Results of an image stand on disk when it is done, and a run is taken up where it was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scenes
import tifffile
import torch
from PIL import Image

from masklab.cli.app import main
from masklab.images.intensity import displayed
from masklab.images.reader import ArrayReader, _OpenedReader
from masklab.images.state import image_state
from masklab.inference.folder import predict_folder, settings_of
from masklab.inference.listing import ListedImage, Listing
from masklab.inference.options import PredictionOptions
from masklab.inference.output import ResultFolder
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.results.formats.registry import FORMATS
from masklab.structures import ClassTable
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import save_model

QUICK = ["coco", "parquet", "yolo", "labels"]
NAMES = ["a.png", "b.tif", "frame.001", "Zelle ä.png"]


@pytest.fixture
def images(tmp_path):
    """Four images that differ in their first pixel."""
    (tmp_path / "images").mkdir()
    for number, name in enumerate(NAMES):
        Image.new("RGB", scenes.SIZE[::-1], (number, 0, 0)).save(
            tmp_path / "images" / name, "TIFF" if name == "b.tif" else "PNG"
        )
    return [tmp_path / "images" / name for name in NAMES]


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(0)
    return build_model(tiny_config, ClassTable((5, 6, 7), scenes.NAMES))


@pytest.fixture
def asked(monkeypatch, one_thread):
    """Predictions of another scene for each image, and the numbers of the images that were predicted, in their order."""
    seen = []

    def predict(self, image, batch_size=8, check=None):
        seen.append(int(image[0, 0, 0]))
        return scenes.scene(20, seed=seen[-1])

    monkeypatch.setattr(Predictor, "predict", predict)
    return seen


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(model, images, output, **options):
    given = {"formats": QUICK} | options
    return predict_folder(Predictor(model, given.pop("options", None)), images, output, **given)


def test_each_image_gets_its_files_and_all_together_theirs(model, images, asked, tmp_path):
    assert run(model, images, tmp_path / "out", formats=[*FORMATS]) == tmp_path / "out" / "predictions.json"
    files = content(tmp_path / "out")
    endings = (".png", ".csv", ".txt", ".zip", ".geojson", "_masks.tif")
    stems = ("a", "b", "frame.001", "Zelle ä")
    wanted = {stem + ending for stem in stems for ending in endings} | {f"records/{stem}.jsonl" for stem in stems}
    assert files.keys() == wanted | {"predictions.json", "predictions.parquet", "settings.json"}
    entries = json.loads(files["predictions.json"])
    assert [entry["file_name"] for entry in entries[:: len(entries) // 4]][:4] == NAMES
    assert len(entries) == 4 * 22, "every detection"
    found = scenes.scene(20, seed=0).above(0.5)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/a_masks.tif"), found.label_map())
    assert len(files["a.csv"].splitlines()) == len(found) + 1, "objects found"
    assert b"channel_3_mean" in files["a.csv"]


def test_the_combined_file_is_what_json_makes_of_the_list(model, images, asked, tmp_path):
    text = run(model, images, tmp_path / "out").read_text()
    assert text == json.dumps(json.loads(text))
    assert run(model, images, tmp_path / "none", options=PredictionOptions(score_threshold=1.0)).read_text() == text


def test_no_combined_format_leaves_the_folder(model, images, asked, tmp_path):
    assert run(model, images, tmp_path / "out", formats=["geojson"]) == tmp_path / "out"
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".geojson", ".json", ""}


@pytest.mark.parametrize("stopped_at", range(4))
def test_a_stopped_run_is_taken_up_and_ends_alike(stopped_at, model, images, asked, tmp_path, monkeypatch):
    run(model, images, tmp_path / "whole")
    add = ResultFolder.add

    def stopping(self, path, *values, **named):
        if path == images[stopped_at]:
            raise KeyboardInterrupt
        add(self, path, *values, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ResultFolder, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(model, images, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.txt"))) == stopped_at
    asked.clear()
    run(model, images, tmp_path / "out", resume=True)
    assert asked == list(range(stopped_at, 4))
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    asked.clear()
    run(model, images, tmp_path / "out", resume=True)
    assert asked == []
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_without_resume_everything_is_done_again(model, images, asked, tmp_path):
    for _ in range(2):
        run(model, images, tmp_path / "out")
    assert asked == [0, 1, 2, 3] * 2


def other_weights(model, images, options):
    with torch.no_grad():
        next(iter(model.state_dict().values())).add_(1e-3)
    return {}, [0, 1, 2, 3]


def other_value(model, images, options):
    Image.new("RGB", scenes.SIZE[::-1], (9, 0, 0)).save(images[0])
    return {}, [9]


def other_value_same_time_and_size(model, images, options):
    before = images[1].stat()
    Image.new("RGB", scenes.SIZE[::-1], (9, 0, 0)).save(images[1], "TIFF")
    os.utime(images[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert images[1].stat().st_size == before.st_size
    return {}, [9]


def touched(model, images, options):
    os.utime(images[2], ns=(1, 1))
    return {}, [2]


OTHERWISE = {
    "weights": other_weights,
    "value": other_value,
    "hidden": other_value_same_time_and_size,
    "time": touched,
    "threshold": lambda *_: ({"options": PredictionOptions(score_threshold=0.3)}, [0, 1, 2, 3]),
    "flips": lambda *_: ({"options": PredictionOptions(flips="both")}, [0, 1, 2, 3]),
    "fewer formats": lambda *_: ({"formats": ["coco", "yolo"]}, []),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_belongs_to_something_else_is_done_again(what, model, images, asked, tmp_path):
    run(model, images, tmp_path / "out")
    options, wanted = OTHERWISE[what](model, images, {})
    asked.clear()
    run(model, images, tmp_path / "out", resume=True, **options)
    assert asked == wanted
    run(model, images, tmp_path / "new", **options)
    files = content(tmp_path / "out")
    for name, value in content(tmp_path / "new").items():
        assert files[name] == value or (what == "fewer formats" and name.startswith("records"))


def test_more_formats_are_done_again(model, images, asked, tmp_path):
    run(model, images, tmp_path / "out", formats=["coco"])
    run(model, images, tmp_path / "out", formats=["coco", "yolo"], resume=True)
    assert asked == [0, 1, 2, 3] * 2
    run(model, images, tmp_path / "out", formats=["parquet"], resume=True)
    assert len(asked) == 8, "records hold what all images' tables are made of"
    assert (tmp_path / "out" / "predictions.parquet").exists()


@pytest.mark.parametrize("damage", ["removed", "cut", "no record", "nonsense"])
def test_what_is_lost_or_damaged_is_done_again(damage, model, images, asked, tmp_path):
    run(model, images, tmp_path / "out")
    wanted, record = content(tmp_path / "out"), tmp_path / "out/records/a.jsonl"
    if damage == "removed":
        (tmp_path / "out/a.txt").unlink()
    elif damage == "no record":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[:40] if damage == "cut" else b"[7]\n")
    asked.clear()
    run(model, images, tmp_path / "out", resume=True)
    assert asked == [0]
    assert content(tmp_path / "out") == wanted


def test_files_that_were_replaced_half_do_not_count(model, images, asked, tmp_path, monkeypatch):
    """A run with another threshold that is killed between an image's files and its record."""
    other = PredictionOptions(score_threshold=0.3)
    run(model, images, tmp_path / "out")
    wanted = content(tmp_path / "out")
    write = FORMATS["yolo"].write

    def killed(path, result):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(FORMATS, "yolo", FORMATS["yolo"]._replace(write=killed))
        with pytest.raises(KeyboardInterrupt):
            run(model, images, tmp_path / "out", options=other)
    assert content(tmp_path / "out") != wanted
    assert FORMATS["yolo"].write is write
    run(model, images, tmp_path / "out", resume=True)
    assert content(tmp_path / "out") == wanted


def test_failed_images_are_named_and_resume_does_only_them(model, images, asked, tmp_path, caplog):
    whole = images[1].read_bytes()
    run(model, images, tmp_path / "whole")
    status = images[1].stat()
    images[1].write_bytes(whole[:50])
    asked.clear()
    with pytest.raises(InputError, match="1 of 4 images could not be used"):
        run(model, images, tmp_path / "out")
    assert asked == [0, 2, 3]
    assert [record.getMessage() for record in caplog.records if "b.tif" in record.getMessage()]
    left = {entry["file_name"] for entry in json.loads((tmp_path / "out/predictions.json").read_text())}
    assert left == {*NAMES} - {"b.tif"}
    with pytest.raises(InputError, match="1 of 4"):
        run(model, images, tmp_path / "out", resume=True)
    images[1].write_bytes(whole)
    os.utime(images[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    asked.clear()
    run(model, images, tmp_path / "out", resume=True)
    assert asked == [1]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_image_that_goes_missing_between_is_left_out(model, images, asked, tmp_path):
    images[0].unlink()
    folder = ResultFolder(tmp_path / "out", images, {}, 0.5)
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        folder.done(images[0])


def test_new_images_of_the_folder_are_added(model, images, asked, tmp_path):
    run(model, images[:2], tmp_path / "out")
    asked.clear()
    run(model, images, tmp_path / "out", resume=True)
    assert asked == [2, 3]
    run(model, images, tmp_path / "whole")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_record_that_vanishes_meanwhile_is_said(model, images, tmp_path):
    folder = ResultFolder(tmp_path / "out", images, {}, 0.5, ["coco"])
    for path in images:
        assert not folder.done(path)
        folder.add(path, scenes.scene(3))
    (tmp_path / "out/records/b.jsonl").unlink()
    with pytest.raises(InputError, match=r"b\.jsonl was removed or replaced .* --resume"):
        folder.finish()


def test_several_processes_share_a_folder(images, tmp_path):
    """Each adds its images, and the one that asks for all of them finishes."""
    for part in (images[:2], images[2:]):
        folder = ResultFolder(tmp_path / "out", part, {"a": 1}, 0.5, ["coco", "labels"])
        for path in part:
            folder.add(path, scenes.scene(3, seed=len(path.name)))
    last = ResultFolder(tmp_path / "out", images, {"a": 1}, 0.5, ["coco", "labels"], resume=True)
    assert all(last.done(path) for path in images)
    totals = last.finish()
    assert (totals.images, totals.kept, totals.detections) == (4, 4, 20)
    assert totals.found == sum(len(scenes.scene(3, seed=len(name)).above(0.5)) for name in NAMES)
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 20


def test_ids_of_a_listing_belong_to_the_record(images, tmp_path):
    def folder(image_id, category_ids, resume=True):
        listed = {images[0]: ListedImage(image_id, "a.png", None)}
        return ResultFolder(tmp_path / "out", images[:1], {}, 0.5, ["coco"], Listing(listed, category_ids, {}), resume)

    folder(7, {0: 70, 2: 72}, False).add(images[0], scenes.scene(20))
    assert folder(7, {0: 70, 2: 72}).done(images[0])
    assert not folder(8, {0: 70, 2: 72}).done(images[0])
    assert not folder(7, {0: 70, 2: 73}).done(images[0])
    assert not folder(7, None).done(images[0])
    again = folder(7, {0: 70, 2: 72})
    assert again.done(images[0])
    again.finish()
    entries = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {(entry["image_id"], entry["category_id"]) for entry in entries} == {(7, 70), (7, 72)}


def test_results_that_would_replace_an_image_are_refused(images, tmp_path):
    masks = shutil.copy(images[1], tmp_path / "images/a_masks.tif")
    for formats, given in ((["overlay"], images[:1]), (["labels"], [images[0], masks])):
        with pytest.raises(InputError, match="would be written over"):
            ResultFolder(tmp_path / "images", given, {}, 0.5, formats)
    with pytest.raises(InputError, match=r"a_masks.tif exists .* may be an annotation"):
        ResultFolder(tmp_path / "images", images[:1], {}, 0.5, ["labels"])
    assert not (tmp_path / "images/records").exists()
    with pytest.raises(InputError, match="would write the same results"):
        ResultFolder(tmp_path / "out", [images[0], images[0].with_suffix(".jpg")], {}, 0.5)
    with pytest.raises(InputError, match="there is no format"):
        ResultFolder(tmp_path / "out", images, {}, 0.5, ["word"])
    assert not (tmp_path / "out").exists()


def test_the_state_of_an_image_sees_every_byte_up_to_a_megabyte_and_pieces_beyond(tmp_path):
    path = tmp_path / "x"
    for size in (0, 1, 65_537, 1 << 20, 5 << 20):
        places = {0, size - 1} if size > 1 << 20 else {0, size // 2, size - 1} & {*range(size)}
        seen = set()
        for place in (None, *places):
            values = bytearray(size)
            if place is not None:
                values[place] = 1
            path.write_bytes(values)
            os.utime(path, ns=(5, 5))
            seen.add(json.dumps(image_state(path)))
        assert len(seen) == 1 + len(places)
    folder = tmp_path / "x.zarr"
    (folder / "0").mkdir(parents=True)
    before = image_state(folder)
    (folder / "0/chunk").write_bytes(b"1")
    os.utime(folder, ns=(5, 5))
    assert image_state(folder)[2] != before[2]


def test_settings_name_all_that_results_depend_on(model):
    first = settings_of(Predictor(model))
    assert (
        first
        == settings_of(Predictor(model))
        == json.loads(json.dumps(first))
        | {
            "options": first["options"],
            "value_range": first["value_range"],
        }
    )
    with torch.no_grad():
        list(model.state_dict().values())[-1].add_(1)
    assert settings_of(Predictor(model))["weights"] != first["weights"]


def test_grey_files_are_measured_as_they_are(model, asked, tmp_path):
    values = np.full(scenes.SIZE, 700, np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", values, ome=True, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5})
    run(model, [tmp_path / "x.tif"], tmp_path / "out", formats=["csv", "labels"])
    header, first = (tmp_path / "out/x.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["channel_1_mean"]) == 700
    assert "channel_2_mean" not in row
    assert float(row["area_um2"]) == int(row["area"]) / 4
    assert 'PhysicalSizeX="0.5"' in tifffile.TiffFile(tmp_path / "out/x_masks.tif").ome_metadata


def test_the_command_takes_several_formats_and_resumes(model, images, tmp_path, capsys):
    save_model(model, tmp_path / "m.safetensors")
    words = [
        "predict",
        str(tmp_path / "m.safetensors"),
        *map(str, images),
        "--output",
        str(tmp_path / "out"),
        "--score",
        "0",
    ]
    assert main([*words, "--save", "labels", "geojson"]) == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".tif", ".geojson", ".json", ""}
    assert main([*words, "--save", "labels", "geojson", "--resume"]) == 0
    assert "4 images of an earlier run kept" in "".join(capsys.readouterr())
    assert main([*words, "--save", "word"]) == 2
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, format in FORMATS.items():
        assert f"{name}, {format.holds}" in said


def test_a_killed_process_leaves_whole_images_and_is_taken_up(model, images, tmp_path):
    """SIGKILL in the middle of an image: the images before stand on disk."""
    save_model(model, tmp_path / "m.safetensors")
    words = ["predict", str(tmp_path / "m.safetensors"), *map(str, images), "--score", "0", "--save", *QUICK]
    code = (
        "import sys, time\n"
        "from masklab.cli.app import main\n"
        "from masklab.results.formats.registry import FORMATS\n"
        "write = FORMATS['yolo'].write\n"
        "def slow(path, result):\n"
        "    if result.file_name == 'frame.001':\n"
        "        print('here', flush=True); time.sleep(60)\n"
        "    write(path, result)\n"
        "FORMATS['yolo'] = FORMATS['yolo']._replace(write=slow)\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *words, "--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGKILL)
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/records").iterdir()}
    assert done.keys() == {"a.jsonl", "b.jsonl"}
    time.sleep(0.01)
    assert main([*words, "--output", str(tmp_path / "out"), "--resume"]) == 0
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    assert all((tmp_path / "out/records" / name).stat().st_mtime_ns == at for name, at in done.items())
    found = content(tmp_path / "out")
    assert {name: found[name] for name in content(tmp_path / "whole")} == content(tmp_path / "whole")


def test_an_image_larger_than_a_tile_is_written_like_any_other(model, tmp_path, monkeypatch):
    """Predicted in tiles; its overlay is what the whole image, displayed, looks like."""
    monkeypatch.setattr("masklab.inference.tiles.plan.TILE", 96)
    monkeypatch.setattr("masklab.inference.tiles.plan._LEAST_OVERLAP", 0.1)
    values = np.random.default_rng(0).integers(0, 4000, (150, 170, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", values, tile=(64, 64), photometric="rgb")
    predictor = Predictor(model, PredictionOptions(score_threshold=0.0, intensity="percentiles"))
    monkeypatch.setattr("masklab.results.formats.overlay._WINDOW", 64)
    seen = []
    with monkeypatch.context() as patch:
        read = _OpenedReader.read
        patch.setattr(_OpenedReader, "read", lambda self, box: seen.append(box) or read(self, box))
        predict_folder(predictor, [tmp_path / "x.tif"], tmp_path / "out", formats=list(FORMATS))
    assert max((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in seen) < 150 * 170, "no window is the image"
    found = predictor.predict_reader(ArrayReader(np.ascontiguousarray(values.transpose(2, 0, 1))))
    assert len(found) > 20
    found.save(tmp_path / "wanted.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/x_masks.tif"), found.label_map())
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == len(found)
    rule = predictor.image_config(torch.from_numpy(values.transpose(2, 0, 1).copy()))
    shown = displayed(values.transpose(2, 0, 1).copy(), rule)
    found.save(tmp_path / "wanted.png", image=shown)
    assert (tmp_path / "out/x.png").read_bytes() == (tmp_path / "wanted.png").read_bytes()

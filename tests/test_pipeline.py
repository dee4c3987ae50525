"""Images of a folder are read ahead and written behind the network, and the results are those of one after another."""

import json
import threading

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import masklab.inference.pipeline as pipeline
from masklab.cli.app import main
from masklab.images.reader import DecodedReader, open_reader
from masklab.inference.folder import predict_folder
from masklab.inference.options import PredictionOptions
from masklab.inference.output import ResultFolder
from masklab.inference.predictor import Predictor
from masklab.model.build import build_model
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import save_model

SIZES = [(40, 60), (60, 40), (40, 60), (33, 70), (40, 60), (40, 60), (50, 50), (40, 60)]


@pytest.fixture
def model(tiny_config, classes):
    torch.manual_seed(0)
    return build_model(tiny_config, classes)


@pytest.fixture(params=[1, 2, 3], ids=["one thread", "two threads", "three threads"], autouse=True)
def finding(request):
    """The number of threads that torch has, in which images are predicted at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    torch.set_num_threads(before)
    assert seen == [request.param], "a thread that begins later has torch's usual number of threads"


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(len(SIZES))]
    for path, size in zip(paths, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return paths


def predictor(model, **options):
    return Predictor(model, PredictionOptions(score_threshold=0.0, **options))


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_no_threads():
    for thread in threading.enumerate():
        if "_Pipeline" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("options", [{}, {"flips": "horizontal"}, {"precision": "bf16"}], ids=str)
def test_any_part_of_a_folder_gives_the_same_bytes(options, model, images, tmp_path):
    """What is done already, fails or stands beside an image in the folder changes none of its results."""
    predict_folder(predictor(model, **options), images, tmp_path / "whole")
    for some in (images[3:5], images):
        predict_folder(predictor(model, **options), some, tmp_path / "out", resume=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    found = predictor(model, **options).predict(images[6])
    entries = json.loads((tmp_path / "out/predictions.json").read_text())
    scores = [entry["score"] for entry in entries if entry["file_name"] == "6.png"]
    assert scores == pytest.approx(sorted(found.scores.tolist(), reverse=True), abs=1e-5)
    assert len(scores) > 5


def test_stages_run_at_the_same_time_and_few_images_are_open(model, images, tmp_path, monkeypatch, finding):
    """While an image is at the network, those behind it are read and those before it are written."""
    both = threading.Barrier(min(finding, 2))
    threads, most_open, ahead = {}, [], threading.Event()
    opening, adding, read = pipeline.open_reader, ResultFolder.add, pipeline._Pipeline._read
    predict, written = Predictor.predict_reader, threading.Event()

    def reading(self, path):
        threads.setdefault("read", set()).add(threading.get_ident())
        image = read(self, path)
        most_open.append(len(self._open))
        if path == images[3]:
            ahead.set()
        return image

    def predicting(self, image, *others):
        threads.setdefault("predict", set()).add(threading.get_ident())
        assert torch.get_num_threads() == 1, "threads share the processors"
        if image.path in images[:2] and finding > 1:
            both.wait(20)
        if image.path == images[0]:
            assert ahead.wait(20), "nothing is read while the first image is predicted"
        if image.path == images[6]:
            assert written.wait(20), "nothing is written while the seventh image is predicted"
        return predict(self, image, *others)

    def writing(self, path, *others, **named):
        threads.setdefault("write", set()).add(threading.get_ident())
        adding(self, path, *others, **named)
        written.set()

    monkeypatch.setattr(pipeline._Pipeline, "_read", reading)
    monkeypatch.setattr(Predictor, "predict_reader", predicting)
    monkeypatch.setattr(ResultFolder, "add", writing)
    predict_folder(predictor(model), images, tmp_path / "out")
    assert pipeline.open_reader is opening
    assert (threads["predict"] == {threading.get_ident()}) == (finding == 1)
    assert len(threads["predict"]) == finding
    assert len(set.union(*threads.values())) == 2 + finding
    under_way = pipeline._FOR_EACH_THREAD * finding if finding > 1 else 1
    assert 4 <= max(most_open) <= pipeline._IMAGES_AHEAD + pipeline._RESULTS_WAITING + 2 + under_way
    assert_no_threads()


def test_large_images_are_at_the_network_alone(model, images, tmp_path, monkeypatch, finding):
    """They have all threads, and nothing else takes memory meanwhile."""
    under_way, together, threads, predict = set(), [], {}, Predictor.predict_reader

    def predicting(self, image, *others):
        under_way.add(image.path)
        together.append(set(under_way))
        threads[image.path] = torch.get_num_threads()
        found = predict(self, image, *others)
        under_way.remove(image.path)
        return found

    monkeypatch.setattr(Predictor, "predict_reader", predicting)
    monkeypatch.setattr("masklab.inference.finder._LARGE", 40 * 60)
    predict_folder(predictor(model), images, tmp_path / "out")
    large = images[6]  # of 50 x 50 pixels; no other has more than 40 x 60
    assert {path for path, number in threads.items() if number == finding} == (set(images) if finding == 1 else {large})
    assert all(some == {large} for some in together if large in some)


def test_bytes_that_are_open_are_bounded(model, images, tmp_path, monkeypatch):
    """An image is opened when those that are open are below the bound, so that of large images there is one."""
    predict_folder(predictor(model), images, tmp_path / "whole")
    most, decode = [], pipeline._Pipeline._decode

    def decoding(self, image):
        decode(self, image)
        most.append(sum(other.num_bytes for other in list(self._open.values())))

    monkeypatch.setattr(pipeline._Pipeline, "_decode", decoding)
    monkeypatch.setattr(pipeline, "_BYTES_AHEAD", 6000)  # less than one image
    predict_folder(predictor(model), images, tmp_path / "out")
    assert max(most) == 50 * 50 * 3
    assert len(most) == len(images)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["read", "find", "write"])
@pytest.mark.parametrize("kind", [InputError, MemoryError, RuntimeError, KeyboardInterrupt])
def test_what_fails_in_any_stage(stage, kind, model, images, tmp_path, monkeypatch, caplog):
    """An image that cannot be used is named and left out; anything else ends the work, and those before it stand on disk."""
    bad = images[4]
    owner, name = {
        "read": (pipeline._Pipeline, "_decode"),
        "find": (pipeline._Pipeline, "_find"),
        "write": (ResultFolder, "add"),
    }[stage]
    before = getattr(owner, name)

    def failing(self, image, *others, **named):
        if getattr(image, "path", image) == bad:
            raise kind("odd.")
        return before(self, image, *others, **named)

    monkeypatch.setattr(owner, name, failing)
    skipped = kind in (InputError, MemoryError)
    with pytest.raises(InputError if skipped else kind) as raised:
        predict_folder(predictor(model), images, tmp_path / "out", formats=["csv", "coco"])
    names = {path.stem for path in (tmp_path / "out").glob("*.csv")}
    if skipped:
        assert names == {path.stem for path in images if path != bad}
        assert str(bad) in caplog.text
        assert "1 of 8 images" in str(raised.value)
    elif kind is RuntimeError:
        assert names == {"0", "1", "2", "3"}
        assert getattr(raised.value, "__notes__", [f"The image is {bad}."]) == [f"The image is {bad}."]
    else:
        assert names <= {"0", "1", "2", "3"}
        assert stage != "write" or len(names) == 4
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    assert_no_threads()


def write_pyramid(path, pixel_size=0.25):
    """Levels of 128, 64 and 32 pixels, of 0.25, 0.5 and 1 micrometre."""
    values = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    with tifffile.TiffWriter(path, ome=True) as file:
        metadata = {"axes": "YXS"}
        if pixel_size:
            metadata |= {"PhysicalSizeX": pixel_size, "PhysicalSizeY": pixel_size}
        file.write(values, subifds=2, metadata=metadata, photometric="rgb", tile=(32, 32))
        for step in (2, 4):
            file.write(values[::step, ::step], subfiletype=1, photometric="rgb", tile=(32, 32))
    return values


def test_a_level_of_a_pyramid_is_predicted_and_measured(model, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    path, save = tmp_path / "in/a.ome.tif", ["--save", "coco", "csv", "labels", "--score", "0"]
    values = write_pyramid(path)
    write_pyramid(tmp_path / "in/unknown.ome.tif", None)
    save_model(model, tmp_path / "m.safetensors")
    words = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "in"), "--output", str(tmp_path / "out"), *save]
    assert main([*words, "--pixel_size", "0.55"]) == 2, "one image does not know the size of its pixels"
    assert "unknown.ome.tif does not say its pixel size" in caplog.text
    assert tifffile.imread(tmp_path / "out/a.ome_masks.tif").shape == (64, 64)
    half = Image.fromarray(values[::2, ::2])
    scores = [entry["score"] for entry in json.loads((tmp_path / "out/predictions.json").read_text())]
    assert scores == pytest.approx(predictor(model).predict(half).scores.tolist(), abs=1e-5)
    header, first = (tmp_path / "out/a.ome.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert float(row["area_um2"]) == pytest.approx(int(row["area"]) / 4)
    caplog.clear()
    assert main([*words, "--pixel_size", "0.55", "--resume"]) == 2
    assert "1 image of an earlier run kept" in caplog.text
    caplog.clear()
    assert main([*words, "--pixel_size", "1", "--resume"]) == 2
    assert "kept" not in caplog.text, "another level has other results"
    assert tifffile.imread(tmp_path / "out/a.ome_masks.tif").shape == (32, 32)
    assert json.loads((tmp_path / "out/settings.json").read_text())["pixel_size"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pixel_size", "1", "--magnification", "20"], "choose one"),
        (["--pixel_size", "0"], "positive"),
        (["--magnification=-2"], "positive"),
        (["--magnification", "x"], "must be"),
    ],
)
def test_a_level_that_cannot_be_is_refused_once(words, said, model, images, tmp_path, capsys):
    save_model(model, tmp_path / "m.safetensors")
    given = ["predict", str(tmp_path / "m.safetensors"), *map(str, images), "--output", str(tmp_path / "out")]
    assert main([*given, *words]) == 2
    written = capsys.readouterr().err
    assert said in written
    assert len(written.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_pixels_in_memory_are_those_of_the_file(tmp_path):
    write_pyramid(tmp_path / "a.ome.tif")
    with open_reader(tmp_path / "a.ome.tif", 3) as reader:
        decoded = DecodedReader(reader)
        for box in ((0, 0, 128, 128), (3, 5, 40, 100)):
            np.testing.assert_array_equal(decoded.read(box), reader.read(box))
        np.testing.assert_array_equal(decoded.overview(1000), reader.overview(1000))
        assert (decoded.pixel_size, decoded.path, decoded.dtype) == (reader.pixel_size, reader.path, reader.dtype)
        for box in ((0, 0, 0, 4), (0, 0, 129, 4), (-1, 0, 4, 4)):
            with pytest.raises(ValueError, match="not inside"):
                decoded.read(box)

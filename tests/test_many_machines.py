"""Prediction on a Ray cluster: the same results as in one process, whatever happens to workers and to the program."""

import os
import pickle
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from contracts import fails
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.inference.engines import on_ray, tables
from masklab.inference.engines.on_ray import predict_on_ray
from masklab.inference.engines.places import find_places
from masklab.inference.engines.work import MOST_BEGUN, Worker
from masklab.inference.folder import predict_folder
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import load
from masklab.model.build import build_model
from masklab.structures import TrainingData
from masklab.utils.errors import InputError
from masklab.utils.lock import locked
from masklab.weights.checkpoint import save_model

OPTIONS = PredictionOptions(precision="float32", score_threshold=0.35)
LARGE = "large.png"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As each worker has: the number of threads changes the last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tiny_config, classes, tmp_path_factory):
    """A model with random weights that takes images of more than 160 pixels in tiles of 80."""
    torch.manual_seed(4)  # finds objects of scores near 0.7, of which some are cut at the edges of tiles
    model = build_model(tiny_config, classes)
    rule = model.config.image.model_copy(update={"scale": None, "min_side": 64, "max_side": 80})
    model.config = model.config.model_copy(update={"image": rule})
    model.training_data = TrainingData((64, 80), 5.0, 12.0)
    path = tmp_path_factory.mktemp("model") / "weights.safetensors"
    save_model(model, path)
    return path


def draw(path, seed, size=(60, 76)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image, _ = draw_nuclei(5, seed, size)
    Image.fromarray(np.asarray(image).transpose(1, 2, 0)).save(path)


@pytest.fixture
def images(tmp_path):
    """Nine small images, one larger than a tile, and one that is cut off."""
    folder = tmp_path / "images"
    for seed in range(9):
        draw(folder / f"{seed}.png", seed)
    draw(folder / LARGE, 20, (100, 170))
    whole = (folder / "8.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="module")
def expected(weights):
    """What one process finds in a folder: the rows of its Parquet file."""

    def rows(folder, output):
        with pytest.raises(InputError, match="1 of 11 images"):
            predict_folder(load(weights, "cpu", OPTIONS), [folder], output, formats=["parquet"])
        return as_rows([output / "predictions.parquet"])

    return rows


def as_rows(files):
    rows = [tuple(row.values()) for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=str)


def objects(output):
    return as_rows(sorted((output / "objects").glob("*.parquet")))


def done(output):
    return sorted(row[0] for row in as_rows((output / "images").glob("*.parquet")))


def failed(output):
    return {row["file_name"]: row["reason"] for row in pq.read_table(output / "failed.parquet").to_pylist()}


def assert_tidy(output):
    """No half file, no tiles of images that are done, and as many rows as the table of images says."""
    assert not list(output.rglob(".*.part"))
    assert not (output / "tiles").exists()
    assert [f.name for f in sorted((output / "objects").iterdir())] == [
        f.name for f in sorted((output / "images").iterdir())
    ]
    counts = [row["objects"] for f in (output / "images").iterdir() for row in pq.read_table(f).to_pylist()]
    assert sum(counts) == len(objects(output))
    assert len(set(done(output))) == len(done(output))


class Here:
    """In place of a cluster: a worker of this process.  ``change`` makes of the outcomes of a call those that arrive."""

    workers = 2

    def __init__(self, _, weights, options, workers):
        self._worker = Worker(weights.read_bytes, options, lambda number: 1)

    def close(self):
        pass

    def outcomes(self, items, per_task):
        self.asked.append([(item.place.name, len(item.tiles)) for item in items])
        packed = [pickle.dumps(item) for item in items]
        batches = [pa.table({"item": packed[k : k + per_task]}) for k in range(0, len(packed), per_task)]
        tables = [table for batch in batches for table in self._worker(batch)]
        return self.change([pickle.loads(table["outcome"][0].as_py()) for table in tables])


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(on_ray, "_Cluster", Here)
    monkeypatch.setattr(Here, "asked", [], raising=False)
    monkeypatch.setattr(Here, "change", staticmethod(lambda outcomes: outcomes), raising=False)
    return Here


def run(weights, folder, output, words=("1 of 11 images", "failed.parquet")):
    sources = [str(folder)]
    if words:
        fails(words, predict_on_ray, weights, sources, output, OPTIONS)
    else:
        predict_on_ray(weights, sources, output, OPTIONS)


def test_the_results_are_those_of_one_process(weights, images, expected, tmp_path, here):
    run(weights, images, tmp_path / "out")
    rows = objects(tmp_path / "out")
    assert rows == expected(images, tmp_path / "local")
    assert {row[0] for row in rows} >= {LARGE, "0.png"}
    assert len(here.asked) == 3, "the large image was cut into tiles"
    assert done(tmp_path / "out") == sorted([*(f"{n}.png" for n in range(9)), LARGE])
    assert list(failed(tmp_path / "out")) == ["broken.png"]
    assert str(images / "broken.png") in failed(tmp_path / "out")["broken.png"]
    assert_tidy(tmp_path / "out")


def test_what_is_done_stays(weights, images, tmp_path, here):
    out = tmp_path / "out"
    run(weights, images, out)
    before, files = objects(out), sorted((out / "objects").iterdir())
    here.asked.clear()
    run(weights, images, out)
    assert here.asked == [[("broken.png", 0)]]
    assert (objects(out), sorted((out / "objects").iterdir())) == (before, files)
    draw(images / "broken.png", 30)
    draw(images / "3.png", 31)
    here.asked.clear()
    run(weights, images, out, None)
    assert here.asked == [[("3.png", 0), ("broken.png", 0)]]
    assert failed(out) == {}
    others = {"3.png", "broken.png"}
    assert [row for row in objects(out) if row[0] not in others] == [row for row in before if row[0] not in others]
    assert [row for row in objects(out) if row[0] == "3.png"] != [row for row in before if row[0] == "3.png"]
    assert_tidy(out)
    here.asked.clear()
    run(weights, images, out, None)
    assert here.asked == []


def test_outcomes_that_arrive_twice_or_never_are_in_the_tables_once(
    weights, images, expected, tmp_path, here, monkeypatch
):
    def twice_and_half(outcomes):
        return [*outcomes[::2], *outcomes[::2]] if len(outcomes) > 2 else outcomes

    monkeypatch.setattr(here, "change", staticmethod(twice_and_half))
    run(weights, images, tmp_path / "out", ("could not be used",))
    lost = {name for name, reason in failed(tmp_path / "out").items() if "nothing came back" in reason}
    assert lost
    assert not lost & set(done(tmp_path / "out"))
    monkeypatch.setattr(here, "change", staticmethod(lambda outcomes: outcomes))
    run(weights, images, tmp_path / "out")
    assert objects(tmp_path / "out") == expected(images, tmp_path / "local")
    assert_tidy(tmp_path / "out")


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_program_that_is_stopped_goes_on(calls, weights, images, expected, tmp_path, here, monkeypatch):
    """Stopped while the outcomes of the first, second or third call arrive."""
    out = tmp_path / "out"

    def stop(outcomes):
        if len(here.asked) == calls:
            yield from outcomes[: max(1, len(outcomes) // 2)]
            raise KeyboardInterrupt
        yield from outcomes

    monkeypatch.setattr(here, "change", staticmethod(stop))
    monkeypatch.setattr(tables, "_IMAGES", 2)
    with pytest.raises(KeyboardInterrupt):
        run(weights, images, out)
    monkeypatch.setattr(here, "change", staticmethod(lambda outcomes: outcomes))
    kept = done(out)
    tiles = len(list((out / "tiles").rglob("*.npz")))
    assert kept
    assert calls == 1 or tiles or LARGE in kept
    planned = sum(count for call in here.asked for _, count in call)
    here.asked.clear()
    run(weights, images, out)
    assert not set(kept) & {name for call in here.asked for name, _ in call}
    if calls == 2:
        assert 0 < tiles < planned
        assert sum(count for call in here.asked for _, count in call) == planned - tiles
    assert objects(out) == expected(images, tmp_path / "local")
    assert_tidy(out)


def test_tables_are_mended_after_a_stop_at_any_write(weights, images, expected, tmp_path, here, monkeypatch):
    """The write of each table in turn is the last that a process does; the next one does the rest."""
    write, rows = tables._write, expected(images, tmp_path / "local")
    for last in range(1, 6):
        monkeypatch.setattr(tables, "_IMAGES", 4)
        out, count = tmp_path / str(last), iter(range(100))

        def stop(path, table, last=last, count=count):
            if next(count) >= last:
                raise KeyboardInterrupt
            write(path, table)

        monkeypatch.setattr(tables, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            run(weights, images, out)
        monkeypatch.setattr(tables, "_write", write)
        monkeypatch.setattr(tables, "_IMAGES", 3)  # so that no shard has the name of one that was left
        run(weights, images, out)
        assert objects(out) == rows
        assert_tidy(out)


def test_damaged_tables_are_made_again(weights, images, tmp_path, here, caplog):
    out = tmp_path / "out"
    run(weights, images, out)
    before = objects(out)
    for folder in ("objects", "images"):
        shard = next((out / folder).iterdir())
        shard.write_bytes(shard.read_bytes()[:-20])
        run(weights, images, out)
        assert objects(out) == before
        assert_tidy(out)
    assert "damaged" in caplog.text


def test_a_folder_of_other_results_is_refused(weights, images, tmp_path, here):
    out = tmp_path / "out"
    run(weights, images, out)
    other = PredictionOptions(precision="float32", score_threshold=0.5)
    fails(["other options", "--output"], predict_on_ray, weights, [str(images)], out, other)
    fails(["--engine ray", "--output"], predict_on_ray, weights, [str(images)], records(tmp_path / "local"), OPTIONS)
    draw(tmp_path / "more" / "1.png", 40)
    fails(["1.png", "same name"], predict_on_ray, weights, [str(tmp_path / "more")], out, OPTIONS)
    both = [str(images), str(tmp_path / "more")]
    fails(["1.png", "one name", "two folders"], predict_on_ray, weights, both, out, OPTIONS)


def test_one_command_at_a_time_writes_a_folder(weights, images, tmp_path, here):
    with locked(tmp_path / "out"):
        fails(["is being written"], predict_on_ray, weights, [str(images)], tmp_path / "out", OPTIONS)


def records(folder):
    (folder / "records").mkdir(parents=True)
    return folder


def test_an_address_gives_what_the_folder_gives(weights, images, expected, tmp_path, here):
    """Images of an object store are fetched, and named by their address; nothing that was fetched stays."""
    (images / "notes.txt").write_text("no image")
    before = set(Path(tempfile.gettempdir()).glob("masklab-*"))
    run(weights, images.as_uri(), tmp_path / "out")
    (images / "notes.txt").unlink()
    assert objects(tmp_path / "out") == expected(images, tmp_path / "local")
    reason = failed(tmp_path / "out")["broken.png"]
    assert f"{images.as_uri()}/broken.png" in reason
    assert "masklab-" not in reason
    assert set(Path(tempfile.gettempdir()).glob("masklab-*")) == before
    draw(images / "2.png", 50, (64, 70))
    here.asked.clear()
    run(weights, images.as_uri(), tmp_path / "out")
    assert here.asked == [[("2.png", 0), ("broken.png", 0)]]


def test_an_address_may_have_spaces_and_any_letters(images, tmp_path):
    folder = tmp_path / "Platte Ä 1"
    images.rename(folder)
    as_shown, as_written = f"file://{folder}", folder.as_uri()
    assert "%20" in as_written
    names = [place.name for place in find_places([as_shown])]
    assert len(names) == 11
    assert names == [place.name for place in find_places([as_written])]


def test_addresses_that_cannot_be_listed_are_refused_without_their_password(tmp_path):
    (tmp_path / "empty").mkdir()
    fails(["file://", "holds no image"], find_places, [(tmp_path / "empty").as_uri()])
    fails(["no such image or folder"], find_places, [(tmp_path / "missing").as_uri()])
    fails(["nowhere://bucket/folder cannot be listed"], find_places, ["nowhere://me:secret@bucket/folder?token=secret"])
    with pytest.raises(InputError) as caught:
        find_places(["nowhere://me:secret@bucket/folder?token=secret"])
    assert "secret" not in str(caught.value)


def test_images_that_change_while_they_are_fetched_or_cut_are_refused(weights, images, tmp_path, here, monkeypatch):
    """The large one after its tiles were planned, so that no result is made of two images."""

    def change(outcomes):
        if len(here.asked) == 1:
            draw(images / LARGE, 60, (100, 170))
        return outcomes

    monkeypatch.setattr(here, "change", staticmethod(change))
    run(weights, images, tmp_path / "out", ("2 of 11 images",))
    assert "changed" in failed(tmp_path / "out")[LARGE]
    assert LARGE not in done(tmp_path / "out")


def test_names_that_are_no_text_are_kept_apart(weights, tmp_path, here):
    folder = tmp_path / "odd"
    names = ["a b.png", "line\nbreak.png", "Zelle_ä.png", os.fsdecode(b"caf\xe9.png"), "s3:x.png"]
    for seed, name in enumerate(names):
        draw(folder / "x.png", seed)
        (folder / "x.png").rename(folder / name)
    run(weights, folder, tmp_path / "out", None)
    assert len(done(tmp_path / "out")) == len(names)
    assert {row[0] for row in objects(tmp_path / "out")} <= set(done(tmp_path / "out"))
    here.asked.clear()
    run(weights, folder, tmp_path / "out", None)
    assert here.asked == []


def test_intensities_far_from_the_model_are_said_once(weights, tmp_path, here, caplog):
    for n in range(3):
        (tmp_path / "dim").mkdir(exist_ok=True)
        values = np.random.default_rng(n).integers(0, 9, (60, 76)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / "dim" / f"{n}.png")
    run(weights, tmp_path / "dim", tmp_path / "out", None)
    assert caplog.text.count("3 of 3 images use less than a twelfth") == 1


def test_sizes_unlike_those_of_the_training_are_said_of_whole_and_tiled_images(weights, tmp_path, here, caplog):
    predictor = load(weights, "cpu", OPTIONS)
    predictor.model.training_data = TrainingData((64, 80), 5.0, 5.5)
    known = tmp_path / "small.safetensors"
    save_model(predictor.model, known)
    for seed in range(2):
        draw(tmp_path / "fields" / f"{seed}.png", seed, (100, 170) if seed else (60, 76))
    run(known, tmp_path / "fields", tmp_path / "out", None)
    # the sizes that are known depend on that of the image, so each has a sentence of its own
    assert caplog.text.count("1 of 2 images hold objects of a size") == 2


def test_ray_that_is_missing_is_named(weights, images, tmp_path, capsys, monkeypatch):
    words = ["predict", str(weights), str(images), "--engine", "ray", "--output", str(tmp_path / "out")]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(words) == 2
    assert 'pip install "masklab[ray]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "ray", "--save", "coco", "geojson"], "--save"),
        (["--engine", "ray", "--annotations", "x.json"], "--annotations"),
        (["--engine", "ray", "--workers", "0"], "workers is 0"),
        (["--workers", "2"], "--engine ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said, weights, images, tmp_path, capsys):
    assert main(["predict", str(weights), str(images), "--output", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err


class Mortal(Worker):
    """A worker whose process ends at two images, at one of them each time, and at some tiles of the large one."""

    once, always, marks = "4.png", "6.png", Path()

    def _opened(self, place):
        if place.name in (self.once, self.always):
            self._end(place.name)
        return super()._opened(place)

    def _tiles(self, item, large):
        if item.number == 1:
            self._end("tiles")
        return super()._tiles(item, large)

    def _end(self, name):
        times = len(list(self.marks.glob(f"{name} *")))
        if times == 0 or name == self.always:
            (self.marks / f"{name} {times}").touch()
            os._exit(1)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine with two cores, which has the classes of this module."""
    if "RAY_TESTS" not in os.environ:
        pytest.skip("starting Ray and its workers takes minutes: set RAY_TESTS=1")
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    ray = on_ray._import_ray()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()
    for number, way in before.items():  # Ray sets its own, which would end the tests that send signals
        signal.signal(number, way)


@pytest.mark.timeout(600)
def test_a_cluster_whose_workers_are_lost_finds_what_one_process_finds(
    weights, images, expected, tmp_path, cluster, monkeypatch
):
    monkeypatch.setattr(Mortal, "marks", tmp_path)
    monkeypatch.setattr(on_ray, "Worker", Mortal)
    out = tmp_path / "out"
    run(weights, images, out, ("2 of 11 images", "failed.parquet"))
    ended = sorted(path.name for path in tmp_path.glob("* [0-9]"))
    assert ended == ["4.png 0", *(f"6.png {n}" for n in range(MOST_BEGUN)), "tiles 0"]
    assert sorted(failed(out)) == ["6.png", "broken.png"]
    assert "ended by the system" in failed(out)["6.png"]
    assert objects(out) == [row for row in expected(images, tmp_path / "local") if row[0] != "6.png"]
    assert_tidy(out)

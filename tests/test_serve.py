"""The server: answers are those of prediction, whatever is sent is answered in a sentence, and the page works in a browser."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from browser import Browser, find_chromium
from contracts import fails, predictor
from image_files import by_pillow, by_tifffile, deep_png, surplus
from PIL import Image
from starlette.testclient import TestClient

from masklab.cli.app import main
from masklab.export.export import export
from masklab.images.reader import open_reader
from masklab.inference.finder import ImageThreads
from masklab.inference.folder import predict_folder
from masklab.inference.options import PredictionOptions
from masklab.inference.predictor import load
from masklab.model.build import build_model
from masklab.results.formats.registry import FORMATS
from masklab.runtime import load as load_exported
from masklab.serve.answers import KINDS, asked_for
from masklab.serve.app import create_app
from masklab.serve.kept import Kept, KeptResults
from masklab.serve.refusals import Refusal
from masklab.serve.run import serve, token_for
from masklab.serve.service import Service
from masklab.serve.settings import Settings
from masklab.serve.worker import Order, Worker
from masklab.weights.checkpoint import save_model

SCORE = 0.545  # of some of the objects that an untrained model finds
HOSTILE = "<img src=x onerror=alert(1)>"
PNG = {"Content-Type": "image/png"}


def drawn(seed=1, height=96, width=128):
    values = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.ascontiguousarray(np.kron(values, np.ones((8, 8, 1), np.uint8)))


@pytest.fixture(scope="module")
def weights(tiny_config, classes, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_model(build_model(tiny_config, classes).eval(), path)
    return path


@pytest.fixture(scope="module")
def finder(weights):
    return predictor(load(weights).model, score_threshold=SCORE)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "drawn.png"
    path.write_bytes(by_pillow(drawn(), "PNG"))
    return path


class Client(TestClient):
    """A client for which every answer must be one that the server's description has, and show no place of the machine."""

    def __init__(self, service, raise_server_exceptions=True):
        self.service = service
        self.application = create_app(service, "tiny")
        super().__init__(self.application, "http://127.0.0.1", raise_server_exceptions)
        self.description = self.application.openapi()

    def request(self, method, url, **options):
        answer = super().request(method, url, **options)
        path = answer.request.url.path
        for template, routes in self.description["paths"].items():
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path) and method.lower() in routes:
                assert str(answer.status_code) in routes[method.lower()]["responses"], answer.text
        assert str(self.service.folder).encode() not in answer.content
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error"}
            sentence = answer.json()["error"]
            assert sentence.endswith(".")
            assert "\n" not in sentence
        return answer

    def predict(self, content, headers=PNG, **query):
        return self.post("/predict", content=content, headers=headers, params=query)


@pytest.fixture
def served(finder, tmp_path):
    """A client of a server with some limits; ``finder`` may be another one."""

    def make(finder=finder, **limits):
        folder = tmp_path / "files-of-the-server"
        folder.mkdir(exist_ok=True)
        return Client(Service(finder, Settings(**limits), folder, ImageThreads()))

    return make


# ---------------------------------------------------------------- answers


def test_the_document_is_what_prediction_finds(served, finder, image):
    found = finder.predict(image)
    assert 3 < len(found.above(SCORE)) < len(found), "some objects are above the threshold and some below"
    for query, wanted in (({}, found.above(SCORE)), ({"score": 0}, found)):
        answer = served().predict(image.read_bytes(), name=image.name, **query).json()
        assert answer["size"] == {"height": 96, "width": 128}
        assert answer["threshold"] == SCORE
        assert answer["name"] == image.name
        assert answer["result"] is None
        assert [each["segmentation"] for each in answer["objects"]] == wanted.rles()
        assert [each["score"] for each in answer["objects"]] == wanted.scores.tolist()
        assert [each["box"] for each in answer["objects"]] == wanted.boxes.tolist()
        assert [each["class"] for each in answer["objects"]] == [wanted.class_names[k] for k in wanted.labels]
        assert [each["area"] for each in answer["objects"]] == [int(wanted.mask(n).sum()) for n in range(len(wanted))]


def test_polygons_are_those_of_the_masks(served, finder, image):
    answer = served().predict(image.read_bytes(), polygons=True, score=0).json()
    wanted = [[[ring.ravel().tolist() for ring in part] for part in each] for each in finder.predict(image).polygons()]
    assert [each["polygons"] for each in answer["objects"]] == wanted
    assert "segmentation" not in answer["objects"][0]


def test_every_format_is_what_predict_writes(served, finder, image, tmp_path, one_thread):
    predict_folder(finder, [image], tmp_path / "out", formats=list(FORMATS))
    client = served()
    for format in FORMATS.values():
        file = format.combined or image.stem + format.ending
        score = {"score": 0} if format.every else {}
        answer = client.predict(image.read_bytes(), PNG | {"Accept": format.media_type}, name=image.name, **score)
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == format.media_type
        assert answer.content == (tmp_path / "out" / file).read_bytes(), format.name
    assert not list(client.service.folder.iterdir()), "nothing is left"


def test_formats_have_media_types_of_their_own():
    assert len(KINDS) == len(FORMATS) + 1
    assert "application/octet-stream" not in KINDS


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html, image/png;q=0.9, */*;q=0.1", "image/png"),
        ("image/*", "image/png"),
        ("IMAGE/TIFF", "image/tiff"),
        ("application/json;q=0.2, image/tiff;q=0.5", "image/tiff"),
        ("*/*, application/json;q=0", "application/vnd.coco+json"),
        ("image/png;q=nonsense, text/csv", "text/csv"),
    ],
)
def test_the_header_accept_chooses(accept, kind):
    assert asked_for(accept).media_type == kind


@pytest.mark.parametrize("accept", ["text/html", "image/png;q=0", ";;;,,", "application/json;q=0", "x" * 5000])
def test_nothing_else_is_acceptable(accept, served):
    assert served().predict(b"", PNG | {"Accept": accept}).status_code == 406


def test_images_of_all_kinds_and_large_ones(served, finder, tmp_path):
    client = served()
    for name, content in {
        "16 bits": by_tifffile(drawn().astype(np.uint16) * 200, photometric="rgb"),
        "grey": by_pillow(drawn()[:, :, 0], "PNG"),
        "jpeg": by_pillow(drawn(), "JPEG"),
        "in tiles": by_tifffile(drawn(2, 64, 8400 * 8 // 8), photometric="rgb"),
    }.items():
        path = tmp_path / "given"
        path.write_bytes(content)
        wanted = finder.predict(path)
        answer = client.predict(content, {"Content-Type": "application/octet-stream"}, score=0)
        assert answer.status_code == 200, (name, answer.text)
        assert [each["segmentation"] for each in answer.json()["objects"]] == wanted.rles(), name


def test_odd_intensities_are_told(served):
    answer = served().predict(
        by_tifffile(drawn().astype(np.uint16) % 90, photometric="rgb"), {"Content-Type": "image/tiff"}
    )
    assert "use less than a twelfth" in answer.json()["warnings"][0]


def test_names_stay_text(served, image):
    answer = served().predict(image.read_bytes(), name=HOSTILE + "細胞\x00\n")
    assert answer.json()["name"] == HOSTILE + "細胞\x00\n"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


# ---------------------------------------------------------------- refusals

REFUSED = {
    "no media type": (b"x", {}, {}, 415, "no media type"),
    "a text": (b"x", {"Content-Type": "text/plain"}, {}, 415, "no image"),
    "a form": (b"x", {"Content-Type": "multipart/form-data; boundary=x"}, {}, 415, "no image"),
    "compressed": (b"x", PNG | {"Content-Encoding": "gzip"}, {}, 415, "compressed"),
    "empty": (b"", PNG, {}, 400, "empty"),
    "no image": (b"GIF89 or so", PNG, {}, 422, "not an image"),
    "a script": (b"%!PS-Adobe-3.0 EPSF-3.0\n", PNG, {}, 422, "not an image"),
    "cut off": (by_pillow(drawn(1, 80, 96), "PNG")[:500], PNG, {}, 422, "damaged"),
    "five channels": (by_tifffile(np.zeros((5, 40, 40), np.uint8)), PNG, {}, 422, "channels"),
    "a score of 3": (b"x", PNG, {"score": 3}, 422, "score"),
    "a score that is none": (b"x", PNG, {"score": "nan"}, 422, "score"),
    "a long name": (b"x", PNG, {"name": "x" * 300}, 422, "name"),
    "many bytes": (bytes(100_001), PNG, {}, 413, "bytes"),
    "many pixels": (by_pillow(np.zeros((101, 100), np.uint8), "PNG"), PNG, {}, 413, "pixels"),
    "a long row": (by_pillow(np.zeros((1, 2001), np.uint8), "PNG"), PNG, {}, 413, "sides of up to 2000"),
    "a claim of many pixels": (deep_png(np.zeros((8, 8, 3), np.uint16), (9000, 9000)), PNG, {}, 413, "pixels"),
    "a claim of too many": (deep_png(np.zeros((8, 8, 3), np.uint16), (900000, 900000)), PNG, {}, 422, "pixels"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_and_why(case, served):
    content, headers, query, status, word = case
    client = served(max_body=100_000, max_pixels=10_000)
    answer = client.predict(content, headers, **query)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]
    assert not list(client.service.folder.iterdir()), "nothing is left"


@pytest.mark.parametrize("name", surplus())
def test_hostile_files_are_answered(name, served):
    assert served().predict(surplus()[name]).status_code in (413, 422)


def call(application, path, headers, *messages, method="POST"):
    """The status and the body of a request whose messages may be anything."""
    given, sent = list(messages), []

    async def receive():
        return given.pop(0) if given else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    names = [(b"host", b"localhost"), *headers]
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    asyncio.run(application({**scope, "headers": names, "http_version": "1.1", "scheme": "http"}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def part(content, more=True):
    return {"type": "http.request", "body": content, "more_body": more}


@pytest.mark.parametrize("length", [[], [(b"content-length", b"5")], [(b"content-length", b"-1")]])
def test_bodies_are_counted_whatever_length_they_claim(length, served):
    client = served(max_body=1000)
    kind = (b"content-type", b"image/png")
    status, body = call(client.application, "/predict", [kind, *length], *[part(bytes(400))] * 4)
    assert status == 413
    assert b"bytes" in body
    assert not list(client.service.folder.iterdir())


def test_a_body_that_is_cut_off_leaves_nothing(served):
    client = served()
    assert call(client.application, "/predict", [(b"content-type", b"image/png")], part(b"abc"))[0] == 400
    assert not list(client.service.folder.iterdir())


def test_other_bodies_are_short(served):
    head = [(b"content-type", b"application/json")]
    assert call(served().application, "/results/key", head, *[part(bytes(2**22))] * 4)[0] == 413


def test_a_body_that_does_not_come_is_given_up(served, monkeypatch):
    monkeypatch.setattr("masklab.serve.guard._PATIENCE", 0.05)
    client = served()

    async def waiting():
        sent = []

        async def receive():
            await asyncio.sleep(30)

        async def send(message):
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
        await client.application({**scope, "http_version": "1.1", "scheme": "http"}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(waiting()) == 408


def test_unknown_addresses_and_methods(served):
    client = served()
    assert client.get("/nothing").status_code == 404
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/page/%2e%2e%2fapp.py").status_code == 404
    assert client.get("/predict").status_code == 405
    assert client.get("/docs").status_code == 404
    assert client.post("/predict/", follow_redirects=False).status_code == 404
    assert client.put("/results/key").headers["allow"] == "DELETE, POST"


def test_an_error_of_the_server_tells_nothing(served, finder, image, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise RuntimeError(f"at {image}")

    monkeypatch.setattr(type(finder), "predict_reader", fail)
    answer = served().predict(image.read_bytes())
    assert answer.status_code == 500
    assert str(image) not in answer.text
    assert str(image) in caplog.text, "the log has it"


def test_want_of_memory_and_room_is_said(served, finder, image, monkeypatch):
    for error in (MemoryError(), OSError(28, "No space left on device", "/secret/place")):

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(type(finder), "predict_reader", fail)
        answer = served().predict(image.read_bytes())
        assert answer.status_code == 503
        assert "secret" not in answer.text
        assert answer.headers["retry-after"]


def test_other_files_that_a_tiff_names_are_not_opened(tmp_path):
    secret, given = tmp_path / "secret.ome.tif", tmp_path / "given.ome.tif"
    tifffile.imwrite(secret, np.full((32, 32), 77, np.uint8), metadata={"axes": "YX"}, ome=True, compression="zlib")
    pixels = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:11111111-1111-1111-1111-111111111111"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="32" SizeY="32" SizeC="2" SizeZ="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstC="0" PlaneCount="1"><UUID FileName="given.ome.tif">'
        "urn:uuid:11111111-1111-1111-1111-111111111111</UUID></TiffData>"
        '<TiffData IFD="0" FirstC="1" PlaneCount="1"><UUID FileName="secret.ome.tif">'
        "urn:uuid:22222222-2222-2222-2222-222222222222</UUID></TiffData></Pixels></Image></OME>"
    )
    tifffile.imwrite(given, np.full((32, 32), 5, np.uint8), description=pixels, metadata=None, compression="zlib")

    def values(**options):
        with open_reader(given, None, **options) as reader:
            return sorted(np.unique(reader.read((0, 0, 32, 32))).tolist())

    assert values() == [5, 77]
    assert values(alone=True) == [5]


# ---------------------------------------------------------------- who may ask


def test_hosts_of_other_names_are_refused(served):
    client = served()
    for host, status in (("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 400)):
        assert client.get("/health", headers={"Host": host}).status_code == status, host
    for host in ("localhost.evil.example", "evil.example:127.0.0.1", "", "localhost:80:80", "127.0.0.1@evil"):
        assert client.get("/health", headers={"Host": host}).status_code == 400, host


def test_a_token_is_demanded(served, image):
    client = served(token="a-long-secret-of-this-test")
    good = {"Authorization": "Bearer a-long-secret-of-this-test"}
    for path in ("/model", "/metrics", "/results/x/tiles/1/0/0"):
        for wrong in ({}, {"Authorization": "Bearer a-long-secret-of-this-tesT"}, {"Authorization": "Basic abc"}):
            answer = client.get(path, headers=wrong)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers=good).status_code in (200, 404)
    assert client.predict(image.read_bytes()).status_code == 401
    assert client.predict(image.read_bytes(), PNG | good).status_code == 200
    for path in ("/", "/health", "/page/main.js", "/openapi.json"):
        assert client.get(path, headers={"Host": "any.example"}).status_code == 200, path
    assert client.description["paths"]["/predict"]["post"]["security"] == [{"token": []}]


def test_the_token_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("MASKLAB_TOKEN", raising=False)
    assert token_for("127.0.0.1") is token_for("::1") is token_for("localhost") is None
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        fails(["MASKLAB_TOKEN", host], token_for, host)
    for token in ("short", "letters with ä that a header lacks"):
        monkeypatch.setenv("MASKLAB_TOKEN", token)
        fails(["MASKLAB_TOKEN"], token_for, "0.0.0.0")
    monkeypatch.setenv("MASKLAB_TOKEN", "a-long-secret-of-this-test")
    assert token_for("0.0.0.0") == token_for("127.0.0.1") == "a-long-secret-of-this-test"


def test_words_that_cannot_be_served(finder, weights, capsys, monkeypatch):
    monkeypatch.delenv("MASKLAB_TOKEN", raising=False)
    fails(["--port"], serve, finder, "tiny", 99999, Settings())
    fails(["--host"], serve, finder, "tiny", 0, Settings(host="300.0.0.1"))
    fails(["waiting"], lambda: Settings(waiting=-1))
    fails(["seconds"], lambda: Settings(seconds=float("nan")))
    for words in (["--host", "0.0.0.0"], ["--max_pixels", "0"], ["--score", "2"]):
        assert main(["serve", str(weights), *words]) == 2
    assert main(["serve", str(weights) + ".missing"]) == 2


# ---------------------------------------------------------------- load and end


class Slow:
    """A finder that waits in the middle of its work until it is let go."""

    def __init__(self, finder):
        self._finder, self.begun, self.go = finder, threading.Semaphore(0), threading.Event()

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def predict_reader(self, image, check=None):
        self.begun.release()
        assert self.go.wait(30)
        image.read((0, 0, 1, 1))  # asks whether somebody waits
        return self._finder.predict_reader(image, check)


@contextmanager
def sent(client, content, count):
    """Requests at once, in threads; gives the list that their answers go to."""
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(client.predict(content))) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(30)


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_requests_wait_up_to_a_bound(served, finder, image):
    slow = Slow(finder)
    with served(slow, waiting=2) as client:
        with sent(client, image.read_bytes(), 3) as answers:
            until(lambda: client.service.model.unfinished == 3)
            refused = client.predict(image.read_bytes())
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/health").status_code == 200, "others are answered meanwhile"
            slow.go.set()
        assert [answer.status_code for answer in answers] == [200] * 3
        assert len({answer.content for answer in answers}) == 1
        assert client.predict(image.read_bytes()).status_code == 200
        assert not list(client.service.folder.iterdir())


def test_work_that_takes_too_long_is_given_up(served, finder, image):
    slow = Slow(finder)
    with served(slow, seconds=0.3) as client:
        answer = client.predict(image.read_bytes())
        assert answer.status_code == 503
        assert "0.3 seconds" in answer.json()["error"]
        slow.go.set()
        until(lambda: client.service.model.unfinished == 0)


def test_long_work_asks_whether_it_is_wanted(finder, image):
    from masklab.serve.images import open_sent

    order = Order(60)
    with open_sent(image, 3, order) as opened:
        opened.read((0, 0, 4, 4))
        order.given_up = True
        for action in (lambda: opened.read((0, 0, 4, 4)), opened.overview):
            with pytest.raises(Refusal):
                action()


def test_a_stop_finishes_what_runs_and_refuses_the_rest(served, finder, image):
    slow = Slow(finder)
    with served(slow, waiting=2) as client:
        with sent(client, image.read_bytes(), 3) as answers:
            until(lambda: client.service.model.unfinished == 3)
            assert slow.begun.acquire(timeout=30)
            client.portal.call(client.service.stop)
            until(lambda: len(answers) == 2)
            assert [answer.status_code for answer in answers] == [503, 503]
            assert "stopping" in answers[0].json()["error"]
            slow.go.set()
        assert answers[2].status_code == 200
        assert client.get("/health").status_code == 503
        assert client.predict(image.read_bytes()).status_code == 503


def test_images_are_at_the_network_at_the_same_time(finder, image, tmp_path):
    slow = Slow(finder)
    with Client(Service(slow, Settings(waiting=0), tmp_path, ImageThreads(2))) as client:
        with sent(client, image.read_bytes(), 2) as answers:
            assert all(slow.begun.acquire(timeout=30) for _ in range(2)), "both have begun"
            assert client.predict(image.read_bytes()).status_code == 429
            slow.go.set()
        assert [answer.status_code for answer in answers] == [200, 200]


@pytest.mark.parametrize("reason", ["tiles", "size"])
def test_a_large_image_is_predicted_alone(finder, image, tmp_path, monkeypatch, reason):
    slow, calls = Slow(finder), []
    if reason == "tiles":
        slow.tile_plan = lambda _: "a plan"
    else:
        monkeypatch.setattr("masklab.inference.finder._LARGE", 100)
    threads = ImageThreads(2, lambda: calls.append("share"), lambda: calls.append("all"))
    with Client(Service(slow, Settings(), tmp_path, threads)) as client:
        with sent(client, image.read_bytes(), 2) as answers:
            assert slow.begun.acquire(timeout=30)
            assert not slow.begun.acquire(timeout=0.3), "the other one rests"
            slow.go.set()
        assert [answer.status_code for answer in answers] == [200, 200]
    assert sorted(calls) == ["all"] * 2 + ["share"] * 4
    assert calls[-1] == "share"


def test_jobs_alone_and_among_others_take_turns():
    worker = Worker("test", 20, ImageThreads(3))
    lock, running, alone, seen = threading.Lock(), set(), set(), []

    def job(number):
        with lock:
            assert not alone
            running.add(number)
            seen.append(len(running))
        time.sleep(0.005)
        if number % 3 == 0:
            with lock:
                running.remove(number)
            with worker.alone(Order(30)):
                with lock:
                    assert not running
                    assert not alone
                    alone.add(number)
                time.sleep(0.005)
                with lock:
                    alone.remove(number)
                    running.add(number)
        with lock:
            running.remove(number)
        return number

    async def scene():
        return await asyncio.gather(*(worker.run(lambda n=n: job(n), Order(30)) for n in range(20)))

    assert asyncio.run(scene()) == list(range(20))
    assert max(seen) > 1


def test_a_job_that_waits_to_be_alone_is_given_up_at_its_time():
    worker, go, begun = Worker("test", 0, ImageThreads(2)), threading.Event(), threading.Event()

    def first():
        begun.set()
        return go.wait(30)

    def second():
        assert begun.wait(30)
        order = Order(0.2)
        with worker.alone(order):
            pytest.fail("the other one still works")

    async def scene():
        one = asyncio.ensure_future(worker.run(first, Order(30)))
        with pytest.raises(Refusal):
            await worker.run(second, Order(30))
        go.set()
        assert await one
        assert await worker.run(lambda: "others go on", Order(30)) == "others go on"

    asyncio.run(scene())


def test_a_job_that_waits_to_be_alone_goes_before_new_ones():
    worker, begun, go, done = Worker("test", 0, ImageThreads(3)), threading.Event(), threading.Event(), []

    def first():
        begun.set()
        assert go.wait(30)
        done.append("first")

    def large():
        assert begun.wait(30)
        with worker.alone(Order(30)):
            done.append("large")

    async def scene():
        jobs = [asyncio.ensure_future(worker.run(job, Order(30))) for job in (first, large)]
        while not worker._turns._wanting_alone:
            await asyncio.sleep(0.01)
        jobs.append(asyncio.ensure_future(worker.run(lambda: done.append("new"), Order(30))))
        await asyncio.sleep(0.1)
        go.set()
        await asyncio.gather(*jobs)

    asyncio.run(scene())
    assert done == ["first", "large", "new"]


def test_when_to_come_again_counts_the_jobs_done_at_the_same_time():
    async def scene():
        worker, go = Worker("test", 0, ImageThreads(4)), threading.Event()
        worker._mean = 20.0
        jobs = [asyncio.ensure_future(worker.run(lambda: go.wait(30), Order(60))) for _ in range(4)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal) as refused:
            worker.check()
        assert refused.value.headers["Retry-After"] == "5"
        go.set()
        await asyncio.gather(*jobs)

    asyncio.run(scene())


def test_a_client_that_leaves_makes_room():
    async def scene():
        worker, go = Worker("test", 1), threading.Event()
        first = asyncio.ensure_future(worker.run(lambda: go.wait(30), Order(60)))
        second = asyncio.ensure_future(worker.run(lambda: pytest.fail("nobody wants it"), Order(60)))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0.05)
        assert worker.unfinished == 1
        go.set()
        assert await first
        assert worker.unfinished == 0

    asyncio.run(scene())


def test_figures_are_counted(served, image):
    client = served()
    client.predict(image.read_bytes())
    client.predict(b"no image")
    client.get("/nothing")
    text = client.get("/metrics").text
    assert 'masklab_requests_total{path="/predict",status="200"} 1.0' in text
    assert 'masklab_requests_total{path="/predict",status="422"} 1.0' in text
    assert 'masklab_requests_total{path="none",status="404"} 1.0' in text
    assert "masklab_pixels_total 12288.0" in text
    assert "masklab_jobs 0.0" in text


def test_the_program_stops_when_it_is_asked(weights, image):
    code = "import sys; from masklab.cli.app import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(weights), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"MASKLAB_TOKEN": ""},
    )
    line = process.stdout.readline()
    place = re.search(r"127\.0\.0\.1:(\d+)", line)
    assert place, line + process.stdout.read()
    done = subprocess.run(
        [sys.executable, "-c", ASKS, place[1], str(image)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "200", done.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "stopped" in process.stdout.read()


ASKS = """
import sys, urllib.request
request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}/predict", open(sys.argv[2], "rb").read(), {"Content-Type": "image/png"})
for n in range(100):
    try:
        print(urllib.request.urlopen(request).status)
        break
    except ConnectionRefusedError:
        import time; time.sleep(.1)
"""


# ---------------------------------------------------------------- kept results


def test_kept_results_are_written_in_part(served, finder, image, tmp_path):
    client = served()
    key = client.predict(image.read_bytes(), keep=True, name="drawn.png").json()["result"]
    found = finder.predict(image)
    for format in FORMATS.values():
        wanted = found.take([1, 4]).save(tmp_path / f"wanted{format.suffixes[0]}", format.name, image)
        answer = client.post(f"/results/{key}", json={"objects": [4, 1, 1]}, headers={"Accept": format.media_type})
        assert answer.content == wanted.read_bytes(), format.name
    rows = client.post(f"/results/{key}", json={}).json()["objects"]
    assert [row["object"] for row in rows] == list(range(len(found)))
    one = client.post(f"/results/{key}", json={"objects": [1.0]}).json()["objects"]  # an integer in JSON
    assert [row["object"] for row in one] == [1]
    for wrong in (
        {"objects": [len(found)]},
        {"objects": [-1]},
        {"objects": ["1"]},
        {"objects": [True]},
        {"objects": [1.5]},
        {"other": 1},
    ):
        assert client.post(f"/results/{key}", json=wrong).status_code == 422, wrong
    assert client.post(f"/results/{key}", content=b"{", headers={"Content-Type": "application/json"}).status_code == 422
    assert client.post(f"/results/{key}", json={}, headers={"Accept": "text/html"}).status_code == 406
    assert client.delete(f"/results/{key}").status_code == 204
    assert client.post(f"/results/{key}", json={}).status_code == 404
    assert not list(client.service.folder.iterdir())


def test_tiles_are_the_image(served, tmp_path):
    values = drawn(3, 600, 1112)
    client = served()
    key = client.predict(by_pillow(values, "PNG"), keep=True).json()["result"]

    def tile(*place):
        answer = client.get(f"/results/{key}/tiles/" + "/".join(map(str, place)))
        return answer.status_code, np.asarray(Image.open(io.BytesIO(answer.content))) if answer.is_success else None

    assert np.array_equal(tile(1, 0, 0)[1], values[:512, :512])
    assert np.array_equal(tile(1, 2, 1)[1], values[512:, 1024:])
    assert np.array_equal(tile(2, 1, 0)[1], np.asarray(Image.fromarray(values[:, 1024:]).reduce(2)))
    for wrong in ((1, 3, 0), (1, 0, 2), (2, 2, 0), (8, 0, 0), (1, 2**20, 2**20)):
        assert tile(*wrong)[0] == 404, wrong
    for wrong in ((0, 0, 0), (1, -1, 0), (1, "x", 0)):
        assert tile(*wrong)[0] == 422, wrong


def test_layers_are_the_maps_of_the_model(served, image):
    client = served()
    key = client.predict(image.read_bytes(), keep=True).json()["result"]

    def layer(name, **query):
        answer = client.get(f"/results/{key}/layers/{name}", params=query)
        return answer.status_code, np.asarray(Image.open(io.BytesIO(answer.content))) if answer.is_success else None

    maps = {name: layer(*name) for name in (("semantic",), ("direction",))}
    assert all(values.shape == (96, 128, 3) and values.std() > 5 for _, values in maps.values())
    assert not np.array_equal(layer("semantic", label=0)[1], layer("semantic", label=2)[1])
    assert layer("direction", box="8,16,72,48")[1].shape == (32, 64, 3)
    for query in ({"label": 3}, {"box": "0,0,129,96"}, {"box": "5,5,5,9"}, {"box": "0,0"}, {"label": -1}):
        assert layer("semantic", **query)[0] == 422, query
    assert layer("other")[0] == 422
    assert client.get("/model/directions").headers["content-type"] == "image/png"
    assert client.get("/model").json()["layers"] == ["semantic", "direction"]


def test_the_oldest_results_are_forgotten(served, finder, image, tmp_path):
    client = served(keep=2)
    keys = [client.predict(image.read_bytes(), keep=True).json()["result"] for _ in range(2)]
    assert client.post(f"/results/{keys[0]}", json={}).status_code == 200, "so that the other is older"
    keys.append(client.predict(image.read_bytes(), keep=True).json()["result"])
    assert [client.post(f"/results/{key}", json={}).status_code for key in keys] == [200, 404, 200]
    assert len(list(client.service.folder.iterdir())) == 2
    kept = KeptResults(10, 100)
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(60))
        kept.add(Kept(name, tmp_path / name, name, finder.predict(image)))
    assert "c" in kept
    assert len(kept) == 1
    assert not (tmp_path / "a").exists()


def test_an_exported_model_is_served_without_layers(weights, image, served, tmp_path):
    file = tmp_path / "model.onnx"
    export(weights, "onnx", file)
    exported = load_exported(file, PredictionOptions(score_threshold=SCORE))
    client = served(exported)
    found = exported.predict(image)
    answer = client.predict(image.read_bytes(), score=0, keep=True).json()
    assert [each["segmentation"] for each in answer["objects"]] == found.rles()
    model = client.get("/model").json()
    assert model["layers"] == []
    assert "exported" in model["no_layers"]
    assert client.get(f"/results/{answer['result']}/layers/semantic").status_code == 404
    assert client.get(f"/results/{answer['result']}/tiles/1/0/0").status_code == 200


# ---------------------------------------------------------------- the page


def test_the_page_loads_nothing_from_elsewhere(served):
    client = served()
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    files = [each.name for each in (Path(sys.modules["masklab.serve"].__file__).parent / "page").iterdir()]
    for file in files:
        text = client.get(f"/page/{file}").text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), file
        assert "innerHTML" not in text
        assert " style=" not in text
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=", answer.text)


@pytest.fixture(scope="module")
def live(weights, tmp_path_factory):
    """A server in a thread, with an address."""
    import uvicorn

    finder = predictor(load(weights).model, score_threshold=SCORE)
    service = Service(finder, Settings(keep=2), tmp_path_factory.mktemp("live"), ImageThreads())
    config = uvicorn.Config(create_app(service, HOSTILE), port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    service.stop()
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path, find_chromium())
    yield browser
    browser.close()


COUNT = "Number(document.getElementById('count').textContent)"
SETTLED = "![...document.querySelectorAll('#images .state')].some(each => /waiting|looking/.test(each.textContent))"


def shown(browser, path):
    browser.upload("#files", path)
    browser.until(f"document.querySelectorAll('#images li').length > 0 && {SETTLED}")


def set_threshold(browser, value):
    browser.do(
        f"(() => {{ const s = document.getElementById('threshold'); s.value = {value}; s.dispatchEvent(new Event('input')) }})()"
    )


def test_the_page_in_a_browser(browser, live, finder, image, tmp_path):
    found = finder.predict(image)
    browser.open(live)
    shown(browser, image)
    assert browser.do(COUNT) == len(found.above(SCORE))
    assert browser.do("document.getElementById('about').textContent").startswith(HOSTILE), "names stay text"

    requests = "performance.getEntriesByType('resource').filter(each => /predict/.test(each.name)).length"
    before = browser.do(requests)
    limit = 0.53
    set_threshold(browser, limit)
    assert browser.do(COUNT) == len(found.above(limit)) != len(found.above(SCORE))
    assert browser.do(requests) == before, "without a new request"

    browser.do("document.getElementById('view').focus()")
    browser.press("n", "n")
    assert "Object 1 of" in browser.do("document.getElementById('status').textContent")
    browser.press("Enter", "\r")
    assert browser.do(COUNT) == len(found.above(limit)) - 1
    kept = [n for n in range(len(found.above(limit))) if n != 0]

    browser.do("[...document.querySelectorAll('#formats button')].find(b => /labels/.test(b.textContent)).click()")
    content = browser.downloaded("drawn_masks.tif")
    wanted = found.take(kept).save(tmp_path / "wanted.tif", "labels", image)
    assert np.array_equal(tifffile.imread(io.BytesIO(content)), tifffile.imread(wanted))
    browser.do("document.getElementById('keep-all').click()")
    assert browser.do(COUNT) == len(found.above(limit))

    for layer in ("semantic", "direction"):
        browser.do(f"document.querySelector('input[value={layer}]').click()")
        browser.until(
            "!document.getElementById('layer-options').hidden && !document.getElementById('layer-note').textContent"
        )
    browser.until("document.getElementById('wheel').naturalWidth > 0")

    box = browser.do(
        "(() => { const b = document.getElementById('view').getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })()"
    )
    zoom = "document.getElementById('zoom').textContent"
    whole = browser.do(zoom)
    middle = (box[0] + box[2] / 2, box[1] + box[3] / 2)
    browser.mouse("mouseWheel", *middle, deltaX=0, deltaY=-300)
    browser.until(f"{zoom} !== '{whole}'")
    browser.press("0", "0")
    browser.until(f"{zoom} === '{whole}'")
    scale = min(box[2] / 128, box[3] / 96)
    inside = np.argwhere(found.mask(0))[len(np.argwhere(found.mask(0))) // 2]
    place = (middle[0] + (inside[1] + 0.5 - 64) * scale, middle[1] + (inside[0] + 0.5 - 48) * scale)
    browser.mouse("mouseMoved", *place)
    assert "score" in browser.until("document.getElementById('tip').textContent")
    browser.click(*place)
    assert browser.do(COUNT) == len(found.above(limit)) - 1
    assert browser.console == []


def test_images_that_are_refused_are_said_on_the_page(browser, live, image, tmp_path):
    bad = tmp_path / f"{HOSTILE}.png".replace("/", "_")
    bad.write_bytes(b"no image")
    browser.open(live)
    shown(browser, bad)
    assert "not an image" in browser.do("document.getElementById('status').textContent")
    assert browser.do("document.querySelector('#images .name').textContent") == bad.name
    assert browser.do("document.querySelectorAll('#images img').length") == 0
    browser.upload("#more-files", image)
    browser.until(f"document.querySelectorAll('#images li').length === 2 && {SETTLED}")
    assert browser.do(COUNT) > 0, "the next one is shown"


def test_a_result_that_the_server_forgot_is_made_again(browser, live, image):
    browser.open(live)
    shown(browser, image)
    for seed in (5, 6):
        other = image.with_name(f"{seed}.png")
        other.write_bytes(by_pillow(drawn(seed), "PNG"))
        browser.upload("#more-files", other)
        browser.until(f"document.querySelectorAll('#images li').length === {seed - 3} && {SETTLED}")
    browser.do("[...document.querySelectorAll('#formats button')].find(b => /geojson/.test(b.textContent)).click()")
    assert len(json.loads(browser.downloaded("drawn.geojson"))["features"]) > 0


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(width, browser, live, image):
    browser.open(live, width, 850)
    shown(browser, image)
    assert browser.do("document.documentElement.scrollWidth") <= width
    small = (
        "[...document.querySelectorAll('button, .button, select')].filter(e => e.offsetWidth && e.offsetHeight < 24)"
    )
    assert browser.do(f"{small}.length") == 0
    unnamed = "[...document.querySelectorAll('button')].filter(e => !(e.textContent.trim() || e.ariaLabel)).length"
    assert browser.do(unnamed) == 0

"""Downloads from a server on this machine that truncates, stalls, corrupts and redirects; none goes to the network."""

import hashlib
import io
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from masklab.cli.app import main
from masklab.datasets.archives import DATA_SETS, Archive, DataSet
from masklab.datasets.download import download
from masklab.utils.errors import InputError

NOISE = np.random.default_rng(0).bytes(300_000)


def zipped(**members):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return target.getvalue()


DATA = zipped(**{"images/": b"", "images/a.png": NOISE, "images/deep/b.txt": b"b"})


class Server(ThreadingHTTPServer):
    """Serves ``files`` at any path; ``faults`` are taken one a request, and ``asked`` has the Range of each."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked, self.ranges = {"/set.zip": DATA}, [], [], True
        self.over = threading.Event()

    def archive(self, path="/set.zip", **fields):
        return Archive(f"http://127.0.0.1:{self.server_port}{path}", "images", **fields)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        fault, amount = (server.faults.pop(0) if server.faults else ("", 0)) or ("", 0)
        if fault == "status":
            self.send_error(amount)
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", amount)
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        data = server.files[self.path]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            shift = amount if fault == "other part" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(data) - 1}/{len(data)}")
        if fault != "no length":
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        if fault == "corrupt":
            body = body[:amount] + bytes([body[amount] ^ 1]) + body[amount + 1 :]
        self.wfile.write(body[:amount] if fault in ("truncate", "stall") else body)
        if fault == "stall":
            self.wfile.flush()
            server.over.wait(10)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running
        running.over.set()
        running.shutdown()


def get(server, folder, *, path="/set.zip", tries=3, timeout=5, **fields):
    sets = {"set": DataSet((server.archive(path, **fields),), "terms")}
    return download("set", folder, sets, timeout=timeout, tries=tries, pause=0.01)


def verified():
    return {"size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}


def assert_whole(folder):
    """The images are there, byte for byte, and nothing else."""
    assert (folder / "images" / "a.png").read_bytes() == NOISE
    assert (folder / "images" / "deep" / "b.txt").read_bytes() == b"b"
    assert [entry.name for entry in folder.iterdir()] == ["images"]


def refused(words, action, *args, **fields):
    with pytest.raises(InputError) as caught:
        action(*args, **fields)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("known", [True, False], ids=["published", "unpublished"])
def test_an_archive_is_fetched_unpacked_and_left_alone_afterwards(server, tmp_path, known, caplog):
    caplog.set_level("INFO", "masklab")
    fields = verified() if known else {}
    get(server, tmp_path / "new" / "folder", **fields)
    assert_whole(tmp_path / "new" / "folder")
    assert server.asked == [None]
    assert "terms" in caplog.text
    assert ("no published checksum" in caplog.text) is not known
    get(server, tmp_path / "new" / "folder", **fields)
    assert len(server.asked) == 1, "what is unpacked is not fetched again"


def test_a_truncated_transfer_goes_on_where_it_broke_off(server, tmp_path):
    server.faults = [("truncate", 100_000), ("truncate", 50_000), ("truncate", 0), ("truncate", 0)]
    get(server, tmp_path, **verified())
    assert server.asked == [None, "bytes=100000-", *["bytes=150000-"] * 3]
    assert_whole(tmp_path)


def test_a_stalled_transfer_is_taken_up_again(server, tmp_path):
    server.faults = [("stall", 70_000)]
    began = time.monotonic()
    get(server, tmp_path, timeout=1, **verified())
    assert time.monotonic() - began < 8
    assert server.asked[-1] == "bytes=70000-"
    assert_whole(tmp_path)


def test_a_broken_transfer_is_gone_on_with_by_the_next_command(server, tmp_path):
    server.faults = [("truncate", 1000), *[("truncate", 0)] * 3]
    refused(["set.zip", "byte 1000", "run the same command again"], get, server, tmp_path, **verified())
    assert (tmp_path / "set.zip.part").stat().st_size == 1000
    assert not (tmp_path / "images").exists()
    get(server, tmp_path, **verified())
    assert server.asked[-1] == "bytes=1000-"
    assert_whole(tmp_path)


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges, server.faults = False, [("truncate", 100_000)]
    get(server, tmp_path, **verified())
    assert_whole(tmp_path)


@pytest.mark.parametrize("fields", [{}, verified()], ids=["unpublished", "published"])
def test_a_part_of_something_longer_is_thrown_away(server, tmp_path, fields):
    (tmp_path / "set.zip.part").write_bytes(b"x" * (len(DATA) + 5))
    get(server, tmp_path, **fields)
    assert_whole(tmp_path)


def test_another_part_than_asked_for_is_not_taken(server, tmp_path):
    server.faults = [("truncate", 100_000), ("other part", 7)]
    get(server, tmp_path, **verified())
    assert_whole(tmp_path)


def test_a_length_need_not_be_told(server, tmp_path):
    server.faults = [("no length", 0)]
    get(server, tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"), [(verified(), ["SHA-256", "removed"]), ({}, ["damaged archive", "CRC"])], ids=["sum", "CRC"]
)
def test_a_corrupted_archive_is_removed_and_fetched_anew(server, tmp_path, fields, words):
    server.faults = [("corrupt", 150_000)]
    refused([*words, "run the same command again"], get, server, tmp_path, **fields)
    assert list(tmp_path.iterdir()) == [], "nothing of it stays"
    get(server, tmp_path, **fields)
    assert_whole(tmp_path)


def test_a_damaged_stream_inside_the_archive_is_found(server, tmp_path):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("images/a.txt", b"many words " * 9000)
    server.files["/set.zip"] = target.getvalue()
    for place in (45, 60, 80):
        server.faults = [("corrupt", place)]
        refused(["damaged archive"], get, server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_was_put_there_by_hand_is_verified(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(DATA[:-1] + b"x")
    refused(["SHA-256", "removed"], get, server, tmp_path, **verified())
    (tmp_path / "set.zip").write_bytes(DATA)
    get(server, tmp_path, **verified())
    assert server.asked == []
    assert_whole(tmp_path)


def test_something_that_is_not_the_archive_is_refused_before_it_is_fetched(server, tmp_path):
    refused([f"has {len(DATA)} bytes", "has 5"], get, server, tmp_path, size=5, sha256="0" * 64)
    server.files["/page"] = b"<html>sign in</html>"
    refused(["damaged archive", "not a zip file"], get, server, tmp_path, path="/page")
    assert list(tmp_path.iterdir()) == []


def test_redirections_are_followed_also_when_resuming(server, tmp_path):
    server.faults = [("redirect", "/set.zip"), ("truncate", 100_000), ("redirect", "/set.zip")]
    get(server, tmp_path, path="/old.zip", **verified())
    assert server.asked == [None, None, "bytes=100000-", "bytes=100000-"]
    assert_whole(tmp_path)


def test_redirections_end_somewhere_on_the_web(server, tmp_path):
    server.faults = [("redirect", "/set.zip")] * 30
    refused(["cannot be had", "302"], get, server, tmp_path)
    server.faults = [("redirect", "file:///etc/hostname")]
    refused(["cannot be had"], get, server, tmp_path)


def test_an_encrypted_address_is_not_left_for_an_open_one():
    from urllib.request import Request

    from masklab.datasets.download import _SafeRedirects

    request = Request("https://a.example/set.zip")
    refused(
        ["not encrypted"], _SafeRedirects().redirect_request, request, None, 302, "", {}, "http://b.example/set.zip"
    )


def test_what_the_server_refuses_is_said_at_once_and_what_may_pass_is_tried_again(server, tmp_path):
    refused(["404", "by hand"], get, server, tmp_path, path="/gone.zip")
    assert len(server.asked) == 1
    server.faults = [("status", 503), ("status", 429)]
    get(server, tmp_path, **verified())
    assert_whole(tmp_path)


def test_no_server_at_all(server, tmp_path):
    archive = server.archive()
    server.shutdown()
    server.server_close()
    sets = {"set": DataSet((archive,), "terms")}
    refused(["byte 0", "refused"], download, "set", tmp_path, sets, tries=2, pause=0.01)


@pytest.mark.parametrize(
    "name", ["../evil.txt", "images/../../evil.txt", "/tmp/evil.txt", "C:/evil.txt", "..\\evil.txt"]
)
def test_members_that_climb_out_are_refused(server, tmp_path, name):
    server.files["/set.zip"] = zipped(**{"images/a.png": b"a", name: b"evil"})
    refused(["leaves the folder"], get, server, tmp_path / "in" / "here")
    assert not list(tmp_path.rglob("evil.txt"))
    assert list((tmp_path / "in" / "here").iterdir()) == []


def test_members_that_are_links_are_refused(server, tmp_path):
    link = zipfile.ZipInfo("images/link")
    link.external_attr = 0o120777 << 16
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as opened:
        opened.writestr(link, "/etc")
    server.files["/set.zip"] = target.getvalue()
    refused(["is a link"], get, server, tmp_path)


def test_an_archive_without_a_folder_of_its_own_gets_one(server, tmp_path):
    server.files["/set.zip"] = zipped(**{"one/images/one.png": b"1", "two/images/two.png": b"2"})
    get(server, tmp_path)
    assert (tmp_path / "images" / "two" / "images" / "two.png").read_bytes() == b"2"


def test_a_disk_without_room_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr("masklab.datasets.download.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    refused(["no room", "set.zip"], get, server, tmp_path)


def test_the_command_line_refuses_in_one_sentence(tmp_path, capsys):
    assert main(["data", "download", "imagenet", str(tmp_path)]) == 2
    (tmp_path / "file").write_text("")
    assert main(["data", "download", "nuclei", str(tmp_path / "file")]) == 2
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "imagenet" in first
    assert "cannot be written to" in second


def test_what_is_published_is_complete():
    for name, data_set in DATA_SETS.items():
        for archive in data_set.archives:
            assert archive.name.endswith(".zip")
            assert archive.size, name
            assert len(bytes.fromhex(archive.sha256 or "")) == 32, name
    assert [archive.makes for archive in DATA_SETS["coco2017"].archives] == ["annotations", "val2017", "train2017"]

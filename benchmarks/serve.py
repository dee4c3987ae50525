"""A server under load, with hostile requests among the good ones.

    uv run python benchmarks/serve.py [--seconds 300] [--clients 32] [--hostile 0.1] [--model nuclei] [--images DIR]

Starts `masklab serve` and sends it images from many clients at once, each waiting as `Retry-After` says where it is told to
come again.  A share of the requests is hostile: noise, cut and damaged files, claims of huge sizes, wrong types, lengths that
lie, connections that break off.  Every good answer is compared with what prediction itself finds in the image.

Printed: answers by status, crashes (the server ended, or 500), wrong answers, the memory of the server after a tenth of the
time and at the end, and the time of an answer that was taken, p50 and p99, beside that of a request alone, measured before.
Bar: no crash, no wrong answer, memory within 10 %, p99 within 3 times the single request.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from masklab.datasets.synthetic.nuclei import draw_nuclei
from masklab.inference.predictor import load

_IMAGES = 4
_SIDE = 256  # pixels of a drawn image
_ALONE = 20  # requests that are timed alone


def main() -> None:
    """Run the load and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--hostile", type=float, default=0.1)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--images", type=Path, help="folder of PNG images; drawn ones without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = _images(arguments.images)
        predictor = load(arguments.model)
        wanted = {content: _wanted(predictor, content, Path(folder)) for content in images}
        del predictor
        server, port = _start(arguments.model)
        try:
            load_run = Load(port, wanted, arguments.hostile)
            alone = sorted(load_run.timed(random.Random(n).choice(images)) for n in range(_ALONE))
            memory = load_run.run(arguments.clients, arguments.seconds, server.pid)
            ended = server.poll()
        finally:
            server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    single = alone[len(alone) // 2]
    times = np.array(load_run.times)
    print(
        f"{arguments.clients} clients, {arguments.seconds:g} s, {arguments.hostile:.0%} hostile, {os.cpu_count()} cores"
    )
    print("good requests:   ", dict(sorted(load_run.good.items())))
    print("hostile requests:", dict(sorted(load_run.bad.items(), key=str)))
    print(
        f"crashes: {int(ended is not None) + load_run.good[500] + load_run.bad[500]}; exit code after SIGTERM: {code}"
    )
    print(f"wrong answers: {load_run.wrong} of {len(times)}")
    print(
        f"memory: {memory[0] >> 20} MiB after a tenth of the time, {memory[1] >> 20} MiB at the end: {memory[1] / memory[0] - 1:+.1%}"
    )
    p50, p99 = np.percentile(times, (50, 99))
    print(f"alone {single:.3f} s; under load p50 {p50:.3f} s, p99 {p99:.3f} s: {p99 / single:.2f} times")


def _images(folder: Path | None) -> list[bytes]:
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("*.png"))[:_IMAGES]]
    return [_png(draw_nuclei(20, seed, (_SIDE, _SIDE))[0].transpose(1, 2, 0)) for seed in range(_IMAGES)]


def _png(values: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def _wanted(predictor: Any, content: bytes, folder: Path) -> list[Any]:
    path = folder / "image.png"
    path.write_bytes(content)
    with predictor.image_threads() as threads:
        threads.begin()  # the number of threads within an image changes last digits
        found = predictor.predict(path).above(predictor.threshold)
    return [found.rles(), found.scores.tolist(), found.boxes.tolist()]


def _start(model: str) -> tuple[subprocess.Popen[str], int]:
    code = "import sys; from masklab.cli.app import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "serve", model, "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    place = None
    while place is None:
        place = re.search(r"127\.0\.0\.1:(\d+)", server.stdout.readline())
        assert server.poll() is None, "the server has not started"
    threading.Thread(target=server.stdout.read, daemon=True).start()
    return server, int(place[1])


class Load:
    """Clients of a server at a ``port``; ``wanted`` has the right answer for each image."""

    def __init__(self, port: int, wanted: dict[bytes, list[Any]], hostile: float) -> None:
        self.port, self.wanted, self.hostile = port, wanted, hostile
        self.good: Counter[Any] = Counter()
        self.bad: Counter[Any] = Counter()
        self.times: list[float] = []
        self.wrong = 0

    def timed(self, content: bytes) -> float:
        """Seconds until an image is answered, without those of refusals before."""
        while (seconds := self.attempt(content)) is None:
            pass
        return seconds

    def attempt(self, content: bytes) -> float | None:
        """Send an image once; returns the seconds to its answer, or None after a refusal and the pause that it asks for."""
        began = time.perf_counter()
        status, answer, pause = self._send(content)
        seconds = time.perf_counter() - began
        self.good[status] += 1
        if status != 200:
            time.sleep(pause * (0.5 + random.random()))
            return None
        found = json.loads(answer)["objects"]
        rows = [[each[key] for each in found] for key in ("segmentation", "score", "box")]
        self.wrong += rows != self.wanted[content]
        return seconds

    def run(self, clients: int, seconds: float, server: int) -> tuple[int, int]:
        """Send from many threads; returns the server's memory in bytes after a tenth of the time and at the end."""
        end = time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(n, end)) for n in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 10)
        early = _memory(server)
        time.sleep(max(0.0, end - time.monotonic() - 1))
        late = _memory(server)
        for thread in threads:
            thread.join()
        return early, late

    def _client(self, number: int, end: float) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            if chance.random() < self.hostile:
                name, attack = chance.choice(list(HOSTILE.items()))
                try:
                    status: Any = attack(self, chance)
                except OSError as error:
                    status = type(error).__name__
                self.bad[status] += 1
                assert status not in (200,), name
            else:
                seconds = self.attempt(chance.choice(list(self.wanted)))
                if seconds is not None:
                    self.times.append(seconds)

    def _send(self, content: bytes, kind: str = "image/png", **headers: str) -> tuple[int, bytes, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", "/predict", content, {"Content-Type": kind, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read(), float(answer.headers.get("Retry-After") or 0.2)
        finally:
            connection.close()

    def status(self, content: bytes, kind: str = "image/png", **headers: str) -> int:
        """The status of the answer to a body."""
        return self._send(content, kind, **headers)[0]

    def broken_off(self, content: bytes, length: int) -> str:
        """Send a part of a body whose ``Content-Length`` is another, and leave."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
            connection.sendall(head.encode() + content)
        return "left"

    def raw(self, content: bytes) -> str:
        """The first line of the answer to bytes that are no request."""
        with socket.create_connection(("127.0.0.1", self.port), 30) as connection:
            connection.sendall(content)
            return connection.recv(100).split(b"\r\n")[0].decode("latin-1")


def _memory(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _bomb() -> bytes:
    """A PNG whose header claims more pixels than are taken."""
    head = struct.pack(">II5B", 12000, 12000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(buffer, "TIFF")
    return buffer.getvalue()


def _damaged(content: bytes, chance: random.Random) -> bytes:
    values = bytearray(content)
    for _ in range(20):
        values[chance.randrange(8, len(values))] = chance.randrange(256)
    return bytes(values)


HOSTILE: dict[str, Callable[[Load, random.Random], Any]] = {
    "noise": lambda load, chance: load.status(chance.randbytes(5000)),
    "cut off": lambda load, chance: load.status(next(iter(load.wanted))[: chance.randrange(20, 3000)]),
    "damaged": lambda load, chance: load.status(_damaged(next(iter(load.wanted)), chance)),
    "damaged TIFF": lambda load, chance: load.status(_tiff()[: chance.randrange(8, 3000)], "image/tiff"),
    "many pixels": lambda load, chance: load.status(_bomb()),
    "empty": lambda load, chance: load.status(b""),
    "no image": lambda load, chance: load.status(b"<svg onload=alert(1)>", "image/svg+xml"),
    "not acceptable": lambda load, chance: load.status(b"x", Accept="text/html"),
    "another host": lambda load, chance: load.status(b"x", Host="evil.example"),
    "too short": lambda load, chance: load.broken_off(b"abc", 5000),
    "too long": lambda load, chance: load.broken_off(bytes(5000), 10**12),
    "no request": lambda load, chance: load.raw(b"\x16\x03\x01" + chance.randbytes(200) + b"\r\n\r\n"),
}

if __name__ == "__main__":
    main()

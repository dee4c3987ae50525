"""Memory that an image may take, for each of its pixels, and files that ask for more than their image can need."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from image_files import by_pillow, by_tifffile, deep_png, grey_tiff, surplus
from PIL import Image

from masklab.datasets.layouts.masks import read_labels
from masklab.images import opened, read
from masklab.images.read import image_size, read_image, read_window
from masklab.utils.errors import InputError

SIDE = 2048
PEAKS = {  # bytes for each pixel at the highest point of reading as three channels; docs/reliability.md has them too
    "rgb8.png": 8,
    "grey8.png": 6,
    "rgb16.png": 18,
    "grey16.png": 14,
    "rgb.jpg": 12,
    "palette.gif": 14,
    "strips8.tif": 6,
    "strips-float64.tif": 26,
    "plain-int8.tif": 16,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images of 2048 x 2048 pixels, of every kind."""
    folder = tmp_path_factory.mktemp("large")
    grey = np.zeros((SIDE, SIDE), np.uint8)
    rgb = np.zeros((SIDE, SIDE, 3), np.uint8)
    files = {
        "rgb8.png": by_pillow(rgb, "PNG"),
        "grey8.png": by_pillow(grey, "PNG"),
        "rgb16.png": deep_png(rgb.astype(np.uint16)),
        "grey16.png": by_pillow(grey.astype(np.uint16), "PNG"),
        "rgb.jpg": by_pillow(rgb, "JPEG"),
        "palette.gif": by_pillow(Image.fromarray(grey).convert("P"), "GIF"),
        "strips8.tif": by_tifffile(grey, compression="zlib", rowsperstrip=64),
        "strips-float64.tif": by_tifffile(grey.astype(np.float64), compression="zlib", rowsperstrip=64),
        "plain-int8.tif": by_tifffile(grey.astype(np.int8)),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


MEASURE = """
import os, resource, sys
from masklab.images.read import read_image

for path in [None, *sys.argv[1:]]:
    if not (child := os.fork()):
        if path is not None:
            read_image(path, 3)
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    print(usage.ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes, and of the process alone, on Linux")
def test_reading_takes_no_more_memory_for_a_pixel_than_promised(large):
    names = sorted(PEAKS)
    command = [sys.executable, "-c", MEASURE, *(str(large / name) for name in names)]
    base, *peaks = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    found = {name: (peak - base) / SIDE**2 for name, peak in zip(names, peaks, strict=True)}
    slack = 2**24 / SIDE**2  # decoders' own buffers
    assert {name: peak for name, peak in found.items() if peak > PEAKS[name] + slack} == {}


@pytest.mark.parametrize("name", sorted(surplus()))
def test_data_that_is_shared_or_more_than_the_pixels_need_is_damage(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(surplus()[name])
    with pytest.raises(InputError, match=rf"{name} is damaged or cut off"):
        read_image(path, 3)
    if path.suffix in (".tif", ".png"):
        with pytest.raises(InputError, match=name):
            read_labels(path)


def paged(pages, inside=0):
    """A TIFF of ``pages`` pages of 8 x 8 pixels, the first of which has pages ``inside`` it."""
    buffer = io.BytesIO()
    options = {"contiguous": False, "metadata": None, "photometric": "minisblack"}
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(np.zeros((8, 8), np.uint8), subifds=inside, **options)
        for _ in range(pages - 1 + inside):
            writer.write(np.zeros((8, 8), np.uint8), **options)
    return buffer.getvalue()


def shaped(pages):
    """A TIFF of one page that says of itself that it is ``pages`` pages."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((pages, 8, 8), np.uint8), photometric="minisblack", truncate=True)
    return buffer.getvalue()


def run_lengths(side, data):
    """A BMP of run lengths."""
    head = struct.pack("<2sIHHI", b"BM", 1078 + len(data), 0, 0, 1078)
    return head + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0) + bytes(1024) + data


def laborious():
    """Files whose structure alone takes long, and what is said of them, by name."""
    flat = "has over 4096 pages but a flat image is needed"
    return {
        "pages.tif": (paged(4097), flat),
        "inside.tif": (paged(1, 4096), flat),
        "shaped.tif": (shaped(4097), "is a stack"),
        "tiles.tif": (grey_tiff((32784, 32768), [(0, 0)] * 2049 * 2048, b"", tile=16), "4196352 strips or tiles"),
        "runs.bmp": (run_lengths(4097, b"\0\1"), "run lengths of 16785409 pixels"),
        "empty-runs.bmp": (run_lengths(8, b"\0\0" * 40_000 + b"\0\1"), "run lengths of its pixels need 128"),
    }


@pytest.mark.parametrize("name", sorted(laborious()))
def test_a_structure_that_takes_long_is_refused(name, tmp_path):
    content, said = laborious()[name]
    (tmp_path / name).write_bytes(content)
    for read_it in (image_size, lambda path: read_image(path, 1)):
        if read_it is image_size and name in ("shaped.tif", "runs.bmp", "empty-runs.bmp"):
            continue  # the header alone is soon read
        with pytest.raises(InputError, match=rf"{name} .*{said}"):
            read_it(tmp_path / name)


def test_what_writers_do_is_no_surplus(tmp_path):
    """The last strip as long as the others; tiles beyond the image; empty tiles of GDAL; bytes that are not compressible."""
    noise = np.random.default_rng(0).integers(0, 256, (100, 64), np.uint8)
    first, last = (zlib.compress(part.ljust(64 * 64, b"\0")) for part in (noise[:64].tobytes(), noise[64:].tobytes()))
    long = grey_tiff((100, 64), [(8, len(first)), (8 + len(first), len(last))], first + last)
    (tmp_path / "long.tif").write_bytes(
        long.replace(struct.pack("<HHII", 278, 4, 1, 50), struct.pack("<HHII", 278, 4, 1, 64))
    )
    assert np.array_equal(read_image(tmp_path / "long.tif", 1)[0], noise)
    for predictor in (None, True):
        tifffile.imwrite(tmp_path / "tiles.tif", noise, tile=(32, 32), compression="zlib", predictor=predictor)
        assert np.array_equal(read_image(tmp_path / "tiles.tif", 1)[0], noise)
    sparse = grey_tiff((64, 128), [(8, len(first)), (0, 0)], first, tile=64)
    (tmp_path / "sparse.tif").write_bytes(sparse)
    assert np.array_equal(read_image(tmp_path / "sparse.tif", 1)[0], np.pad(noise[:64], ((0, 0), (0, 64))))
    turned = tifffile.imread(tmp_path / "tiles.tif")
    tifffile.imwrite(tmp_path / "turned.tif", turned, compression="zlib", extratags=[(274, 3, 1, 6, True)])
    assert np.array_equal(read_image(tmp_path / "turned.tif", 1)[0], np.rot90(noise, -1))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.uint16, np.float16, np.float32, np.float64, np.int64])
def test_what_arrives_is_bounded_not_only_what_is_decoded(dtype, tmp_path, monkeypatch):
    values = np.zeros((64, 64), dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", values, compression=None if values.dtype.kind == "b" else "zlib", photometric="minisblack"
    )
    each = 1 if dtype in (bool, np.uint8) else 2 if dtype == np.uint16 else 4
    monkeypatch.setattr(opened, "MOST_BYTES", 64 * 64 * max(3 * each, values.itemsize))
    assert read_image(tmp_path / "a.tif", 3).nbytes == 64 * 64 * 3 * each
    monkeypatch.setattr(opened, "MOST_BYTES", 64 * 64 * 3 * each - 1)
    with pytest.raises(InputError, match=r"a\.tif has too many pixels to be read at once"):
        read_image(tmp_path / "a.tif", 3)
    if values.itemsize < 3 * each:
        assert read_window(tmp_path / "a.tif", 3, (0, 0, 60, 60))[0].shape == (3, 60, 60)


def test_complex_numbers_are_no_image(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.complex64))
    with pytest.raises(InputError, match="holds no numbers that make an image"):
        read_image(tmp_path / "a.tif", 1)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(12, os.strerror(12)), RuntimeError("can't allocate memory: you tried")]
)
def test_memory_that_a_decoder_cannot_have_is_a_sentence(error, tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")

    def fail(*_):
        raise error

    monkeypatch.setattr(read, "read_pillow", fail)
    with pytest.raises(InputError, match=r"a\.png needs more memory than there is") as caught:
        read_image(tmp_path / "a.png", 3)
    assert caught.value.__cause__ is error


def test_bands_give_what_the_whole_gives(tmp_path, monkeypatch):
    values = np.random.default_rng(1).integers(0, 65536, (37, 23, 3), np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    Image.fromarray((values >> 8).astype(np.uint8)).save(tmp_path / "b.png")
    whole = [read_image(tmp_path / name, channels) for name in ("a.png", "b.png") for channels in (1, 3)]
    monkeypatch.setattr(opened, "_BAND", 200)
    parts = [read_image(tmp_path / name, channels) for name in ("a.png", "b.png") for channels in (1, 3)]
    assert all(np.array_equal(one, two) for one, two in zip(whole, parts, strict=True))
    assert np.array_equal(whole[1], values.transpose(2, 0, 1))

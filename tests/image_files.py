"""Drawers of image files, sound and hostile, as bytes."""

import io
import lzma
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def by_pillow(values, form, **options):
    buffer = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def by_tifffile(values, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **options)
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values, size=None):
    """A PNG of 16-bit RGB or RGBA, which Pillow does not write; ``size`` is what its header claims."""
    height, width = size or values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">II5B", width, height, 16, {3: 2, 4: 6}[values.shape[2]], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(tags, data):
    """A TIFF of one page with these tags, each (code, type, values), and data from byte 8."""
    start = 8 + len(data) + len(data) % 2
    outside, entries = b"", b""
    after = start + 2 + 12 * len(tags) + 4
    for code, kind, values in sorted(tags):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            entries += struct.pack("<HHII", code, kind, len(values), after + len(outside))
            outside += packed + bytes(len(packed) % 2)
        else:
            entries += struct.pack("<HHI", code, kind, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", start) + data + bytes(len(data) % 2)
    return head + struct.pack("<H", len(tags)) + entries + bytes(4) + outside


def grey_tiff(size, segments, data, compression=8, tile=None):
    """A grey TIFF of 8 bits in strips, or tiles, at the (offset, length) of ``segments``."""
    height, width = size
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8]), (259, 3, [compression]), (262, 3, [1]), (277, 3, [1])]
    places, lengths = ([part[k] for part in segments] for k in (0, 1))
    if tile is None:
        tags += [(278, 4, [-(-height // len(segments))]), (273, 4, places), (279, 4, lengths)]
    else:
        tags += [(322, 4, [tile]), (323, 4, [tile]), (324, 4, places), (325, 4, lengths)]
    return tiff(tags, data)


def surplus():
    """Files whose data is shared, or far more than their pixels can need, by name."""
    strip = zlib.compress(bytes(64 * 64))
    bomb = zlib.compress(bytes(2**24))
    png = deep_png(np.zeros((8, 8, 3), np.uint16))
    end = chunk(b"IEND", b"")
    jpeg = by_pillow(np.zeros((16, 16, 3), np.uint8), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return {
        "shared-strips.tif": grey_tiff((6400, 64), [(8, len(strip))] * 100, strip),
        "shared-tiles.tif": grey_tiff((640, 640), [(8, len(strip))] * 100, strip, tile=64),
        "overlapping.tif": grey_tiff((128, 64), [(8, len(strip)), (9, len(strip))], strip + b"\0"),
        "shared-raw.tif": grey_tiff((128, 64), [(8, 64 * 64)] * 2, bytes(64 * 64), compression=1),
        "bomb.tif": grey_tiff((64, 64), [(8, len(bomb))], bomb),
        "bomb-tile.tif": grey_tiff((64, 64), [(8, len(bomb))], bomb, tile=64),
        "lzma-bomb.tif": grey_tiff((64, 64), [(8, len(packed := lzma.compress(bytes(2**24))))], packed, 34925),
        "padded.tif": grey_tiff((64, 64), [(8, 2**20)], strip.ljust(2**20, b"\0")),
        "cut.tif": grey_tiff((64, 64), [(8, len(strip) - 6)], strip[:-6]),
        "outside.tif": grey_tiff((64, 64), [(8, len(strip) + 10**4)], strip),
        "bomb.png": png.replace(end, chunk(b"IDAT", bytes(2**18)) + end),
        "many.png": png.replace(end, chunk(b"IDAT", b"") * 300_000 + end),
        "beside.png": png.replace(end, chunk(b"abCd", bytes(2**26 + 1)) + end),
        "scans.jpg": jpeg[:-2] + scan * 100 + b"\xff\xd9",
        "long.bmp": by_pillow(np.zeros((8, 8, 3), np.uint8), "BMP") + bytes(2**27),
    }


def harmless():
    """Files of rare kinds that are nothing but images, by name, with their values ``(C, H, W)`` or (H, W)."""
    y, x = np.mgrid[:24, :20]
    signed, deep = (x - y).astype(np.int8), np.stack([k * 999 + 7 * x + y for k in range(1, 5)], -1).astype(np.uint16)
    deep[..., 3] = 65535
    return {
        "signed.tif": (by_tifffile(signed), signed),
        "signed-zipped.tif": (by_tifffile(signed, rowsperstrip=8, compression="zlib"), signed),
        "rgba16.png": (deep_png(deep), deep[..., :3].transpose(2, 0, 1)),
    }

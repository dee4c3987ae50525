"""Files that hold far more data than their pixels can need, which would cost time and memory for nothing."""

from __future__ import annotations

import importlib
import lzma
import math
import struct
import zlib
from typing import IO, Any

from masklab.images.opened import MOST_BYTES

_METADATA = 2**26  # bytes beside the pixels: colour profiles, thumbnails, a phone's short film
_SLACK = 2**16  # bytes that a compressed image may take beyond twice its pixels
_MOST_CHUNKS = 2**18  # of a PNG
_MOST_SCANS = 64  # of a JPEG: encoders write a dozen at most, and each one passes over all pixels
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
_DEFLATE, _LZMA, _ZSTD = (8, 32946), (34925,), (34926, 50000)  # compressions of TIFF


def most_compressed(pixels: int) -> int:
    """The most bytes that compressed pixels, ``pixels`` bytes by themselves, are allowed: twice as many, and some."""
    return 2 * pixels + _SLACK


def check_file_size(size: int, pixels: int, animated: bool) -> None:
    """`ValueError` for a file of ``size`` bytes whose image, ``pixels`` bytes in memory, cannot need them."""
    if size > (MOST_BYTES if animated else 4 * pixels + _METADATA):
        raise ValueError(f"it has {size} bytes but its pixels need at most {4 * pixels}")


def check_png(file: IO[bytes]) -> None:
    """`ValueError` for a PNG with more compressed data than its pixels can need, or with too much beside them."""
    file.seek(8)
    pixels = compressed = others = 0
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        length, start = int.from_bytes(head[:4], "big"), file.tell()
        if head[4:] == b"IHDR":
            width, height, bits, colour = struct.unpack(">IIBB", file.read(10))
            pixels = height * (2 + math.ceil(width * bits * _PNG_SAMPLES.get(colour, 4) / 8))
        elif head[4:] == b"IDAT":
            compressed += length
        elif head[4:] == b"fdAT":  # a further frame of an animation
            compressed = max(compressed, length)
        else:
            others += length
        if compressed > most_compressed(pixels):
            raise ValueError(f"it has over {compressed} bytes of data but its pixels need {pixels}")
        if others > _METADATA:
            raise ValueError(f"it has over {others} bytes beside its pixels")
        file.seek(start + length + 4)
    raise ValueError(f"it has more than {_MOST_CHUNKS} chunks")


def check_jpeg(file: IO[bytes]) -> None:
    """`ValueError` for a JPEG of very many scans, which takes a pass over all pixels for each few bytes."""
    file.seek(0)
    scans, last = 0, b""
    while block := file.read(2**20):
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
        if scans > _MOST_SCANS:
            raise ValueError(f"it has more than {_MOST_SCANS} scans")


def decompress(data: bytes, compression: int, most: int) -> bytes | None:
    """Decompress a strip or tile of a TIFF as far as ``most`` bytes; None for compressions that are bounded anyway.

    Raises `ValueError` where there is more.
    """
    decoder: Any
    if compression in _DEFLATE:
        decoder = zlib.decompressobj()
    elif compression in _LZMA:
        decoder = lzma.LZMADecompressor()
    elif compression in _ZSTD:
        try:
            decoder = importlib.import_module("compression.zstd").ZstdDecompressor()
        except ImportError:  # before Python 3.14; imagecodecs is told the size
            return None
    else:
        return None
    values: bytes = decoder.decompress(data, most + 1)
    if len(values) > most:
        raise ValueError(f"a strip or tile holds over {most} bytes, more than twice its pixels")
    if not decoder.eof:
        raise ValueError("a strip or tile is cut off")
    return values

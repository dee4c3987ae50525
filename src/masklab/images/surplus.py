"""Files that hold far more data than their pixels can need, which would cost time and memory for nothing."""

from __future__ import annotations

import copy
import importlib
import lzma
import math
import os
import struct
import zlib
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from masklab.images.opened import MOST_BYTES
from masklab.utils.types import Size

_METADATA = 2**26  # bytes beside the pixels: colour profiles, thumbnails, a phone's short film
_SLACK = 2**16  # bytes that a compressed image may take beyond twice its pixels
_MOST_CHUNKS = 2**18  # of a PNG
_MOST_SCANS = 64  # of a JPEG: encoders write a dozen at most, and each one passes over all pixels
_MOST_RLE = 2**24  # pixels of a BMP of run lengths, which Pillow decodes in Python, up to 0.4 s for a million
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of JPEG that the size of the image follows
_END_OF_JPEG, _PADDING = b"\xff\xd9", 16  # bytes at the end of a tile, of which the first are to be the end
_CODE_STREAM = b"\xff\x4f\xff\x51"  # the beginning of one of JPEG 2000
_YCBCR_JPEG2000 = 33003
JPEG, JPEG_2000 = 7, (_YCBCR_JPEG2000, 33004, 33005, 34712)
"""Compressions of TIFF."""
_IMAGES = (22610, 34933, 34934, 50001, 50002)  # JPEG XR, PNG, WebP and JPEG XL
_DEFLATE, _LZMA, _ZSTD = (8, 32946), (34925,), (34926, 50000)  # compressions of TIFF


def most_compressed(pixels: int) -> int:
    """The most bytes that compressed pixels, ``pixels`` bytes by themselves, are allowed: twice as many, and some."""
    return 2 * pixels + _SLACK


def check_head(file: IO[bytes]) -> None:
    """`check_png` for a PNG; `ValueError` for any other file but a TIFF that is larger than an image can be."""
    beginning = file.read(8)
    if beginning == b"\x89PNG\r\n\x1a\n":
        check_png(file)
    elif beginning[:2] not in (b"II", b"MM") and (size := file.seek(0, os.SEEK_END)) > 2 * MOST_BYTES:
        raise ValueError(f"it has {size} bytes, more than any image that is read")


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


def check_bmp_runs(size: int, pixels: int) -> None:
    """`ValueError` for a BMP of run lengths, ``size`` bytes, that takes too long: of many pixels, or more runs than those."""
    if pixels > _MOST_RLE:
        raise ValueError(f"it has run lengths of {pixels} pixels, more than {_MOST_RLE}; save it as PNG")
    if size > most_compressed(pixels):
        raise ValueError(f"it has {size} bytes but run lengths of its pixels need {2 * pixels}")


def _decompress(data: bytes, compression: int, most: int) -> bytes | None:
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


def segment_bytes(key: Any) -> int:
    """The bytes of the pixels of a whole strip or tile."""
    _, _, (depth, height, width, samples) = key.decode(None, 0)
    return int(depth * height * math.ceil(width * samples * key.bitspersample / 8))


def decode_segment(page: Any, data: bytes, index: int) -> NDArray[Any]:
    """A strip or tile ``(H, W, samples)`` of a page; `ValueError` for one that holds far more than its pixels."""
    key = page.keyframe
    plain = check_segment(key, data)
    decoder = key if plain is None else _as_uncompressed(key)
    tables: dict[str, Any] = {}
    if key.compression == JPEG:
        tables = {"jpegtables": page.jpegtables, "jpegheader": key.jpegheader}
    if key.compression in _IMAGES:  # whose headers are trusted unless there is an array to fill
        shape = key.decode(None, index)[2][1:]
        target = np.empty(shape if shape[2] > 1 else shape[:2], key.dtype)
        return np.asarray(tifffile.TIFF.DECOMPRESSORS[key.compression](data, out=target)).reshape(shape)
    values: NDArray[Any] = decoder.decode(data if plain is None else plain, index, **tables)[0][0]
    if key.compression == _YCBCR_JPEG2000 and values.shape[2] == 3 and _is_ycbcr(data):
        values = _rgb(values)
    return values


def check_segment(key: Any, data: bytes) -> bytes | None:
    """Look whether a strip or tile holds no more than its pixels can need; its bytes if that decompresses them.

    Raises `ValueError` for one that holds far more.
    """
    if key.compression == JPEG or key.compression in JPEG_2000:
        found = _jpeg_size(data, key.jpegheader) if key.compression == JPEG else _jpeg2000_size(data)
        _, _, (_, height, width, _) = key.decode(None, 0)
        if found is not None and (found[0] > height or found[1] > width):
            raise ValueError(f"a strip or tile is {found[1]} x {found[0]} pixels, not {width} x {height}")
        if key.compression == JPEG and key.jpegheader is None and _END_OF_JPEG not in data[-_PADDING:]:
            raise ValueError("a strip or tile is cut off")  # its decoder would make up the rest
        if data.count(b"\xff\xda") > _MOST_SCANS:
            raise ValueError(f"a strip or tile has more than {_MOST_SCANS} scans")
    return None if key.fillorder == 2 else _decompress(data, key.compression, most_compressed(segment_bytes(key)))


def _jpeg_size(data: bytes, header: bytes | None) -> Size | None:
    """(height, width) that a JPEG's frame has by its header; None where the header is elsewhere in the file."""
    at = 2
    while header is None and at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            break
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if header is None:
        raise ValueError("a strip or tile is no JPEG")
    return None


def _jpeg2000_size(data: bytes) -> Size:
    """(height, width) of a JPEG 2000 code stream by its header."""
    if data[:4] != _CODE_STREAM or len(data) < 16:
        raise ValueError("a strip or tile is no JPEG 2000 code stream")
    width, height = struct.unpack_from(">II", data, 8)
    return height, width


def _is_ycbcr(data: bytes) -> bool:
    """Whether a JPEG 2000 code stream of Aperio comes out of the decoder as luminance and colour differences.

    It does unless the transform of components is part of the stream, or some have fewer pixels than the first.
    """
    (components,) = struct.unpack_from(">H", data, 40)
    if any(data[42 + 3 * k + 1] != 1 for k in range(components)):
        return False
    at = 2
    while at + 9 <= len(data) and data[at : at + 2] != b"\xff\x90":  # the first part of the pixels
        if data[at : at + 2] == b"\xff\x52":  # coding style
            return data[at + 8] == 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return True


def _rgb(values: NDArray[Any]) -> NDArray[Any]:
    """RGB ``(H, W, 3)`` of luminance and colour differences of 8 bits, by JPEG's rule."""
    luma, blue, red = np.moveaxis(values.astype(np.float32), 2, 0) - np.array([0, 128, 128], np.float32)[:, None, None]
    rgb = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=2)
    return np.rint(rgb).clip(0, 255).astype(np.uint8)


def _as_uncompressed(key: Any) -> Any:
    """A page like another one whose segments are decompressed already."""
    twin = copy.copy(key)
    for kept in ("decode", "hash"):
        twin.__dict__.pop(kept, None)
    twin.compression = 1
    return twin


def refuse_shared_bytes(pages: Sequence[Any]) -> None:
    """Refuse strips or tiles that lie outside the file, share bytes with others, or are larger than pixels can be.

    A few kilobytes could otherwise stand for an image of any size.
    """
    for parent in {id(page.parent): page.parent for page in pages}.values():
        own = [page for page in pages if page.parent is parent]
        offsets = np.concatenate([np.asarray(page.dataoffsets, np.int64) for page in own])
        lengths = np.concatenate([np.asarray(page.databytecounts, np.int64) for page in own])
        order = np.argsort(offsets[lengths > 0], kind="stable")
        starts, ends = offsets[lengths > 0][order], (offsets + lengths)[lengths > 0][order]
        if (starts[1:] < ends[:-1]).any():
            raise ValueError("its strips or tiles share bytes")
        if len(ends) and not 0 <= ends.max() <= parent.filehandle.size:
            raise ValueError("a strip or tile lies outside the file")


def refuse_surplus(pages: Sequence[Any]) -> None:
    """Refuse strips or tiles that hold more than `decode_segment` allows, where tifffile decodes them all by itself."""
    key = pages[0].keyframe
    most = most_compressed(segment_bytes(key))
    for page in pages:
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            if length:
                page.parent.filehandle.seek(offset)
                check_segment(key, page.parent.filehandle.read(min(length, most)))

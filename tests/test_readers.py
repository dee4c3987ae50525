"""Images of every kind read in windows: what was written comes back, in memory that does not grow with the image."""

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import tifffile
from missing_codecs import read_without_codecs
from PIL import Image

from masklab.datasets.check.images import check_image
from masklab.datasets.image_table import ImageRecord
from masklab.datasets.problems import TrainingSink
from masklab.images import opened, tiff_tiles
from masklab.images.embedded import copy_image
from masklab.images.listing import left_out, list_images
from masklab.images.read import channels_and_dtype, image_size, read_image, read_sample, read_window
from masklab.images.reader import ArrayReader, open_reader
from masklab.images.tiles import TileCache
from masklab.utils.errors import InputError

zarr = pytest.importorskip("zarr")
pytest.importorskip("imagecodecs")

HEIGHT, WIDTH = 150, 210
BOXES = [
    (0, 0, WIDTH, HEIGHT),
    (0, 0, 1, 1),
    (WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT),
    (30, 60, 100, 130),
    (63, 0, 65, HEIGHT),
]


def drawn(channels=3, dtype=np.uint8, size=(HEIGHT, WIDTH)):
    """A smooth image ``(C, H, W)``, which lossy compression hardly changes, with a blob in one corner."""
    y, x = np.mgrid[: size[0], : size[1]]
    planes = [np.sin(y / 30 + k) + np.cos(x / 40 - k) + 2 * (np.hypot(y - 20, x - 30) < 12) for k in range(channels)]
    values = (np.stack(planes) + 2) / 6
    return values.astype(dtype) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


def halves(values, count=3):
    """The levels of a pyramid, each of every second pixel of the one before."""
    return [values[:, :: 2**k, :: 2**k] for k in range(count)]


def write_ome(path, values, compression="zlib", metadata=(), byteorder="<", **options):
    """An OME-TIFF with its pyramid in SubIFDs."""
    rgb = len(values) == 3 and values.dtype == np.uint8
    levels = [level.transpose(1, 2, 0) if rgb else level for level in halves(values)]
    options = {"tile": (64, 64), "photometric": "rgb" if rgb else "minisblack", "compression": compression, **options}
    with tifffile.TiffWriter(path, ome=True, byteorder=byteorder) as writer:
        writer.write(levels[0], subifds=2, metadata={"axes": "YXS" if rgb else "CYX", **dict(metadata)}, **options)
        for level in levels[1:]:
            writer.write(level, subfiletype=1, **options)


def write_pages(path, values, compression="zlib", description=None, **options):
    """A TIFF whose pages are the levels of a pyramid, as vips and scanners write them; a thumbnail is second with Aperio."""
    levels = [level.transpose(1, 2, 0) for level in halves(values)]
    options = {"photometric": "rgb", "compression": compression, "metadata": None, **options}
    with tifffile.TiffWriter(path) as writer:
        writer.write(levels[0], tile=(64, 64), description=description, **options)
        if description:
            writer.write(values.transpose(1, 2, 0)[::3, ::3], rowsperstrip=16, **options)
        for level in levels[1:]:
            writer.write(level, tile=(64, 64), description=description, **options)


APERIO = "Aperio Image Library v11.2.1\n210x150 (64x64) JPEG/RGB Q=90|AppMag = 20|MPP = 0.4990|Left = 3"


def write_zarr(path, values, version=2, chunk=(1, 64, 64), unit="micrometer", axes="cyx", **options):
    """A folder of OME-Zarr with a pyramid: NGFF 0.4 in Zarr 2, or 0.5 in Zarr 3; ``chunk`` is (channels, height, width)."""
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    levels = halves(values)
    for k, level in enumerate(levels):
        shape, chunks = (
            tuple(dict(zip("cyx", sides, strict=True)).get(axis, 1) for axis in axes) for sides in (level.shape, chunk)
        )
        array = group.create_array(str(k), shape=shape, chunks=chunks, dtype=values.dtype, **options)
        array[...] = level.reshape(shape)
    kinds = {"c": "channel", "t": "time"}
    scale = [0.5 if axis in "yx" else 1.0 for axis in axes]
    multiscales = {
        "axes": [
            {"name": axis, "type": kinds.get(axis, "space"), **({"unit": unit} if axis in "yx" and unit else {})}
            for axis in axes
        ],
        "datasets": [
            {
                "path": str(k),
                "coordinateTransformations": [{"type": "scale", "scale": [s * 2**k if s == 0.5 else s for s in scale]}],
            }
            for k in range(len(levels))
        ],
    }
    if version == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **multiscales}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscales]}
    return path


def write_planes(path, values, **options):
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "CYX"}, **options)


def write_turned(path, values, **options):
    """Stored lying on its side, with the tag that says so."""
    lying = np.rot90(values, 1, axes=(1, 2)).transpose(1, 2, 0)
    tifffile.imwrite(path, lying, photometric="rgb", extratags=[(274, 3, 1, 6, True)], **options)


def by_pillow(path, values):
    Image.fromarray(values.transpose(1, 2, 0).squeeze()).save(path)


TILES = {"tile": (64, 64), "compression": "zlib"}
KINDS = {
    "rgb.png": (by_pillow, drawn()),
    "grey16.png": (by_pillow, drawn(1, np.uint16)),
    "rgb.jpg": (by_pillow, drawn()),
    "mapped.tif": (write_planes, drawn(5, np.uint16)),
    "strips.tif": (lambda p, v: write_planes(p, v, compression="zlib", rowsperstrip=37), drawn(2, np.float32)),
    "planes16.tif": (lambda p, v: write_planes(p, v, **TILES), drawn(5, np.uint16)),
    "float.tif": (lambda p, v: write_planes(p, v, **TILES, predictor=3), drawn(1, np.float32)),
    "big-endian.tif": (lambda p, v: write_planes(p, v, **TILES, byteorder=">"), drawn(2, np.uint16)),
    "separate.tif": (
        lambda p, v: tifffile.imwrite(p, v, photometric="rgb", planarconfig="separate", **TILES),
        drawn(3, np.uint16),
    ),
    "turned.tif": (lambda p, v: write_turned(p, v, **TILES), drawn()),
    "turned-mapped.tif": (write_turned, drawn()),
    "plain.ome.tif": (lambda p, v: write_ome(p, v, None), drawn()),
    "mapped-big-endian.ome.tif": (
        lambda p, v: write_ome(p, v, None, tile=None, rowsperstrip=HEIGHT, byteorder=">"),
        drawn(3, np.uint16),
    ),
    "lzw.ome.tif": (lambda p, v: write_ome(p, v, "lzw", predictor=2), drawn(3, np.uint16)),
    "zstd.ome.tif": (lambda p, v: write_ome(p, v, "zstd"), drawn(4, np.uint16)),
    "jpeg.ome.tif": (lambda p, v: write_ome(p, v, "jpeg"), drawn()),
    "jpeg2000.ome.tif": (lambda p, v: write_ome(p, v, "jpeg2000"), drawn()),
    "webp.ome.tif": (lambda p, v: write_ome(p, v, "webp"), drawn()),
    "jpegxl.ome.tif": (lambda p, v: write_ome(p, v, "jpegxl"), drawn(2, np.uint16)),
    "pages.btf": (write_pages, drawn()),
    "jpeg.svs": (lambda p, v: write_pages(p, v, "jpeg", APERIO), drawn()),
    "33003.svs": (lambda p, v: write_pages(p, v, 33003, APERIO), drawn()),
    "33005.svs": (lambda p, v: write_pages(p, v, 33005, APERIO), drawn()),
    "v2.zarr": (write_zarr, drawn()),
    "channels-together.zarr": (lambda p, v: write_zarr(p, v, chunk=(2, 64, 50)), drawn(3, np.uint16)),
    "five-axes.zarr": (
        lambda p, v: write_zarr(p, v, 3, axes="tczyx", chunk=(2, 64, 64)),
        drawn(4),
    ),
    "grey.zarr": (lambda p, v: write_zarr(p, v, axes="yx"), drawn(1, np.float32)),
    "v3.zarr": (lambda p, v: write_zarr(p, v, 3), drawn(2, np.float32)),
    "shards.zarr": (lambda p, v: write_zarr(p, v, 3, chunk=(1, 32, 32), shards=(1, 64, 64)), drawn(2, np.uint16)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image of every kind, by name, beside the array that was written."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, (write, values) in KINDS.items():
        write(folder / name, values)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_windows_of_every_kind_are_what_was_written(name, files):
    values, path = KINDS[name][1], files / name
    whole = read_image(path, None)
    if "jpeg." in name or name.endswith(".jpg"):
        assert np.abs(whole.astype(int) - values).mean() < 2
    else:
        assert np.array_equal(whole, values)
    with open_reader(path, None) as reader:
        assert reader.path == path
        assert (reader.channels, *reader.size) == whole.shape
        assert reader.dtype == whole.dtype == values.dtype
        for x1, y1, x2, y2 in BOXES:
            part = reader.read((x1, y1, x2, y2))
            assert part.dtype == whole.dtype
            assert np.array_equal(part, whole[:, y1:y2, x1:x2])
            assert np.array_equal(read_window(path, None, (x1, y1, x2, y2))[0], part)
        assert np.array_equal(reader.overview(), whole)
        if name.endswith((".ome.tif", ".svs", ".btf", ".zarr")):
            levels = halves(whole)
            small = reader.overview(levels[2][0].size)
            assert small.shape == levels[2].shape
            assert np.abs(small.astype(float) - levels[2]).mean() <= ("jpeg." in name) * 3
    assert image_size(path) == whole.shape[1:]
    assert channels_and_dtype(path) == (len(whole), values.dtype)
    assert np.array_equal(read_sample(path, None), whole)


@pytest.mark.parametrize("name", ["grey16.png", "float.tif", "grey.zarr"])
def test_grey_comes_as_three_channels(name, files):
    with open_reader(files / name, 3) as reader:
        assert reader.channels == 3
        assert np.array_equal(reader.read((10, 20, 40, 60)), np.repeat(KINDS[name][1][:, 20:60, 10:40], 3, axis=0))
        assert reader.overview(100).shape[0] == 3


@pytest.mark.parametrize("name", ["mapped.tif", "v3.zarr"])
def test_a_wrong_number_of_channels_is_refused_when_the_image_is_opened(name, files):
    with pytest.raises(InputError, match=rf"{name} has \d channels but 4"), open_reader(files / name, 4):
        pass


@pytest.mark.parametrize("name", ["plain.ome.tif", "33005.svs", "v3.zarr", "separate.tif", "turned.tif", "mapped.tif"])
def test_an_overview_is_evenly_spread(name, files):
    values = KINDS[name][1]
    with open_reader(files / name, None) as reader:
        view = reader.overview(600)
    step = round(WIDTH / view.shape[2])
    assert 300 <= view.shape[1] * view.shape[2] <= 600
    assert np.array_equal(view, values[:, ::step, ::step])


def test_an_overview_of_a_pyramid_decodes_a_small_level_only(files, monkeypatch):
    decoded, decode = [], tiff_tiles.decode_segment
    monkeypatch.setattr(
        tiff_tiles, "decode_segment", lambda page, data, index: decoded.append(page.shape) or decode(page, data, index)
    )
    with open_reader(files / "zstd.ome.tif", None) as reader:
        reader.overview(2100)
    assert set(decoded) == {(-(-HEIGHT // 4), -(-WIDTH // 4))}


def test_an_array_is_read_as_a_file_is():
    values = drawn(4, np.uint16)
    reader = ArrayReader(values, (0.5, 0.25), 20)
    assert (reader.path, reader.size, reader.channels, reader.dtype) == (None, (HEIGHT, WIDTH), 4, np.uint16)
    assert (reader.pixel_size, reader.magnification) == ((0.5, 0.25), 20)
    assert np.array_equal(reader.read((5, 6, 50, 70)), values[:, 6:70, 5:50])
    assert np.array_equal(reader.overview(600), values[:, ::8, ::8])
    assert ArrayReader(values.astype(np.float64)).read((0, 0, 3, 3)).dtype == np.float32
    with pytest.raises(InputError, match="shape"):
        ArrayReader(values[0])


@pytest.mark.parametrize(
    "box", [(-1, 0, 5, 5), (0, 0, WIDTH + 1, 5), (5, 5, 5, 9), (0, 0, 5, HEIGHT + 1), (9, 5, 5, 9)]
)
def test_a_box_that_is_not_inside_is_an_error_of_the_caller(box, files):
    with open_reader(files / "plain.ome.tif", 3) as reader, pytest.raises(ValueError, match="not inside"):
        reader.read(box)


def test_errors_of_what_is_done_with_windows_stay_as_they_are(files):
    with pytest.raises(KeyError), open_reader(files / "plain.ome.tif", 3):
        raise KeyError("of the caller")


def test_several_threads_read_at_once(files):
    values, found = KINDS["zstd.ome.tif"][1], []

    def read(seed):
        for x, y in np.random.default_rng(seed).integers(0, 100, (50, 2)).tolist():
            found.append(np.array_equal(reader.read((x, y, x + 50, y + 50)), values[:, y : y + 50, x : x + 50]))

    with open_reader(files / "zstd.ome.tif", None) as reader:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * 200


# ---- levels and the size of pixels


@pytest.mark.parametrize(
    ("wanted", "level"),
    [
        ({}, 0),
        ({"pixel_size": 0.25}, 0),
        ({"pixel_size": 0.1667}, 0),
        ({"pixel_size": 0.4}, 1),
        ({"pixel_size": 9}, 2),
        ({"pixel_size": 0.34}, 0),
        ({"pixel_size": 0.6}, 1),
        ({"magnification": 40}, 0),
        ({"magnification": 10}, 2),
    ],
)
def test_the_level_is_nearest_to_what_is_wanted(wanted, level, tmp_path):
    values = drawn()
    metadata = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.00025, "PhysicalSizeYUnit": "mm"}
    write_ome(tmp_path / "a.ome.tif", values, metadata=metadata)
    write_pages(tmp_path / "a.svs", values, description=APERIO.replace("0.4990", "0.25").replace("20", "40"))
    for name in ("a.svs", "a.ome.tif")[: 1 if "magnification" in wanted else 2]:
        with open_reader(tmp_path / name, 3, **wanted) as reader:
            assert np.array_equal(reader.read((0, 0, *reader.size[::-1])), halves(values)[level])
            assert reader.pixel_size == pytest.approx((0.25 * 2**level, 0.25 * 2**level), rel=0.02)
            if name == "a.svs":
                assert reader.magnification == pytest.approx(40 / 2**level, rel=0.02)


@pytest.mark.parametrize("name", ["33005.svs", "v2.zarr"])
def test_what_no_level_has_is_refused(name, files):
    with (
        pytest.raises(InputError, match=rf"{name} is .* times as coarse"),
        open_reader(files / name, 3, pixel_size=0.1),
    ):
        pass
    with pytest.raises(InputError, match="choose one"), open_reader(files / name, 3, pixel_size=1, magnification=1):
        pass
    with pytest.raises(InputError, match="positive"), open_reader(files / name, 3, pixel_size=float("nan")):
        pass
    with pytest.raises(InputError, match=r"rgb\.png does not say"), open_reader(files / "rgb.png", 3, pixel_size=1):
        pass


def described(path, values=None, **options):
    tifffile.imwrite(path, drawn(1)[0] if values is None else values, **options)
    with open_reader(path, None) as reader:
        return reader.pixel_size, reader.magnification


def test_the_size_of_pixels_is_read_from_what_microscopes_write(tmp_path, files):
    path = tmp_path / "a.tif"
    assert described(path, imagej=True, resolution=(4, 2), metadata={"unit": "um"}) == ((0.5, 0.25), None)
    assert described(path, imagej=True, resolution=(4e-3, 2e-3), metadata={"unit": "nm"}) == ((0.5, 0.25), None)
    assert described(path, imagej=True, resolution=(4, 2), metadata={"unit": "pixel"}) == (None, None)
    assert described(path, resolution=(40000, 20000), resolutionunit="CENTIMETER") == ((0.5, 0.25), None)
    for dots in (72, 96, 300, 1200):
        assert described(path, resolution=(dots, dots), resolutionunit="INCH") == (None, None)
    assert described(path, resolution=(1, 1), resolutionunit="NONE") == (None, None)
    turned = described(
        path, resolution=(40000, 20000), resolutionunit="CENTIMETER", extratags=[(274, 3, 1, 6, True)], **TILES
    )
    assert turned == ((0.25, 0.5), None)
    with open_reader(files / "jpeg.svs", 3) as reader:
        assert (reader.pixel_size, reader.magnification) == ((0.499, 0.499), 20)
    for name in ("v2.zarr", "v3.zarr", "grey.zarr"):
        with open_reader(files / name, None) as reader:
            assert (reader.pixel_size, reader.magnification) == ((0.5, 0.5), None)
    with open_reader(write_zarr(tmp_path / "unit.zarr", drawn(), unit=None), None) as reader:
        assert reader.pixel_size is None


@pytest.mark.parametrize("text", ["MPP = x", "MPP = -1", "MPP = nan", "MPP = 0", "MPP ="])
def test_metadata_that_makes_no_sense_is_none(text, tmp_path):
    write_pages(tmp_path / "a.svs", drawn(), description=APERIO.replace("MPP = 0.4990", text))
    with open_reader(tmp_path / "a.svs", 3) as reader:
        assert reader.pixel_size is None


def write_scn(path, values):
    """As Leica's scanners write: an overview first, then the image with its pyramid."""
    levels = [values[:, ::5, ::5], *halves(values, 2)]
    parts = "".join(
        "<image><pixels>"
        + "".join(f'<dimension r="{r}" ifd="{ifd}"/>' for r, ifd in enumerate(ifds))
        + "</pixels></image>"
        for ifds in ([0], [1, 2])
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for k, level in enumerate(levels):
            writer.write(
                level.transpose(1, 2, 0), tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None,
                description=f'<scn xmlns="x"><collection>{parts}</collection></scn>' if k == 0 else None,
                resolution=(40000 / k, 40000 / k) if k else (100, 100), resolutionunit="CENTIMETER",
            )  # fmt: skip


def test_of_a_leica_file_the_largest_image_is_read(tmp_path):
    values = drawn()
    write_scn(tmp_path / "a.scn", values)
    assert image_size(tmp_path / "a.scn") == (HEIGHT, WIDTH)
    assert np.abs(read_image(tmp_path / "a.scn", 3).astype(int) - values).mean() < 2
    with open_reader(tmp_path / "a.scn", 3, pixel_size=0.5) as reader:
        assert reader.size == (HEIGHT // 2, WIDTH // 2)
        assert reader.pixel_size == pytest.approx((0.5, 0.5))


def test_channels_in_files_of_their_own_make_one_image(tmp_path):
    values, identifiers = (
        drawn(2, np.uint16),
        ["urn:uuid:" + f"{k}" * 8 + "-0000-0000-0000-000000000000" for k in (1, 2)],
    )
    planes = "".join(
        f'<TiffData FirstC="{k}" IFD="0" PlaneCount="1"><UUID FileName="{k}.ome.tif">{uuid}</UUID></TiffData>'
        for k, uuid in enumerate(identifiers)
    )
    for k, uuid in enumerate(identifiers):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}"><Image ID='
            f'"Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC='
            f'"2" SizeZ="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" '
            f'SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / f"{k}.ome.tif", values[k], description=text, metadata=None, **TILES)
    with open_reader(tmp_path / "0.ome.tif", None) as reader:
        assert np.array_equal(reader.read(BOXES[3]), values[:, 60:130, 30:100])


# ---- memory and time

HUGE = r"""
import re, sys
import numpy as np
from masklab.images.reader import open_reader

def peak():
    # ru_maxrss would hold that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())[1])

with open_reader(sys.argv[2], 3) as reader:
    reader.read((0, 0, 64, 64))
before = peak()
with open_reader(sys.argv[1], 3) as reader:
    height, width = reader.size
    assert (height, width) == (100_000, 100_000)
    for x, y in [(0, 0), (50_000, 50_000), (width - 1000, height - 1000)]:
        part = reader.read((x, y, x + 1000, y + 1000))
        assert part.any() == (x < 60_000), x
    assert reader.overview(10_000).size <= 30_000
    assert len(reader._opened.reduced) == int(sys.argv[3]) - 1
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read as Linux tells it")
@pytest.mark.parametrize("levels", [1, 4])
def test_a_window_of_an_image_of_ten_billion_pixels_takes_little_memory(levels, tmp_path, files):
    path, side = tmp_path / "huge.tif", 100_000
    tile = np.full((512, 512, 3), 200, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(levels):
            length = side >> 2 * level
            count = -(-length // 512)
            filled = {(0, 0), (count // 2, count // 2)}
            tiles = (tile if (row, column) in filled else None for row in range(count) for column in range(count))
            writer.write(
                tiles, shape=(length, length, 3), dtype=np.uint8, tile=(512, 512), photometric="rgb",
                compression="jpeg", subifds=levels - 1 if level == 0 else 0, subfiletype=int(level > 0), metadata=None,
            )  # fmt: skip
    command = [sys.executable, "-c", HUGE, str(path), str(files / "jpeg.ome.tif"), str(levels)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 60e6  # the image has 30e9 bytes


def test_the_limits_bound_a_window_and_not_the_image(files, monkeypatch):
    monkeypatch.setattr(opened, "MOST_BYTES", 64 * 64 * 5 * 2)
    for name in ("mapped.tif", "planes16.tif", "shards.zarr"):
        with open_reader(files / name, None) as reader:
            assert reader.read((60, 60, 124, 124)).shape[1:] == (64, 64)
            with pytest.raises(InputError, match=rf"{name} has too many pixels to be read at once"):
                reader.read((0, 0, WIDTH, HEIGHT))


def test_overlapping_windows_decode_a_tile_once(files, monkeypatch):
    decoded, decode = [], tiff_tiles.decode_segment
    monkeypatch.setattr(
        tiff_tiles, "decode_segment", lambda page, data, index: decoded.append(index) or decode(page, data, index)
    )
    with open_reader(files / "jpeg.ome.tif", 3) as reader:
        reader.read((0, 0, 100, 100))
        assert sorted(decoded) == [0, 1, 4, 5]
        reader.read((50, 50, 150, 100))
        assert sorted(decoded) == [0, 1, 2, 4, 5, 6]
        reader.read((0, 0, 150, 100))
        assert len(decoded) == 6


def test_the_tiles_that_are_kept_are_bounded_and_the_last_ones():
    cache, made = TileCache(1000), []

    def tile(key, size=400):
        return cache.get(key, lambda: made.append(key) or np.zeros(size, np.uint8))

    for key in ("a", "b", "a", "c", "a", "b"):  # c takes the place of b, which was used before a
        tile(key)
    assert made == ["a", "b", "c", "b"]
    tile("large", 1001)
    tile("large", 1001)
    assert made[4:] == ["large", "large"]
    assert tile("b") is not None
    assert len(made) == 6


# ---- damage, gaps and colour


def place_of_tile(path, number):
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        return page.dataoffsets[number], page.databytecounts[number]


@pytest.mark.parametrize(
    "name", ["jpeg.ome.tif", "zstd.ome.tif", "lzw.ome.tif", "jpeg2000.ome.tif", "33003.svs", "webp.ome.tif"]
)
def test_a_damaged_tile_is_named_and_the_others_are_read(name, files, tmp_path):
    offset, length = place_of_tile(files / name, 5)
    content = bytearray((files / name).read_bytes())
    content[offset : offset + length] = bytes(length)
    (tmp_path / name).write_bytes(content)
    with open_reader(tmp_path / name, None) as reader:
        assert reader.read((0, 0, 64, 64)).any()
        with pytest.raises(InputError, match=rf"{name} is damaged or cut off"):
            reader.read((64, 64, 100, 100))


@pytest.mark.parametrize(
    "name",
    [name for name in KINDS if name.endswith((".ome.tif", ".svs")) and "plain" not in name and "mapped" not in name],
)
def test_a_tile_that_is_cut_off_is_damage(name, files, tmp_path):
    (tmp_path / name).write_bytes((files / name).read_bytes())
    with tifffile.TiffFile(tmp_path / name, mode="r+b") as tiff:
        lengths = list(tiff.pages.first.databytecounts)
        lengths[5] -= lengths[5] // 3
        tiff.pages.first.tags[325].overwrite(lengths)
    with (
        open_reader(tmp_path / name, None) as reader,
        pytest.raises(InputError, match=rf"{name} is damaged or cut off"),
    ):
        reader.read((64, 64, 100, 100))


@pytest.mark.parametrize("name", ["v2.zarr", "v3.zarr", "shards.zarr"])
def test_a_damaged_chunk_is_named(name, tmp_path):
    write, values = KINDS[name]
    write(tmp_path / name, values)
    chunks = [path for path in (tmp_path / name / "0").rglob("*") if path.is_file() and path.name[0] not in ".z"]
    for path in chunks:
        path.write_bytes(path.read_bytes()[:20])
    with (
        open_reader(tmp_path / name, None) as reader,
        pytest.raises(InputError, match=rf"{name} is damaged or cut off"),
    ):
        reader.read((0, 0, 64, 64))


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "webp", "png", "jpegxl"])
def test_a_tile_that_claims_more_pixels_than_it_has_is_damage(codec, tmp_path):
    sides = [(64, 64), (2048, 2048)]
    for name, side in zip(("small.tif", "large.tif"), sides, strict=True):
        tifffile.imwrite(
            tmp_path / name, np.zeros((*side, 3), np.uint8), tile=side, photometric="rgb", compression=codec
        )
    offset, length = place_of_tile(tmp_path / "large.tif", 0)
    bomb = (tmp_path / "large.tif").read_bytes()[offset : offset + length]
    with tifffile.TiffFile(tmp_path / "small.tif") as tiff:
        tags = [tiff.pages.first.tags[code].valueoffset for code in (324, 325)]
    content = bytearray((tmp_path / "small.tif").read_bytes())
    content[tags[0] : tags[0] + 4] = len(content).to_bytes(4, "little")
    content[tags[1] : tags[1] + 4] = length.to_bytes(4, "little")
    (tmp_path / "bomb.tif").write_bytes(bytes(content) + bomb)
    with (
        open_reader(tmp_path / "bomb.tif", 3) as reader,
        pytest.raises(InputError, match=r"bomb\.tif is damaged .*(not 64 x 64|invalid out)"),
    ):
        reader.read((0, 0, 64, 64))


def test_tiles_without_bytes_are_background(tmp_path):
    tile = np.full((64, 64, 3), 90, np.uint8)
    for codec in ("jpeg", "zlib", None):
        path = tmp_path / "sparse.tif"
        tifffile.imwrite(
            path, iter([tile, None, None, tile]), shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64),
            photometric="rgb", compression=codec or "lzw",
        )  # fmt: skip
        want = np.kron([[1, 0], [0, 1]], np.ones((64, 64))) * 90
        with open_reader(path, 3) as reader:
            assert np.abs(reader.read((0, 0, 128, 128)) - want).max() <= 1


def abbreviated(tile, subsampling):
    """A tile ``(H, W, 3)`` as JPEG without its tables, and the tables."""
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "JPEG", quality=95, subsampling=subsampling)
    content, at, tables, rest = file.getvalue(), 2, b"", b""
    while content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at + 1] in (0xDB, 0xC4):
            tables += content[at:end]
        else:
            rest += content[at:end]
        at = end
    return b"\xff\xd8" + rest + content[at:], b"\xff\xd8" + tables + b"\xff\xd9"


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("tables", [False, True])
def test_luminance_and_colour_differences_come_out_as_rgb(subsampling, tables, tmp_path):
    values, path = drawn(3, size=(128, 192)), tmp_path / "a.tif"
    pixels, factors = values.transpose(1, 2, 0), [(1, 1), (2, 1), (2, 2)][subsampling]
    options = {"tile": (64, 64), "compression": "jpeg", "subsampling": factors}
    if tables:
        corners = [(y, x) for y in (0, 64) for x in (0, 64, 128)]
        parts = [abbreviated(pixels[y : y + 64, x : x + 64], subsampling) for y, x in corners]
        options.update(shape=pixels.shape, dtype=np.uint8, jpegtables=parts[0][1], photometric="ycbcr")
        tifffile.imwrite(path, (part for part, _ in parts), **options)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", **options)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.photometric == tifffile.PHOTOMETRIC.YCBCR
        assert (tiff.pages.first.jpegtables is not None) == tables
    with open_reader(path, 3) as reader:
        found = reader.read((0, 0, 192, 128)).astype(int)
    assert np.abs(found - values).mean() < 2
    with Image.open(path) as image:
        assert np.abs(found - np.asarray(image.convert("RGB")).transpose(2, 0, 1)).max() <= 2


# ---- folders of OME-Zarr


def test_a_zarr_is_one_image_of_a_folder(tmp_path):
    write_zarr(tmp_path / "b.zarr", drawn())
    by_pillow(tmp_path / "a.png", drawn())
    (tmp_path / "c.ZARR").write_bytes(b"a file of this name is none")
    assert list_images(tmp_path) == [tmp_path / "a.png", tmp_path / "b.zarr"]
    assert list_images(tmp_path / "b.zarr") == [tmp_path / "b.zarr"]
    assert left_out([tmp_path / "b.zarr"]) is None
    assert "c.ZARR" in left_out([tmp_path])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "is a stack"),
        (lambda p: p.mkdir(), "is no Zarr"),
        (lambda p: zarr.open_group(str(p), mode="w"), "without multiscales"),
        (lambda p: zarr.open_group(str(p), mode="w").attrs.update({"ome": {"plate": {}}}), "a plate"),
        (lambda p: zarr.create_array(str(p), shape=(4, 4), dtype="u1"), "an array without"),
    ],
)
def test_folders_that_are_no_flat_image_are_refused(change, words, tmp_path):
    path = tmp_path / "a.zarr"
    if change is None:
        group = zarr.open_group(str(path), mode="w")
        group.create_array("0", shape=(4, 30, 40), dtype="u1")
        group.attrs["ome"] = {"multiscales": [{"axes": [{"name": n} for n in "zyx"], "datasets": [{"path": "0"}]}]}
    else:
        change(path)
    with pytest.raises(InputError, match=rf"a\.zarr.*{words}"):
        read_image(path, None)


def test_a_missing_package_names_the_extra(files):
    names = ("v3.zarr", "zstd.ome.tif", "33003.svs", "jpegxl.ome.tif")
    found = read_without_codecs(*(files / name for name in (*names, "jpeg.svs")))
    assert found.pop(files / "jpeg.svs").startswith("(3, 150, 210) uint8")  # by Pillow
    for path, words in found.items():
        assert path.name in words
        assert "masklab[slides]" in words


def test_a_zarr_is_copied_and_told_from_others_as_a_whole(tmp_path):
    first, other = write_zarr(tmp_path / "a.zarr", drawn()), write_zarr(tmp_path / "b.zarr", drawn()[::-1])
    copy_image(first, tmp_path / "c.zarr")
    records = [ImageRecord(1, path, (HEIGHT, WIDTH)) for path in (first, other, tmp_path / "c.zarr")]
    digests = [check_image(record, TrainingSink())[0] for record in records]
    assert digests[0] == digests[2]
    assert digests[0].file != digests[1].file

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
import torch
from contracts import predictor
from missing_codecs import read_without_codecs, summary
from PIL import Image

import masklab.training.auto
from masklab.config.image import ImageConfig
from masklab.config.recipe import load_recipe
from masklab.config.schema import Config, validate
from masklab.datasets.split import Split
from masklab.images.intensity import displayed, intensity_range, normalise, rescale_intensity
from masklab.images.read import channels_and_dtype, read_image, read_intensity_range, read_window
from masklab.inference.folder import predict_folder
from masklab.model.build import build_model
from masklab.training.auto import resolve_image_fields
from masklab.training.data.loader import InstanceDataset, open_training_image
from masklab.training.train import train
from masklab.utils.errors import InputError
from masklab.weights.checkpoint import load_model

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (70, 90, 5), dtype=np.uint16)  # (H, W, C)


def as_type(dtype, channels):
    """Random numbers of a type, (H, W, channels), or (H, W) for 0."""
    values = DEEP[:, :, 0] if channels == 0 else DEEP[:, :, :channels]
    return (values.astype(np.int64) // (257 if np.dtype(dtype).itemsize == 1 else 1)).astype(dtype)


def write_deep_png(path, values, exif=b""):
    """A 16-bit PNG of any number of channels, byte by byte: Pillow writes only grey."""
    height, width, channels = values.shape

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    parts = [header, chunk(b"eXIf", exif) if exif else b"", chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def channels_first(values):
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def sentence(action, *args):
    with pytest.raises(InputError) as caught:
        action(*args)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# ---- reading: all modes and bit depths


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_every_mode_keeps_its_numbers(tmp_path, dtype, channels):
    values = as_type(dtype, channels)
    if dtype == np.uint16:
        write_deep_png(tmp_path / "a.png", values)
    else:
        mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        Image.fromarray(values[:, :, 0] if channels == 1 else values, mode).save(tmp_path / "a.png")
    colours = channels if channels % 2 else channels - 1
    assert channels_and_dtype(tmp_path / "a.png") == (colours, dtype)
    for wanted in (None, channels, 3, 1):
        found = read_image(tmp_path / "a.png", wanted)
        assert found.dtype == dtype
        assert found.flags.writeable
        if wanted == channels or (wanted is None and colours == channels):
            assert (found == channels_first(values)).all()
        elif wanted == 3:
            assert (found == channels_first(values[:, :, :colours])).all()
        elif wanted == 1 and colours == 3:
            assert np.abs(found[0] - values[:, :, :3] @ [0.299, 0.587, 0.114]).max() < 1
        else:
            assert (found == channels_first(values[:, :, :colours])).all()


def test_palette_bits_and_portable_greymaps(tmp_path):
    few = (as_type(np.uint8, 3) // 86) * 85  # 27 colours
    palette = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    palette.save(tmp_path / "p.png")
    assert (read_image(tmp_path / "p.png", 3) == channels_first(np.asarray(palette.convert("RGB")))).all()
    assert channels_and_dtype(tmp_path / "p.png") == (3, np.uint8)
    Image.fromarray(DEEP[:, :, 0] > 999).save(tmp_path / "1.png")
    assert (read_image(tmp_path / "1.png", None)[0] == 255 * (DEEP[:, :, 0] > 999)).all()
    (tmp_path / "a.pgm").write_bytes(b"P5 90 70 65535\n" + DEEP[:, :, 0].astype(">u2").tobytes())
    assert (read_image(tmp_path / "a.pgm", None) == DEEP[None, :, :, 0]).all()
    assert read_image(tmp_path / "a.pgm", 3).dtype == np.uint16


LAYOUTS = {
    "plain": ({}, 0),
    "big endian": ({"byteorder": ">"}, 0),
    "tiled": ({"tile": (32, 48)}, 0),
    "strips": ({"compression": "zlib", "rowsperstrip": 13}, 0),
    "rgb": ({"photometric": "rgb"}, 3),
    "rgb tiles": ({"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}, 3),
    "planes": ({"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib"}, 5),
    "plane tiles": ({"photometric": "minisblack", "planarconfig": "separate", "tile": (32, 32)}, 5),
    "samples": ({"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib"}, 5),
    "pages": ({"photometric": "minisblack"}, 5),
    "page tiles": ({"photometric": "minisblack", "tile": (32, 32), "compression": "zlib"}, 5),
    "ome": ({"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True}, 5),
    "ome tiles": ({"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True, "tile": (32, 32)}, 5),
    "imagej": ({"imagej": True, "metadata": {"axes": "CYX"}}, 5),
    "turned": ({"extratags": [(274, "H", 1, 6, True)]}, 0),
    "turned tiles": ({"extratags": [(274, "H", 1, 8, True)], "tile": (32, 32)}, 0),
}


def write_tiff(path, layout, dtype):
    """Write an image; returns what should be read, (C, H, W)."""
    options, channels = LAYOUTS[layout]
    values = as_type(dtype, channels)
    planes = channels > 3 and layout != "samples"
    tifffile.imwrite(path, np.ascontiguousarray(channels_first(values)) if planes else values, **options)
    turns = {"turned": -1, "turned tiles": 1}.get(layout, 0)
    return np.ascontiguousarray(channels_first(np.rot90(values, turns)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_of_every_layout_keeps_its_numbers_and_gives_any_window(tmp_path, layout, dtype):
    path = tmp_path / "a.tif"
    expected = write_tiff(path, layout, dtype)
    _, height, width = expected.shape
    assert channels_and_dtype(path)[0] == len(expected)
    found = read_image(path, len(expected))
    assert found.dtype == dtype
    assert found.dtype.isnative
    assert (found == expected).all()
    for box in [(0, 0, 1, 1), (7, 9, 70, 60), (31, 31, 33, 33), (50, 0, width, height), (3, 64, 9, height)]:
        part, size = read_window(path, None, box)
        assert size == (height, width)
        assert (part == expected[:, box[1] : box[3], box[0] : box[2]]).all()


@pytest.mark.parametrize("layout", ["plain", "tiled", "page tiles", "turned tiles", "samples"])
def test_percentiles_of_sampled_pixels_are_those_of_the_image(tmp_path, monkeypatch, layout):
    monkeypatch.setattr("masklab.images.intensity._MAX_SAMPLED", 700)
    path = tmp_path / "a.tif"
    expected = write_tiff(path, layout, np.uint16)
    thin = expected[:, ::3, ::3].reshape(len(expected), -1)  # 6300 / 9 = 700
    low, high = read_intensity_range(path, None, ImageConfig(percentiles=(10, 90)))
    np.testing.assert_allclose([low, high], np.percentile(thin, (10, 90), axis=1))
    assert (low, high) == intensity_range(torch.from_numpy(expected), ImageConfig(percentiles=(10, 90)))


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.float64, np.float16])
def test_other_numbers_become_float32(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", (DEEP[:, :, 0] // 2 % 2000).astype(dtype))
    found = read_image(tmp_path / "a.tif", None)
    assert found.dtype == np.float32
    assert (found[0] == DEEP[:, :, 0] // 2 % 2000).all()
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 4), np.complex64))
    assert "c.tif holds no numbers" in sentence(read_image, tmp_path / "c.tif", 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colour_is_read_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    write_deep_png(tmp_path / "deep.png", as_type(np.uint16, 3), exif.tobytes().removeprefix(b"Exif\0\0"))
    Image.fromarray(as_type(np.uint16, 3).astype(np.uint8)).save(tmp_path / "flat.png", exif=exif)
    deep = read_image(tmp_path / "deep.png", 3)
    assert (deep.astype(np.uint8) == read_image(tmp_path / "flat.png", 3)).all()


@pytest.mark.parametrize(("channels", "photometric"), [(4, "rgb"), (2, "minisblack")])
def test_alpha_of_a_tiff_is_dropped_unless_wanted(tmp_path, channels, photometric):
    values = as_type(np.uint16, channels)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric=photometric, extrasamples=["unassalpha"], planarconfig="contig")
    assert channels_and_dtype(path) == (channels - 1, np.uint16)
    assert (read_image(path, 3) == channels_first(values)[: channels - 1]).all()
    assert (read_image(path, channels) == channels_first(values)).all()


def test_a_fourth_channel_that_is_not_alpha_is_not_dropped(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", channels_first(as_type(np.uint8, 4)).copy(), photometric="minisblack")
    message = sentence(read_image, tmp_path / "a.tif", 3)
    assert "4 channels" in message
    assert "in_channels 4" in message


def test_stacks_are_refused(tmp_path):
    for axes, shape in (("ZYX", (4, 16, 16)), ("TYX", (4, 16, 16)), ("ZCYX", (3, 2, 16, 16)), ("CYXS", (2, 16, 16, 3))):
        path = tmp_path / f"{axes}.ome.tif"
        tifffile.imwrite(path, np.zeros(shape, np.uint8), metadata={"axes": axes}, ome=True)
        message = sentence(read_image, path, 3)
        assert str(path) in message
        assert axes in message
        assert "save its planes" in message
    flat = tmp_path / "flat.ome.tif"
    tifffile.imwrite(flat, np.zeros((1, 5, 16, 16), np.uint8), metadata={"axes": "ZCYX"}, ome=True)
    assert read_image(flat, None).shape == (5, 16, 16)


def test_compressions_that_pillow_decodes_where_tifffile_cannot(tmp_path):
    Image.fromarray(DEEP[:, :, 0]).save(tmp_path / "grey.tif", compression="tiff_lzw")
    assert (read_image(tmp_path / "grey.tif", None) == DEEP[None, :, :, 0]).all()
    Image.fromarray(as_type(np.uint8, 3)).save(tmp_path / "rgb.tif", compression="tiff_lzw")
    assert (read_image(tmp_path / "rgb.tif", 3) == channels_first(as_type(np.uint8, 3))).all()
    tifffile.imwrite(tmp_path / "deep.tif", as_type(np.uint16, 3), photometric="rgb", compression="zlib")
    raw = (tmp_path / "deep.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "deep.tif") as tiff:
        at = tiff.pages.first.tags[259].valueoffset
    (tmp_path / "deep.tif").write_bytes(raw[:at] + struct.pack("<H", 5) + raw[at + 2 :])  # says LZW
    found = read_without_codecs(*tmp_path.glob("*.tif"))
    assert found[tmp_path / "grey.tif"] == summary(DEEP[None, :, :, 0])
    assert found[tmp_path / "rgb.tif"] == summary(channels_first(as_type(np.uint8, 3)))
    assert "deep.tif" in found[tmp_path / "deep.tif"]
    assert 'install "masklab[slides]"' in found[tmp_path / "deep.tif"]


# ---- intensity range


def test_eight_bits_stay_as_they_are():
    image = torch.from_numpy(channels_first(as_type(np.uint8, 3)).copy())
    assert rescale_intensity(image, ImageConfig()) is image
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert torch.equal(normalise(image, ImageConfig()), (image.float() - mean * 255) / (std * 255))


def test_a_deep_image_is_its_eight_bit_twin():
    flat = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    config = ImageConfig(mean=[0.5], std=[0.25])
    deep = (flat.to(torch.int32) * 257).to(torch.uint16)
    for twin in (deep, flat.float() / 255):
        before = twin.clone()
        assert (rescale_intensity(twin, config) - flat).abs().max() < 1e-4
        assert (normalise(rescale_intensity(twin, config), config) - normalise(flat, config)).abs().max() < 1e-5
        assert torch.equal(twin, before)
    assert (displayed(deep.numpy(), config) == flat.numpy()).all()


def test_value_range_by_hand():
    image = torch.tensor([0, 100, 300, 500, 65535], dtype=torch.int32).to(torch.uint16).view(1, 1, 5)
    config = ImageConfig(value_range=(100, 500))
    assert rescale_intensity(image, config).flatten().tolist() == [0, 0, 127.5, 255, 255]
    assert rescale_intensity(
        torch.tensor([[[100, 255]]], dtype=torch.uint8), config
    ).flatten().tolist() == pytest.approx([0, 155 / 400 * 255])


def test_percentiles_by_hand():
    ramp = torch.arange(101, dtype=torch.float32).view(1, 1, 101)
    config = ImageConfig(percentiles=(10, 90))
    images = torch.cat((ramp, ramp * 7 - 3))  # each channel on its own
    found = rescale_intensity(images, config)
    assert found[0, 0, [0, 10, 50, 90, 100]].tolist() == pytest.approx([0, 0, 127.5, 255, 255])
    assert torch.allclose(found[0], found[1], atol=1e-3)
    holes = ramp.clone()
    holes[0, 0, 30] = torch.nan
    holes[0, 0, 31] = torch.inf
    assert rescale_intensity(holes, config)[0, 0, [30, 31]].tolist() == [0, 255]
    flat = torch.full((1, 4, 4), 700.0)
    assert rescale_intensity(flat, config).unique().tolist() == [0]
    flat[0, 0, 0] = 900
    assert rescale_intensity(flat, config).unique().tolist() == [0, 255]
    assert rescale_intensity(torch.full((1, 4, 4), torch.nan), config).unique().tolist() == [0]


def test_floats_beyond_one_are_refused_by_name():
    image = torch.tensor([[[0.0, 4095.0]]])
    message = sentence(rescale_intensity, image, ImageConfig(), None, "cells.tif")
    assert message.startswith("cells.tif holds numbers from 0 to 4095")
    assert "image.value_range" in message
    assert rescale_intensity(torch.tensor([[[0.0, 1.0005]]]), ImageConfig()).max() == 255


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"value_range": [5, 5]}, "value_range is [5.0, 5.0]"),
        ({"value_range": [0, float("inf")]}, "value_range"),
        ({"percentiles": [99, 1]}, "percentiles is [99.0, 1.0]"),
        ({"percentiles": [0, 101]}, "percentiles"),
        ({"percentiles": [0, 100], "value_range": [0, 1]}, "value_range and percentiles"),
    ],
)
def test_contradictions_are_refused(fields, words):
    assert words in sentence(validate, {"image": fields}, "test")


def test_displayed_shows_three_channels():
    values = channels_first(as_type(np.uint8, 5)).copy()
    config = ImageConfig()
    assert (displayed(values, config) == values[:3]).all()
    for count in (1, 2):
        assert (displayed(values[:count], config) == values[:1]).all()
    assert displayed(values.astype(np.uint16) * 257, config).shape == (3, 70, 90)


# ---- training and prediction see the same


def make_split(folder, images, write, name="train"):
    """A data set of images (C, H, W), each with one object in the middle."""
    (folder / name).mkdir(parents=True)
    entries, annotations = [], []
    for n, values in enumerate(images):
        file = write(folder / name, n, values)
        _, height, width = values.shape
        entries.append({"id": n, "file_name": file, "height": height, "width": width})
        x, y, w, h = width // 4, height // 4, width // 2, height // 2
        ring = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {"id": n + 1, "image_id": n, "category_id": 1, "bbox": [x, y, w, h], "area": w * h, "segmentation": [ring]}
        )
    values = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / f"{name}.json").write_text(json.dumps(values))
    return Split.find(folder, name)


def to_tiff(folder, n, values, **options):
    tifffile.imwrite(folder / f"{n}.tif", values, photometric="minisblack", **options)
    return f"{n}.tif"


def to_png(folder, n, values):
    write_deep_png(folder / f"{n}.png", values.transpose(1, 2, 0))
    return f"{n}.png"


def scene(channels, seed=0, size=(64, 80)):
    """A deep image with a bright square in the middle: (C, H, W) uint16 in a narrow range."""
    rng = np.random.default_rng(seed)
    values = rng.integers(900, 1100, (channels, *size))
    values[:, size[0] // 4 : 3 * size[0] // 4, size[1] // 4 : 3 * size[1] // 4] += 800 + 100 * seed
    return values.astype(np.uint16)


def deep_config(tiny_config, channels, **images):
    values = tiny_config.model_dump()
    values["model"]["backbone"]["in_channels"] = channels
    values["image"] |= {"mean": [0.4] * channels, "std": [0.3] * channels, **images}
    return validate(values, "test")


def test_training_and_prediction_share_the_percentiles(tmp_path, tiny_config, classes):
    config = deep_config(tiny_config, 2, percentiles=(1, 99))
    split = make_split(tmp_path, [scene(2), scene(2, 1)], to_tiff)
    model = build_model(config, classes)
    dataset = InstanceDataset(split, config, augmented=False)
    for index in range(2):
        seen, size = predictor(model).network_input(torch.from_numpy(split.read(index, 2)))
        assert size.tolist() == [[64, 80]]
        assert torch.equal(dataset[index][0], seen[0, :, :64, :80])


@pytest.mark.parametrize("percentiles", [None, (1, 99)])
@pytest.mark.parametrize("write", [to_tiff, lambda *args: to_tiff(*args, tile=(16, 32), compression="zlib")])
def test_a_window_shows_what_the_whole_image_shows_there(tmp_path, monkeypatch, tiny_config, write, percentiles):
    """Crops of files that give windows equal those of files that are read whole, and of the normalised image."""
    monkeypatch.setattr("masklab.images.intensity._MAX_SAMPLED", 1000)
    image = scene(3)
    change = {"horizontal_flip": False, "crop_size": 24}
    config = deep_config(tiny_config, 3, percentiles=percentiles, augment=change)
    windows = make_split(tmp_path / "windows", [image], write)
    whole = make_split(tmp_path / "whole", [image], to_png)
    bright = normalise(rescale_intensity(torch.from_numpy(image), config.image), config.image)
    places = set()
    for position in range(5):
        seen, geometry, _ = open_training_image(windows, config, position, 0)
        again, same, _ = open_training_image(whole, config, position, 0)
        assert torch.equal(seen, again)
        assert torch.equal(geometry, same)
        x1, y1, x2, y2 = geometry.view().astype(int).tolist()
        assert torch.equal(seen, bright[:, y1:y2, x1:x2])
        places.add((x1, y1))
    assert len(places) > 1


def test_deep_images_are_recoloured_without_rounding(tmp_path, tiny_config):
    change = {"brightness": 0.3, "contrast": 0.3, "invert": 0.5, "saturation": 0.2, "hue": 0.1, "crop_size": 32}
    config = deep_config(tiny_config, 3, percentiles=(1, 99), augment=change)
    split = make_split(tmp_path, [scene(3)], to_tiff)
    image, _, _ = open_training_image(split, config, 1, 0)
    back = image * 0.3 * 255 + 0.4 * 255
    assert back.min() > -0.01
    assert back.max() < 255.01
    assert (back - back.round()).abs().max() > 0.1


def test_a_huge_tiff_is_read_by_windows(tmp_path):
    side = 20_000
    tifffile.imwrite(tmp_path / "huge.tif", shape=(side, side), dtype=np.uint8, photometric="minisblack")
    mapped = tifffile.memmap(tmp_path / "huge.tif")
    mapped[9_000:11_000:2, 9_000:11_000] = 200
    mapped.flush()
    del mapped
    (tmp_path / "train").mkdir()
    (tmp_path / "huge.tif").rename(tmp_path / "train/huge.tif")
    ring = [9_900, 9_900, 10_100, 9_900, 10_100, 10_100, 9_900, 10_100]
    values = {
        "images": [{"id": 1, "file_name": "huge.tif", "height": side, "width": side}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [ring]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(values))
    split = Split.find(tmp_path, "train")
    split.objects(0)
    for percentiles in (None, [1, 99]):
        images = {"scale": 1.0, "augment": {"crop_size": 512}, "percentiles": percentiles}
        dataset = InstanceDataset(split, Config.model_validate({"image": images}))
        tracemalloc.start()
        image = dataset[3, 0][0]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert image.shape == (3, 512, 512)
        assert peak < 50e6  # the image has 400e6 bytes


def test_of_a_compressed_tiff_only_the_tiles_of_a_window_are_decoded(tmp_path):
    path, side, tile = tmp_path / "a.tif", 4096, np.full((256, 256), 7, np.uint16)
    tiles = (tile for _ in range((side // 256) ** 2))
    tifffile.imwrite(path, tiles, shape=(side, side), dtype=np.uint16, tile=tile.shape, compression="zlib")
    tracemalloc.start()
    part, size = read_window(path, 1, (1000, 1000, 1300, 1300))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (part == 7).all()
    assert size == (side, side)
    assert peak < 8e6  # the image has 34e6 bytes


# ---- what a recipe leaves to the images


def test_grey_and_colour_images_are_three_channels(tmp_path):
    split = make_split(tmp_path, [as_type(np.uint8, 3).transpose(2, 0, 1)], lambda *args: to_tiff(*args))
    assert resolve_image_fields(Config(), split).model.backbone.in_channels == 3
    mixed = make_split(tmp_path / "mixed", [scene(1), scene(3)], lambda folder, n, values: to_png(folder, n, values))
    config = resolve_image_fields(Config(), mixed)
    assert config.model.backbone.in_channels == 3
    assert config.image.mean == Config().image.mean
    assert config.image.percentiles == (0.1, 99.9)
    own = Config.model_validate({"image": {"value_range": [0, 4095]}})
    assert resolve_image_fields(own, mixed).image == own.image


def test_eight_bits_leave_the_configuration_alone(shapes):
    config = Config()
    assert resolve_image_fields(config, Split.find(shapes, "train")).image == config.image


def test_mean_and_deviation_of_other_channels_are_measured(tmp_path, caplog):
    caplog.set_level("INFO", "masklab")
    values = np.zeros((5, 40, 40), np.uint8)
    values[1], values[2, :20] = 255, 255
    split = make_split(tmp_path, [values, values], to_tiff)
    config = resolve_image_fields(Config(), split)
    assert config.model.backbone.in_channels == 5
    assert config.image.mean == [0, 1, 0.5, 0, 0]
    assert config.image.std == [0.01, 0.01, 0.5, 0.01, 0.01]
    assert config.image.percentiles is None
    assert "in_channels 5" in caplog.text
    validate(config.model_dump(), "test")


def test_images_must_agree_on_their_channels(tmp_path):
    split = make_split(tmp_path, [scene(4), scene(5)], to_tiff)
    message = sentence(resolve_image_fields, Config(), split)
    assert "0.tif has 4 channels" in message
    assert "1.tif has 5" in message


def test_empty_split_keeps_three_channels(tmp_path):
    assert resolve_image_fields(Config(), make_split(tmp_path, [], to_tiff)).model.backbone.in_channels == 3


def test_five_deep_channels_train_and_predict(tmp_path, tiny_config):
    for name in ("train", "val"):
        make_split(tmp_path / "set", [scene(5, seed) for seed in range(3)], to_tiff, name)
    values = tiny_config.model_dump()
    values["train"] |= {"steps": 1, "validate_every": 1}
    values["image"]["augment"]["crop_size"] = 48
    model = train(validate(values, "test"), tmp_path / "set", tmp_path / "run")
    again = load_model(tmp_path / "run")
    assert again.config == model.config.model_copy(update={"data": None, "output": None})
    assert again.config.model.backbone.in_channels == 5
    assert again.config.image.percentiles == (0.1, 99.9)
    assert len(again.config.image.mean) == 5
    predict_folder(predictor(again, score_threshold=0.0), [tmp_path / "set/val"], tmp_path / "out")
    assert Image.open(tmp_path / "out/0.png").mode == "RGB"
    file = tmp_path / "set/val/0.tif"
    results = [predictor(again).predict(image) for image in (file, scene(5), torch.from_numpy(scene(5)))]
    for result in results[1:]:
        np.testing.assert_array_equal(result.boxes, results[0].boxes)
    duplicate = predictor(again).predict(scene(5) * 2)  # percentiles follow
    np.testing.assert_allclose(duplicate.boxes, results[0].boxes, atol=1e-2)


@pytest.fixture(scope="module")
def model(tiny_config, classes):
    torch.manual_seed(0)
    return build_model(tiny_config, classes)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "YCbCr"])
def test_predict_takes_pillow_images_of_every_mode(model, mode):
    grey = as_type(np.uint8, 0)
    if mode == "I;16":
        image = Image.fromarray(DEEP[:, :, 0])
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = Image.fromarray(as_type(np.uint8, 3)).convert(mode)
    found = predictor(model).predict(image)
    assert found.size == (70, 90)
    if mode in ("RGB", "RGBA", "I;16", "F"):
        values = {"I;16": DEEP[None, :, :, 0], "F": grey[None].astype(np.float32) / 255}
        expected = predictor(model).predict(values.get(mode, channels_first(as_type(np.uint8, 3)).copy()))
        np.testing.assert_array_equal(found.boxes, expected.boxes)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_predict_shows_grey_numbers_as_grey(model, dtype):
    grey = channels_first(as_type(dtype, 0)).copy()
    expected = predictor(model).predict(grey.repeat(3, axis=0))
    np.testing.assert_array_equal(predictor(model).predict(grey).boxes, expected.boxes)


def test_predict_leaves_the_given_numbers_alone(model):
    values = np.random.default_rng(0).random((3, 40, 40), dtype=np.float32)
    before = values.copy()
    predictor(model).predict(values)
    assert (values == before).all()


def test_a_float_image_beyond_one_is_named_and_left_out(model, tmp_path, caplog):
    tifffile.imwrite(tmp_path / "far.tif", np.full((40, 40), 4095, np.float32))
    tifffile.imwrite(tmp_path / "near.tif", np.full((40, 40), 0.5, np.float32))
    message = sentence(predict_folder, predictor(model), [tmp_path], tmp_path / "out")
    assert "1 of 2 images" in message
    assert f"{tmp_path / 'far.tif'} holds numbers from 4095 to 4095" in caplog.text
    assert (tmp_path / "out/near.png").is_file()


def test_twenty_images_tell_the_channels_of_a_split(tmp_path, monkeypatch):
    names = [f"{k:02d}.png" for k in range(50)]
    entries = [{"id": k, "file_name": name, "height": 4, "width": 5} for k, name in enumerate(names)]
    (tmp_path / "train").mkdir()
    for name in names:
        Image.new("L", (5, 4), 9).save(tmp_path / "train" / name)
    values = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "train.json").write_text(json.dumps(values))
    seen = []
    real = masklab.training.auto.channels_and_dtype
    monkeypatch.setattr(
        masklab.training.auto, "channels_and_dtype", lambda path: (seen.append(path.stem), real(path))[1]
    )
    config = load_recipe("nuclei", {"model": {"backbone": {"in_channels": "auto"}}})
    resolve_image_fields(config, Split.find(tmp_path, "train"))
    assert seen == [f"{int(k * 2.5):02d}" for k in range(20)]

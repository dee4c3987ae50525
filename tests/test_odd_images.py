"""Images that are not as they seem, and folders that hold more than images."""

import json
import logging
import os
import shutil
import struct
import unicodedata
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from contracts import fails, predictor
from PIL import Image

from masklab.images import tiff
from masklab.images.listing import left_out, list_images
from masklab.images.read import channels_and_dtype, image_size, read_image
from masklab.inference.folder import predict_folder
from masklab.model.build import build_model
from masklab.utils.files import atomic_write, file_name
from masklab.utils.log import terminal_messages

RNG = np.random.default_rng(0)
TWO = RNG.integers(0, 256, (40, 50, 2), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tiny_config, classes):
    return build_model(tiny_config, classes).eval()


# ---- pages and channels


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"photometric": "minisblack"},
        {"photometric": "minisblack", "compression": "zlib"},
        {"imagej": True},
        {"ome": True},
    ],
)
def test_channels_that_were_saved_last_are_channels(tmp_path, options):
    """An array (H, W, 2) is saved as H pages of W x 2 pixels."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, TWO, **options)
    assert channels_and_dtype(path) == (2, np.uint8)
    assert image_size(path) == (40, 50)
    assert (read_image(path, 2) == TWO.transpose(2, 0, 1)).all()
    fails(["a.tif has 2 channels", "in_channels 2"], read_image, path, 3)


@pytest.mark.parametrize("shape", [(40, 30, 20), (5, 6, 4), (2, 40, 50)])
def test_pages_of_a_usual_width_are_pages(tmp_path, shape):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), photometric="minisblack")
    assert channels_and_dtype(tmp_path / "a.tif")[0] == shape[0]
    assert image_size(tmp_path / "a.tif") == shape[1:]


def three_pages(path, how):
    pages = RNG.integers(0, 256, (3, 20, 30), dtype=np.uint8)
    if how == "pages":
        with tifffile.TiffWriter(path) as file:
            for page in pages:
                file.write(page, photometric="minisblack", contiguous=False, metadata=None)
    elif how == "Pillow":
        first, *others = map(Image.fromarray, pages)
        first.save(path, save_all=True, append_images=others)
    elif how == "array":
        tifffile.imwrite(path, pages, photometric="minisblack")
    elif how == "ImageJ":
        tifffile.imwrite(path, pages, imagej=True, metadata={"axes": "CYX"})
    elif how == "OME":
        tifffile.imwrite(path, pages, photometric="minisblack", metadata={"axes": "CYX"}, ome=True)
    else:
        tifffile.imwrite(path, pages, photometric="rgb", planarconfig="separate")
    return pages


@pytest.mark.parametrize(
    ("how", "told"),
    [("pages", True), ("Pillow", True), ("array", True), ("ImageJ", False), ("OME", False), ("RGB", False)],
)
def test_three_pages_are_not_taken_for_rgb_without_a_word(tmp_path, caplog, how, told):
    tiff._warn_of_pages.cache_clear()
    for name in ("a.tif", "b.tif"):
        pages = three_pages(tmp_path / name, how)
        assert (read_image(tmp_path / name, 3) == pages).all()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == told, "one line for a folder"
    assert not told or (str(tmp_path) in messages[0] and "three pages" in messages[0] and "axes CYX" in messages[0])


@pytest.mark.parametrize("photometric", ["miniswhite", "palette"])
def test_stacks_that_pillow_would_cut_to_their_first_page_are_refused(tmp_path, photometric):
    options = {"colormap": np.zeros((3, 256), np.uint16)} if photometric == "palette" else {}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 20, 30), np.uint8), photometric=photometric, **options)
    fails(["a.tif is a stack", "3 x 20 x 30"], read_image, tmp_path / "a.tif", 3)


def claim_compression(path, code):
    """Change the tag of a TIFF's compression, as this computer may not have the codec to write one."""
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[259]
        offset, order = tag.valueoffset, file.byteorder
    content = bytearray(path.read_bytes())
    struct.pack_into(order + "H", content, offset, code)
    path.write_bytes(content)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="no codec is missing")
@pytest.mark.parametrize(("code", "name"), [(50000, "ZSTD"), (34712, "JPEG2000"), (34887, "LERC"), (50002, "JPEGXL")])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_missing_codec_is_named(tmp_path, code, name, channels, dtype):
    path = tmp_path / "a.tif"
    values = RNG.integers(0, 256, (20, 30, 3)[: 2 + (channels == 3)]).astype(dtype)
    tifffile.imwrite(path, values, compression="zlib", photometric="rgb" if channels == 3 else "minisblack")
    claim_compression(path, code)
    words = f"a.tif is compressed with {name}, which needs the package imagecodecs: pip install imagecodecs"
    fails([words], read_image, path, 3)


# ---- names and suffixes


def test_a_tiff_is_one_by_its_first_bytes(tmp_path):
    values = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    for name in ("a.TIF", "a.png", "a", "a.001"):
        tifffile.imwrite(tmp_path / name, values, photometric="rgb")
        assert (read_image(tmp_path / name, 3) == values.transpose(2, 0, 1)).all()
        assert image_size(tmp_path / name) == (20, 30)
    Image.fromarray(TWO[:, :, 0]).save(tmp_path / "b.tif", "PNG")
    assert (read_image(tmp_path / "b.tif", 1) == TWO[None, :, :, 0]).all()


def fill(folder):
    """A folder as people have them; returns the names of its images."""
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    for name in ("b.JFIF", "c.JPG", "d.jpe", "without suffix", "frame.001", "frame.002"):
        Image.new("RGB", (40, 30)).save(folder / name, "JPEG")
    for name in ("x.czi", "x.heic", "x.nd2", "x.lif", "X.SVS", "notes", "x.dcm"):
        (folder / name).write_bytes(b"something else")
    for name in ("notes.txt", "labels.json", "Thumbs.db", ".DS_Store", "._a.png"):
        (folder / name).write_bytes(b"no image")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "folder.png").mkdir()
    return {"a.png", "b.JFIF", "c.JPG", "d.jpe", "without suffix", "frame.001", "frame.002", "link.png"}


def test_every_image_of_a_folder_is_found_and_what_is_left_out_is_named(tmp_path):
    images = fill(tmp_path / "set")
    assert {path.name for path in list_images(tmp_path / "set")} == images
    words = left_out([tmp_path / "set", tmp_path / "set" / "a.png"])
    assert words == (
        "left out: 9 files (X.SVS, circle.png (a broken link), gone.png (a broken link), notes, x.czi, ...): "
        "convert them to PNG or TIFF, and restore the broken links."
    )
    for name in (*images, "gone.png", "circle.png", "notes", "X.SVS"):
        (tmp_path / "set" / name).unlink()
    fails(["holds no image", "but 5 files (x.czi", "convert"], list_images, tmp_path / "set")


def test_a_folder_of_images_and_tables_leaves_nothing_out(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").touch()
    (tmp_path / "masks").mkdir()
    assert left_out([tmp_path]) is None
    (tmp_path / "a.png").unlink()
    fails(["holds no image", "but 1 folder (masks)"], list_images, tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have(tmp_path, name):
    fails(["there is no such image or folder"], list_images, tmp_path / name)


def test_a_broken_link_is_called_one(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    fails(["a.png is a link to a file that is missing"], read_image, tmp_path / "a.png", 3)


def test_a_file_without_the_right_to_read_is_not_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr("masklab.images.opened.open", refuse, raising=False)
    fails(["a.png cannot be read (Permission denied)", "rights"], read_image, tmp_path / "a.png", 3)


def test_predict_says_what_it_leaves_out_in_one_line(model, tmp_path, caplog):
    images = fill(tmp_path / "set")
    predict_folder(predictor(model), [tmp_path / "set"], tmp_path / "out")
    assert [record.getMessage()[:17] for record in caplog.records if record.levelno == logging.WARNING] == [
        "left out: 9 files"
    ]
    overlays = {"a.png", "b.png", "c.png", "d.png", "link.png", "without suffix.png", "frame.001.png", "frame.002.png"}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == overlays
    assert len(overlays) == len(images)


LONG = "é" * 125 + ".png"  # 254 bytes
NAMES = [
    unicodedata.normalize("NFC", "é.png"),
    unicodedata.normalize("NFD", "é.png"),
    "line\nbreak.png",
    "\x1b[31mred.png",
    "tab\tand\rreturn.png",
    LONG,
    "é" * 127,  # 254 bytes without a suffix, so that .png does not fit behind
    os.fsdecode(b"not \xff utf-8.png"),
    "細胞.png",
    " .png",
    "-rf.png",
]


def test_one_name_never_costs_the_other_images(model, tmp_path, capfd):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "plain.png")
    for name in NAMES:
        shutil.copy(tmp_path / "plain.png", tmp_path / "set" / name)
    predict_folder(predictor(model, score_threshold=0.0), [tmp_path / "set"], tmp_path / "out")
    overlays = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert len(overlays) == len(NAMES)
    assert set(NAMES) - {"é" * 127} <= overlays
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["options"]["intensity"] == "model"


def test_an_overlay_that_cannot_be_written_costs_only_itself(model, tmp_path, monkeypatch, caplog):
    (tmp_path / "set").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(tmp_path / "set" / name)
    save = Image.Image.save

    def refuse(image, path, *args, **kwargs):
        if path.name.startswith(".a"):
            raise OSError(36, "File name too long")
        save(image, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", refuse)
    fails(["1 of 2 images"], predict_folder, predictor(model), [tmp_path / "set"], tmp_path / "out")
    assert (tmp_path / "out" / "b.png").exists()
    assert (tmp_path / "out" / "predictions.json").exists()
    assert any("a.png cannot be written" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("stem", ["a", "x" * 300, "é" * 200, "細" * 100, os.fsdecode(b"\xff" * 300), "x" * 251])
def test_a_name_is_cut_to_what_a_file_can_have(tmp_path, stem):
    name = file_name(stem, ".png")
    assert len(os.fsencode(name)) <= 255
    assert name.endswith(".png")
    assert (name == f"{stem}.png") == (len(os.fsencode(stem)) <= 251)
    assert name.removesuffix(".png").split("~")[0] in stem, "letters are not cut in two"
    assert file_name(f"{stem}{stem}1", ".png") != file_name(f"{stem}{stem}2", ".png")
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("written")
    assert (tmp_path / name).read_text() == "written"


# ---- animations, and what Pillow warns of


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame_is_read_and_a_warning_says_so_once(tmp_path, caplog, suffix):
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (0, 120, 240)]
    for name in ("a", "b"):
        frames[0].save(tmp_path / f"{name}.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(tmp_path / f"{name}.{suffix}", 3).max() == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"images of {tmp_path} are animations, of which the first frame is read; to use the others, save each as a "
        "file of its own."
    ]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "jpg"])
def test_of_a_single_image_nothing_is_said(tmp_path, caplog, suffix):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / f"a.{suffix}")
    read_image(tmp_path / f"a.{suffix}", 3)
    assert not caplog.records


def test_pillows_warnings_are_lines_of_our_own_or_not_shown(tmp_path, capsys):
    harmless = Image.fromarray(np.zeros((20, 30), np.uint8), "P")
    harmless.putpalette([0, 0, 0] * 256)
    harmless.save(tmp_path / "p.png", transparency=bytes([128] * 256))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x40\0")
    with terminal_messages(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
        read_image(tmp_path / "p.png", 3)
        assert capsys.readouterr().err == ""
        read_image(tmp_path / "a.jpg", 3)
    said = capsys.readouterr().err
    assert said.startswith("masklab: Pillow, which reads images: ")
    assert said.count("\n") == 1
    assert "site-packages" not in said

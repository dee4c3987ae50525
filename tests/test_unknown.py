"""What is said of a path that holds no data set."""

import json
import os
import zipfile

import pytest
from contracts import fails
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.layouts.registry import LAYOUTS
from masklab.datasets.open import open_split
from masklab.datasets.recognise import recognise
from masklab.datasets.source import DataSource
from masklab.utils.errors import InputError

DLIB = "<?xml version='1.0'?><dataset><images><image file='0.png'><box top='1' left='2' width='3' height='4'/></image>"
OLD = "<annotation><filename>0.png</filename><object><name>leaf</name><polygon><pt><x>1</x><y>2</y></pt></polygon>"
PANOPTIC = {
    "images": [{"id": 1, "file_name": "0.png", "height": 9, "width": 9}],
    "annotations": [{"image_id": 1, "file_name": "0.png", "segments_info": [{"id": 1, "category_id": 1}]}],
    "categories": [{"id": 1, "name": "leaf", "isthing": 1}],
}
CREATEML = [
    {"image": "0.png", "annotations": [{"label": "leaf", "coordinates": {"x": 4, "y": 4, "width": 3, "height": 3}}]}
]
LABEL_STUDIO = [
    {"id": 1, "annotations": [{"result": [{"from_name": "label", "to_name": "image", "type": "brushlabels"}]}]}
]
BDD = [{"name": "0.png", "labels": [{"category": "car", "box2d": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}]}]
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}]

FILES = {  # name, content, and words of the message
    "boxes in XML": ("ann/0.xml", DLIB, ["0.xml looks like dlib boxes", "outlines", "COCO or YOLO"]),
    "old LabelMe": ("ann/0.xml", OLD, ["LabelMe's old XML", "convert it to COCO"]),
    "panoptic": ("panoptic_train2017.json", json.dumps(PANOPTIC), ["a COCO panoptic file", "instances"]),
    "keypoints": ("person_keypoints_val.json", '{"annotations": [{"num_keypoints": 3}]}', ["person keypoints"]),
    "CreateML": ("_annotations.createml.json", json.dumps(CREATEML), ["CreateML", "boxes only", "outlines"]),
    "Label Studio": ("project-1.json", json.dumps(LABEL_STUDIO), ["Label Studio", "export as COCO"]),
    "BDD": ("labels.json", json.dumps(BDD), ["BDD100K"]),
    "results": ("predictions.json", json.dumps(RESULTS), ["results of a model"]),
    "UTF-16": ("labels.json", json.dumps(BDD).encode("utf-16"), ["BDD100K"]),
    "any JSON": ("settings.json", '{"a": 1}', ["settings.json looks like JSON of an unknown tool"]),
    "broken JSON": ("x.json", b"\xff\xff{", ["x.json"]),
    "CSV": ("train.csv", "ImageId,EncodedPixels\n0.png,1 3\n", ["train.csv", "Kaggle competition"]),
    "boxes in CSV": ("train_labels.csv", "filename,width,height,class,xmin,ymin\n", ["a table of boxes"]),
    "YOLO without images": ("my.yml", "names: [leaf]\n", ["a YOLO data file", "images and labels"]),
    "records": ("train.tfrecord", b"\0", ["TensorFlow records"]),
    "Parquet": ("data/train-0.parquet", b"PAR1", ["a Parquet table"]),
    "HDF5": ("train.h5", b"\x89HDF", ["HDF5"]),
    "arrays": ("X_train.npy", b"\x93NUMPY", ["NumPy arrays"]),
    "NIfTI": ("case/seg.nii.gz", b"\x1f\x8b", ["NIfTI volumes", "each slice"]),
    "an archive": ("train.zip", b"PK", ["train.zip looks like an archive", "unpack it"]),
    "upper case": ("TRAIN.TAR.GZ", b"", ["TRAIN.TAR.GZ", "unpack it"]),
    "a new line": ("a\nb.json", "{}", ["a?b.json"]),
}


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9)).save(path)


@pytest.mark.parametrize("what", FILES)
def test_what_was_seen_is_named(tmp_path, what):
    name, content, words = FILES[what]
    put(tmp_path / name, content)
    image(tmp_path / "pictures/0.png")
    fails([f"{tmp_path} holds no data set", "1 image", *words], open_split, tmp_path, "train")


def test_the_layouts_that_are_read_are_listed_shortly(tmp_path):
    words = ["it holds no file", "COCO", "YOLO", "label images", "Cellpose", "Kaggle"]
    fails(words, open_split, tmp_path, "train")


def test_many_files_are_one_kind(tmp_path):
    for k in range(300):
        put(tmp_path / f"ann/{k:03}.xml", DLIB)
        image(tmp_path / f"img/{k:03}.png")
    put(tmp_path / "x.csv", "xmin\n")
    put(tmp_path / "y.h5", "")
    put(tmp_path / "z.json", "{}")
    put(tmp_path / "z.mat", "")
    words = ["ann/000.xml and 299 more look like dlib boxes", "2 other kinds of files", "300 images"]
    fails(words, open_split, tmp_path, "train")
    with pytest.raises(InputError) as caught:
        open_split(tmp_path, "train")
    assert len(str(caught.value)) - len(str(tmp_path)) < 700, "short enough to read"


def test_images_alone(tmp_path):
    for k in range(3):
        image(tmp_path / f"{k}.png")
    fails(["3 images but no annotations", "masklab predict MODEL"], open_split, tmp_path, "train")


def test_a_path_that_is_a_file(tmp_path):
    image(tmp_path / "x.png")
    fails(["x.png is an image", "masklab predict MODEL"], open_split, tmp_path / "x.png", "train")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "")
    fails(["x.zip", "an archive", "unpack it"], open_split, tmp_path / "x.zip", "train")
    put(tmp_path / "x.xml", DLIB)
    fails(["x.xml", "dlib boxes", "name the folder"], open_split, tmp_path / "x.xml", "train")
    put(tmp_path / "x.bin", "")
    fails(["x.bin is a file", "folder"], open_split, tmp_path / "x.bin", "train")
    put(tmp_path / "p.json", json.dumps(CREATEML))
    fails(["p.json", "CreateML"], open_split, tmp_path / "p.json", "train")
    fails(["nowhere", "correct the path"], open_split, tmp_path / "nowhere.zip", "train")


def test_links_pipes_and_unreadable_files_do_no_harm(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "other").mkdir()
    fails(["holds no data set"], open_split, tmp_path, "train")


def test_large_folders_are_not_walked_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("masklab.datasets.unknown._MOST_ENTRIES", 20)
    for k in range(100):
        put(tmp_path / f"{k:03}.json", json.dumps(BDD))
    fails(["19 more look like BDD100K"], open_split, tmp_path, "train")


# ---- the layout that is meant


def yolo_and_coco(folder):
    """A folder that fits two layouts."""
    square = [2.0, 3.0, 6.0, 3.0, 6.0, 9.0, 2.0, 9.0]
    for k in range(3):
        image(folder / f"images/{k}.png")
        put(folder / f"labels/{k}.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    put(folder / "data.yaml", "names: [fruit]\n")
    images = [{"id": k, "file_name": f"images/{k}.png", "height": 9, "width": 9} for k in range(3)]
    one = {"id": 1, "image_id": 0, "category_id": 5, "segmentation": [square], "iscrowd": 0}
    values = {"images": images, "annotations": [one], "categories": [{"id": 5, "name": "leaf"}]}
    put(folder / "instances.json", json.dumps(values))
    return folder


def test_a_folder_of_two_layouts_asks_which(tmp_path, capsys):
    data = yolo_and_coco(tmp_path / "both")
    fails(["more than one layout", "COCO", "YOLO", "--layout coco or --layout yolo"], open_split, data, "train")
    assert open_split(DataSource(data, layout="coco"), "train").categories.names == ("leaf",)
    assert open_split(DataSource(data, layout="yolo"), "train").categories.names == ("fruit",)
    assert main(["data", "check", str(data)]) == 2
    assert main(["data", "check", str(data), "--layout", "coco"]) == 0
    assert main(["data", "convert", str(data), str(tmp_path / "new"), "--layout", "yolo", "--format", "yolo"]) == 0
    assert open_split(tmp_path / "new", "val").categories.names == ("fruit",)
    capsys.readouterr()
    assert main(["train", "nuclei", "--data", str(data), "--output", str(tmp_path / "run")]) == 2
    assert "--layout" in capsys.readouterr().err


def test_a_layout_that_does_not_fit_or_is_unknown(tmp_path):
    data = yolo_and_coco(tmp_path)
    fails(
        ["cityscape", "coco", *(layout.name for layout in LAYOUTS)],
        open_split,
        DataSource(data, layout="cityscape"),
        "train",
    )
    fails(["holds no data set", "Kaggle 2018"], open_split, DataSource(data, layout="kaggle"), "train")
    fails(["instances.json"], open_split, DataSource(data / "instances.json", layout="yolo"), "train")


def test_a_layout_without_a_folder_is_refused(capsys):
    assert main(["data", "check", "--layout", "yolo"]) == 2
    assert "needs the folder" in capsys.readouterr().err


def test_training_takes_the_layout(tmp_path):
    from masklab.config.schema import Config
    from masklab.training.resume import data_and_run

    config = Config(data=tmp_path, layout="coco", output=tmp_path / "run")
    assert data_and_run(config)[0] == DataSource(tmp_path, layout="coco")


def test_a_table_of_yolo_stands_for_its_folder(tmp_path):
    data = yolo_and_coco(tmp_path)
    (data / "instances.json").unlink()
    assert recognise(data / "data.yaml")[0] == data
    assert open_split(data / "data.yaml", "train").categories.names == ("fruit",)


def test_files_with_spaces_in_their_names_are_splits(tmp_path):
    data = yolo_and_coco(tmp_path)
    (data / "data.yaml").unlink()
    (data / "instances.json").rename(data / "my leaves (1).json")
    put(data / "more.json", (data / "my leaves (1).json").read_bytes())
    assert len(open_split(DataSource(data, layout="coco"), "my leaves (1)")) == 3


def test_a_message_is_one_line_whatever_a_file_brings_into_it(tmp_path):
    data = yolo_and_coco(tmp_path)
    put(data / "data.yaml", 'names: [fruit]\ntrain: "new\\nline\\u001b[2J"\n')
    fails(["data.yaml", "new\\nline\\x1b[2J"], open_split, DataSource(data, layout="yolo"), "train")


def test_a_link_to_itself_is_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "result.json").symlink_to(tmp_path / "result.json")
    (tmp_path / "images").mkdir()
    Image.new("L", (5, 4)).save(tmp_path / "images" / "a.png")
    fails([str(tmp_path), "holds no data set", "result.json"], open_split, tmp_path, "train")

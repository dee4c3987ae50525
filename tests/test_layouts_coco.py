"""COCO JSON where annotation tools and public data sets put it."""

import json
import pickle
import unicodedata

import numpy as np
import pytest
from contracts import fails
from PIL import Image

from masklab.cli.app import main
from masklab.datasets.check import check
from masklab.datasets.coco_document import CocoDocument
from masklab.datasets.open import open_split, split_names
from masklab.datasets.source import DataSource
from masklab.datasets.split import Split
from masklab.masks import rle
from masklab.utils.errors import InputError

SIZE = (20, 30)
SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 9.0, 2.0, 9.0]


def coco(names, first=1, categories=None, **fields):
    """A COCO file of images with one square each, the second class in every other."""
    categories = categories or [{"id": 1, "name": "leaf", "supercategory": ""}, {"id": 2, "name": "fruit"}]
    ids = [entry["id"] for entry in categories if entry["id"]]
    images = [
        {"id": first + k, "file_name": name, "height": SIZE[0], "width": SIZE[1], **fields}
        for k, name in enumerate(names)
    ]
    annotations = [
        {
            "id": first + k,
            "image_id": first + k,
            "category_id": ids[k % len(ids)],
            "segmentation": [SQUARE],
            "area": 24.0,
            "bbox": [2.0, 3.0, 4.0, 6.0],
            "iscrowd": 0,
        }
        for k in range(len(names))
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (value, 20, 30)).save(path)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def roboflow(folder):
    categories = [{"id": 0, "name": "fruits", "supercategory": "none"}]
    categories += [{"id": k, "name": name, "supercategory": "fruits"} for k, name in enumerate(("leaf", "fruit"), 1)]
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        names = [f"{split}{k}_png.rf.0a{k}.jpg" for k in range(count)]
        write(folder / split / "_annotations.coco.json", coco(names, 0, categories))
        for k, name in enumerate(names):
            image(folder / split / name, k)
    (folder / "README.roboflow.txt").write_text("exported")
    return {"train": 4, "val": 2, "test": 2}


def cvat(folder):
    names = [f"{k}.png" for k in range(4)]
    write(folder / "annotations/instances_default.json", coco(names))
    for name in names:
        image(folder / "images" / name)
    return {"train": 3, "val": 1}


def cvat_subsets(folder):
    for subset, count in (("Train", 3), ("Validation", 2)):
        names = [f"{subset}{k}.png" for k in range(count)]
        write(folder / f"annotations/instances_{subset}.json", coco(names))
        for name in names:
            image(folder / "images" / subset / name)
    return {"train": 3, "val": 2}


def label_studio(folder):
    names = [f"images/0e0ea9b{k}-leaf {k}.png" for k in range(4)]
    write(folder / "result.json", coco(names, 0))
    for name in names:
        image(folder / name)
    return {"train": 3, "val": 1}


def label_studio_windows(folder):
    write(folder / "result.json", coco([f"images\\0e0ea9b{k}-leaf.png" for k in range(4)], 0))
    for k in range(4):
        image(folder / f"images/0e0ea9b{k}-leaf.png")
    return {"train": 3, "val": 1}


def label_studio_without_images(folder):
    """The export has the annotations alone; the user puts his own files, as he uploaded them, beside it."""
    root = "../../label-studio/data/media/upload/3"
    write(folder / "result.json", coco([f"{root}/0e0ea9b{k}-leaf{k}.png" for k in range(4)], 0))
    for k in range(4):
        image(folder / f"pictures/leaf{k}.png")
    return {"train": 3, "val": 1}


def label_studio_local_files(folder):
    write(folder / "result.json", coco([f"/data/local-files/?d=garden%2Fleaf%20{k}.png" for k in range(4)], 0))
    for k in range(4):
        image(folder / f"garden/leaf {k}.png")
    return {"train": 3, "val": 1}


def fiftyone(folder):
    names = [f"{k:06d}.png" for k in range(4)]
    write(folder / "labels.json", coco(names))
    for name in names:
        image(folder / "data" / name)
    return {"train": 3, "val": 1}


def any_name_beside(folder):
    names = [f"{k}.png" for k in range(4)]
    write(folder / "my leaves 2024.json", coco(names))
    for name in names:
        image(folder / name)
    return {"train": 3, "val": 1}


def annotations_of_splits(folder):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        names = [f"{split}{k}.png" for k in range(count)]
        write(folder / f"annotations/{split}.json", coco(names))
        for name in names:
            image(folder / "images" / split / name)
    return {"train": 3, "val": 2, "test": 1}


def file_inside_split(folder):
    for split, count in (("train", 3), ("val", 2)):
        names = [f"{split}{k}.png" for k in range(count)]
        write(folder / split / "annotations.json", coco(names))
        for name in names:
            image(folder / split / "images" / name)
    return {"train": 3, "val": 2}


def official_in_images(folder):
    for split, count in (("train2017", 3), ("val2017", 2)):
        names = [f"{k:012d}.jpg" for k in range(count)]
        write(folder / f"annotations/instances_{split}.json", coco(names))
        write(folder / f"annotations/person_keypoints_{split}.json", coco(names))
        write(folder / f"annotations/captions_{split}.json", coco(names))
        for name in names:
            image(folder / "images" / split / name)
    return {"train": 3, "val": 2}


def unpacked_one_deeper(folder):
    (folder / "__MACOSX").mkdir(parents=True)
    return annotations_of_splits(folder / "leaves")


def taco(folder):
    names = [f"batch_{k // 2}/00000{k % 2}.{'JPG' if k == 3 else 'jpg'}" for k in range(4)]
    write(folder / "annotations.json", coco(names, 0))
    for name in names:
        image(folder / name)
    return {"train": 3, "val": 1}


def livecell(folder):
    for split, count in (("train", 3), ("val", 2)):
        names = [f"A172_Phase_{split}_{k}.tif" for k in range(count)]
        values = coco(names, 100)
        write(
            folder / f"livecell_coco_{split}.json",
            values | {"annotations": {str(a["id"]): a for a in values["annotations"]}},
        )
        for name in names:
            image(folder / "images/livecell_train_val_images/A172" / name)
    return {"train": 3, "val": 2}


def lvis(folder):
    for split, count in (("train", 3), ("val", 2)):
        values = coco([f"{k:012d}.jpg" for k in range(count)])
        for k, entry in enumerate(values["images"]):
            del entry["file_name"]
            place = "train2017" if k else "val2017"  # LVIS mixes them
            entry |= {
                "coco_url": f"http://images.cocodataset.org/{place}/{k:012d}.jpg",
                "not_exhaustive_category_ids": [],
            }
            image(folder / place / f"{k:012d}.jpg")
        write(folder / f"lvis_v1_{split}.json", values)
    return {"train": 3, "val": 2}


LAYOUTS = [
    *(roboflow, cvat, cvat_subsets, label_studio, label_studio_windows, label_studio_without_images),
    *(label_studio_local_files, fiftyone, any_name_beside, annotations_of_splits, file_inside_split),
    *(official_in_images, unpacked_one_deeper, taco, livecell, lvis),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_coco_is_found_where_tools_put_it(tmp_path, layout):
    wanted = layout(tmp_path / "data")
    assert split_names(tmp_path / "data") == sorted(wanted)
    classes = None
    for name in sorted(wanted, key=lambda name: name != "train"):
        split = open_split(tmp_path / "data", name, classes)
        classes = split.categories
        assert classes.names == ("leaf", "fruit")
        assert len(split) == wanted[name]
        for index, entry in enumerate(split.images):
            assert split.read(index, 3).shape == (3, *SIZE)
            objects = split.objects(index)
            mask = rle.window(objects.rle(0), SIZE, (0, 0, *SIZE[::-1]))
            assert len(objects) == 1
            assert mask[3:9, 2:6].all()
            assert mask.sum() == 24
            assert entry.path.is_relative_to(tmp_path / "data")
    report = check(tmp_path / "data")
    assert [f for f in report.findings if f.consequence != "kept"] == []


def test_a_set_converts_and_reads_the_same(tmp_path):
    roboflow(tmp_path / "data")
    main(["data", "convert", str(tmp_path / "data"), str(tmp_path / "coco")])
    for name in ("train", "val", "test"):
        before, after = open_split(tmp_path / "data", name), open_split(tmp_path / "coco", name)
        assert before.images.names() == after.images.names()
        assert before.categories == after.categories


def test_the_file_itself_is_a_data_set(tmp_path):
    cvat(tmp_path)
    assert split_names(tmp_path / "annotations/instances_default.json") == ["train", "val"]
    assert len(open_split(tmp_path / "annotations/instances_default.json", "all")) == 4
    assert open_split(tmp_path / "annotations/instances_default.json", "all").images.names()[0] == "0.png"


def test_files_and_folders_may_be_named(tmp_path, capsys):
    names = [f"{k}.png" for k in range(4)]
    write(tmp_path / "here/train.json", coco(names[:3]))
    write(tmp_path / "here/holdout_val.json", coco(names[3:]))
    for k, name in enumerate(names):
        image(tmp_path / "there" / name, k)
    both = DataSource(
        annotations=(tmp_path / "here/train.json", tmp_path / "here/holdout_val.json"), images=(tmp_path / "there",)
    )
    assert [len(open_split(both, name)) for name in ("train", "val")] == [3, 1]
    one = DataSource(annotations=(tmp_path / "here/train.json",), images=(tmp_path / "there",))
    assert [len(open_split(one, name)) for name in ("train", "val", "all")] == [2, 1, 3]
    words = ["--annotations", str(tmp_path / "here/train.json"), "--images", str(tmp_path / "there")]
    assert main(["data", "check", *words]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert main(["data", "check", *words[:2]]) == 2
    assert main(["data", "check"]) == 2
    fails(
        ["nowhere"],
        open_split,
        DataSource(annotations=(tmp_path / "here/train.json",), images=(tmp_path / "nowhere",)),
        "all",
    )
    fails(
        ["nothing.json"],
        open_split,
        DataSource(annotations=(tmp_path / "nothing.json",), images=(tmp_path / "there",)),
        "all",
    )


def test_an_image_that_could_be_two_files_is_refused(tmp_path):
    write(tmp_path / "labels.json", coco(["C:\\fields\\1.png"]))
    image(tmp_path / "a/1.png")
    image(tmp_path / "b/1.png")
    fails(["1.png", "a/1.png", "b/1.png", "--images"], open_split, tmp_path, "all")


def test_a_missing_image_is_not_taken_from_another_split(tmp_path):
    for split in ("train", "val"):
        names = ["0.png", "1.png"]
        write(tmp_path / f"{split}.json", coco(names))
        for name in names:
            image(tmp_path / split / name)
    (tmp_path / "train/1.png").unlink()
    fails(["train/1.png", "missing", "1 of the 2"], open_split, tmp_path, "train")


def test_accents_may_be_written_in_either_way(tmp_path):
    name = "früchte é.png"
    write(tmp_path / "train.json", coco([unicodedata.normalize("NFC", name)]))
    image(tmp_path / "train" / unicodedata.normalize("NFD", name))
    assert Split.find(tmp_path, "train").read(0, 3).shape == (3, *SIZE)


def test_a_byte_order_mark_and_numbers_that_only_python_writes(tmp_path):
    values = coco(["0.png", "1.png"])
    image(tmp_path / "train/0.png")
    image(tmp_path / "train/1.png")
    text = json.dumps(values, ensure_ascii=False)
    for change in (text.encode("utf-8-sig"), text.encode("utf-16"), text.replace("24.0", "NaN").encode()):
        (tmp_path / "train.json").write_bytes(change)
        split = Split.find(tmp_path, "train")
        assert [len(split.objects(k)) for k in range(2)] == [1, 1]


def test_a_file_of_boxes_alone_is_said_so(tmp_path):
    values = coco(["0.png", "1.png"])
    for annotation in values["annotations"]:
        annotation["segmentation"] = []
    write(tmp_path / "train.json", values)
    image(tmp_path / "train/0.png")
    image(tmp_path / "train/1.png")
    assert Split.find(tmp_path, "train").summary().count("malformed segmentation") == 1


# ---- the document


def test_entries_are_those_of_the_file(tmp_path):
    values = coco([f"{k}.png" for k in range(3000)])
    write(tmp_path / "a.json", values)
    document = CocoDocument.read(tmp_path / "a.json")
    assert list(document.images) == values["images"]
    assert list(document.annotations) == values["annotations"]
    assert document.annotations[-1] == values["annotations"][-1]
    assert document.annotations[5:7] == values["annotations"][5:7]
    assert document.annotations.take(np.array([2999, 0])) == [values["annotations"][k] for k in (2999, 0)]
    assert len(pickle.dumps(document)) < 140_000  # two numbers an entry
    assert list(pickle.loads(pickle.dumps(document)).images) == values["images"]


def test_a_file_that_changes_in_use_is_noticed(tmp_path):
    write(tmp_path / "a.json", coco(["0.png", "1.png"]))
    document = CocoDocument.read(tmp_path / "a.json")
    write(tmp_path / "a.json", coco(["0.png", "1.png", "2.png"]))
    with pytest.raises(InputError, match=r"a\.json has changed"):
        document.annotations[0]


def test_a_summary_of_very_many_annotations_reads_no_mask(tmp_path, monkeypatch):
    names = ["0.png", "1.png"]
    write(tmp_path / "train.json", coco(names))
    for name in names:
        image(tmp_path / "train" / name)
    monkeypatch.setattr("masklab.datasets.split._MOST_SUMMED", 1)
    split = Split.find(tmp_path, "train")
    monkeypatch.setattr(split, "_read", None)
    assert split.summary().endswith("train.json: 2 images, 2 annotations, 2 classes, masks not read yet")


def test_objects_are_kept_within_bounds(tmp_path, monkeypatch):
    names = [f"{k}.png" for k in range(5)]
    write(tmp_path / "train.json", coco(names))
    for name in names:
        image(tmp_path / "train" / name)
    split = Split.find(tmp_path, "train")
    first = split.objects(0)
    assert split.objects(0) is first
    monkeypatch.setattr("masklab.datasets.split._KEPT_BYTES", 2 * first.bytes)
    for index in range(5):
        assert split.objects(index).areas.tolist() == [24]
    assert split.objects(0) is not first
    assert split.objects(0).areas.tolist() == [24]

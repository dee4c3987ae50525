"""Training that goes on from a trained model: which weights are loaded, which start anew, and what is refused."""

import numpy as np
import pytest
import torch
from contracts import changed, fails, predictor
from safetensors import safe_open

from masklab.model.build import build_model
from masklab.structures import ClassTable
from masklab.training.pretrain import pretrain
from masklab.training.train import train
from masklab.weights.checkpoint import load_model, save_model
from masklab.weights.segmentation import check_network
from masklab.weights.transfer import OF_CLASSES, load_matching, load_start


@pytest.fixture(scope="module")
def drawn_classes(shapes):
    from masklab.datasets.open import open_split

    return open_split(shapes, "train").categories


@pytest.fixture(scope="module")
def trained(tiny_config, drawn_classes, tmp_path_factory):
    """A weights file whose every number differs from a new model's."""
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    torch.manual_seed(1)
    model = build_model(tiny_config, drawn_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_model(model, path)
    return path


def started(config, path, classes):
    """A new model with the weights of a file, as training has it before its first step, and what starts anew."""
    config = changed(config, train={"start_from": str(path)})
    torch.manual_seed(2)
    model = build_model(config, classes, load_pretrained=False)
    return model.eval(), load_matching(model, load_start(config))


def predictions(model, kinds=("boxes", "scores", "labels", "masks")):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 112), dtype=np.uint8)
    found = predictor(model).predict(list(images))
    assert all(len(each) > 3 for each in found)
    return [getattr(each, kind) for each in found for kind in kinds]


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)


def test_a_model_started_from_a_file_is_that_model(trained, tiny_config, drawn_classes):
    model, new = started(tiny_config, trained, drawn_classes)
    assert new == []
    assert_same(predictions(model), predictions(load_model(trained, "cpu")))


def test_deformable_crops_begin_as_plain_ones(trained, tiny_config, drawn_classes):
    config = changed(tiny_config, model={"box": {"deformable": "grid"}})
    model, new = started(config, trained, drawn_classes)
    assert new == ["box_head.offsets"]
    assert_same(predictions(model), predictions(load_model(trained, "cpu")))


def test_another_refinement_starts_anew_and_leaves_the_boxes_alone(trained, tiny_config, drawn_classes):
    """Also where a layer of the same name happens to have the same shape: 8 maps, and a quarter of 32."""
    config = changed(tiny_config, model={"mask": {"refinement": "shared", "refine_channels": 32}})
    model, new = started(config, trained, drawn_classes)
    assert {name.split(".")[0] for name in new} == {"refinement"}
    assert "refinement.predict" in new
    boxes = ("boxes", "scores", "labels")
    assert_same(predictions(model, boxes), predictions(load_model(trained, "cpu"), boxes))


@pytest.mark.parametrize(
    ("mask", "layers"),
    [
        ({"directions": 4, "distance_bins": 8}, ["mask_head.direction"]),  # as many channels, which mean other things
        ({"refine_levels": ["conv1"]}, ["refinement.convs.0"]),
        ({"refine_levels": []}, []),
    ],
)
def test_only_what_fits_is_taken(trained, tiny_config, drawn_classes, mask, layers):
    model, new = started(changed(tiny_config, model={"mask": mask}), trained, drawn_classes)
    assert new == layers
    theirs = load_model(trained, "cpu").state_dict()
    for name, value in model.state_dict().items():
        assert (name.rpartition(".")[0] in new) or torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("names", [("cell",), ("red", "green", "blue", "grey")])
def test_other_classes_start_anew(trained, tiny_config, names):
    """As many or fewer; the weights of all other layers are loaded."""
    model, new = started(tiny_config, trained, ClassTable(tuple(range(1, len(names) + 1)), names))
    assert new == ["box_head.classes", "box_head.deltas", "mask_head.semantic"]
    theirs = load_model(trained, "cpu").state_dict()
    for name, value in model.state_dict().items():
        same = value.shape == theirs[name].shape and torch.equal(value, theirs[name])
        assert same == (name.rpartition(".")[0] not in new), name


def test_classes_are_known_by_their_names(trained, tiny_config, drawn_classes):
    ids = tuple(7 * i + 1 for i in range(len(drawn_classes)))
    assert started(tiny_config, trained, ClassTable(ids, drawn_classes.names))[1] == []


def test_a_lone_class_is_the_same_whatever_it_is_called(tiny_config, tmp_path):
    torch.manual_seed(0)
    save_model(build_model(tiny_config, ClassTable((1,), ("nucleus",))), tmp_path / "one.safetensors")
    assert started(tiny_config, tmp_path / "one.safetensors", ClassTable((7,), ("object",)))[1] == []
    assert started(tiny_config, tmp_path / "one.safetensors", ClassTable((1, 2), ("nucleus", "cell")))[1] != []


@pytest.mark.parametrize("head", ["masklab", "mask_rcnn", "fcis"])
def test_the_layers_of_classes_are_those_that_grow_with_them(tiny_config, head):
    fields = {"head": head, "mask_size": 14} | ({} if head == "masklab" else {"refine_levels": []})
    config = changed(tiny_config, model={"mask": fields})
    tables = [ClassTable(tuple(range(n)), tuple(map(str, range(n)))) for n in (2, 3)]
    few, more = (build_model(config, table, load_pretrained=False).state_dict() for table in tables)
    grown = {name.rpartition(".")[0] for name, value in few.items() if value.shape != more[name].shape}
    assert grown == {layer for layer in OF_CLASSES if f"{layer}.weight" in few}


@pytest.mark.parametrize(("field", "value", "has"), [("name", "resnet34", "resnet18"), ("width", 0.5, 0.25)])
def test_another_backbone_is_refused(trained, tiny_config, shapes, tmp_path, field, value, has):
    config = changed(tiny_config, model={"backbone": {field: value}}, train={"start_from": str(trained)})
    words = [f"model.backbone.{field} is {value}", f"train.start_from, {trained}, was trained with {has}"]
    fails(words, train, config, shapes, tmp_path)
    assert not list(tmp_path.iterdir()), "before the training starts"


def test_what_is_no_model_is_refused(tiny_config, shapes, tmp_path):
    (tmp_path / "text.safetensors").write_text("no weights")
    for name, words in [("text.safetensors", "is not a weights file"), ("none", "there is no such run folder")]:
        config = changed(tiny_config, train={"start_from": str(tmp_path / name)})
        fails([str(tmp_path / name), words], train, config, shapes, tmp_path / "run")
        fails(["train.start_from", "leave it out"], pretrain, config, shapes, tmp_path / "run")


def test_weights_of_the_backbone_are_not_looked_for(trained, tiny_config):
    """They could not be had: there is no such file."""
    config = changed(tiny_config, model={"backbone": {"segmentation_weights": "none.safetensors"}})
    check_network(config.model, load_pretrained=False)
    fails(["none.safetensors"], check_network, config.model)


def test_training_goes_on_from_it(trained, tiny_config, shapes, tmp_path, caplog):
    """A step too small to see leaves the weights as they were; the run then stands on its own."""
    source, run = tmp_path / "model.safetensors", tmp_path / "run"
    source.write_bytes(trained.read_bytes())
    steps = {"start_from": str(source), "steps": 1, "learning_rate": 1e-30, "ema": 0.9}
    with caplog.at_level("INFO", "masklab"):
        train(changed(tiny_config, train=steps), shapes, run)
    assert f"train.start_from {source}: weights loaded for all layers" in caplog.messages
    wanted = load_model(trained, "cpu").state_dict()
    for name, value in load_model(run, "cpu").state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-20, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    source.unlink()
    train(changed(tiny_config, train=steps), shapes, run, resume=True)
    with safe_open(run / "best.safetensors", framework="pt") as opened:
        assert "model.safetensors" not in str(opened.metadata())

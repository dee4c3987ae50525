"""Batch norm in several threads: each part of a batch has its own statistics, and averages move in the parts' order."""

import threading
import time

import pytest
import torch
from contracts import changed
from torch import nn

from masklab.config.model import BackboneConfig
from masklab.datasets.split import Split
from masklab.model.backbone import build_backbone
from masklab.model.build import build_model
from masklab.model.norms import BatchNorm, add_statistics, held_statistics
from masklab.training.data.loader import InstanceDataset, collate
from masklab.training.gradients import BatchGradients, split_batch
from masklab.training.task import InstanceTask


def test_held_statistics_make_the_same_averages():
    torch.manual_seed(0)
    ours, plain = BatchNorm(5), nn.BatchNorm2d(5)
    for _ in range(3):
        maps = torch.randn(4, 5, 6, 7) * 3 + 1
        with held_statistics() as seen:
            before = ours.running_mean.clone()
            result = ours(maps)
            assert torch.equal(ours.running_mean, before)
        add_statistics(seen)
        torch.testing.assert_close(result, plain(maps))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    with held_statistics() as seen:
        torch.testing.assert_close(ours.eval()(maps), plain.eval()(maps))
    assert seen == []


def test_another_thread_does_not_see_what_is_held():
    norm, found = BatchNorm(2), []
    with held_statistics() as seen:
        thread = threading.Thread(target=lambda: found.append(norm(torch.randn(3, 2, 4, 4))))
        thread.start()
        thread.join()
        assert seen == []
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("slow", [0, 1], ids=["the first is slow", "the second is slow"])
def test_parts_in_threads_equal_parts_in_turn(shapes, tiny_config, slow, monkeypatch):
    config = changed(tiny_config, model={"backbone": {"norm": "batch"}}, train={"threads": 2, "precision": "float32"})
    split = Split.find(shapes, "train")
    batch = collate([InstanceDataset(split, config, augmented=False)[row] for row in range(4)], 8)
    torch.manual_seed(0)
    networks = [build_model(config, split.categories).train() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    tasks = [InstanceTask(network, split) for network in networks]
    losses = tasks[0].losses

    def delayed(part, first):
        result = losses(part, first)
        if first == 2 * slow:
            time.sleep(0.5)
        return result

    monkeypatch.setattr(tasks[0], "losses", delayed)
    gradients = BatchGradients(tasks[0], torch.device("cpu"))
    assert gradients.threads == 2
    gradients.add(batch)
    gradients.close()
    for part, first in zip(split_batch(batch, 2), (0, 2), strict=True):
        (torch.stack(list(tasks[1].losses(part, first).values())).sum() / 2).backward()
    averages = 0
    for name, value in networks[1].state_dict().items():
        torch.testing.assert_close(networks[0].state_dict()[name], value, atol=1e-5, rtol=1e-4)
        averages += "running_mean" in name
    assert averages > 10
    for (name, one), other in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_conv5_alone_may_be_narrower():
    config = BackboneConfig(name="resnet18", pretrained=False, norm="batch", width=0.5, conv5_width=0.3125)
    for load in (True, False):  # by timm, and without it
        backbone, make_conv5 = build_backbone(config, load_pretrained=load)
        assert [backbone.channels[f"conv{n}"] for n in range(2, 6)] == [32, 64, 128, 160]
        maps = make_conv5()(backbone(torch.randn(2, 3, 33, 41)).conv4)
        assert maps.shape == (2, 160, 5, 6)


def test_a_narrow_conv5_has_no_imagenet_weights():
    with pytest.raises(ValueError, match=r"conv5_width is 0\.5 but pretrained is true"):
        BackboneConfig(name="resnet18", conv5_width=0.5)

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from masklab.config.schema import Config
from masklab.datasets.split import Split
from masklab.datasets.synthetic.shapes import draw_shapes
from masklab.structures import Targets
from masklab.training.data.loader import InstanceDataset, StreamSampler, collate, train_loader
from masklab.utils.errors import InputError


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return Split.find(draw_shapes(tmp_path_factory.mktemp("loader") / "set", {"train": 11}, size=(64, 80)), "train")


def make_config(steps=8, workers=0, model=None, **augment):
    return Config.model_validate(
        {
            "model": {"mask": {"mask_size": 9, "train_masks": 6}, **(model or {})},
            "image": {"scale": 1.0, "augment": augment},
            "train": {"steps": steps, "batch_size": 3, "workers": workers, "seed": 4},
        }
    )


LIVELY = {"scale_jitter": (0.6, 1.5), "crop_size": 64, "vertical_flip": True, "brightness": 0.2}


def assert_same(one, two):
    assert one.image_ids == two.image_ids
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.sizes, two.sizes)
    for a, b in zip(one.targets, two.targets, strict=True):
        assert all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def test_no_images(tmp_path):
    folder = draw_shapes(tmp_path / "set", {"train": 0})
    with pytest.raises(InputError, match=r"train\.json has no images to train on; name another split\."):
        train_loader(Split.find(folder, "train"), make_config())


def test_images_without_objects(split):
    empty = next(k for k in range(len(split)) if len(split.objects(k)) == 0)
    sample = InstanceDataset(split, make_config())[empty]
    batch = collate([sample, sample], 8)
    assert all(len(targets.boxes) == len(targets.masks) == 0 for targets in batch.targets)
    assert batch.images.shape == (2, 3, 65, 81)


def test_one_batch_holds_what_it_says(split):
    config = make_config(**LIVELY)
    batches = list(train_loader(split, config))
    assert len(batches) == len(train_loader(split, config)) == 8
    ids = {image.image_id for image in split.images}
    for batch in batches:
        assert batch.images.shape[:2] == (3, 3)
        assert batch.images.dtype == torch.float32
        assert batch.sizes.dtype == torch.int64
        assert all((side - 1) % 8 == 0 for side in batch.images.shape[2:])
        assert set(batch.image_ids) <= ids
        assert (batch.sizes.amax(0) + 8 > torch.tensor(batch.images.shape[2:])).all()
        for tensor, (height, width), targets in zip(batch.images, batch.sizes.tolist(), batch.targets, strict=True):
            assert tensor[:, height:].abs().sum() == tensor[:, :, width:].abs().sum() == 0
            assert tensor[:, :height, :width].abs().min(dim=0).values.median() > 0
            assert (targets.boxes[:, 2:] <= torch.tensor([width, height])).all()
            assert (targets.boxes[:, 2:] - targets.boxes[:, :2] >= 2).all()
            assert len(targets.masks) == min(6, len(targets.boxes))
            assert targets.masks.shape[1:] == (9, 9)
    assert len({tuple(size) for batch in batches for size in batch.sizes.tolist()}) > 3


def test_sizes_follow_the_stride():
    none = Targets(*(torch.zeros(0) for _ in range(6)))
    samples = [(torch.ones(3, 70, 33), none, "a"), (torch.ones(3, 30, 90), none, "b")]
    assert collate(samples, 8).images.shape == (2, 3, 73, 97)
    assert collate(samples, 32).images.shape == (2, 3, 97, 97)
    assert collate(samples, 16).images.shape == (2, 3, 81, 97)
    batch = collate(samples, 16)
    assert batch.sizes.tolist() == [[70, 33], [30, 90]]
    assert batch.images.sum() == 3 * (70 * 33 + 30 * 90)


def test_stream_goes_round_every_image():
    batches = list(StreamSampler(range(7), 3, 14, seed=1))
    positions = [position for batch in batches for position, _ in batch]
    indices = [index for batch in batches for _, index in batch]
    assert positions == list(range(42))
    rounds = [indices[k : k + 7] for k in range(0, 42, 7)]
    assert all(sorted(r) == list(range(7)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 6
    assert list(StreamSampler(range(7), 3, 14, seed=1, first_step=5)) == batches[5:]
    assert list(StreamSampler(range(7), 3, 14, seed=2)) != batches
    assert list(StreamSampler(range(2), 5, 3, seed=0, first_step=3)) == []
    far = next(iter(StreamSampler(range(7), 2, 10**9, seed=0, first_step=10**8)))
    assert [position for position, _ in far] == [2 * 10**8, 2 * 10**8 + 1]


def test_images_that_are_not_grey_come_as_often_as_wanted(tmp_path):
    folder = draw_shapes(tmp_path / "set", {"train": 5}, size=(64, 80))
    for name in sorted((folder / "train").iterdir())[:3]:
        Image.open(name).convert("L").save(name)
    some = Split.find(folder, "train")
    for often in (1, 3):
        config = make_config(steps=8)
        config = config.model_copy(update={"train": config.train.model_copy(update={"repeat_colour": often})})
        round_ = 3 + 2 * often
        shown = [index for batch in train_loader(some, config).batch_sampler for _, index in batch][: 2 * round_]
        assert sorted(shown[:round_]) == sorted(shown[round_:]) == sorted([0, 1, 2, *[3, 4] * often])


def test_workers_and_resuming_do_not_change_the_run(split):
    whole = list(train_loader(split, make_config(**LIVELY)))
    for batch, again in zip(whole, train_loader(split, make_config(workers=2, **LIVELY)), strict=True):
        assert_same(batch, again)
    for batch, again in zip(whole[5:], train_loader(split, make_config(**LIVELY), first_step=5), strict=True):
        assert_same(batch, again)


def test_the_stream_neither_reads_nor_moves_global_randomness(split):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = next(iter(train_loader(split, make_config(**LIVELY))))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert_same(first, next(iter(train_loader(split, make_config(**LIVELY)))))


def test_an_image_changes_from_round_to_round(split):
    dataset = InstanceDataset(split, make_config(**LIVELY))
    assert torch.equal(dataset[5, 2][0], dataset[5, 2][0])
    assert not torch.equal(dataset[5, 2][0], dataset[16, 2][0])
    assert dataset[5, 2][2] == split.images[2].image_id


def test_without_augmentation_images_are_only_resized(split):
    config = make_config(**LIVELY)
    tensor, targets, image_id = InstanceDataset(split, config, augmented=False)[3]
    assert tensor.shape == (3, 64, 80)
    assert image_id == 4
    restored = tensor * torch.tensor(config.image.std).view(3, 1, 1) + torch.tensor(config.image.mean).view(3, 1, 1)
    assert np.abs(restored.numpy() * 255 - split.read(3, 3)).max() < 0.01
    assert targets.boxes.numpy() == pytest.approx(
        split.objects(3).boxes[np.isin(split.objects(3).boxes, targets.boxes).all(axis=1)]
    )
    assert len(list(InstanceDataset(split, config, augmented=False))) == 11


@pytest.mark.filterwarnings("error")
def test_one_channel(split):
    config = Config.model_validate(
        {"model": {"backbone": {"in_channels": 1}}, "image": {"mean": [0.5], "std": [0.2], "scale": 0.5}}
    )
    tensor, _, _ = InstanceDataset(split, config)[0]
    assert tensor.shape == (1, 32, 40)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_sentence(tmp_path, workers):
    folder = draw_shapes(tmp_path / "set", {"train": 3})
    Image.new("RGB", (10, 12)).save(folder / "train/00001.png")
    loader = train_loader(Split.find(folder, "train"), make_config(workers=workers))
    with pytest.raises(InputError) as caught:
        list(loader)
    assert str(caught.value).startswith(str(folder / "train/00001.png") + " is 10 wide and 12 high")
    assert "\n" not in str(caught.value)


class Threads(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return torch.get_num_threads()


def test_workers_use_one_thread(split):
    loader = train_loader(split, make_config())
    assert next(iter(DataLoader(Threads(), num_workers=1, worker_init_fn=loader.worker_init_fn))).item() == 1

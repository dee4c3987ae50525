"""Augmentation of colour, intensity, stains and sharpness, and the range of intensities that it starts from."""

import numpy as np
import pytest
import torch

from masklab.config.image import AugmentConfig, ImageConfig
from masklab.images.intensity import intensity_range, rescale_intensity
from masklab.training.data.appearance import _remix, change_appearance
from masklab.training.data.transforms import sample_window
from masklab.utils.errors import InputError


def changed(image, seed=0, **change):
    return change_appearance(image, AugmentConfig(**change), np.random.default_rng(seed))


def colours(seed=0, low=40, high=200):
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, (3, 20, 30), dtype=np.uint8))


def tissue():
    """Violet discs on a pale pink ground."""
    y, x = np.mgrid[:40, :40]
    image = np.empty((3, 40, 40), np.uint8)
    image[:] = np.array([240, 215, 230], np.uint8)[:, None, None]
    image[:, (x - 20) ** 2 + (y - 20) ** 2 < 60] = np.array([110, 70, 150], np.uint8)[:, None]
    return torch.from_numpy(image)


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": 0.5},
        {"illumination": 0.5},
        {"blur": 2.0},
        {"sharpen": 1.0},
        {"noise": 0.1},
        {"stains": 0.5},
        {"grey": 0.5},
        {"tint": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_each_change_is_drawn_from_the_seed_and_stays_in_range(change):
    images = {"tissue": tissue(), "grey": colours()[:1].repeat(3, 1, 1), "dark": colours(1, 0, 90)}
    met = set()
    for name, image in images.items():
        for seed in range(12):
            found = changed(image, seed, **change)
            assert found.shape == image.shape
            assert found.min() >= 0
            assert found.max() <= 255 + 1e-3
            assert torch.equal(found, changed(image, seed, **change))
            if (found - image.float()).abs().max() > 1:
                met.add(name)
    expected = {"stains": {"tissue"}, "tint": {"grey"}, "grey": {"tissue", "dark"}}
    assert met == expected.get(next(iter(change)), set(images))


def test_the_changes_by_hand():
    image = colours()
    unit = image.double() / 255
    exponent = torch.log(changed(image, 3, gamma=0.7).double() / 255) / torch.log(unit)
    assert exponent.max() - exponent.min() < 1e-3
    assert abs(float(exponent.mean()) - 1) > 0.01

    factor = changed(torch.full((1, 21, 31), 200.0), 2, illumination=0.6)[0] / 200
    assert 0.4 - 1e-5 <= factor.min() < factor.max() <= 1
    bent = factor[1:-1, 1:-1] * 2 - factor[2:, 2:] - factor[:-2, :-2]
    assert bent.abs().max() < 1e-5, "intensity falls along a straight line"

    spread = [float((changed(torch.full((1, 64, 64), 128.0), seed, noise=0.1) - 128).std()) / 255 for seed in range(40)]
    assert 0.07 < max(spread) <= 0.102
    assert 10 <= sum(value < 1e-6 for value in spread) <= 30, "every other image has noise"

    rough = [float(changed(image, seed, blur=3.0).std()) for seed in range(40)]
    assert min(rough) < 0.3 * float(image.float().std())
    assert 10 <= sum(abs(value - float(image.float().std())) < 1 for value in rough) <= 30
    assert max(float(changed(image, seed, sharpen=2.0).std()) for seed in range(9)) > 1.2 * float(image.float().std())


def test_stains_change_in_amount_and_leave_the_light_ground():
    image = tissue()
    for seed in range(6):
        found = changed(image, seed, stains=0.6)
        assert (found[:, 1, 1] - image[:, 1, 1].float()).abs().max() < 25
        assert (found[:, 20, 20] - image[:, 20, 20].float()).abs().max() > 2
        assert found[:, 20, 20].mean() < found[:, 1, 1].mean() - 10
    assert torch.allclose(changed(image, stains=1e-9), image.float(), atol=1.5)


def test_grey_and_tint():
    found = changed(colours(), grey=1.0)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    grey = colours()[:1].repeat(3, 1, 1)
    single = 0
    for seed in range(20):
        found = changed(grey, seed, tint=1.0)
        ratio = found / grey
        assert (ratio.amax(dim=(1, 2)) - ratio.amin(dim=(1, 2))).max() < 1e-3, "one colour"
        assert float(ratio.max()) == pytest.approx(1, abs=1e-3), "the strongest channel is kept"
        single += int((ratio.amax(dim=(1, 2)) > 1e-6).sum() == 1)
    assert 4 <= single <= 16


def test_colour_needs_three_channels():
    for name in ("stains", "grey", "tint", "hue", "saturation"):
        for channels in (1, 5):
            with pytest.raises(InputError, match=f"image.augment.{name} needs .* 3 channels, not {channels}"):
                changed(torch.zeros(channels, 8, 8), **{name: 0.5})
    assert changed(torch.zeros(5, 8, 8), noise=0.1, blur=1.0, gamma=0.2).shape == (5, 8, 8)
    assert changed(torch.zeros(3, 1, 1), blur=9.0, sharpen=2.0, illumination=0.5, noise=0.1).shape == (3, 1, 1)


def test_stains_are_those_of_scikit_image():
    color = pytest.importorskip("skimage.color")
    amounts = np.random.default_rng(0).uniform(0.02, 0.12, (12, 9, 3))
    pixels, factors = color.hed2rgb(amounts), np.array([1.3, 0.6, 1.1])
    assert 0.02 < pixels.min() < pixels.max() < 1
    expected = color.hed2rgb(color.rgb2hed(pixels) * factors)
    found = _remix(torch.from_numpy(pixels.transpose(2, 0, 1)).float(), factors)
    np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=2e-3)


def test_a_stretch_keeps_the_area():
    rule = ImageConfig(scale=2.0, augment=AugmentConfig(aspect_jitter=2.0))
    ratios = []
    for seed in range(200):
        high, wide = sample_window((100, 100), rule, np.random.default_rng(seed)).target
        assert high * wide == pytest.approx(200 * 200, rel=0.02)
        ratios.append(high / wide)
    assert 0.5 <= min(ratios) < 0.53
    assert 1.9 < max(ratios) <= 2.02


def test_crops_on_objects_hold_one():
    boxes = np.array([[5.0, 300, 15, 310], [380, 10, 395, 20]])
    windows = {}
    for share in (0.0, 0.5, 1.0):
        rule = ImageConfig(scale=1.0, augment=AugmentConfig(crop_size=100, crop_on_object=share))
        seen = []
        for seed in range(200):
            box = sample_window((400, 400), rule, np.random.default_rng(seed), boxes).box
            assert 0 <= box[0] < box[2] <= 400
            assert 0 <= box[1] < box[3] <= 400
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            seen.append((centres >= box[:2]).all(axis=1) & (centres <= box[2:]).all(axis=1))
        windows[share] = np.array(seen)
    assert windows[1.0].any(axis=1).all()
    assert 60 < windows[1.0][:, 0].sum() < 140, "each object in its turn"
    found = [windows[share].any(axis=1).mean() for share in (0.0, 0.5, 1.0)]
    assert found[0] < 0.2
    assert 0.4 < found[1] < 0.65


# ---- the range of intensities

PERCENTILES = ImageConfig(percentiles=(1, 99.8))
ROBUST = ImageConfig(percentiles=(1, 99.8), robust_range=True)


def ground(seed=0, size=(1, 256, 256), level=20, noise=2.0):
    return np.random.default_rng(seed).normal(level, noise, size).round().clip(0, 255).astype(np.uint8)


def test_a_robust_range_keeps_sparse_objects_on_empty_ground():
    image = ground()
    image[0, 100:109, 100:109] = 200  # 0.12 % of the pixels
    assert intensity_range(image, PERCENTILES)[1][0] < 40
    low, high = intensity_range(image, ROBUST)
    assert high[0] == pytest.approx(200, abs=2)
    dark, light = intensity_range(255 - image, ROBUST)
    assert (dark[0], light[0]) == pytest.approx((255 - high[0], 255 - low[0]), abs=8)


def test_a_robust_range_does_not_stretch_noise():
    assert np.ptp(rescale_intensity(ground(), PERCENTILES)) == 255
    assert rescale_intensity(ground(), ROBUST).std() < 25
    colour = np.concatenate([ground(noise=0.7, level=1), ground(1, noise=0.7, level=1), ground(2)])
    colour[2, 50:90, 50:90] = 180
    assert rescale_intensity(colour, PERCENTILES)[0].std() > 60
    assert rescale_intensity(colour, ROBUST)[0].std() < 12, "an unused channel stays unused"


def test_a_robust_range_ignores_hot_and_dead_pixels():
    image = ground(noise=1.0)
    image[0, 40:120, 40:120] = 120
    clean = intensity_range(image, ROBUST)
    rng = np.random.default_rng(1)
    image[0, rng.integers(256, size=60), rng.integers(256, size=60)] = 255
    image[0, rng.integers(256, size=60), rng.integers(256, size=60)] = 0
    assert np.allclose(clean, intensity_range(image, ROBUST), atol=3)
    assert clean[1][0] == pytest.approx(120, abs=2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 300), (2, 300, 1), (3, 7, 5), (4, 13, 1000)])
def test_a_robust_range_of_odd_shapes_and_of_what_is_no_number(shape):
    for image in (
        ground(size=shape),
        np.zeros(shape, np.uint16),
        np.full(shape, np.nan, np.float32),
        np.where(np.random.default_rng(0).random(shape) < 0.3, np.inf, 1.0).astype(np.float32),
    ):
        low, high = intensity_range(image, ROBUST)
        assert len(low) == len(high) == shape[0]
        assert all(a < b for a, b in zip(low, high, strict=True))
        found = rescale_intensity(image, ROBUST)
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found.max() <= 255


def test_a_robust_range_is_never_narrower_than_its_percentiles():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image = (rng.random((3, 60, 80)) ** rng.uniform(0.3, 6) * rng.uniform(5, 60_000)).astype(np.uint16)
        (low, high), (robust_low, robust_high) = (intensity_range(image, rule) for rule in (PERCENTILES, ROBUST))
        assert (np.array(robust_low) <= low).all()
        assert (np.array(robust_high) >= high).all()

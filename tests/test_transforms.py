import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from masklab.config.image import AugmentConfig, ImageConfig
from masklab.datasets.objects import Objects
from masklab.images.intensity import normalise
from masklab.images.resize import network_size, resize
from masklab.masks import encode
from masklab.ops.coordinates import padded_size
from masklab.training.data.targets import make_targets
from masklab.training.data.transforms import Geometry, augment_window, crop_to_box, quarter_turn, sample_window
from masklab.utils.errors import InputError

SIZE = (40, 60)


def generator(seed=0):
    return np.random.default_rng(seed)


def augment(image, geometry, config, rng):
    """An image and its geometry as `masklab.training.data.loader.open_training_image` brings them to the network."""
    box, target = sample_window(geometry.canvas_size, config, rng)
    if box is not None:
        image, geometry = crop_to_box(image, box), crop_to_box(geometry, box)
    return augment_window(image, geometry, target, config.augment, rng)


def ramp(size):
    """An image whose two channels are each pixel's own x and y."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    return torch.from_numpy(np.stack((xs, ys))).float()


def blobs(size, count=6, seed=0):
    """Full binary masks, one a blob of random rectangles: (count, H, W)."""
    rng, masks = generator(seed), np.zeros((count, *size), np.uint8)
    for mask in masks:
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        for _ in range(3):
            dy, dx = rng.integers(-3, 4, 2)
            mask[max(0, y + dy) : y + dy + rng.integers(3, 15), max(0, x + dx) : x + dx + rng.integers(3, 15)] = 1
    return masks


def objects_of(masks, ignored=()):
    size = masks.shape[1:]
    runs = encode.encode_windows(list(masks), [(0, 0, size[1], size[0])] * len(masks), size)
    return Objects.build(size, runs, list(range(len(masks))), list(ignored))


def targets_of(masks, geometry, crop=9, max_masks=100, **options):
    """Targets with their masks back in the order of the boxes."""
    targets = make_targets(objects_of(masks), geometry, crop, max_masks, generator(), **options)
    order = targets.mask_rows.argsort()
    targets.masks, targets.mask_rows = targets.masks[order], targets.mask_rows[order]
    targets.mask_boxes = targets.mask_boxes[order]
    return targets


def assert_follows(image, geometry, margin=3):
    """The transformed ramp tells where each pixel came from; so does the geometry."""
    height, width = geometry.canvas_size
    assert image.shape[1:] == (height, width)
    matrix = geometry.matrix()
    source_height, source_width = geometry.source_size
    checked = 0
    for i in range(height):
        for j in range(width):
            x, y, one = matrix @ [j + 0.5, i + 0.5, 1]
            assert one == 1
            if margin < x < source_width - margin and margin < y < source_height - margin:
                near = (min(i, j, height - 1 - i, width - 1 - j)) >= margin
                if near:
                    assert image[:, i, j].tolist() == pytest.approx([x, y], abs=0.1)
                    checked += 1
    assert checked > 20


def quarter(turns):
    return lambda image, geometry: (quarter_turn(image, turns), quarter_turn(geometry, turns))


STEPS = {
    "left-right": v2.RandomHorizontalFlip(1),
    "up-down": v2.RandomVerticalFlip(1),
    "larger": v2.Resize((61, 77)),
    "smaller": v2.Resize((23, 31)),
    "shortest side": v2.Resize(33),
    "longest side": v2.Resize(33, max_size=41),
    "crop": v2.RandomCrop((21, 23)),
    "one quarter": quarter(1),
    "two quarters": quarter(2),
    "three quarters": quarter(3),
}


@pytest.mark.parametrize("name", STEPS)
def test_geometry_follows_each_transform(name):
    torch.manual_seed(1)
    assert_follows(*STEPS[name](v2.functional.to_image(ramp(SIZE)), Geometry.identity(SIZE)))


@pytest.mark.parametrize("seed", range(6))
def test_geometry_follows_random_compositions(seed):
    torch.manual_seed(seed)
    names = [list(STEPS)[k] for k in generator(seed).permutation(len(STEPS))[:4]]
    image, geometry = v2.functional.to_image(ramp(SIZE)), Geometry.identity(SIZE)
    for name in names:
        if name == "crop" and min(image.shape[1:]) < 24:
            continue
        image, geometry = STEPS[name](image, geometry)
    assert_follows(image, geometry, margin=5)
    matrix = geometry.matrix()
    assert ((matrix[:2, :2] == 0).sum(axis=1) == 1).all()


@pytest.mark.parametrize("seed", range(8))
def test_geometry_follows_augment(seed):
    rng = generator(seed)
    change = AugmentConfig(
        vertical_flip=True,
        quarter_turns=True,
        scale_jitter=(0.7, 1.6),
        crop_size=None if seed % 4 == 0 else 32,
    )
    data = ImageConfig(scale=1.0, augment=change)
    image, geometry = augment(ramp(SIZE), Geometry.identity(SIZE), data, rng)
    assert_follows(image, geometry)
    if change.crop_size:
        assert max(image.shape[1:]) <= 32


def test_other_transforms_that_move_pixels_are_refused():
    moving = (v2.RandomRotation(30), v2.RandomPerspective(p=1), v2.ElasticTransform(), v2.CenterCrop(5), v2.Pad(3))
    for step in (*moving, v2.RandomResizedCrop(9)):
        with pytest.raises(TypeError, match="leave this transform out"):
            step(v2.functional.to_image(ramp(SIZE)), Geometry.identity(SIZE))


def test_colour_leaves_the_geometry_alone():
    geometry = Geometry.identity(SIZE)
    assert (v2.ColorJitter(0.5, 0.5)(geometry).matrix() == np.eye(3)).all()


def test_flip_twice_and_four_quarters_are_nothing():
    image, geometry = ramp(SIZE), resize(Geometry.identity(SIZE), (31, 77))
    for step in (F.horizontal_flip, F.vertical_flip):
        assert torch.equal(step(step(image)), image)
        assert step(step(geometry)).matrix() == pytest.approx(geometry.matrix(), abs=1e-12)
    transposed, followed = image, geometry
    for _ in range(4):
        transposed, followed = quarter_turn(transposed, 1), quarter_turn(followed, 1)
    assert torch.equal(transposed, image)
    assert followed.matrix() == pytest.approx(geometry.matrix(), abs=1e-12)
    assert followed.canvas_size == geometry.canvas_size
    assert quarter_turn(geometry, 3).matrix() == pytest.approx(quarter_turn(geometry, -1).matrix())


def test_geometry_by_hand():
    geometry = F.horizontal_flip(resize(F.crop(Geometry.identity((10, 20)), 2, 4, 6, 8), (12, 16)))
    assert geometry.canvas_size == (12, 16)
    assert geometry.view().tolist() == [4, 2, 12, 8]
    assert geometry.magnification() == 4
    assert geometry.boxes_to_output(np.array([[4, 2, 5, 3], [0, 0, 20, 10]])).tolist() == [
        [14, 0, 16, 2],
        [0, 0, 16, 12],
    ]


# ---- sizes and colours


def test_network_size_by_hand():
    rule = ImageConfig(min_side=600, max_side=1024)
    assert network_size((480, 640), rule) == (600, 800)
    assert network_size((300, 900), rule) == (341, 1024)
    assert network_size((600, 600), rule) == (600, 600)
    assert network_size((427, 640), rule) == (600, 899)
    assert network_size((100, 50), ImageConfig(scale=0.5)) == (50, 25)
    assert network_size((100, 50), ImageConfig(scale=0.001)) == (1, 1)


def test_padded_size_by_hand():
    assert padded_size((800, 801), 8) == (801, 801)
    assert padded_size((802, 1), 16) == (817, 17)
    assert padded_size((800, 801), 32) == (801, 801)


def test_normalise():
    data = ImageConfig()
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert normalise(image, data).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert image.dtype == torch.uint8


def recolour(image, seed=0, **change):
    data = ImageConfig(scale=1.0, augment=AugmentConfig(horizontal_flip=False, **change))
    return augment(image, Geometry.identity((image.shape[1], image.shape[2])), data, generator(seed))[0]


def test_colours():
    image = torch.from_numpy(generator().integers(40, 200, (3, 20, 30), dtype=np.uint8))
    assert torch.equal(recolour(image), image)
    assert torch.equal(recolour(image, invert=1.0), 255 - image)
    brighter = recolour(image, brightness=0.2).float() / image
    assert brighter.max() - brighter.min() < 0.03
    assert (brighter.mean() - 1).abs() > 0.01
    contrast = recolour(image, contrast=0.5).float()
    luma = torch.tensor([0.299, 0.587, 0.114])
    middle = torch.einsum("chw,c->hw", image.float(), luma).mean()
    stretched = (contrast - middle) / (image.float() - middle)
    stretched = stretched[(image.float() - middle).abs() > 20]
    assert stretched.max() - stretched.min() < 0.1, "all values move away from the mean brightness by one factor"
    assert (stretched.mean() - 1).abs() > 0.05
    negative = 255 - recolour(image, contrast=0.5, invert=1.0).float()
    assert (negative - contrast).abs().max() <= 1
    dull = image // 4 + 90
    for seed in range(5):
        chroma = recolour(dull, seed, saturation=0.5)
        assert not torch.equal(chroma, dull)
        assert torch.einsum("chw,c->hw", chroma.float() - dull.float(), luma).abs().max() < 1.5
        hue = recolour(dull, seed, hue=0.5)
        assert not torch.equal(hue, dull)
        assert (hue.amax(dim=0).float() - dull.amax(dim=0).float()).abs().max() <= 1, "a hue keeps the value"
    grey = torch.full((3, 4, 4), 77, dtype=torch.uint8)
    assert torch.equal(recolour(grey, saturation=1.0, hue=0.5), grey)
    channels = recolour(image[:1].repeat(5, 1, 1), brightness=0.5, contrast=0.5, invert=0.5)
    assert channels.shape == (5, 20, 30)
    assert torch.equal(channels, recolour(image[:1], brightness=0.5, contrast=0.5, invert=0.5).expand(5, 20, 30))
    with pytest.raises(InputError, match="3 channels, not 1"):
        recolour(image[:1], hue=0.1)


# ---- targets


def slow_targets(masks, matrix, canvas, crop):
    """Boxes and soft masks from full masks, pixel by pixel."""
    height, width = canvas
    inverse = np.linalg.inv(matrix)
    boxes, soft, rows = [], [], []
    for row, mask in enumerate(masks):
        corners, area = [], 0
        for y, x in np.argwhere(mask):
            a, b = (inverse @ [x, y, 1])[:2], (inverse @ [x + 1, y + 1, 1])[:2]
            low, high = np.maximum(np.minimum(a, b), 0), np.minimum(np.maximum(a, b), (width, height))
            if (high - low > 1e-9).all():
                corners += [low, high]
                area += 1
        if not corners:
            continue
        (x1, y1), (x2, y2) = np.min(corners, axis=0), np.max(corners, axis=0)
        if x2 - x1 < 2 or y2 - y1 < 2 or area / abs(np.linalg.det(matrix)) < 1:
            continue
        sampled = np.zeros((crop, crop))
        for i in range(crop):
            for j in range(crop):
                out_y = min(max(y1 + (y2 - y1) * i / (crop - 1) - 0.5, 0), height - 1)
                out_x = min(max(x1 + (x2 - x1) * j / (crop - 1) - 0.5, 0), width - 1)
                x, y, _ = matrix @ [out_x + 0.5, out_y + 0.5, 1]
                sampled[i, j] = bilinear(mask, y - 0.5, x - 0.5)
        boxes.append([x1, y1, x2, y2])
        soft.append(sampled)
        rows.append(row)
    return np.array(boxes).reshape(-1, 4), np.array(soft).reshape(-1, crop, crop), rows


def bilinear(mask, y, x):
    y, x = min(max(y, 0), mask.shape[0] - 1), min(max(x, 0), mask.shape[1] - 1)
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    y1, x1 = min(y0 + 1, mask.shape[0] - 1), min(x0 + 1, mask.shape[1] - 1)
    top = mask[y0, x0] * (1 - (x - x0)) + mask[y0, x1] * (x - x0)
    return top * (1 - (y - y0)) + (mask[y1, x0] * (1 - (x - x0)) + mask[y1, x1] * (x - x0)) * (y - y0)


def random_geometry(seed):
    rng, size = generator(seed), (30, 40)
    data = ImageConfig(
        scale=1.0,
        augment=AugmentConfig(vertical_flip=True, quarter_turns=True, scale_jitter=(0.5, 2), crop_size=20),
    )
    return augment(torch.zeros(1, *size, dtype=torch.uint8), Geometry.identity(size), data, rng)[1], size


@pytest.mark.parametrize("seed", range(6))
def test_targets_equal_the_slow_reference(seed):
    geometry, size = random_geometry(seed)
    masks = blobs(size, seed=seed)
    targets = targets_of(masks, geometry, 5)
    boxes, soft, rows = slow_targets(masks, geometry.matrix(), geometry.canvas_size, 5)
    assert targets.labels.tolist() == rows
    assert len(rows) > 0
    assert targets.boxes.numpy() == pytest.approx(boxes, abs=1e-4)
    assert targets.masks.numpy() == pytest.approx(soft, abs=1e-4)
    assert targets.mask_rows.tolist() == list(range(len(rows)))
    assert torch.equal(targets.mask_boxes, targets.boxes)


@pytest.mark.parametrize("seed", range(4))
def test_jittered_boxes_stay_near_and_hold_what_the_mask_shows_there(seed):
    masks, crop, share = blobs(SIZE, 8, seed), 5, 0.2
    targets = make_targets(objects_of(masks), Geometry.identity(SIZE), crop, 100, generator(seed), box_jitter=share)
    true, near = targets.boxes[targets.mask_rows], targets.mask_boxes
    moved = (near - true) / (true[:, 2:] - true[:, :2]).repeat(1, 2)
    assert moved.abs().max() <= share + 1e-5
    assert (moved.min(), moved.max()) == pytest.approx((-share, share), abs=0.1)  # in and out
    assert near.min() >= 0
    assert (near <= torch.tensor([SIZE[1], SIZE[0]] * 2)).all()
    for row, (x1, y1, x2, y2), found in zip(targets.mask_rows, near.tolist(), targets.masks, strict=True):
        ys, xs = np.linspace(y1, y2, crop) - 0.5, np.linspace(x1, x2, crop) - 0.5
        wanted = [[bilinear(masks[targets.labels[row]], y, x) for x in xs] for y in ys]
        assert found.numpy() == pytest.approx(np.array(wanted), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_targets_with_windows_that_cut_pixels(seed):
    masks, rng = blobs(SIZE, seed=seed), generator(seed)
    larger = resize(Geometry.identity(SIZE), (97, 131))
    geometry = F.crop(larger, int(rng.integers(30)), int(rng.integers(50)), 61, 71)
    targets = targets_of(masks, geometry, 5)
    boxes, soft, rows = slow_targets(masks, geometry.matrix(), (61, 71), 5)
    assert targets.labels.tolist() == rows
    assert targets.boxes.numpy() == pytest.approx(boxes, abs=1e-4)
    assert targets.masks.numpy() == pytest.approx(soft, abs=1e-4)


STEP = {
    "left-right": (F.horizontal_flip, lambda m: m[:, ::-1]),
    "up-down": (F.vertical_flip, lambda m: m[::-1]),
    "quarter": (lambda g: quarter_turn(g, 1), lambda m: np.rot90(m)),
    "crop": (lambda g: F.crop(g, 5, 9, 24, 30), lambda m: m[5:29, 9:39]),
}


@pytest.mark.parametrize("name", STEP)
def test_targets_of_a_moved_image_are_those_of_its_moved_masks(name):
    move, move_mask = STEP[name]
    masks = blobs(SIZE, 12)
    moved = np.stack([move_mask(mask) for mask in masks])
    by_geometry = targets_of(masks, move(Geometry.identity(SIZE)))
    kept = [k for k, mask in enumerate(moved) if mask.any()]
    by_masks = targets_of(moved[kept], Geometry.identity(moved.shape[1:]))
    assert by_geometry.labels.tolist() == [kept[k] for k in by_masks.labels.tolist()]
    assert len(by_masks.labels) > 3
    assert torch.equal(by_geometry.boxes, by_masks.boxes)
    torch.testing.assert_close(by_geometry.masks, by_masks.masks, atol=1e-5, rtol=0)


def test_flipped_targets_are_the_targets_flipped():
    masks = blobs(SIZE, 8)
    plain, flipped = (
        targets_of(masks, Geometry.identity(SIZE)),
        targets_of(masks, F.horizontal_flip(Geometry.identity(SIZE))),
    )
    torch.testing.assert_close(flipped.masks, plain.masks.flip(2), atol=1e-5, rtol=0)
    assert torch.equal(flipped.boxes[:, [2, 0]], SIZE[1] - plain.boxes[:, [0, 2]])
    transposed = targets_of(masks, quarter_turn(Geometry.identity(SIZE), 1))
    torch.testing.assert_close(transposed.masks, plain.masks.rot90(1, (1, 2)), atol=1e-5, rtol=0)


def test_tight_box_by_hand():
    mask = np.zeros((1, 6, 6), np.uint8)
    mask[0, 2:5, 1:4] = 1
    exact = targets_of(mask, Geometry.identity((6, 6)), 5)
    assert exact.boxes.tolist() == [[1, 2, 4, 5]]
    expected = np.ones((5, 5))
    expected[[0, -1]] *= 0.5
    expected[:, [0, -1]] *= 0.5
    assert exact.masks[0].numpy() == pytest.approx(expected)


def test_box_on_the_border_is_held_inside():
    mask = np.ones((1, 6, 6), np.uint8)
    assert (targets_of(mask, Geometry.identity((6, 6)), 5).masks == 1).all()
    assert (targets_of(mask, resize(Geometry.identity((6, 6)), (17, 13)), 5).masks == 1).all()


def test_no_objects():
    targets = targets_of(np.zeros((0, *SIZE), np.uint8), Geometry.identity(SIZE), 9)
    shapes = [(0, 4), (0,), (0, 9, 9), (0,), (0, 4)]
    dtypes = [torch.float32, torch.int64, torch.float32, torch.int64, torch.float32]
    values = (targets.boxes, targets.labels, targets.masks, targets.mask_rows, targets.ignored)
    assert [tuple(v.shape) for v in values] == shapes
    assert [v.dtype for v in values] == dtypes
    masks = np.zeros((1, *SIZE), np.uint8)
    masks[0, :5, :5] = 1
    gone = targets_of(masks, F.crop(Geometry.identity(SIZE), 10, 10, 20, 20), 9)
    assert [tuple(v.shape) for v in (gone.boxes, gone.masks)] == [(0, 4), (0, 9, 9)]


def test_objects_too_small_are_dropped():
    masks = np.zeros((4, *SIZE), np.uint8)
    masks[0, 0:4, 0:4] = 1
    masks[1, 10:14, 10:11] = 1
    masks[2, 20:22, 20:22] = 1
    masks[3, 3:10, 16:30] = 1
    assert targets_of(masks, Geometry.identity(SIZE)).labels.tolist() == [0, 2, 3]
    assert targets_of(masks, resize(Geometry.identity(SIZE), (20, 30))).labels.tolist() == [0, 3]
    assert targets_of(masks, F.crop(Geometry.identity(SIZE), 0, 0, 20, 17)).labels.tolist() == [0]
    scattered = np.zeros((1, *SIZE), np.uint8)
    scattered[0, [3, 12], [3, 12]] = 1
    assert targets_of(scattered, resize(Geometry.identity(SIZE), (32, 48))).labels.tolist() == [0]
    assert targets_of(scattered, resize(Geometry.identity(SIZE), (20, 30))).labels.tolist() == []


def test_crowds_follow_and_are_cut():
    objects = objects_of(np.zeros((0, *SIZE), np.uint8), [(0, 0, 10, 10), (20, 5, 40, 25), (50, 30, 60, 40)])
    geometry = F.horizontal_flip(F.crop(Geometry.identity(SIZE), 0, 10, 20, 30))
    targets = make_targets(objects, geometry, 5, 10, generator())
    assert targets.ignored.tolist() == [[0, 5, 20, 20]]


def test_max_masks_draws_among_all_objects():
    masks = np.zeros((30, *SIZE), np.uint8)
    for k in range(30):
        masks[k, 5 * (k // 8) : 5 * (k // 8) + 3, 6 * (k % 8) : 6 * (k % 8) + 4] = 1
    objects, seen = objects_of(masks), set()
    for seed in range(20):
        targets = make_targets(objects, Geometry.identity(SIZE), 3, 4, generator(seed))
        assert targets.boxes.shape == (30, 4)
        assert targets.masks.shape == (4, 3, 3)
        assert len(set(targets.mask_rows.tolist())) == 4
        seen |= set(targets.mask_rows.tolist())
    assert len(seen) > 20
    again = make_targets(objects, Geometry.identity(SIZE), 3, 4, generator(19))
    assert torch.equal(again.mask_rows, targets.mask_rows)


def test_shortest_sides_are_drawn_evenly_and_bound_the_longest():
    """By hand: the shortest side becomes the pick, unless the longest would pass 1.5 times it; at test, neither."""
    config = ImageConfig(min_side=80, max_side=120, augment=AugmentConfig(horizontal_flip=False, min_sides=[30, 60]))
    rng, drawn = generator(), {"square": [], "wide": []}
    for _ in range(200):
        for name, size in (("square", (40, 40)), ("wide", (20, 80))):
            image = torch.zeros(1, *size, dtype=torch.uint8)
            image, geometry = augment(image, Geometry.identity(size), config, rng)
            assert image.shape[1:] == geometry.canvas_size
            drawn[name].append(geometry.canvas_size)
    assert set(drawn["square"]) == {(30, 30), (60, 60)}
    assert set(drawn["wide"]) == {(11, 45), (22, 90)}
    assert 70 < drawn["square"].count((30, 30)) < 130
    assert network_size((40, 40), config) == (80, 80)


def test_images_are_mirrored_left_and_right_half_of_the_time():
    """And, unless asked for, neither upside down nor turned."""
    image, rng, seen = torch.tensor([[[10.0, 20], [30, 40]]]), generator(), []
    config = ImageConfig(scale=1.0)
    for _ in range(400):
        changed, geometry = augment(image, Geometry.identity((2, 2)), config, rng)
        assert (geometry.matrix()[0, 0] < 0) == (changed[0, 0, 0] == 20)
        seen.append(changed.flatten().tolist())
    hflip = seen.count([20, 10, 40, 30])
    assert 160 < hflip < 240
    assert hflip + seen.count([10, 20, 30, 40]) == 400


@pytest.mark.parametrize("first", range(4))
def test_shrinking_loses_no_line(first):
    """Of lines on every fourth column, whichever they are, each pixel of an image a quarter as large shows a quarter."""
    lines = torch.zeros(1, 32, 64)
    lines[..., first::4] = 200
    shrunk = resize(lines, (8, 16))
    torch.testing.assert_close(shrunk[..., 2:-2], torch.full((1, 8, 12), 50.0), atol=0.1, rtol=0)

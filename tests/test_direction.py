import zlib

import numpy as np
import pytest
import torch

from masklab.ops.crop_channels import crop_channels
from masklab.ops.direction import direction_table
from masklab.ops.rois import Rois


def crc(table):
    return zlib.crc32(table.numpy().astype(np.uint8).tobytes())


def test_eight_directions_on_a_5_grid():
    expected = [[7, 6, 6, 5, 5], [7, 7, 6, 5, 4], [0, 0, 0, 4, 4], [0, 1, 2, 3, 3], [1, 1, 2, 2, 3]]
    assert direction_table(5, 8, 1).tolist() == expected


def test_two_distance_bins_on_a_5_grid():
    expected = [
        [15, 14, 14, 13, 13],
        [15, 15, 14, 13, 12],
        [8, 8, 0, 12, 12],
        [8, 9, 10, 11, 11],
        [9, 9, 10, 10, 11],
    ]
    assert direction_table(5, 8, 2).tolist() == expected


def test_the_papers_table():
    table = direction_table(41, 8, 4)
    assert int(table.sum()) == 35960
    assert crc(table) == 2054443998
    spots = {
        (0, 0): 31, (0, 20): 30, (0, 40): 29, (20, 0): 24, (20, 40): 28, (40, 0): 25, (40, 20): 26, (40, 40): 27,
        (10, 30): 21, (15, 20): 14, (20, 16): 0, (20, 15): 8, (30, 27): 18,
    }  # fmt: skip
    assert {place: int(table[place]) for place in spots} == spots
    per_cell = table.flatten().bincount(minlength=32).view(4, 8)
    assert per_cell[:, 1:].tolist() == [[10] * 7, [35] * 7, [60] * 7, [105] * 7]
    assert per_cell[0, 0] == 11


def test_one_bin_on_the_papers_grid():
    table = direction_table(41, 8, 1)
    assert (int(table.sum()), crc(table)) == (5880, 695895455)


@pytest.mark.parametrize(
    ("metric", "counts"),
    [("linf", [81, 280, 480, 840]), ("l2_side", [69, 236, 392, 984]), ("l2_corner", [149, 472, 772, 288])],
)
def test_distance_metrics(metric, counts):
    assert (direction_table(41, 8, 4, metric) // 8).flatten().bincount().tolist() == counts


def test_six_sectors_of_a_square_are_unequal():
    assert direction_table(41, 6, 1).flatten().bincount().tolist() == [310, 242, 289, 309, 242, 289]


@pytest.mark.parametrize("directions", [2, 4, 6, 8])
def test_a_half_turn_shifts_every_direction_by_half(directions):
    table = direction_table(41, directions, 4)
    off_centre = torch.ones(41, 41, dtype=torch.bool)
    off_centre[20, 20] = False
    transposed = table.flip(0, 1)
    expected = table // directions * directions + (table % directions + directions // 2) % directions
    assert (transposed == expected)[off_centre].all()


@pytest.mark.parametrize("bins", [1, 2, 4])
def test_mirroring_the_box_mirrors_the_table(bins):
    """Off the boundaries between sectors, where one side has to win, left-right mirrors directions."""
    crop = 40  # an even grid has no sample on the boundaries through the centre
    table = direction_table(crop, 4, bins, start_degrees=-45)
    mirror = torch.tensor([2, 1, 0, 3])  # right <-> left; up and down stay
    expected = table // 4 * 4 + mirror[table % 4]
    off_diagonal = ~(torch.eye(crop, dtype=torch.bool) | torch.eye(crop, dtype=torch.bool).flip(1))
    assert (table.flip(1) == expected)[off_diagonal].all()


def test_pooling_constant_channels_returns_the_table():
    table = direction_table(41, 8, 4)
    channels = torch.arange(32.0)[None, :, None, None].expand(1, 32, 6, 6).contiguous()
    box = Rois(torch.tensor([[0.1, 0.2, 0.7, 0.9]]), torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(crop_channels(channels, box, (41, 41), table)[0], table.float())

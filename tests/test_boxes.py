import torch

from masklab.ops.boxes import clip, decode, encode, overlap_share


def test_hand_worked_code():
    anchor, box = torch.tensor([[0.0, 0, 20, 10]]), torch.tensor([[2.0, 1, 22, 9]])
    torch.testing.assert_close(encode(box, anchor), torch.tensor([[1.0, 0, 0, -1.1157]]), atol=1e-4, rtol=0)


def test_decode_inverts_encode():
    corner = torch.rand(50, 2, 2) * 100
    boxes = torch.cat([corner[:, 0], corner[:, 0] + 2 + corner[:, 1]], dim=1)
    anchors = boxes[torch.randperm(50)]
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3, rtol=1e-4)


def test_wild_codes_stay_finite():
    codes = torch.tensor([[0.0, 0, 1e6, 1e6]])
    assert decode(codes, torch.tensor([[0.0, 0, 10, 10]])).isfinite().all()


def test_clip_to_each_pictures_size():
    boxes = torch.tensor([[[-5.0, -5, 50, 50]], [[1, 2, 3, 4]]])
    sizes = torch.tensor([[20, 30], [40, 40]])
    assert clip(boxes, sizes[:, None]).tolist() == [[[0, 0, 30, 20]], [[1, 2, 3, 4]]]


def test_share_inside_regions():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    regions = torch.tensor([[5.0, 0, 50, 50], [0, 0, 1, 1]])
    torch.testing.assert_close(overlap_share(boxes, regions), torch.tensor([0.5, 1.0]))
    assert overlap_share(boxes, regions[:0]).tolist() == [0, 0]

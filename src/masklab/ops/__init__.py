"""Functions of tensors without weights: coordinates, boxes, crops, direction tables."""

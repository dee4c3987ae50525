"""Masks as run lengths, polygons, label maps and thresholded crops."""

"""Prediction of images of any size in tiles."""

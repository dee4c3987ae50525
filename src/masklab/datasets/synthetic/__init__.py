"""Synthetic data sets of shapes and nuclei."""

"""Figures of models, data sets and results."""

"""Annotated data sets: layouts, splits, statistics, checks and conversion."""

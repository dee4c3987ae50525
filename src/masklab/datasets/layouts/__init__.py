"""Layouts of data set folders, one per file."""

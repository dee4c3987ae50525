"""Experiments of the paper: tables, ablations and submissions."""

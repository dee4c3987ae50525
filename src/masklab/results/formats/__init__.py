"""Formats that results are written in, one file for each; `registry` lists them."""

"""Boxes that a detector wrote into files: readers of their formats, one module each, into one `BoxList`."""

"""Writers of data sets, one file for each format, for `masklab.datasets.convert`."""

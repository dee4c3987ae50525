"""Official archives of the public data sets that can be downloaded, with size, checksum and terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Archive(NamedTuple):
    """A zip file at ``url`` that unpacks to the folder ``makes``, or into it if it has no such folder itself.

    ``size`` in bytes and ``sha256`` are None where the publisher states none: the size is then the server's, and only
    the zip's own checksums are verified.
    """

    url: str
    makes: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


class DataSet(NamedTuple):
    """The archives of a data set, and its terms in one line."""

    archives: Sequence[Archive]
    terms: str


_COCO = "http://images.cocodataset.org"  # no HTTPS: the SHA-256 verify what it sends
DATA_SETS: Mapping[str, DataSet] = {
    "coco2017": DataSet(
        (
            Archive(
                f"{_COCO}/annotations/annotations_trainval2017.zip",
                "annotations",
                252907541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
            Archive(
                f"{_COCO}/zips/val2017.zip",
                "val2017",
                815585330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
            Archive(
                f"{_COCO}/zips/train2017.zip",
                "train2017",
                19336861798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
        ),
        "COCO: annotations CC BY 4.0; each image has its own Flickr licence, see https://cocodataset.org/#termsofuse",
    ),
    "nuclei": DataSet(
        (
            Archive(
                "https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip",
                "train",
                82923446,
                "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
            ),
        ),
        "BBBC038v1, the training set of the 2018 Data Science Bowl (Caicedo et al., Nature Methods, 2019): CC0",
    ),
}

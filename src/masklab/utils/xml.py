"""Reading of XML files of unknown origin: piece by piece, and without entities."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

from masklab.utils.errors import InputError
from masklab.utils.files import open_plain

_MAX_BYTES = 2**30
_PIECE = 2**20


class XmlTarget:
    """Receives the elements of an XML file in their order; text may come in several pieces."""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """The beginning of an element."""

    def data(self, text: str) -> None:
        """Text inside the last element that began."""

    def end(self, tag: str) -> None:
        """The end of an element."""

    def doctype(self, *_: str | None) -> None:
        """A document type, which may define entities that grow without bound: not accepted."""
        raise ValueError("it has a document type (<!DOCTYPE>), which no annotation tool writes")


def read_xml(path: Path, target: XmlTarget) -> None:
    """Read a file into a target; `InputError` names the file if it is not XML, is cut off or has a document type."""
    parser = ElementTree.XMLParser(target=target)
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise InputError(f"{path} has more than {_MAX_BYTES // 2**30} GiB: export it in parts.")
        with open_plain(path) as file:
            while piece := file.read(_PIECE):
                parser.feed(piece)
        parser.feed(b"")
        parser.close()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): replace the file.") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not XML that can be read ({error}): export it again.") from None

"""Packages that not every installation has."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from masklab.utils.errors import InputError


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return find_spec(package) is not None


def require(packages: str | Sequence[str], extra: str, what: str) -> None:
    """Raise `InputError` where packages of one of masklab's extras are missing; ``what`` begins the sentence."""
    wanted = [packages] if isinstance(packages, str) else packages
    missing = [package for package in wanted if not installed(package)]
    if missing:
        raise InputError(f'{what} needs {", ".join(missing)}, which is not installed: pip install "masklab[{extra}]".')

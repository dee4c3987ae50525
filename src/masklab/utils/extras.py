"""Packages that not every installation has."""

from __future__ import annotations

from importlib.util import find_spec

from masklab.utils.errors import InputError


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return find_spec(package) is not None


def require(package: str, extra: str, what: str) -> None:
    """Raise `InputError` where a package of one of masklab's extras is missing; ``what`` begins the sentence."""
    if not installed(package):
        raise InputError(f'{what} needs {package}, which is not installed: pip install "masklab[{extra}]".')

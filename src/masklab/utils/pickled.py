"""Plain values of a pickle, read without running any of its code.

A pickle is a program: instructions that build values, and instructions that call what the file names.  Here
`pickletools` splits the file into instructions, and only those that build plain values are followed.  What the file
would call becomes a `Call` with its arguments, which the reader may look at; it is never imported or called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

_MARK = object()
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}


@dataclass(frozen=True)
class Name:
    """What a pickle names, ``module.attribute``; nothing is imported."""

    path: str


@dataclass
class Call:
    """A call that a pickle asks for: what it names, the arguments, and the state to set; it is not made."""

    path: str
    arguments: tuple[Any, ...]
    state: Any = None


def plain_values(file: IO[bytes], known: frozenset[str]) -> Any:
    """The value of a pickle of protocol 2 to 5 that begins at the position of ``file``.

    It holds numbers, text, bytes, lists, tuples, dictionaries with text as keys, and `Call` for calls of the ``known``
    names.  Raises `ValueError` for any other instruction or name, and for a damaged pickle.  Memory is bounded by the
    size of the file where ``file`` reads no more than there is, as a mapped file does.
    """
    reader = _Reader(known)
    try:
        for instruction, argument, _ in pickletools.genops(file):
            if instruction.name == "STOP":
                return reader.stack.pop()
            reader.follow(instruction.name, argument)
    except (IndexError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"its instructions do not fit together: {error}") from None
    raise ValueError("it has no end")


class _Reader:
    """The stack and the memory of the instructions."""

    def __init__(self, known: frozenset[str]) -> None:
        self.known = known
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.actions: dict[str, Callable[[], None]] = {
            "MARK": lambda: self.stack.append(_MARK),
            "EMPTY_LIST": lambda: self.stack.append([]),
            "EMPTY_DICT": lambda: self.stack.append({}),
            "TUPLE": lambda: self.stack.append(tuple(self.to_mark())),
            "APPEND": lambda: self.extend([self.stack.pop()]),
            "APPENDS": lambda: self.extend(self.to_mark()),
            "SETITEM": lambda: self.set_items([self.stack.pop() for _ in range(2)][::-1]),
            "SETITEMS": lambda: self.set_items(self.to_mark()),
            "STACK_GLOBAL": lambda: self.name(" ".join(reversed([self.stack.pop() for _ in range(2)]))),
            "REDUCE": self.call,
            "BUILD": self.set_state,
        }

    def follow(self, name: str, argument: Any) -> None:
        if name in _NUMBERS | _TEXTS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            start = len(self.stack) - _TUPLES[name]
            self.stack[start:] = [tuple(self.stack[start:])]
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memory[len(self.memory) if argument is None else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memory[argument])
        elif name == "GLOBAL":
            self.name(argument)
        elif name in self.actions:
            self.actions[name]()
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"it holds the instruction {name}, which plain values do not need")

    def name(self, words: str) -> None:
        path = words.replace(" ", ".")
        if path not in self.known:
            raise ValueError(f"it names {path!r}, which is not read")
        self.stack.append(Name(path))

    def to_mark(self) -> list[Any]:
        """Takes off what lies above the last mark, and the mark."""
        place = next(k for k in [*range(len(self.stack) - 1, -1, -1), None] if k is None or self.stack[k] is _MARK)
        if place is None:
            raise ValueError("it closes something that it has not opened")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("it adds to something that is not a list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        keys: Iterator[Any] = iter(values[::2])
        if type(self.stack[-1]) is not dict or not all(type(key) is str for key in keys):
            raise ValueError("it holds a dictionary with keys that are not text")
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def call(self) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        if type(named) is not Name or type(arguments) is not tuple:
            raise ValueError("it calls something that is not read")
        self.stack.append(Call(named.path, arguments))

    def set_state(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is not Call:
            raise ValueError("it changes something that is not read")
        self.stack[-1].state = state

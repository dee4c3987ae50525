"""Evaluation mode of a network that several threads may use at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_lock = threading.Lock()
_users: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_modes: WeakKeyDictionary[nn.Module, dict[nn.Module, bool]] = WeakKeyDictionary()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode while the context is open; the last thread that leaves it puts the modes of all parts back."""
    with _lock:
        if not _users.get(network):
            _modes[network] = {module: module.training for module in network.modules()}
            network.eval()
        _users[network] = _users.get(network, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _users[network] -= 1
            if not _users[network]:
                for module, training in _modes.pop(network).items():
                    module.training = training

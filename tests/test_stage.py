"""A thread that works on one item after another while others go on."""

import os
import signal
import threading
import time

import pytest
from processes import in_another_process, needs_fork

from masklab.utils.signals import Stopped, stop_signals
from masklab.utils.stage import Stage


def test_results_come_in_order_from_another_thread():
    stage = Stage(lambda item: (item * 2, threading.get_ident()))
    for item in range(20):
        stage.give(item)
    assert stage.waiting == 20
    found = [stage.take() for _ in range(20)]
    stage.close()
    assert [value for value, _ in found] == list(range(0, 40, 2))
    assert {thread for _, thread in found}.isdisjoint({threading.get_ident()})
    assert stage.waiting == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_in_its_turn_and_ends_the_work(error):
    seen = []

    def work(item):
        seen.append(item)
        if item == 1:
            raise error
        return item

    stage = Stage(work)
    for item in range(4):
        stage.give(item)
    assert stage.take() == 0
    with pytest.raises(error):
        stage.take()
    stage.close()
    assert seen == [0, 1]


def test_closing_finishes_one_item_and_drops_the_rest():
    began, seen = threading.Event(), []

    def work(item):
        began.set()
        time.sleep(0.1)
        seen.append(item)

    stage = Stage(work)
    for item in range(4):
        stage.give(item)
    began.wait()
    stage.close()
    assert seen == [0]


def told_to_stop_while_closing():
    """Exit code 3 if the item is finished and the signal raised then."""
    began, seen = threading.Event(), []

    def work(item):
        began.set()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        seen.append(item)

    try:
        with stop_signals():
            stage = Stage(work)
            try:
                stage.give(1)
                began.wait()
                stage.take()
            finally:
                stage.close()
    except Stopped:
        return 3 if seen == [1] else 4
    return 5


@needs_fork
def test_a_signal_while_closing_is_raised_when_the_item_is_finished():
    """In a process of its own, which a signal that comes late may end."""
    process = in_another_process(told_to_stop_while_closing)
    process.join()
    assert process.exitcode == 3

"""Somebody else's code is waited for so long and no longer, even where Python drops what is raised."""

import gc
import threading
import time

import pytest

from srlm.patience import GaveUp, at_most


def test_what_takes_too_long_is_given_up_and_the_rest_is_not():
    start = time.monotonic()
    with pytest.raises(GaveUp, match=r"more than 0\.1 s"), at_most(0.1):
        time.sleep(10)
    assert time.monotonic() - start < 5
    with at_most(0.1):
        pass
    time.sleep(0.3)  # nothing comes after


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_comes_again_where_python_dropped_it():
    class Falls:
        def __del__(self):
            time.sleep(0.3)

    with pytest.raises(GaveUp), at_most(0.1):
        Falls()
        gc.collect()
        time.sleep(10)


def test_outside_the_main_thread_it_waits():
    done = []

    def work():
        with at_most(0.01):
            time.sleep(0.1)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]

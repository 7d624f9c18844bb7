import threading

import pytest

from optiml_jax import threads


@pytest.fixture
def bounded(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)  # put back afterwards
    monkeypatch.setattr(threads, "_PATIENCE", 0.05)
    threads.bound_starts()
    threads.bound_starts()  # a second call changes nothing


def test_a_thread_that_never_begins_is_out_of_memory(bounded, monkeypatch):
    # What CPython does when the new thread finds no memory for its first frame: it is gone.
    monkeypatch.setattr(threading, "_start_new_thread", lambda function, arguments: 1)
    with pytest.raises(MemoryError, match="did not begin"):
        threading.Thread(target=print).start()


def test_other_threads_begin_once_as_ever(bounded):
    done = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    assert done == [1]
    with pytest.raises(RuntimeError, match="only be started once"):
        thread.start()


def test_no_new_thread_is_out_of_memory_too(bounded, monkeypatch):
    def refused(function, arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading, "_start_new_thread", refused)
    with pytest.raises(MemoryError, match="can't start"):
        threading.Thread(target=print).start()

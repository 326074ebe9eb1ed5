"""No garbage is collected while the collector is held back, and it goes on afterwards."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from aioxarray._runtime.system import collector as module
from aioxarray._runtime.system.collector import collector
from tests.runtime.helpers import PATIENCE_S, run_script


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """The collector is enabled before and after."""
    gc.enable()
    yield
    gc.enable()


def test_the_last_to_release_lets_it_go_on() -> None:
    with collector.held():
        with collector.held():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_the_user_disabled_stays_so() -> None:
    gc.disable()
    with collector.held():
        pass
    assert not gc.isenabled()


def test_it_goes_on_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), collector.held():
        raise ZeroDivisionError
    assert gc.isenabled()


BUILT = """
import gc
from aioxarray._runtime.system.collector import Collector

def is_old(thing):
    return any(each is thing for each in gc.get_objects(generation=2))

gc.collect()
collector = Collector()
with collector.building():
    assert not gc.isenabled()
    first = []
assert gc.isenabled() and is_old(first) and not gc.get_freeze_count()
# Not again, until garbage has been looked for everywhere.
with collector.building():
    second = []
assert not is_old(second)
gc.collect()
with collector.held():
    with collector.building():
        third = []
    # Others may be at work.
    assert not gc.isenabled() and not is_old(third)
with collector.building():
    fourth = []
assert is_old(fourth)
# What the program has frozen is its own.
gc.collect()
gc.freeze()
frozen = gc.get_freeze_count()
with collector.building():
    fifth = []
assert not is_old(fifth) and gc.get_freeze_count() == frozen
print("fine")
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="its collector has other generations")
def test_what_was_built_counts_as_old() -> None:
    assert run_script(BUILT).strip() == "fine"


class Slow:
    """Garbage whose finalizer waits."""

    def __init__(self) -> None:
        self.myself = self
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __del__(self) -> None:
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)


def test_a_collection_in_another_thread_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    slow = Slow()
    begun, may_end = slow.begun, slow.may_end
    del slow
    collecting = threading.Thread(target=gc.collect)
    collecting.start()
    assert begun.wait(PATIENCE_S)
    ended_before: list[bool] = []

    def hold() -> None:
        with collector.held():
            ended_before.append(may_end.is_set())

    holding = threading.Thread(target=hold)
    holding.start()
    assert waits.wait(PATIENCE_S)
    assert not gc.isenabled()
    assert not ended_before
    may_end.set()
    collecting.join(PATIENCE_S)
    holding.join(PATIENCE_S)
    assert ended_before == [True]


def test_a_finalizer_can_hold_it_back_itself() -> None:
    held: list[bool] = []

    class Holding:
        def __init__(self) -> None:
            self.myself = self

        def __del__(self) -> None:
            with collector.held():
                held.append(not gc.isenabled())

    Holding()
    gc.collect()
    assert held == [True]
    assert gc.isenabled()


def test_nothing_stands_in_the_callbacks_of_the_collector() -> None:
    before = list(gc.callbacks)
    with collector.held():
        assert gc.callbacks == before
    assert not any("aioxarray" in str(getattr(each, "__module__", "")) for each in before)


SIGNALLED = """
import gc, signal, sys
import aioxarray

class Stop(Exception):
    pass

def stop(number, frame):
    raise Stop

signal.signal(signal.SIGALRM, signal.default_int_handler if {how!r} == "Ctrl-C" else stop)
# So much that a collection takes longer than the alarm.
keep = [[] for _ in range(300_000)]
for _ in range(3):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        gc.collect()
        for _ in range(200_000):
            pass
    except (KeyboardInterrupt, Stop) as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize(("how", "error"), [("Ctrl-C", "KeyboardInterrupt"), ("own", "Stop")])
def test_a_signal_during_a_collection_is_the_programs(how: str, error: str) -> None:
    assert run_script(SIGNALLED.format(how=how)) == f"{error}\n" * 3


INTERRUPTED = """
import gc, io, signal, sys
import numpy as np, xarray as xr
import aioxarray

data = bytes(xr.Dataset({"v": ("x", np.arange(9.0))}).to_netcdf(engine="h5netcdf"))

def opened():
    with aioxarray.open_dataset(io.BytesIO(data), engine="h5netcdf") as ds:
        return ds.v.values.sum()

assert opened() == 36
signal.signal(signal.SIGALRM, signal.default_int_handler)
interrupted = 0
for number in range(40):
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (number + 1))
            opened()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupted += 1
assert interrupted
assert opened() == 36
assert gc.isenabled()
print("fine")
"""


@pytest.mark.slow
def test_an_interrupted_call_leaves_the_collector_as_it_was() -> None:
    assert run_script(INTERRUPTED).splitlines()[-1] == "fine"


FORKED = """
import gc, os
from aioxarray._runtime.system.collector import collector
with collector.held():
    child = os.fork()
    if child == 0:
        enabled = gc.isenabled()
        with collector.held():
            enabled = enabled and not gc.isenabled()
        os._exit(0 if enabled and gc.isenabled() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), gc.isenabled())
"""


def test_a_forked_process_has_its_own() -> None:
    assert run_script(FORKED).strip() == "0 True"

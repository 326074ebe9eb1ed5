"""A process forked after a load loads again, or says that it cannot; it never hangs."""

from __future__ import annotations

import os
import sys

import pytest

from tests.runtime.helpers import run_script

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

CODE = """
from tests.concurrency import forks

if __name__ == "__main__":
    forks.{name}()
    print("fine")
"""


def run(name: str) -> None:
    assert run_script(CODE.format(name=name)).splitlines()[-1] == "fine"


@pytest.mark.matrix(together=0)
@needs_fork
@pytest.mark.parametrize("store", ["local", pytest.param("memory", marks=pytest.mark.slow), "http"])
def test_a_forked_process_loads_again(store: str) -> None:
    run(store)


@pytest.mark.matrix(together=0)
@needs_fork
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, its threads cannot be told")
@pytest.mark.parametrize("store", ["object_store", "icechunk"])
def test_a_forked_process_refuses_what_would_hang(store: str) -> None:
    run(store)


@needs_fork
def test_a_process_forked_during_a_load_is_not_held_up_by_it() -> None:
    run("fork_while_loading")


@needs_fork
def test_a_forked_process_begins_with_an_empty_cache() -> None:
    run("cache")


@pytest.mark.slow
def test_a_spawned_process_loads_what_it_was_sent() -> None:
    run("spawn")

"""Collections of garbage leave out older objects while a call asks for it, and see them again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from aioxarray._runtime.system.old_objects import old_objects
from tests.runtime.helpers import run_script


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """The collector is enabled, and what ``conftest`` has frozen is thawed meanwhile."""
    gc.unfreeze()
    gc.enable()
    yield
    gc.freeze()
    gc.enable()


class Cycle:
    """Garbage once it is dropped."""

    def __init__(self) -> None:
        self.myself = self


def test_older_garbage_waits_and_newer_is_collected() -> None:
    older = Cycle()
    seen_older = weakref.ref(older)
    with old_objects.left_out():
        newer = Cycle()
        seen_newer = weakref.ref(newer)
        del older, newer
        gc.collect()
        assert seen_newer() is None
        assert seen_older() is not None
    gc.collect()
    assert seen_older() is None


def test_the_last_of_several_calls_ends_it() -> None:
    with old_objects.left_out():
        before = gc.get_freeze_count()
        more = [Cycle() for _ in range(1000)]
        with old_objects.left_out():
            # A second call does not leave out what the first has made.
            assert gc.get_freeze_count() < before + len(more)
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_what_the_user_has_frozen_stays_so() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with old_objects.left_out():
        pass
    assert frozen - 1000 < gc.get_freeze_count() <= frozen


def test_nothing_changes_if_the_user_has_disabled_the_collector() -> None:
    gc.disable()
    with old_objects.left_out():
        assert gc.get_freeze_count() == 0
    assert not gc.isenabled()


def test_it_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), old_objects.left_out():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


FORKED = """
import gc, os
from aioxarray._runtime.system.old_objects import old_objects
with old_objects.left_out():
    child = os.fork()
    if child == 0:
        fine = gc.get_freeze_count() == 0
        with old_objects.left_out():
            fine = fine and gc.get_freeze_count() > 0
        os._exit(0 if fine and gc.get_freeze_count() == 0 else 1)
    print(gc.get_freeze_count() > 0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(gc.get_freeze_count())
"""


def test_a_forked_process_sees_all_objects() -> None:
    assert run_script(FORKED).split() == ["True", "0", "0"]

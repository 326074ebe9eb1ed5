"""xarray's own suites of backends: nothing fails with aioxarray that passes without it.

The suites (`xarray/tests/test_backends.py` and `test_backends_datatree.py`, in xarray's wheel) run
in processes of their own; `plugin` says how, and how to run them by hand. Of the Zarr suite here
runs what reads by a path of its own: one class for each kind of test, that on a dict as the store,
in Zarr v2 and v3. Left out are the classes that inherit the same tests for another store (a
directory, which also takes longest; the same without consolidated metadata; the same with
``write_empty``), and a test with thousands of files; ``AIOXARRAY_XARRAY_SUITE=full`` runs those
too.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xarray_suite.running import FULL, TIMEOUT_S, Suite

ZARR = "Zarr" if FULL else "Zarr and not (Directory or WriteEmpty or NoConsol or manyfiles)"
LOADED, OPENED = "--loaded-by-aioxarray", "--opened-by-aioxarray"
SAVED = "--saved-by-aioxarray"

# It loads one object five times at once and wants five reads of each variable. aioxarray reads
# elsewhere than on the caller's loop, so the first may have ended before the last begins, which
# then finds the data there. The values, the test's other half, are compared all over the suite.
FIVE_READS = "test_concurrent_load_multiple_objects"
# It counts calls of `zarr.AsyncArray.getitem` from opening on, and wants one for each variable that
# is lazy afterwards: plain xarray reads index coordinates by a blocking call, which is no call of
# that method. Reading indexes side by side is what aioxarray is for, and makes those calls.
BLOCKING_INDEXES = "test_async_load_multiple_variables"
# It counts what xarray itself requests, request for request. Ours are in tests/saving.
REQUESTS = "TestInstrumentedZarrStore"

# A suite, and again without aioxarray what did not pass.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S + 60)]


def test_zarr_data_loaded_by_aioxarray(tmp_path: Path) -> None:
    suite = Suite("xarray.tests.test_backends", ZARR, LOADED, (FIVE_READS,))
    run, failed_with_ours = suite.run(tmp_path)
    assert sorted(failed_with_ours) == []
    assert len(run.ended("passed")) > 350
    assert len(run.ended("failed")) < 40
    # Lazy variables.
    assert run.done > 800


def test_zarr_data_opened_by_aioxarray(tmp_path: Path) -> None:
    suite = Suite("xarray.tests.test_backends", ZARR, OPENED, (FIVE_READS, BLOCKING_INDEXES))
    run, failed_with_ours = suite.run(tmp_path)
    assert sorted(failed_with_ours) == []
    assert len(run.ended("passed")) > 350
    assert len(run.ended("failed")) < 40
    # Datasets and groups.
    assert run.done > 600


def test_trees_opened_by_aioxarray(tmp_path: Path) -> None:
    """Zarr and, by the same suite, netCDF4 through both libraries."""
    suite = Suite("xarray.tests.test_backends_datatree", "", OPENED)
    run, failed_with_ours = suite.run(tmp_path)
    assert sorted(failed_with_ours) == []
    assert len(run.ended("passed")) > 150
    assert run.done > 200


def test_zarr_data_saved_by_aioxarray(tmp_path: Path) -> None:
    suite = Suite("xarray.tests.test_backends", ZARR, SAVED, (REQUESTS,))
    run, failed_with_ours = suite.run(tmp_path)
    assert sorted(failed_with_ours) == []
    assert len(run.ended("passed")) > 350
    assert len(run.ended("failed")) < 40
    # Datasets, arrays and trees.
    assert run.done > 800

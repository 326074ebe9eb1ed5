"""The cores that a process may use, with a folder in the place of the cgroups of Linux."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from aioxarray._runtime.system import cores
from aioxarray._runtime.system.cores import core_limit, usable_cores
from aioxarray._zarr.stores.grants import open_grants
from aioxarray.config import config, thread_count
from tests.runtime.helpers import run_script


def limit(folder: Path, cgroups: str, files: dict[str, str]) -> float:
    """Return the limit for a process in ``cgroups``, with ``files`` below the mount."""
    (folder / "cgroup").write_text(cgroups)
    for name, text in files.items():
        path = folder / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return core_limit(folder / "cgroup", folder / "mount")


V2 = "0::/\n"
V1 = "4:memory:/a\n3:cpu,cpuacct:/docker/1f\n2:cpuset:/\n1:name=systemd:/a\n"
CASES: dict[str, tuple[str, dict[str, str], float]] = {
    "v2, a container": (V2, {"cpu.max": "200000 100000\n"}, 2),
    "v2, another period": (V2, {"cpu.max": "25000 50000\n"}, 0.5),
    "v2, no limit": (V2, {"cpu.max": "max 100000\n"}, math.inf),
    "v2, the root, which has no file": (V2, {"cgroup.procs": "1\n"}, math.inf),
    "v2, a limit above": (
        "0::/kube/pod/1f\n",
        {
            "kube/pod/1f/cpu.max": "max 100000",
            "kube/pod/cpu.max": "150000 100000",
            "kube/cpu.max": "400000 100000",
        },
        1.5,
    ),
    "v2, mounted as the root": ("0::/docker/1f\n", {"cpu.max": "300000 100000"}, 3),
    "v2, outside of the mount": ("0::/../other\n", {"cpu.max": "300000 100000"}, 3),
    "v2, beside v1": ("2:cpuset:/\n0::/a\n", {"unified/a/cpu.max": "300000 100000"}, 3),
    "v1": (
        V1,
        {
            "cpu,cpuacct/docker/1f/cpu.cfs_quota_us": "200000\n",
            "cpu,cpuacct/docker/1f/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1, mounted as the root": (
        V1,
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        2,
    ),
    "v1, no limit": (
        V1,
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        math.inf,
    ),
    "nonsense": (
        "0::\nwhat\n:::::\n1:cpu:/\n",
        {"cpu.max": "many few", "cpu/cpu.cfs_quota_us": "0", "cpu/cpu.cfs_period_us": "0"},
        math.inf,
    ),
}


@pytest.mark.parametrize(("cgroups", "files", "expected"), CASES.values(), ids=CASES)
def test_limits_of_cgroups(
    cgroups: str, files: dict[str, str], expected: float, tmp_path: Path
) -> None:
    assert limit(tmp_path, cgroups, files) == expected


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert core_limit(tmp_path / "missing", tmp_path) == math.inf


@pytest.fixture
def granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the limit of this process's cgroup, on a machine of 64 cores."""
    (tmp_path / "cgroup").write_text(V2)
    monkeypatch.setattr(cores, "CGROUPS", str(tmp_path / "cgroup"))
    monkeypatch.setattr(cores, "MOUNT", str(tmp_path))
    monkeypatch.setattr(cores, "available_cores", lambda: 64)
    cores._limit_once.cache_clear()
    monkeypatch.setattr(cores, "_limit_once", cores._limit_once.__wrapped__)
    return tmp_path / "cpu.max"


def test_decoding_threads_follow_the_limit(granted: Path) -> None:
    granted.write_text("200000 100000\n")
    assert usable_cores() == thread_count() == 2
    with open_grants() as grants:
        assert grants.thread_count == 2
        assert grants.decoders.statistics().size == 2
    with config.set(threads=5):
        assert thread_count() == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 64), ("max 100000", 64)],
)
def test_parts_of_cores_and_more_than_there_are(granted: Path, text: str, expected: int) -> None:
    granted.write_text(text)
    assert usable_cores() == expected


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="only Linux has cgroups")
def test_importing_does_not_read_them() -> None:
    script = """
import sys
opened = []
sys.addaudithook(lambda name, args: opened.append(str(args[0])) if name == "open" else None)
import aioxarray
assert not [path for path in opened if "cgroup" in path]
aioxarray.config.config
from aioxarray.config import thread_count
thread_count()
thread_count()
print(sum(path == "/proc/self/cgroup" for path in opened))
"""
    assert run_script(script).split() == ["1"]

"""The workers of the application, under uvicorn's supervisor, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from socket import create_server
from types import TracebackType
from typing import Self

import psutil

HOST = "127.0.0.1"
WORKERS = 2
# How long workers may take to start or end.
PATIENCE_S = 60.0


class Application:
    """The application with its workers, as a context.

    Parameters
    ----------
    reader
        "aioxarray" or "xarray".
    url
        The data.
    timeout_s
        The timeout of each load.
    """

    def __init__(self, reader: str, url: str, timeout_s: float) -> None:
        self._environment = {
            **os.environ,
            "SOAK_READER": reader,
            "SOAK_URL": url,
            "SOAK_TIMEOUT_S": str(timeout_s),
            "PYTHONWARNINGS": "ignore",
        }
        # The workers that were there first, and have not been killed.
        self._old: list[psutil.Process] = []

    def __enter__(self) -> Self:
        # The supervisor inherits a socket that listens: no other process can take its port.
        with create_server((HOST, 0), backlog=1024) as listening:
            self.port: int = listening.getsockname()[1]
            self.url = f"http://{HOST}:{self.port}"
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "uvicorn", "benchmarks.soak.app:app"),
                    *("--fd", str(listening.fileno()), "--workers", str(WORKERS)),
                    *("--log-level", "critical", "--no-access-log"),
                ],
                env=self._environment,
                cwd=Path(__file__).parents[2],
                pass_fds=[listening.fileno()],
                start_new_session=True,
            )
        try:
            self._wait_started()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_started(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"the application ended with code {self._process.returncode}")
            try:
                urllib.request.urlopen(f"{self.url}/state", timeout=PATIENCE_S).close()
            except OSError:
                time.sleep(0.1)
            else:
                if len(self.workers()) == WORKERS:
                    return
        raise TimeoutError(f"the application has not started within {PATIENCE_S} s")

    def workers(self) -> list[psutil.Process]:
        """Return the workers, the oldest first."""
        try:
            children = psutil.Process(self._process.pid).children()
            # One more child keeps track of resources that processes share.
            found = [each for each in children if "spawn_main" in " ".join(each.cmdline())]
            return sorted(found, key=lambda each: each.create_time())
        except psutil.NoSuchProcess:
            return []

    def kill_youngest(self) -> None:
        """Kill the worker that was started last; the supervisor starts another one."""
        workers = self.workers()
        if len(workers) == WORKERS:
            workers[-1].kill()

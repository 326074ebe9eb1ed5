"""A headless Chromium that a test drives, by the DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """A page in the browser.

    Attributes
    ----------
    events
        The events that the browser has sent.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (message := await self._next()).get("id") != number:
            self.events.append(message)
        if "error" in message:
            raise AssertionError(f"{method}: {message['error']}")
        result: dict[str, Any] = message["result"]
        return result

    async def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads((await self._socket.receive(timeout=60)).data)
        return message

    async def event(self, name: str) -> None:
        """Wait for an event that the browser sends later than this call."""
        while (message := await self._next()).get("method") != name:
            self.events.append(message)
        self.events.append(message)

    async def show_as(self, width: int, scheme: str) -> None:
        """Show pages from now on in a width, and in the color scheme "light" or "dark"."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=1000,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.send("Emulation.setEmulatedMedia", features=[feature])

    async def open(self, path: Path) -> None:
        """Show the file ``path``, and wait until it is loaded."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")
        # Durations are processor time, which other programs on the machine hardly change.
        await self.send("Performance.enable", timeDomain="threadTicks")
        await self.send("Page.navigate", url=path.as_uri())
        await self.event("Page.loadEventFired")

    async def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, after the next frame."""
        frame = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
        source = f"{frame}.then(() => {expression})"
        found = await self.send(
            "Runtime.evaluate", expression=source, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    async def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """Move, press or release the mouse."""
        await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def named(self, *names: str) -> list[dict[str, Any]]:
        """Return the events with one of these names."""
        return [each["params"] for each in self.events if each.get("method") in names]


@asynccontextmanager
async def browser(folder: Path, width: int = 1280, height: int = 1000) -> AsyncIterator[Page]:
    """Start a browser with its profile in ``folder``, and open an empty page."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-address=127.0.0.1",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
        f"--window-size={width},{height}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        line = b""
        while b"DevTools listening on" not in line:
            line = await process.stderr.readline()
            assert line, "the browser has ended"
        address = line.decode().split()[-1].replace("ws://", "http://").partition("/devtools")[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{address}/json") as answer:
                (target,) = [each for each in await answer.json() if each["type"] == "page"]
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.kill()
        await process.communicate()

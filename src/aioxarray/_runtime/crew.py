"""Crews: a bounded number of workers on an event loop, divided among lists of work.

Each list is worked off by a *team*: a worker of its own, and a part of the crew. A worker for each
place in a budget and each list would be simpler, but most would only wait for a place: each has a
task, coroutines and a future, which the garbage collector visits again and again.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable

from aioxarray._runtime.tasks import first_error


class Crew:
    """The workers of one load; used on one event loop.

    The teams get workers in turn. If another team has fewer, a worker changes over to it between
    two pieces of work, so that a slow server does not hold up the others.

    Parameters
    ----------
    bound
        The most workers of a team, and of all teams together, besides one for each team.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self._busy = 0
        self._teams: dict[Team, None] = {}
        # The teams that could use more workers, in the order of their turns.
        self._wanting: deque[Team] = deque()

    def widen(self, bound: float) -> None:
        """Raise the bound to ``bound``, if that is more."""
        if bound > self.bound:
            self.bound = bound
            for team in self._teams:
                self._want(team)
            self._divide()

    def _add(self, team: Team) -> None:
        self._teams[team] = None
        self._want(team)
        self._divide()

    def _remove(self, team: Team) -> None:
        self._teams.pop(team, None)

    def _want(self, team: Team) -> None:
        if not team.is_queued and team.wants_more:
            team.is_queued = True
            self._wanting.append(team)

    def _divide(self) -> None:
        """Give free workers to the teams that want more."""
        while self._wanting and self._busy < self.bound:
            team = self._wanting.popleft()
            team.is_queued = False
            if team.wants_more and team.start():
                self._busy += 1
                self._want(team)

    def _is_needed_elsewhere(self, team: Team) -> bool:
        """Return whether another team wants a worker and has clearly fewer than ``team``."""
        while self._wanting and not self._wanting[0].wants_more:
            self._wanting.popleft().is_queued = False
        return bool(self._wanting) and team.size > self._wanting[0].size + 1

    def _release(self, team: Team) -> None:
        self._busy -= 1
        team.size -= 1
        self._want(team)
        self._divide()


class Team:
    """The workers of one list of work.

    Parameters
    ----------
    crew
        The crew.
    count
        The number of pieces of work.
    step
        Does the next piece of work.
    most
        The most workers.

    Attributes
    ----------
    size
        The number of workers.
    is_queued
        Whether it is in the crew's queue.
    """

    def __init__(
        self,
        crew: Crew,
        count: int,
        step: Callable[[], Awaitable[None]],
        most: float = math.inf,
    ) -> None:
        self.size = 0
        self.is_queued = False
        self._crew = crew
        self._left = count
        # Workers that have not taken their first piece of work so far.
        self._starting = 0
        self._step = step
        self._most = most
        self._group = asyncio.TaskGroup()
        self._context = contextvars.copy_context()
        self._has_ended = False

    @property
    def wants_more(self) -> bool:
        """Whether it could use another worker."""
        if self._has_ended or self.size >= min(self._crew.bound, self._most):
            return False
        return self._left > self._starting

    async def work(self) -> None:
        """Do all the work. The first error cancels the workers, and is raised unchanged."""
        try:
            async with self._group as group:
                self.size = self._starting = 1
                group.create_task(self._work(extra=False))
                self._crew._add(self)
        except BaseExceptionGroup as errors:
            # With its own cause, because the group would add nothing to the traceback.
            first = first_error(errors)
            raise first from first.__cause__
        finally:
            self._has_ended = True
            self._crew._remove(self)

    def start(self) -> bool:
        """Start one more worker, in the context of the team; return whether that was possible."""
        work = self._work(extra=True)
        try:
            # Another team's worker may call this.
            task = self._group.create_task(work, context=self._context.copy())
        except RuntimeError:
            # The group is about to end, with an error or because it was cancelled.
            work.close()
            self._has_ended = True
            return False
        # A callback, since a task that is cancelled before it starts runs nothing of its own.
        task.add_done_callback(lambda _: self._crew._release(self))
        self.size += 1
        self._starting += 1
        return True

    async def _work(self, *, extra: bool) -> None:
        self._starting -= 1
        try:
            while self._left > 0:
                self._left -= 1
                await self._step()
                if extra and self._crew._is_needed_elsewhere(self):
                    return
        except BaseException:
            self._has_ended = True
            raise

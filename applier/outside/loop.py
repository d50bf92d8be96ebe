"""WorkLoop: the event loop of work outside the database, which waits for no thread when it ends."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from inturn.applier.outside.effect import NoThread, in_thread

_T = TypeVar("_T")
#: How many threads asyncio has for what a handler gives it, as by asyncio.to_thread.
MOST_THREADS = min(32, (os.cpu_count() or 1) + 4)


class WorkLoop(asyncio.SelectorEventLoop):
    """Resolves names in threads of their own: a dead name server does not stop other topics.

    What handlers give it to run in threads, daemons run: Python waits at its end for the threads of asyncio's
    own pool, and one of them may never return.
    """

    def __init__(self) -> None:
        super().__init__()
        self._daemons = DaemonThreads(MOST_THREADS)

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> Any:
        return await in_thread(functools.partial(socket.getaddrinfo, host, port, **hints))

    def run_in_executor(  # type: ignore[override]  # by its types, not by what it takes
        self, executor: Any, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        chosen = executor or self._default_executor or self._daemons  # type: ignore[attr-defined]
        return super().run_in_executor(chosen, func, *args)


class DaemonThreads(Executor):
    """Runs calls in daemon threads, so many at a time. A thread ends when nothing waits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running = 0
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Have a call run. Raises NoThread when the system has none for it."""
        future: Future[_T] = Future()
        with self._lock:
            self._waiting.append((future, functools.partial(fn, *args, **kwargs)))
            if self._running == self._most:
                return future
            self._running += 1
        try:
            threading.Thread(target=self._work, name="inturn-to-thread", daemon=True).start()
        except RuntimeError as error:
            future.cancel()
            with self._lock:
                self._running -= 1
            raise NoThread(f"a thread could not be started: {error}") from error
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                future, call = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                future.set_exception(error)
            else:
                future.set_result(result)

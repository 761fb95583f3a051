"""One thread that makes blocking calls for an event loop, in the order they were asked for.

`loop.run_in_executor` would do, and its futures, locks and semaphore would cost as much as the flush it waits for.
"""

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["StoreThread"]

_T = TypeVar("_T")


class StoreThread:
    """A thread that belongs to the running loop; made inside it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[object, ...], asyncio.Future[Any]] | None] = (
            SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="receipt-store", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call `function` in the thread, and return or raise what it does."""
        done: asyncio.Future[_T] = self._loop.create_future()
        self._calls.put((function, arguments, done))
        return await done

    def close(self) -> None:
        """End the thread behind the calls that were asked for; blocking."""
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            function, arguments, done = item
            try:
                result = function(*arguments)
            except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
                self._loop.call_soon_threadsafe(_fail, done, error)
            else:
                self._loop.call_soon_threadsafe(_finish, done, result)


def _finish(done: "asyncio.Future[_T]", result: _T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: "asyncio.Future[Any]", error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)

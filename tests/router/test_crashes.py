"""`kill -9` at random moments: whatever named a receipt to a caller has one, and the numbers have no hole."""

import contextlib
import random
import re
import signal
import threading
from typing import Self

import psutil  # type: ignore[import-untyped]  # ships no types

from conftest import StartRouter
from support.router import Router, UpstreamEntry, chat, new_state, wait_until
from support.upstream import Upstream
from support.wire import request_bytes

_RECEIPT_ID = re.compile(rb'"tresor":\{"receipt_id":"([0-9a-f-]{36})"')


class Load:
    """Callers who ask without a pause, and note which receipts they were told of."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(6)]
        self.seen: dict[str, bytes | None] = {}  # receipt id: the response, if it came whole

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # its worker was killed
                self._ask_often(chat(stream=number % 2 == 0))

    def _ask_often(self, body: bytes) -> None:
        with self._router.connect() as wire:
            while not self._stop.is_set():
                got = b""
                try:
                    wire.send(request_bytes("POST", "/v1/chat/completions", key=self._router.key, body=body))
                    answer = wire.read_head()
                    assert answer.status == 200, answer
                    while piece := wire.read_piece():
                        got += piece
                    self.seen[answer.receipt_id] = got
                finally:
                    for told in _RECEIPT_ID.findall(got):
                        self.seen.setdefault(told.decode(), None)


def check_all(router: Router, seen: dict[str, bytes | None]) -> None:
    jwks = router.jwks()
    for receipt_id, response in seen.items():
        claims = router.verify(receipt_id, response=response, jwks=jwks).claims
        assert claims.outcome in ("complete", "client_disconnected")
        if response is not None:
            assert claims.outcome == "complete"
    router.check_numbers()


def test_killed_workers_lose_no_receipt_that_was_told(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2}})
    dice = random.Random()  # noqa: S311 - moments, not secrets
    with Load(router) as load:
        for _ in range(8):
            enough = len(load.seen) + dice.randrange(1, 120)
            wait_until(lambda n=enough: len(load.seen) > n and router.workers(), "the load goes on")
            for worker in dice.sample(router.workers(), k=1):
                worker.send_signal(signal.SIGKILL)
    assert len(load.seen) > 8
    check_all(router, load.seen)
    assert len(router.jwks()) == 2  # those who came after went on with the keys of those who died


def test_a_router_killed_as_a_whole_finds_everything_again(start_router: StartRouter, alpha: Upstream) -> None:
    router = start_router([UpstreamEntry(alpha)], settings={"server": {"workers": 2}})
    with Load(router) as load:
        wait_until(lambda: len(load.seen) > 100, "there is load")
        workers = router.workers()
        for process in (psutil.Process(router.process.pid), *workers):
            process.send_signal(signal.SIGKILL)
        router.process.wait(10)
    psutil.wait_procs(workers, 10)
    again = Router(router.config, tls=None, key=router.key)
    try:
        again.wait_ready()
        check_all(again, load.seen)
        assert again.complete().status == 200
        new_state(again.config, "another")
        assert again.stop() == 0
    finally:
        again.kill()

"""The process an operator starts: binds the port, keeps the workers running, does what only one process may do.

Workers share the listening socket, so one that dies loses no connection that waits to be accepted.  The supervisor
never sees a request; it looks after the store (checkpoints, retention) and serves the metrics of all workers.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tresor.app.lifeline import make_lifeline, when_cut
from tresor.app.metrics import METRICS_CONTENT_TYPE, collect, forget
from tresor.errors import KeyFileError, RequestError, SettingsError, StoreUnavailableError
from tresor.http1.sweeper import Sweeper
from tresor.issuer.key_files import retire_lost_keys
from tresor.server.listener import Listener
from tresor.server.request import Request
from tresor.server.state import ServerState
from tresor.settings.load import LoadedSettings, parse_address
from tresor.store.sqlite.store import SqliteStore
from tresor.wire.envelope import encode_envelope

__all__ = ["bind", "supervise"]

_log = logging.getLogger(__name__)

_UPKEEP_S: Final = 1.0
_RETENTION_EVERY: Final = 30
_RETENTION_BATCH: Final = 500
_DAY_S: Final = 86_400
_KILL_AFTER_S: Final = 10.0
_MAX_BACKOFF_S: Final = 5.0
_BACKLOG: Final = 1024


def bind(address: str, setting: str) -> socket.socket:
    """Bind and listen.

    Raises:
        SettingsError: the address is taken, or is none of this machine's.
    """
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise SettingsError(f"cannot listen on {address} ({setting}): {error.strerror}") from error
    sock.setblocking(False)
    return sock


async def supervise(config: Path, loaded: LoadedSettings, lifeline_fd: int | None) -> int:
    """Run the router until SIGTERM, SIGINT or the end of whoever holds the lifeline.

    Args:
        config: the configuration file, read again by every worker.
        loaded: what was read from it.
        lifeline_fd: read end of a pipe whose closing means that the router is to end.

    Returns:
        The exit code: 0 after an orderly end, 1 where a worker could not start.
    """
    supervisor = _Supervisor(config, loaded)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    if lifeline_fd is not None:
        when_cut(lifeline_fd, supervisor.stop)
    return await supervisor.run()


class _Supervisor:
    def __init__(self, config: Path, loaded: LoadedSettings) -> None:
        self._config = config
        self._loaded = loaded
        self._server = loaded.settings.server
        self._stopping = asyncio.Event()
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._metrics_folder: Path | None = None

    def stop(self) -> None:
        """End in good order; asked a second time, at once."""
        if self._stopping.is_set():
            for worker in self._workers.values():
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
        self._stopping.set()

    async def run(self) -> int:
        store = SqliteStore(self._loaded.path(self._loaded.settings.store.path))
        sock = bind(self._server.listen, "server.listen")
        if self._loaded.settings.identity.tee == "none":  # else keys are in memory, and gone with their process
            try:
                folder = self._loaded.path(self._loaded.settings.receipts.key_directory)
                retire_lost_keys(store, folder, now=int(time.time()))
            except KeyFileError as error:
                _log.error("lost signing keys not looked for", extra={"fault": str(error)})
        host, port = sock.getsockname()[:2]
        child_end, parent_end = make_lifeline()
        metrics = await self._serve_metrics()
        keepers = [
            asyncio.create_task(self._keep_worker(number, sock.fileno(), child_end))
            for number in range(self._server.workers)
        ]
        upkeep = asyncio.create_task(self._upkeep(store))
        turning_away = asyncio.create_task(self._turn_away(sock))
        sys.stdout.write(f"tresor: listening on {self._loaded.public_origin} ({host} port {port})\n")
        sys.stdout.flush()
        started = await asyncio.gather(*keepers)
        upkeep.cancel()
        if metrics is not None:
            await metrics.drain(0.0)
        if self._metrics_folder is not None:
            shutil.rmtree(self._metrics_folder, ignore_errors=True)
        await turning_away
        os.close(parent_end)
        # A thread goes on when whoever waits for it is cancelled, and must not lose its connection in the middle.
        await asyncio.get_running_loop().shutdown_default_executor()
        store.close()
        return 0 if all(started) else 1

    async def _turn_away(self, sock: socket.socket) -> None:
        """Let go of the port once the router is stopping: a caller whom nobody will serve must not wait."""
        await self._stopping.wait()
        sock.close()

    async def _keep_worker(self, number: int, socket_fd: int, lifeline_fd: int) -> bool:
        """Run a worker, and another when it dies; return whether it could be started at all.

        One that cannot start the first time has a message for the operator, and the router ends.  Later the cause is a
        fault that may pass, such as a full disk, and the other workers go on.
        """
        backoff_s = 0.1
        ever_ready = False
        while not self._stopping.is_set():
            began = time.monotonic()
            process, ready = await self._spawn(socket_fd, lifeline_fd)
            self._workers[number] = process
            stopping = asyncio.create_task(self._stopping.wait())
            ended = asyncio.create_task(process.wait())
            await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                await self._end(process, ended)
                return True
            stopping.cancel()
            if self._metrics_folder is not None:
                forget(self._metrics_folder, process.pid)
            ever_ready = ever_ready or ready.is_set()
            killed = process.returncode is not None and process.returncode < 0
            if not ever_ready and not killed:
                self._stopping.set()
                return False
            _log.error("worker died", extra={"worker": number, "exit_code": process.returncode})
            backoff_s = 0.1 if time.monotonic() - began > _MAX_BACKOFF_S else min(backoff_s * 2, _MAX_BACKOFF_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
        return True

    async def _spawn(self, socket_fd: int, lifeline_fd: int) -> tuple[asyncio.subprocess.Process, asyncio.Event]:
        ready_in, ready_out = os.pipe()
        environment = dict(os.environ)
        if self._metrics_folder is not None:
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(self._metrics_folder)
        simulated = ["--allow-simulated"] if self._loaded.allow_simulated else []
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tresor.app.worker",
            f"--config={self._config}",
            f"--socket-fd={socket_fd}",
            f"--lifeline-fd={lifeline_fd}",
            f"--ready-fd={ready_out}",
            *simulated,
            pass_fds=(socket_fd, lifeline_fd, ready_out),
            stdin=asyncio.subprocess.DEVNULL,
            env=environment,
        )
        os.close(ready_out)
        ready = asyncio.Event()
        loop = asyncio.get_running_loop()

        def heard() -> None:
            loop.remove_reader(ready_in)
            if os.read(ready_in, 1):
                ready.set()
                _log.info("worker ready", extra={"worker_pid": process.pid})
            os.close(ready_in)

        loop.add_reader(ready_in, heard)
        return process, ready

    async def _end(self, process: asyncio.subprocess.Process, ended: "asyncio.Task[int]") -> None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(ended, self._server.drain_timeout_s + _KILL_AFTER_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _upkeep(self, store: SqliteStore) -> None:
        retention_s = self._loaded.settings.receipts.retention_days * _DAY_S
        turn = 0
        while True:
            await asyncio.sleep(_UPKEEP_S)
            turn += 1
            with contextlib.suppress(StoreUnavailableError):
                await asyncio.to_thread(store.maintain)
                if retention_s and turn % _RETENTION_EVERY == 1:
                    await self._delete_expired(store, int(time.time()) - retention_s)

    @staticmethod
    async def _delete_expired(store: SqliteStore, issued_before: int) -> None:
        deleted = _RETENTION_BATCH
        while deleted == _RETENTION_BATCH:
            deleted = await asyncio.to_thread(store.delete_receipts, issued_before, limit=_RETENTION_BATCH)
            await asyncio.sleep(0.01)

    async def _serve_metrics(self) -> Listener | None:
        if self._server.metrics_listen is None:
            return None
        sock = bind(self._server.metrics_listen, "server.metrics_listen")
        self._metrics_folder = folder = Path(tempfile.mkdtemp(prefix="tresor-metrics-"))

        async def handle(request: Request) -> None:
            if request.path == "/metrics" and request.method in ("GET", "HEAD"):
                request.respond(200, await asyncio.to_thread(collect, folder), METRICS_CONTENT_TYPE)
            else:
                error = RequestError(404, "not_found", "this listener serves GET /metrics and nothing else")
                request.respond(error.status, encode_envelope(error, request.id))

        sweeper = Sweeper()
        listener = Listener(ServerState(handle, self._loaded.settings.limits, sweeper))
        sweeper.start()
        await listener.start(sock, None)
        return listener

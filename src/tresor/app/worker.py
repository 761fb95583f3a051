"""One worker process: serves the socket it was given until it is told to end, or its supervisor is gone.

Started by `tresor.app.supervisor` as `python -m tresor.app.worker`; not meant to be started by hand.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import uvloop

from tresor.accounts.api_keys import Authenticator
from tresor.accounts.rate_limits import RateLimiter
from tresor.app.application import Application
from tresor.app.context import Context
from tresor.app.lifeline import when_cut
from tresor.app.log import set_up_logging
from tresor.app.metrics import Metrics
from tresor.errors import StoreUnavailableError, TresorError
from tresor.http1.sweeper import Sweeper
from tresor.issuer.issuer import ReceiptIssuer
from tresor.issuer.key_files import KeySlot
from tresor.routing.catalogue import Catalogue
from tresor.server.listener import Listener, server_tls_context
from tresor.server.state import ServerState
from tresor.settings.load import LoadedSettings, load_settings
from tresor.store.sqlite.store import SqliteStore
from tresor.upstreams.pool import UpstreamPool

__all__ = ["main"]

_log = logging.getLogger(__name__)

_UPKEEP_S: Final = 1.0
_PROBE_EVERY: Final = 5
_CONFIGURATION_ERROR: Final = 78  # EX_CONFIG of sysexits.h


def main() -> int:
    """Run a worker; return its exit code."""
    parser = argparse.ArgumentParser(prog="tresor.app.worker")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a connection is a file
    try:
        loaded = load_settings(arguments.config, os.environ)
        set_up_logging(loaded.settings.log.level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(loaded, arguments.socket_fd, arguments.lifeline_fd, arguments.ready_fd))
    except (TresorError, OSError) as error:
        sys.stderr.write(f"tresor worker: {error}\n")
        return _CONFIGURATION_ERROR
    return 0


async def _serve(loaded: LoadedSettings, socket_fd: int, lifeline_fd: int, ready_fd: int) -> None:
    settings = loaded.settings
    server = settings.server
    sweeper = Sweeper()
    context = _make_context(loaded, sweeper)
    listener = Listener(ServerState(Application(context), settings.limits, sweeper))
    tls = None
    if server.tls_certificate_file is not None and server.tls_key_file is not None:
        tls = server_tls_context(str(loaded.path(server.tls_certificate_file)), str(loaded.path(server.tls_key_file)))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    when_cut(lifeline_fd, stop.set)
    sweeper.start()
    await asyncio.gather(*(pool.probe() for pool in context.pools))
    await listener.start(socket.socket(fileno=socket_fd), tls)
    upkeep = asyncio.create_task(_upkeep(context))
    # What lives now lives as long as the process; later garbage is short-lived and mostly without cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    os.write(ready_fd, b"1")
    os.close(ready_fd)
    await stop.wait()
    context.draining = True
    await listener.drain(server.drain_timeout_s)
    context.metrics.flush()
    upkeep.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await upkeep
    await context.issuer.close()
    for pool in context.pools:
        pool.close()
    sweeper.stop()
    context.store.close()


def _make_context(loaded: LoadedSettings, sweeper: Sweeper) -> Context:
    settings = loaded.settings
    store = SqliteStore(loaded.path(settings.store.path))
    metrics = Metrics()
    issuer = ReceiptIssuer(
        store,
        KeySlot(loaded.path(settings.receipts.key_directory)),
        max_pending=settings.limits.max_pending_receipts,
        rotation_days=settings.receipts.key_rotation_days,
        on_group=metrics.receipt_group,
    )
    pools = tuple(
        UpstreamPool(
            upstream,
            api_key=api_key,
            ca_file=None if upstream.ca_file is None else loaded.path(upstream.ca_file),
            limits=settings.limits,
            sweeper=sweeper,
        )
        for upstream, api_key in zip(settings.upstreams, loaded.api_keys, strict=True)
    )
    return Context(
        issuer_name=loaded.public_origin,
        limits=settings.limits,
        store=store,
        authenticator=Authenticator(store),
        rate_limiter=RateLimiter(store, settings.plans),
        issuer=issuer,
        catalogue=Catalogue(settings.upstreams),
        pools=pools,
        metrics=metrics,
        access_log=settings.log.access,
    )


async def _upkeep(context: Context) -> None:
    """Every second: ask whether the key is to be replaced and the store is there; now and then, the upstreams."""
    turn = 0
    while True:
        await asyncio.sleep(_UPKEEP_S)
        turn += 1
        context.metrics.flush()
        try:
            await context.issuer.consider_rotation()
            await asyncio.to_thread(context.store.check)
            context.store_ok = True
        except StoreUnavailableError as error:
            if context.store_ok:
                _log.error("store unavailable", extra={"fault": str(error)})
            context.store_ok = False
        if turn % _PROBE_EVERY == 0:
            await asyncio.gather(*(pool.probe() for pool in context.pools))


if __name__ == "__main__":
    sys.exit(main())

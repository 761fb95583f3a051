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

from tresor.app.application import Application
from tresor.app.assembly import assemble
from tresor.app.attesting import Attesting
from tresor.app.context import Context
from tresor.app.lifeline import when_cut
from tresor.app.log import set_up_logging
from tresor.errors import StoreUnavailableError, TresorError
from tresor.http1.sweeper import Sweeper
from tresor.server.listener import Listener, server_tls_context
from tresor.server.state import ServerState
from tresor.settings.load import LoadedSettings, load_settings

__all__ = ["main"]

_log = logging.getLogger(__name__)

_UPKEEP_S: Final = 1.0
_PROBE_EVERY: Final = 5
_FIRST_EVIDENCE_S: Final = 5.0
"""How long the first evidence may hold up the start; later it is had while the process is not ready."""
_CONFIGURATION_ERROR: Final = 78  # EX_CONFIG of sysexits.h


def main() -> int:
    """Run a worker; return its exit code."""
    parser = argparse.ArgumentParser(prog="tresor.app.worker")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--lifeline-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    parser.add_argument("--allow-simulated", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a connection is a file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # prompts and keys in memory never reach a disk
    try:
        loaded = load_settings(arguments.config, os.environ, allow_simulated=arguments.allow_simulated)
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
    context, attesting = assemble(loaded, sweeper)
    state = ServerState(Application(context, attesting), settings.limits, sweeper)
    context.issuer.in_flight = lambda: state.serving
    listener = Listener(state)
    tls = None
    if server.tls_certificate_file is not None and server.tls_key_file is not None:
        tls = server_tls_context(str(loaded.path(server.tls_certificate_file)), str(loaded.path(server.tls_key_file)))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    when_cut(lifeline_fd, stop.set)
    sweeper.start()
    first_evidence = asyncio.create_task(attesting.upkeep())
    await asyncio.gather(
        asyncio.wait({first_evidence}, timeout=_FIRST_EVIDENCE_S), *(pool.prepare() for pool in context.pools)
    )
    await listener.start(socket.socket(fileno=socket_fd), tls)
    upkeep = asyncio.gather(_upkeep(context), _keep_attested(attesting, first_evidence))
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
    await asyncio.gather(*(pool.close() for pool in context.pools))
    sweeper.stop()
    # A thread goes on when whoever waits for it is cancelled, and must not lose its connection in the middle.
    await loop.shutdown_default_executor()
    context.store.close()


async def _keep_attested(attesting: Attesting, first: "asyncio.Task[None]") -> None:
    """Every second: look after the evidence; apart, for hardware may take its time."""
    await first
    while True:
        await asyncio.sleep(_UPKEEP_S)
        await attesting.upkeep()


async def _upkeep(context: Context) -> None:
    """Every second: look after the signing key and the store; now and then, the upstreams."""
    turn = 0
    while True:
        await asyncio.sleep(_UPKEEP_S)
        turn += 1
        context.metrics.flush()
        for pool in context.pools:
            if pool.channel is not None:
                pool.channel.upkeep()
                name = f"{pool.settings.region}/{pool.settings.provider}"
                context.metrics.channel(name, pool.channel.state)
        context.metrics.bound(now=context.issuer.attestation is not None and context.issuer.may_sign)
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

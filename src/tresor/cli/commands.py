"""The sub-commands of `tresor`, each a function of parsed arguments that returns an exit code."""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tresor import __version__
from tresor.accounts.api_keys import key_digest, new_api_key, new_key_id
from tresor.app.log import set_up_logging
from tresor.app.options import CLAIM_NAMES
from tresor.app.sidecar import run_sidecar
from tresor.app.supervisor import supervise
from tresor.cli.release import add_release
from tresor.demo.demo import DemoError, run_demo
from tresor.encodings import rfc3339
from tresor.errors import TresorError
from tresor.settings.load import LoadedSettings, load_settings, load_sidecar_settings
from tresor.settings.show import show_settings
from tresor.store.base import Store
from tresor.store.sqlite.store import SqliteStore

__all__ = ["make_parser", "run"]

_REQUIRED: Final = "what must be proven of the upstream that serves: cpu_tee, gpu_tee, tcb, workload; none by default"
_CONFIG_VARIABLE: Final = "TRESOR_CONFIG"


def run(arguments: Sequence[str]) -> int:
    """Parse and run; every failure is one line on standard error."""
    parsed = make_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return command(parsed)
    except (TresorError, DemoError) as error:
        sys.stderr.write(f"tresor: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has gone; Python would complain at its end
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="tresor", description="A router for confidential AI with receipts.")
    parser.add_argument("--version", action="version", version=f"tresor {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = _add(commands, "demo", _demo, "run the router in front of an embedded language model, on this machine")
    demo.add_argument("--port", type=_port, default=8443, help="port of the router on 127.0.0.1 (default 8443)")
    demo.add_argument("--directory", type=Path, default=Path(".tresor"), help="where its state is kept (.tresor)")

    serve = _add(commands, "serve", _serve, "run the router")
    _add_config(serve)
    serve.add_argument(
        "--allow-simulated",
        action="store_true",
        help='show evidence of tee = "simulated", behind which there is no hardware, on other addresses than loopback',
    )
    serve.add_argument("--lifeline-fd", type=int, help=argparse.SUPPRESS)

    sidecar = _add(commands, "sidecar", _sidecar, "stand before a local inference server and attest this machine")
    sidecar.add_argument("--config", type=Path, default=Path("sidecar.toml"), help="configuration file (sidecar.toml)")
    sidecar.add_argument(
        "--allow-simulated",
        action="store_true",
        help='show evidence of tee = "simulated", behind which there is no hardware, on other addresses than loopback',
    )
    sidecar.add_argument("--lifeline-fd", type=int, help=argparse.SUPPRESS)

    config = commands.add_parser("config", help="look at the configuration").add_subparsers(
        required=True, metavar="COMMAND"
    )
    _add_config(_add(config, "check", _config_check, "check the configuration and print what is in effect"))

    customers = commands.add_parser("customers", help="who owns keys and receipts").add_subparsers(
        required=True, metavar="COMMAND"
    )
    add = _add(customers, "add", _customers_add, "add a customer")
    add.add_argument("name", type=_printable)
    add.add_argument("--plan", default="default", help="a table under [plans] (default: default)")
    add.add_argument("--require-attestation", type=_claims, default="", metavar="CLAIMS", help=_REQUIRED)
    _add_config(add)
    change = _add(customers, "change", _customers_change, "change a customer's plan, or what it requires")
    change.add_argument("name")
    change.add_argument("--plan", help="a table under [plans]")
    change.add_argument("--require-attestation", type=_claims, metavar="CLAIMS", help=_REQUIRED)
    _add_config(change)
    _add_config(_add(customers, "list", _customers_list, "list customers"))

    keys = commands.add_parser("keys", help="API keys, and the keys that sign receipts").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = _add(keys, "create", _keys_create, "create an API key and show it, this once")
    create.add_argument("--customer", required=True, help="name of its owner")
    create.add_argument("--label", type=_printable, default="", help="a note for yourself")
    _add_config(create)
    listing = _add(keys, "list", _keys_list, "list API keys, never the keys themselves")
    listing.add_argument("--customer", help="of this customer only")
    _add_config(listing)
    revoke = _add(keys, "revoke", _keys_revoke, "revoke an API key for good")
    revoke.add_argument("id", help="its id, key_…, as listed")
    _add_config(revoke)
    _add_config(_add(keys, "rotate-signing", _keys_rotate, "have every router process replace its signing key"))

    add_release(commands)
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    what: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get(_CONFIG_VARIABLE, "tresor.toml"))
    parser.add_argument(
        "--config", type=Path, default=default, help=f"configuration file (${_CONFIG_VARIABLE}, or tresor.toml)"
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port <= 65535:  # noqa: PLR2004 - the ports there are
        raise ValueError(text)
    return port


def _claims(text: str) -> str:
    names = sorted({name.strip() for name in text.split(",")} - {""})
    if unknown := set(names) - CLAIM_NAMES:
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(sorted(CLAIM_NAMES))}")
    return ",".join(names)


def _printable(text: str) -> str:
    if not text.isprintable() or len(text) > 128:  # noqa: PLR2004 - fits a line
        raise argparse.ArgumentTypeError("want at most 128 printable characters")
    return text


def _load(arguments: argparse.Namespace, *, with_secrets: bool = True) -> LoadedSettings:
    # Only `serve` shows evidence to anybody.
    allow_simulated = getattr(arguments, "allow_simulated", True)
    return load_settings(arguments.config, os.environ, with_secrets=with_secrets, allow_simulated=allow_simulated)


@contextmanager
def _store(arguments: argparse.Namespace) -> Iterator[Store]:
    loaded = _load(arguments, with_secrets=False)
    store = SqliteStore(loaded.path(loaded.settings.store.path))
    try:
        yield store
    finally:
        store.close()


def _demo(arguments: argparse.Namespace) -> int:
    return run_demo(arguments.directory, arguments.port)


def _serve(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    set_up_logging(loaded.settings.log.level)
    return asyncio.run(supervise(arguments.config, loaded, arguments.lifeline_fd))


def _sidecar(arguments: argparse.Namespace) -> int:
    loaded = load_sidecar_settings(arguments.config, os.environ, allow_simulated=arguments.allow_simulated)
    set_up_logging(loaded.settings.log.level)
    return run_sidecar(loaded, arguments.lifeline_fd)


def _config_check(arguments: argparse.Namespace) -> int:
    sys.stdout.write(show_settings(_load(arguments)))
    return 0


def _customers_add(arguments: argparse.Namespace) -> int:
    if not arguments.name:
        raise TresorError("a customer needs a name")
    _check_plan(arguments)
    claims = arguments.require_attestation
    with _store(arguments) as store:
        if store.add_customer(arguments.name, arguments.plan, now=int(time.time()), required_claims=claims) is None:
            raise TresorError(f"there is a customer {arguments.name!r} already")
    print(f"added customer {arguments.name} on plan {arguments.plan}")
    return 0


def _customers_change(arguments: argparse.Namespace) -> int:
    _check_plan(arguments)
    claims = arguments.require_attestation
    with _store(arguments) as store:
        changed = store.change_customer(arguments.name, plan=arguments.plan, required_claims=claims)
    if changed is None:
        raise TresorError(f"there is no customer {arguments.name!r}; see 'tresor customers list'")
    print(
        f"customer {changed.name} is on plan {changed.plan} and requires {changed.required_claims or 'no attestation'}"
    )
    return 0


def _check_plan(arguments: argparse.Namespace) -> None:
    if arguments.plan is not None and arguments.plan not in _load(arguments, with_secrets=False).settings.plans:
        raise TresorError(f"there is no plan {arguments.plan!r} under [plans]")


def _customers_list(arguments: argparse.Namespace) -> int:
    with _store(arguments) as store:
        customers = store.customers()
    rows = [(c.name, c.plan, c.required_claims or "-", rfc3339(c.created_at)) for c in customers]
    _print_table(("NAME", "PLAN", "REQUIRES", "ADDED"), rows)
    return 0


def _keys_create(arguments: argparse.Namespace) -> int:
    key, key_id = new_api_key(), new_key_id()
    with _store(arguments) as store:
        if not store.add_api_key(key_id, arguments.customer, key_digest(key), arguments.label, now=int(time.time())):
            raise TresorError(f"there is no customer {arguments.customer!r}; see 'tresor customers list'")
    print(key)
    sys.stderr.write(f"{key_id}: shown this once; only its SHA-256 is kept\n")
    return 0


def _keys_list(arguments: argparse.Namespace) -> int:
    with _store(arguments) as store:
        keys = store.api_keys(arguments.customer)
    _print_table(
        ("ID", "CUSTOMER", "LABEL", "CREATED", "REVOKED"),
        [
            (
                k.id,
                k.customer_name,
                k.label or "-",
                rfc3339(k.created_at),
                "-" if k.revoked_at is None else rfc3339(k.revoked_at),
            )
            for k in keys
        ],
    )
    return 0


def _keys_revoke(arguments: argparse.Namespace) -> int:
    with _store(arguments) as store:
        if not store.revoke_api_key(arguments.id, now=int(time.time())):
            raise TresorError(f"there is no live key {arguments.id!r}; see 'tresor keys list'")
    print(f"revoked {arguments.id}; running routers stop taking it within seconds")
    return 0


def _keys_rotate(arguments: argparse.Namespace) -> int:
    with _store(arguments) as store:
        store.request_rotation(now=int(time.time()))
    print("asked every router process for a new signing key; they change within seconds, old keys stay in the key set")
    return 0


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

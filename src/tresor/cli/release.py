"""`tresor release`: the ceremony that says which builds of a service a verifier accepts (docs/operations/release.md).

It needs no server, no store and no network, and belongs on a machine that has none: the private half of the release
root never has to be anywhere else.

    0  done          the file is written; `inspect`: everything that could be checked holds
    1  refused       a key, a manifest, a bundle or a description is not what it should be
    2  usage         wrong arguments, or files that cannot be read or written
    3  undecided     `inspect` alone: there was no key to verify with
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tresor.cli import release_bundle, release_inspect
from tresor.cli.release_io import (
    InputError,
    digest_file,
    new_passphrase,
    printable,
    read_private_key,
    write_file,
)
from tresor.cli.reporting import write_stream
from tresor.errors import TresorError
from tresor.trust.jwk import TrustKey
from tresor.trust.manifest import MANIFEST_SCHEMA, ManifestClaims, parse_manifest, sign_manifest
from tresor.trust.release_root import encode_private_key, encode_public_jwk, encode_public_pem

__all__ = ["add_release", "run"]

_EXIT_REFUSED: Final = 1
_EXIT_USAGE: Final = 2
_EXIT_INTERRUPTED: Final = 130
_Command = Callable[[argparse.Namespace], tuple[int, str]]


def run(arguments: Sequence[str]) -> int:
    """Parse and run `release …`, with nothing of the router imported."""
    parser = argparse.ArgumentParser(prog="tresor", allow_abbrev=False)
    add_release(parser.add_subparsers(required=True, metavar="COMMAND"))
    parsed = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = parsed.command
    return command(parsed)


def add_release(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `release` and its sub-commands to the command line of `tresor`."""
    release = commands.add_parser(
        "release", help="sign what verifiers accept of this service", allow_abbrev=False
    ).add_subparsers(required=True, metavar="COMMAND")

    keygen = _add(release, "keygen", _keygen, "make a key for the release root or for manifests")
    keygen.add_argument("--out", type=Path, required=True, metavar="FILE", help="private key, PEM; never overwritten")
    keygen.add_argument(
        "--public",
        type=Path,
        metavar="FILE",
        help="public key: JWK, or PEM if it ends in .pem (default: --out with .jwk)",
    )
    protection = keygen.add_mutually_exclusive_group()
    protection.add_argument("--encrypt", action="store_true", help="ask for a passphrase")
    protection.add_argument("--passphrase-file", type=Path, metavar="FILE", help="encrypt with the passphrase in it")

    manifest = _add(release, "manifest", _manifest, "sign the identity of one build")
    _add_key(manifest)
    manifest.add_argument("--workload", required=True, help="name of the service")
    manifest.add_argument("--version", required=True, help="version of the release, in your words")
    for part, what in (("image", "the image that boots"), ("binary", "the program in it")):
        of_part = manifest.add_mutually_exclusive_group(required=True)
        of_part.add_argument(f"--{part}", type=Path, metavar="FILE", help=f"{what}, to be hashed")
        of_part.add_argument(f"--{part}-digest", metavar="sha256:HEX", help=f"SHA-256 of {what}")
    manifest.add_argument(
        "--build-metadata",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_name_and_value,
        help="what else you say of the build; may be repeated",
    )
    _add_out(manifest)

    bundle = _add(release, "bundle", release_bundle.run, "sign what verifiers accept, with the release root")
    _add_key(bundle)
    release_bundle.add_arguments(bundle)
    _add_out(bundle)

    inspect = _add(release, "inspect", release_inspect.run, "show and verify a bundle, a manifest or a public key")
    release_inspect.add_arguments(inspect)


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, command: _Command, what: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", allow_abbrev=False)
    parser.set_defaults(command=partial(_run, command))
    return parser


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key that signs, PEM")
    parser.add_argument("--passphrase-file", type=Path, metavar="FILE", help="its passphrase; asked for otherwise")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def _name_and_value(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!a} is not NAME=VALUE")
    return name, value


def _run(command: _Command, arguments: argparse.Namespace) -> int:
    """Run a command; every failure is one line on standard error."""
    try:
        exit_code, text = command(arguments)
    except TresorError as error:
        write_stream(sys.stderr, f"tresor: {printable(str(error))}\n")
        return _EXIT_USAGE if isinstance(error, InputError) else _EXIT_REFUSED
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    write_stream(sys.stdout, text)
    return exit_code


def _keygen(arguments: argparse.Namespace) -> tuple[int, str]:
    out: Path = arguments.out
    public: Path = arguments.public or out.with_suffix(".jwk")
    if public == out:
        raise InputError(f"{out} would hold both halves of the key: give --public")
    for path in (out, public):
        if path.exists():
            raise InputError(f"{path} is there already, and keys are never overwritten")
    encrypt = arguments.encrypt or arguments.passphrase_file is not None
    passphrase = new_passphrase(arguments.passphrase_file) if encrypt else None
    private_key = Ed25519PrivateKey.generate()
    key = TrustKey.of(private_key.public_key())
    write_file(out, encode_private_key(private_key, passphrase), mode=0o600)
    write_file(public, encode_public_pem(key) if public.suffix == ".pem" else encode_public_jwk(key))
    return 0, (
        f"Private key:  {printable(str(out))} (mode 600, {'encrypted' if encrypt else 'NOT encrypted'})\n"
        f"Public key:   {printable(str(public))}\n"
        f"Thumbprint:   {key.kid}\n"
    )


def _manifest(arguments: argparse.Namespace) -> tuple[int, str]:
    metadata = dict(arguments.build_metadata)
    if len(metadata) != len(arguments.build_metadata):
        raise InputError("--build-metadata gives one name twice")
    claims = ManifestClaims(
        schema=MANIFEST_SCHEMA,
        workload=arguments.workload,
        version=arguments.version,
        image_digest=arguments.image_digest or digest_file(arguments.image),
        binary_digest=arguments.binary_digest or digest_file(arguments.binary),
        build_metadata=metadata,
    )
    token = sign_manifest(claims, read_private_key(arguments.key, arguments.passphrase_file)).encode()
    write_file(arguments.out, token, force=arguments.force)
    manifest = parse_manifest(token)
    return 0, (
        f"Manifest:               {printable(str(arguments.out))}\n"
        f"Image digest:           {claims.image_digest}\n"
        f"Binary digest:          {claims.binary_digest}\n"
        f"Signed by:              {manifest.jws.kid}\n"
        f"Workload identity tag:  sha256:{manifest.tag.hex()}\n"
    )

"""`tresor-verify`: arguments in, a verdict and an exit code out (docs/spec/receipt.md section 8.3).

    0  pass          every check that could be made passed; what was not checked is printed
    1  fail          a check failed
    2  usage         wrong arguments, or input that cannot be read: there is no verdict
    3  undecided     something needed for a verdict could not be had

A sub-command is a module with `add_arguments` and `run`; this one knows nothing of what they verify.
"""

import argparse
import sys
from collections.abc import Sequence

from tresor import __version__
from tresor.cli import verify_attest, verify_evidence, verify_receipt
from tresor.cli.reporting import write_stream
from tresor.cli.verify_input import InputError

__all__ = ["main"]

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: by argparse, with 0 after help and 2 after wrong arguments.
    """
    arguments = _parser().parse_args(argv)
    try:
        exit_code, text = arguments.run(arguments)
    except InputError as error:
        write_stream(sys.stderr, f"tresor-verify: {error}\n")
        return _EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    write_stream(sys.stdout, text)
    return int(exit_code)


def _parser() -> argparse.ArgumentParser:
    # Options are never guessed from their beginnings: what a script means must not depend on what options exist.
    parser = argparse.ArgumentParser(
        prog="tresor-verify",
        description="Verify what a Tresor router signed.",
        epilog="exit codes: 0 pass, 1 a check failed, 2 wrong usage or unreadable input, 3 could not be decided",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tresor-verify {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    receipt = commands.add_parser(
        "receipt", help="verify the receipt of one exchange", description=verify_receipt.DESCRIPTION, allow_abbrev=False
    )
    verify_receipt.add_arguments(receipt)
    receipt.set_defaults(run=verify_receipt.run)
    attest = commands.add_parser(
        "attest", help="verify a running router", description=verify_attest.DESCRIPTION, allow_abbrev=False
    )
    verify_attest.add_arguments(attest)
    attest.set_defaults(run=verify_attest.run)
    evidence = commands.add_parser(
        "evidence",
        help="appraise evidence of any TEE",
        description=verify_evidence.DESCRIPTION,
        allow_abbrev=False,
    )
    verify_evidence.add_arguments(evidence)
    evidence.set_defaults(run=verify_evidence.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())

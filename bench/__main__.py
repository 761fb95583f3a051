"""`python -m bench`: install, measure, report."""

import argparse
import signal
import sys
from types import FrameType

from bench import report
from bench.attested import TresorAttested, TresorOverTls
from bench.gateways import LiteLLM, Nginx, Portkey, TensorZero, Tresor
from bench.install import ROOT
from bench.measure import measure

_TARGETS = (Nginx, Tresor, LiteLLM, Portkey, TensorZero, TresorOverTls, TresorAttested)
_REPORT = ROOT / "docs/performance.md"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Tresor beside its peers.")
    parser.add_argument(
        "--rounds", type=int, default=15, help="turns of each target in each phase (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=0.7, help="length of each turn (default: %(default)s)")
    parser.add_argument("--only", metavar="A,B", help="measure these alone, and write no report")
    parser.add_argument("--no-write", action="store_true", help=f"leave {_REPORT.relative_to(ROOT)} as it is")
    arguments = parser.parse_args()
    names = {target.name for target in _TARGETS}
    arguments.only = set(arguments.only.split(",")) if arguments.only else names
    if unknown := arguments.only - names:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}")
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    return arguments


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit("bench: ended")  # unwinds, so that every server is killed


def main() -> int:
    """Run the benchmark.

    Returns:
        0, or 1 if Tresor was to be measured and failed, or lost a receipt.  A goal that is missed is a result.
    """
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _leave)
    chosen = [target() for target in _TARGETS if target.name in arguments.only]
    run = measure(chosen, rounds=arguments.rounds, seconds=arguments.seconds)
    command = "make bench" if len(sys.argv) == 1 else f"python -m bench {' '.join(sys.argv[1:])}"
    text = report.render(run, command)
    print(f"\n{text}")
    if len(chosen) == len(_TARGETS) and run.receipts is not None and not arguments.no_write:
        _REPORT.parent.mkdir(exist_ok=True)
        _REPORT.write_text(text)
    return 0 if "tresor" not in arguments.only or report.complete(run) else 1


if __name__ == "__main__":
    sys.exit(main())

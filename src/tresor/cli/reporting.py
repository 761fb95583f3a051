"""What every report on a terminal has in common: exit codes, fields, tables, and how they are written."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Final, TextIO

from tresor.attestation.results import AttestationResult, Outcome

__all__ = [
    "EXIT_CODES",
    "MARKS",
    "ExitCode",
    "field",
    "headline",
    "json_line",
    "lines_to_text",
    "table",
    "write_stream",
]

_ITEM_WIDTH = 12


class ExitCode(IntEnum):
    """The exit code of a verdict; 2 is for runs without one."""

    PASS = 0
    FAIL = 1
    UNDECIDED = 3


EXIT_CODES: Final[Mapping[Outcome, ExitCode]] = {
    "accepted": ExitCode.PASS,
    "rejected": ExitCode.FAIL,
    "undecided": ExitCode.UNDECIDED,
}
MARKS: Final = {"ok": "ok", "failed": "FAIL", "undecided": "?"}
"""What stands before a check, by its status."""


def headline(result: AttestationResult) -> str:
    """Return the first line of a report on evidence: PASS or FAIL, and every code once."""
    label = "  SIMULATED" if result.simulated else ""
    codes = ", ".join(dict.fromkeys(str(check.code) for check in result.checks if check.status != "ok"))
    match result.outcome:
        case "accepted":
            return f"PASS{label}"
        case "rejected":
            return f"FAIL{label}  {codes}"
        case "undecided":
            return f"FAIL{label}  could not be decided: {codes or 'there is nothing to appraise'}"


def field(label: str, value: object, width: int = 17) -> str:
    """Return a line of a label and its value."""
    return f"{label + ':':<{width}}{value}"


def table(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield a line for each mark, item and detail; the details stand below each other."""
    lines = list(rows)
    width = max((len(item) for _, item, _ in lines), default=0)
    for mark, item, detail in lines:
        yield f"  {mark:<4}  {item:<{max(width, _ITEM_WIDTH)}}  {detail}"


def lines_to_text(lines: Iterable[str]) -> str:
    """Join lines, each made printable ASCII: whatever evidence holds, it cannot steer a terminal or fake a line."""
    return "".join(f"{_printable(line)}\n" for line in lines)


def json_line(document: Mapping[str, object]) -> str:
    """Return one line of JSON in ASCII, without the one control character that JSON leaves as it is."""
    return json.dumps(document).replace("\x7f", "\\u007f") + "\n"


def write_stream(stream: TextIO | None, text: str) -> None:
    """Write and flush; a reader that has gone away changes no verdict, for the exit code says it too."""
    if stream is None:  # closed by whoever started the program
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # The interpreter flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _printable(line: str) -> str:
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in line)

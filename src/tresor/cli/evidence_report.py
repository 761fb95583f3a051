"""What `tresor-verify evidence` prints, for people and as JSON (docs/spec/attestation.md, 2.3)."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

import msgspec

from tresor.attestation.results import AttestationResult, Claim
from tresor.cli.reporting import EXIT_CODES, MARKS, ExitCode, field, headline, json_line, lines_to_text, table

__all__ = ["EvidenceReport"]

_CLAIM_MARKS: Final = {"proven": "ok", "refuted": "FAIL", "unknown": "?"}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EvidenceReport:
    """A verdict on whatever was given.

    Attributes:
        result: the appraisal.
        now: the instant it is for.
    """

    result: AttestationResult
    now: datetime

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the verdict."""
        return EXIT_CODES[self.result.outcome]

    def json(self) -> str:
        """Return the report as one line of JSON."""
        result = self.result
        return json_line(
            {
                "outcome": result.outcome,
                "code": result.code,
                "tee": result.tee,
                "simulated": result.simulated,
                "claims": msgspec.to_builtins(result.claims),
                "measurements": dict(result.measurements),
                "findings": [asdict(check) for check in result.checks],
                "not_checked": [{"item": item, "detail": why} for item, why in result.not_checked.items()],
                "exceptions": [msgspec.to_builtins(exception) for exception in result.exceptions],
                "details": dict(result.details),
                "verified_at": _instant(self.now),
                "valid_from": _instant(result.valid_from),
                "valid_until": _instant(result.valid_until),
            }
        )

    def text(self) -> str:
        """Return the report for people; its first line begins with PASS or FAIL."""
        return lines_to_text(self._lines())

    def _lines(self) -> Iterator[str]:
        result = self.result
        yield headline(result)
        yield field("TEE", f"{result.tee}{'  SIMULATED' if result.simulated else ''}")
        yield field("Verified as of", _instant(self.now))
        if result.valid_until is not None:
            yield field("Valid", f"{_instant(result.valid_from)} to {_instant(result.valid_until)}")
        yield from _section("Claims", table((_CLAIM_MARKS[c.status], name, _claim(c)) for name, c in _claims(result)))
        yield from _section("Measurements", _wide(result.measurements))
        yield from _section("Details", _wide(result.details))
        yield from _section("Findings", table((MARKS[c.status], c.check, c.detail) for c in result.checks))
        accepted = [("!", e.weakness, f"until {_instant(e.until)}: {e.reason}") for e in result.exceptions]
        yield from _section("Accepted by exception", table(accepted))
        yield from _section("Not checked", table(("-", item, why) for item, why in result.not_checked.items()))


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield a heading and its lines; nothing where there are none."""
    if rows := list(lines):
        yield ""
        yield f"{title}:"
        yield from rows


def _wide(values: Mapping[str, str]) -> Iterator[str]:
    width = max((len(name) for name in values), default=0)
    return (f"  {name:<{width}}  {value}" for name, value in values.items())


def _claims(result: AttestationResult) -> Iterator[tuple[str, Claim]]:
    return ((name, getattr(result.claims, name)) for name in ("cpu_tee", "gpu_tee", "tcb", "workload"))


def _claim(claim: Claim) -> str:
    return f"{claim.status}, by the {claim.source}{'' if claim.reason is None else f': {claim.reason}'}"


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat().replace("+00:00", "Z")

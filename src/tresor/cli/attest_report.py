"""What `tresor-verify attest` prints, for people and as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

import msgspec

from tresor.attestation.envelope import Envelope
from tresor.attestation.results import AttestationResult, Outcome
from tresor.cli.reporting import EXIT_CODES, MARKS, ExitCode, field, headline, json_line, lines_to_text, table
from tresor.trust.bundle import TrustBundle

__all__ = ["AttestReport"]

_RESULT: Final[Mapping[Outcome, Literal["pass", "fail", "undecided"]]] = {
    "accepted": "pass",
    "rejected": "fail",
    "undecided": "undecided",
}
_LAUNCH: Final = {"MEASUREMENT": "SNP MEASUREMENT", "MRTD": "TDX MRTD"}
_WIDTH: Final = 23


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AttestReport:
    """A verdict on one router.

    Attributes:
        result: the appraisal.
        envelope: what the router said; None where it could not be read.
        bundle: what it was held against; None where there was none in force.
    """

    result: AttestationResult
    envelope: Envelope | None = None
    bundle: TrustBundle | None = None

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the verdict."""
        return EXIT_CODES[self.result.outcome]

    def json(self) -> str:
        """Return the report as one line of JSON."""
        result, envelope, bundle = self.result, self.envelope, self.bundle
        return json_line(
            {
                "result": _RESULT[result.outcome],
                "code": result.code,
                "tee": result.tee,
                "simulated": result.simulated,
                "tls_spki_sha256": None if envelope is None else envelope.tls_spki_sha256,
                "workload_identity_tag": None if envelope is None else envelope.workload_identity_tag,
                "receipt_key": None if envelope is None else envelope.receipt_key.kid,
                "issued_at": None if envelope is None else envelope.issued_at,
                "trust_bundle": None if bundle is None else _bundle_members(bundle),
                "measurements": dict(result.measurements),
                "claims": msgspec.to_builtins(result.claims),
                "checks": [asdict(check) for check in result.checks],
                "not_checked": dict(result.not_checked),
            }
        )

    def text(self) -> str:
        """Return the report for people; its first line begins with PASS or FAIL."""
        return lines_to_text(self._lines())

    def _lines(self) -> Iterator[str]:
        result = self.result
        yield headline(result)
        if self.envelope is not None:
            yield field("TLS SPKI SHA-256", self.envelope.tls_spki_sha256, _WIDTH)
            for register, name in _LAUNCH.items():
                if (value := result.measurements.get(register)) is not None:
                    yield field(name, value, _WIDTH)
            yield field("Workload identity tag", self.envelope.workload_identity_tag, _WIDTH)
            if self.bundle is not None:
                claims = self.bundle.content.claims
                yield field("Trust bundle version", f"{claims.version} (valid until {claims.valid_until})", _WIDTH)
            yield field("Receipt key", self.envelope.receipt_key.kid, _WIDTH)
            yield field("TEE", "SIMULATED, no hardware stands behind it" if result.simulated else result.tee, _WIDTH)
        yield ""
        yield "Checked:"
        yield from table((MARKS[check.status], check.check, check.detail) for check in result.checks)
        if result.not_checked:
            yield ""
            yield "Not checked:"
            yield from table(("-", item, why) for item, why in result.not_checked.items())


def _bundle_members(bundle: TrustBundle) -> dict[str, object]:
    claims = bundle.content.claims
    return {
        "workload": claims.workload,
        "version": claims.version,
        "issued_at": claims.issued_at,
        "valid_until": claims.valid_until,
        "digest": bundle.digest,
    }

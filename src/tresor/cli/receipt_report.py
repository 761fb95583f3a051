"""What `tresor-verify receipt` prints, for people and as JSON.

Nothing that no key signed is shown as the receipt's.  Whatever a token holds, only printable ASCII reaches the
terminal, and no value begins a line of its own.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal, Self

import msgspec

from tresor.cli.reporting import ExitCode, field, json_line, lines_to_text, table
from tresor.encodings import rfc3339
from tresor.errors import Finding, ReceiptError, ReceiptMismatchError, ReceiptUndecidedError
from tresor.receipts.appraise import Omission, omissions
from tresor.receipts.claims import Attempt, ReceiptClaims
from tresor.receipts.verify import GenuineReceipt, VerifiedReceipt

__all__ = ["ReceiptReport"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReceiptReport:
    """A verdict on one receipt.

    Attributes:
        result: the verdict.
        code: why not `pass`: the first code of docs/spec/receipt.md section 8.2 that was met.
        message: the same for people.
        claims: what the receipt says; None where no key is known to have signed it.
        kid: the key that signed; None likewise.
        checks: every check that was made.
        not_checked: what a reader might take for checked and was not.
        simulated: the evidence it refers to is of no hardware.
    """

    result: Literal["pass", "fail", "undecided"]
    code: str | None
    message: str
    claims: ReceiptClaims | None
    kid: str | None
    checks: tuple[Finding, ...]
    not_checked: tuple[Omission, ...]
    simulated: bool = False

    @classmethod
    def of_success(cls, receipt: VerifiedReceipt) -> Self:
        """Report a receipt that verified."""
        return cls(
            result="pass",
            code=None,
            message="the receipt is genuine and contradicts nothing it was held against",
            simulated=receipt.simulated,
            claims=receipt.claims,
            kid=receipt.kid,
            checks=receipt.checked,
            not_checked=receipt.not_checked,
        )

    @classmethod
    def of_mismatch(cls, error: ReceiptMismatchError, receipt: GenuineReceipt) -> Self:
        """Report a genuine receipt that contradicts the clock, the life of its key or the exchange."""
        return cls(
            result="undecided" if error.undecided else "fail",
            code=error.code,
            message=str(error),
            claims=receipt.claims,
            kid=receipt.key.kid,
            checks=error.findings,
            not_checked=tuple(omissions(receipt.claims, error.findings)),
            simulated=_is_simulated(receipt.claims),
        )

    @classmethod
    def of_error(cls, error: ReceiptError) -> Self:
        """Report that there is no genuine receipt, or that nobody could say."""
        return cls(
            result="undecided" if isinstance(error, ReceiptUndecidedError) else "fail",
            code=error.code,
            message=str(error),
            claims=None,
            kid=None,
            checks=(),
            not_checked=(Omission("content", "nothing that the token says has been verified"),),
        )

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the verdict."""
        return ExitCode[self.result.upper()]

    def json(self) -> str:
        """Return the report as one line of JSON."""
        document = {
            "result": self.result,
            "code": self.code,
            "message": self.message,
            "receipt_type": None if self.claims is None else self.claims.receipt_type,
            "kid": self.kid,
            "simulated": self.simulated,
            "checks": [asdict(finding) for finding in self.checks],
            "not_checked": [asdict(omission) for omission in self.not_checked],
            "claims": None if self.claims is None else msgspec.to_builtins(self.claims),
        }
        return json_line(document)

    def text(self) -> str:
        """Return the report for people; its first line begins with PASS or FAIL."""
        return lines_to_text(self._lines())

    def _lines(self) -> Iterator[str]:
        codes = ", ".join(finding.code for finding in self.checks if finding.code is not None) or self.code
        match self.result:
            case "pass":
                yield "PASS  SIMULATED" if self.simulated else "PASS"
            case "fail":
                yield f"FAIL  {codes}"
            case "undecided":
                yield f"FAIL  could not be decided: {codes}"
        if self.claims is None:
            yield field("Reason", self.message)
        else:
            yield field("Receipt type", self.claims.receipt_type)
            yield field("Key ID", self.kid)
            yield ""
            yield from _claim_lines(self.claims)
            yield from _attestation_lines(self.claims)
            yield ""
            yield "Checked:"
            yield from table((_mark(f), f.check, f.detail) for f in self.checks)
        yield ""
        yield "Not checked:"
        yield from table(("-", omission.item, omission.detail) for omission in self.not_checked)


def _claim_lines(claims: ReceiptClaims) -> Iterator[str]:
    yield field("Receipt ID", claims.jti)
    yield field("Issuer", claims.iss)
    yield field("Issued at", rfc3339(claims.iat).replace(".000Z", "Z"))
    yield field("Number", f"{claims.seq} of its key")
    yield field("Requested route", claims.requested_route)
    yield field("Routed model", f"{claims.routed_model or 'none'}{' (failover)' if claims.failover else ''}")
    yield field("Outcome", claims.outcome)
    yield field("Status", "nothing was sent" if claims.status is None else claims.status)
    yield field("Stream", "yes" if claims.stream else "no")
    counts = (claims.prompt_tokens, claims.completion_tokens, claims.total_tokens)
    prompt, completion, total = ("unknown" if count is None else count for count in counts)
    yield field("Tokens", f"{prompt} prompt, {completion} completion, {total} total")
    if claims.nonce is not None:
        yield field("Nonce", claims.nonce)
    yield field("Attempts", len(claims.attempts))
    for number, attempt in enumerate(claims.attempts, 1):
        yield f"  {number}. {_attempt(attempt)}"


def _attempt(attempt: Attempt) -> str:
    parts = [f"{attempt.route}: {attempt.outcome}"]
    if attempt.reason is not None:
        parts.append(attempt.reason)
    if attempt.status is not None:
        parts.append(f"status {attempt.status}")
    parts.append("prompt sent" if attempt.prompt_sent else "prompt not sent")
    return ", ".join(parts)


def _attestation_lines(claims: ReceiptClaims) -> Iterator[str]:
    router, inference = claims.router_attestation, claims.inference_attestation
    if router is not None:
        yield field("Router", f"{router.workload}, {_tee(router.tee)}, evidence of {router.issued_at}")
    if inference is not None:
        evidence = "no evidence" if inference.verified_at is None else f"evidence of {inference.verified_at}"
        yield field("Inference", f"{inference.provider}, {inference.status}, {_tee(inference.tee)}, {evidence}")
        for exception in inference.exceptions:
            yield f"  accepted: {exception.weakness} until {exception.until.isoformat()}, {exception.reason}"


def _tee(tee: str) -> str:
    return "SIMULATED, no hardware stands behind it" if tee == "simulated" else f"tee {tee}"


def _is_simulated(claims: ReceiptClaims) -> bool:
    blocks = (claims.router_attestation, claims.inference_attestation)
    return any(block is not None and block.tee == "simulated" for block in blocks)


def _mark(finding: Finding) -> str:
    if finding.code is None:
        return "ok"
    return "?" if finding.undecided else "FAIL"

"""Every error Tresor raises on purpose.

    TresorError
    ├── ReceiptError                 a receipt, or a key set, is not what it should be
    │   ├── ReceiptMalformedError    the token or the key set cannot be read as one
    │   ├── ReceiptSignatureError    no allowed key signed the token
    │   ├── ReceiptMismatchError     the signed claims contradict what is known about the exchange
    │   └── ReceiptUndecidedError    something needed for a verdict could not be had
    ├── JsonError                    bytes are not the strict JSON of docs/spec/receipt.md section 7
    ├── EncodingError                text is not strict base64url or hexadecimal
    ├── SettingsError                the configuration is unknown, contradictory or incomplete
    ├── RequestError                 the answer to this request is an error envelope
    ├── StoreUnavailableError        the store did not take or give what was asked
    ├── KeyFileError                 a signing key file cannot be used
    ├── KeyNotAttestedError          evidence that binds a signing key could not be had
    └── UpstreamError                an upstream did not answer as it should

Callers branch on the class; programs branch on `code`, which never changes once released.  A message says what was got
and what was wanted.  It never holds a body, a key or a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

import msgspec

__all__ = [
    "AttemptReason",
    "EncodingError",
    "FailedAttempt",
    "Finding",
    "JsonError",
    "KeyFileError",
    "KeyNotAttestedError",
    "ReceiptCode",
    "ReceiptError",
    "ReceiptMalformedError",
    "ReceiptMismatchError",
    "ReceiptSignatureError",
    "ReceiptUndecidedError",
    "RequestError",
    "SettingsError",
    "StoreUnavailableError",
    "TresorError",
    "UpstreamError",
]


class TresorError(Exception):
    """Root of all errors of this package."""

    code: str = "internal_error"


class ReceiptCode(StrEnum):
    """Why a receipt is refused: the closed list of docs/spec/receipt.md section 8."""

    TOKEN_TOO_LARGE = "token_too_large"  # noqa: S105 - a code, no secret
    TOKEN_MALFORMED = "token_malformed"  # noqa: S105 - a code, no secret
    BASE64URL_MALFORMED = "base64url_malformed"
    JSON_MALFORMED = "json_malformed"
    ALG_NOT_ALLOWED = "alg_not_allowed"
    TYP_MISMATCH = "typ_mismatch"
    CRIT_NOT_UNDERSTOOD = "crit_not_understood"
    KEY_IN_TOKEN = "key_in_token"  # noqa: S105 - a code, no secret
    HEADER_NOT_ALLOWED = "header_not_allowed"
    KID_INVALID = "kid_invalid"
    KID_UNKNOWN = "kid_unknown"
    JWKS_MALFORMED = "jwks_malformed"
    JWKS_EMPTY = "jwks_empty"
    JWKS_DUPLICATE_KID = "jwks_duplicate_kid"
    JWK_PRIVATE = "jwk_private"
    JWK_NOT_ALLOWED = "jwk_not_allowed"
    KID_THUMBPRINT_MISMATCH = "kid_thumbprint_mismatch"
    SIGNATURE_MALFORMED = "signature_malformed"
    SIGNATURE_INVALID = "signature_invalid"
    SCHEMA_UNKNOWN = "schema_unknown"
    CLAIMS_INVALID = "claims_invalid"
    CLAIMS_INCONSISTENT = "claims_inconsistent"
    IAT_IN_FUTURE = "iat_in_future"
    KEY_NOT_YET_VALID = "key_not_yet_valid"
    KEY_RETIRED = "key_retired"
    KEY_REVOKED = "key_revoked"
    ID_MISMATCH = "id_mismatch"
    REQUEST_DIGEST_MISMATCH = "request_digest_mismatch"
    RESPONSE_DIGEST_MISMATCH = "response_digest_mismatch"
    RESPONSE_TRESOR_MISMATCH = "response_tresor_mismatch"
    NONCE_MISMATCH = "nonce_mismatch"
    EVIDENCE_DIGEST_MISMATCH = "evidence_digest_mismatch"
    ROUTER_KEY_NOT_BOUND = "router_key_not_bound"
    ROUTER_ATTESTATION_STALE = "router_attestation_stale"
    ROUTER_ATTESTATION_MISSING = "router_attestation_missing"
    INFERENCE_ATTESTATION_MISSING = "inference_attestation_missing"
    HOPS_NOT_DISTINCT = "hops_not_distinct"
    JWKS_UNAVAILABLE = "jwks_unavailable"


class ReceiptError(TresorError):
    """A receipt is refused, for the reason `code`."""

    def __init__(self, code: StrEnum, message: str) -> None:
        super().__init__(message)
        self.code: StrEnum = code


class ReceiptMalformedError(ReceiptError):
    """The token or the key set cannot be read as what it claims to be."""


class ReceiptSignatureError(ReceiptError):
    """No allowed key signed this token."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: what was checked, a word of docs/spec/receipt.md section 8.
        detail: for people, what was got and what was wanted.
        code: why it is not passed: a `ReceiptCode`, or that of what the receipt rests on; None where it is.
        undecided: whether `code` says what could not be had, and not what is wrong.
    """

    check: str
    detail: str
    code: StrEnum | None = None
    undecided: bool = False


class ReceiptMismatchError(ReceiptError):
    """The signed claims contradict what the verifier knows about the exchange.

    Args:
        findings: every check that was made, in order, at least one of which was not passed.

    Attributes:
        findings: the same; `code` is that of the first that failed, and the message holds them all.
        undecided: whether nothing failed, and something could not be decided.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        failed = [(f.code, f.detail) for f in findings if f.code is not None and not f.undecided]
        undecided = [(f.code, f.detail) for f in findings if f.code is not None and f.undecided]
        reasons = failed or undecided
        super().__init__(reasons[0][0], "; ".join(detail for _, detail in reasons))
        self.findings = tuple(findings)
        self.undecided = not failed


class ReceiptUndecidedError(ReceiptError):
    """Something needed for a verdict could not be had; neither good nor bad."""


class JsonError(TresorError):
    """Bytes are not strict JSON."""

    code = "json_malformed"


class EncodingError(TresorError):
    """Text is not the one spelling of the bytes it encodes."""

    code = "encoding_malformed"


class SettingsError(TresorError):
    """The configuration cannot be used; the message names file and line, or the environment variable."""

    code = "settings_invalid"


type_of_status: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    412: "api_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "api_error",
    502: "upstream_error",
    503: "api_error",
    504: "upstream_error",
}


class FailedAttempt(msgspec.Struct, frozen=True):
    """A route that was tried in vain: the reason of docs/spec/receipt.md section 4, and the upstream's HTTP status."""

    route: str
    reason: str | None
    status: int | None


class RequestError(TresorError):
    """The answer to this request is an error envelope (docs/spec/http-api.md section 3).

    Args:
        status: HTTP status of the answer.
        code: stable code of the envelope.
        message: for people; never holds a prompt, a key or an upstream's address.
        param: the member or header at fault, where there is one.
        retry_after_s: seconds for a `Retry-After` header.
        allow: methods for the `Allow` header of a 405.
        attempts: the routes that were tried in vain.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        allow: str | None = None,
        attempts: tuple["FailedAttempt", ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.allow = allow
        self.attempts = attempts

    @property
    def type(self) -> str:
        """The envelope's `type`; an upstream's own 4xx that stands in no table is about the request."""
        return type_of_status.get(self.status, "invalid_request_error")


class StoreUnavailableError(TresorError):
    """The store did not take or give what was asked; nothing is known to be written."""

    code = "service_unavailable"


class KeyFileError(TresorError):
    """A signing key file cannot be read, written, or is in use by another process."""

    code = "key_file_unusable"


class KeyNotAttestedError(TresorError):
    """Evidence that binds a signing key could not be had; `code` says which step failed.

    Args:
        code: stable word of the step, such as `source_unavailable`.
        message: for the operator.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


AttemptReason = Literal[
    "connect_failed",
    "tls_failed",
    "attestation_failed",
    "pin_mismatch",
    "timeout",
    "upstream_status",
    "upstream_rejected",
    "invalid_response",
    "stream_broken",
    "connection_lost",
    "overloaded",
    "caller_gone",
    "router_stopped",
]


class UpstreamError(TresorError):
    """An upstream did not answer as it should.

    Args:
        reason: the word that goes into the receipt's `attempts` (docs/spec/receipt.md section 4).
        message: for the log and the caller; never holds the upstream's address or anything it sent.
        status: the upstream's HTTP status, where it sent one.
        retry_after_s: the pause in seconds that it asked for, where it did.
    """

    code = "upstream_error"

    def __init__(
        self,
        reason: AttemptReason,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason: AttemptReason = reason
        self.status = status
        self.retry_after_s = retry_after_s

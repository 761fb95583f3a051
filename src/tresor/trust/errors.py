"""Errors of the release ceremony, and their codes (docs/operations/release.md, section 6).

TresorError
└── TrustError                   a bundle, a manifest or a key is refused
    ├── TrustMalformedError      bytes are not what they claim to be
    ├── TrustSignatureError      no trusted key signed these bytes
    └── TrustRefusedError        genuine, and not acceptable: time, version, workload, allow-lists
"""

from enum import StrEnum

from tresor.errors import TresorError

__all__ = ["TrustCode", "TrustError", "TrustMalformedError", "TrustRefusedError", "TrustSignatureError"]


class TrustCode(StrEnum):
    """Why a bundle, a manifest or a key is refused; stable once released."""

    # One compact JWS with our header?
    TOKEN_TOO_LARGE = "token_too_large"  # noqa: S105 - a code, no secret
    TOKEN_MALFORMED = "token_malformed"  # noqa: S105 - a code, no secret
    BASE64URL_MALFORMED = "base64url_malformed"
    JSON_MALFORMED = "json_malformed"
    ALG_NOT_ALLOWED = "alg_not_allowed"
    CRIT_NOT_UNDERSTOOD = "crit_not_understood"
    KEY_IN_TOKEN = "key_in_token"  # noqa: S105 - a code, no secret
    TYP_MISMATCH = "typ_mismatch"
    HEADER_NOT_ALLOWED = "header_not_allowed"
    KID_INVALID = "kid_invalid"
    SIGNATURE_MALFORMED = "signature_malformed"

    # A key?
    KEY_MALFORMED = "key_malformed"
    KEY_PRIVATE = "key_private"
    KEY_NOT_ALLOWED = "key_not_allowed"
    KEY_WEAK = "key_weak"
    KEY_DUPLICATE = "key_duplicate"
    KEYS_EMPTY = "keys_empty"
    PASSPHRASE_WRONG = "passphrase_wrong"  # noqa: S105 - a code, no secret

    # Well-formed content?
    SCHEMA_UNKNOWN = "schema_unknown"
    BUNDLE_MALFORMED = "bundle_malformed"
    MANIFEST_MALFORMED = "manifest_malformed"
    ROOTS_MIXED = "roots_mixed"

    # Genuine?
    BUNDLE_SIGNATURE_INVALID = "bundle_signature_invalid"
    MANIFEST_KEY_NOT_ALLOWED = "manifest_key_not_allowed"
    MANIFEST_SIGNATURE_INVALID = "manifest_signature_invalid"

    # Acceptable?
    BUNDLE_WORKLOAD_MISMATCH = "bundle_workload_mismatch"
    BUNDLE_NOT_YET_VALID = "bundle_not_yet_valid"
    BUNDLE_EXPIRED = "bundle_expired"
    BUNDLE_ROLLED_BACK = "bundle_rolled_back"
    BUNDLE_REPLACED = "bundle_replaced"
    SIMULATED_NOT_ALLOWED = "simulated_not_allowed"
    ROOT_NOT_ALLOWED = "root_not_allowed"
    MANIFEST_WORKLOAD_MISMATCH = "manifest_workload_mismatch"
    TAGS_EMPTY = "tags_empty"
    TAG_NOT_ALLOWED = "tag_not_allowed"
    MEASUREMENTS_EMPTY = "measurements_empty"
    MEASUREMENT_NOT_ALLOWED = "measurement_not_allowed"


class TrustError(TresorError):
    """A bundle, a manifest or a key is refused, for the reason `code`."""

    def __init__(self, code: TrustCode, message: str) -> None:
        super().__init__(message)
        self.code: TrustCode = code


class TrustMalformedError(TrustError):
    """The bytes cannot be read as what they claim to be."""


class TrustSignatureError(TrustError):
    """No trusted key signed these bytes."""


class TrustRefusedError(TrustError):
    """What was signed is genuine and not acceptable here and now."""

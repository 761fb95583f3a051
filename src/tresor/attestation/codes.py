"""Why evidence is refused, or cannot be judged: the closed list of docs/spec/attestation.md section 8.

A code says which rule failed, never which vendor: the result names the TEE.
"""

from enum import StrEnum

__all__ = ["AttestationCode"]


class AttestationCode(StrEnum):
    """Stable codes of failed and undecided checks."""

    # Well-formed?
    EVIDENCE_TOO_LARGE = "evidence_too_large"
    EVIDENCE_MALFORMED = "evidence_malformed"
    EVIDENCE_VERSION_UNSUPPORTED = "evidence_version_unsupported"
    EVIDENCE_KIND_MISMATCH = "evidence_kind_mismatch"
    EVIDENCE_UNKNOWN = "evidence_unknown"
    RESERVED_NOT_ZERO = "reserved_not_zero"
    ALGORITHM_NOT_ALLOWED = "algorithm_not_allowed"
    CERTIFICATE_MALFORMED = "certificate_malformed"
    COLLATERAL_MALFORMED = "collateral_malformed"

    # Genuine?
    SIGNATURE_INVALID = "signature_invalid"
    CHAIN_INVALID = "chain_invalid"
    ROOT_NOT_PINNED = "root_not_pinned"
    CERTIFICATE_NOT_YET_VALID = "certificate_not_yet_valid"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CERTIFICATE_EXTENSION_MISSING = "certificate_extension_missing"
    CERTIFICATE_TCB_MISMATCH = "certificate_tcb_mismatch"
    CHIP_ID_MISMATCH = "chip_id_mismatch"
    CRL_INVALID = "crl_invalid"
    CRL_EXPIRED = "crl_expired"
    CRL_NOT_YET_VALID = "crl_not_yet_valid"
    COLLATERAL_SIGNATURE_INVALID = "collateral_signature_invalid"
    COLLATERAL_EXPIRED = "collateral_expired"
    COLLATERAL_NOT_YET_VALID = "collateral_not_yet_valid"
    COLLATERAL_MISMATCH = "collateral_mismatch"
    PLATFORM_REVOKED = "platform_revoked"
    QE_REPORT_INVALID = "qe_report_invalid"
    QE_IDENTITY_MISMATCH = "qe_identity_mismatch"
    OCSP_INVALID = "ocsp_invalid"
    OCSP_EXPIRED = "ocsp_expired"
    FWID_MISMATCH = "fwid_mismatch"
    TOKEN_INVALID = "token_invalid"  # noqa: S105 - a code, no secret
    TOKEN_EXPIRED = "token_expired"  # noqa: S105 - a code, no secret
    TOKEN_ISSUER_MISMATCH = "token_issuer_mismatch"  # noqa: S105 - a code, no secret
    TOKEN_SUBMODULE_MISMATCH = "token_submodule_mismatch"  # noqa: S105 - a code, no secret
    KEY_NOT_BOUND = "key_not_bound"
    PCR_DIGEST_MISMATCH = "pcr_digest_mismatch"
    RUNTIME_DATA_MISMATCH = "runtime_data_mismatch"
    EVENT_LOG_MISMATCH = "event_log_mismatch"
    VERIFIERS_DISAGREE = "verifiers_disagree"

    # Acceptable?
    DEBUG_ENABLED = "debug_enabled"
    MIGRATION_AGENT_ALLOWED = "migration_agent_allowed"
    POLICY_BITS_NOT_ALLOWED = "policy_bits_not_allowed"
    VMPL_NOT_ALLOWED = "vmpl_not_allowed"
    SIGNER_NOT_ALLOWED = "signer_not_allowed"
    CHIP_ID_MASKED = "chip_id_masked"
    PROVISIONAL_FIRMWARE = "provisional_firmware"
    TCB_BELOW_FLOOR = "tcb_below_floor"
    TCB_STATUS_NOT_ALLOWED = "tcb_status_not_allowed"
    COLLATERAL_ROLLED_BACK = "collateral_rolled_back"
    ATTRIBUTES_NOT_ALLOWED = "attributes_not_allowed"
    MEASUREMENT_NOT_ALLOWED = "measurement_not_allowed"
    REGISTER_NOT_ALLOWED = "register_not_allowed"
    HOST_DATA_NOT_ALLOWED = "host_data_not_allowed"
    ID_BLOCK_NOT_ALLOWED = "id_block_not_allowed"
    PLATFORM_NOT_ALLOWED = "platform_not_allowed"
    COMPOSE_HASH_MISMATCH = "compose_hash_mismatch"
    FIRMWARE_VERSION_MISMATCH = "firmware_version_mismatch"
    FIRMWARE_MEASUREMENT_MISMATCH = "firmware_measurement_mismatch"
    CC_MODE_OFF = "cc_mode_off"
    GPU_COUNT_MISMATCH = "gpu_count_mismatch"
    GPU_DUPLICATE = "gpu_duplicate"
    GPU_ARCHITECTURE_MISMATCH = "gpu_architecture_mismatch"
    GPU_RESULT_NEGATIVE = "gpu_result_negative"
    PCR_SELECTION_NOT_ALLOWED = "pcr_selection_not_allowed"
    SECURE_BOOT_OFF = "secure_boot_off"
    TIME_IMPLAUSIBLE = "time_implausible"

    # Bound?
    REPORT_DATA_MISMATCH = "report_data_mismatch"
    NONCE_MISMATCH = "nonce_mismatch"
    NONCE_PUBLIC = "nonce_public"
    USER_DATA_MISMATCH = "user_data_mismatch"
    CHANNEL_NOT_BOUND = "channel_not_bound"
    GPU_NOT_BOUND = "gpu_not_bound"
    KEYSET_EXPIRED = "keyset_expired"

    SPKI_MISMATCH = "spki_mismatch"
    ENVELOPE_REPLAYED = "envelope_replayed"
    ISSUED_AT_STALE = "issued_at_stale"
    ISSUED_AT_IN_FUTURE = "issued_at_in_future"
    WORKLOAD_MISMATCH = "workload_mismatch"
    IDENTITY_TAG_MISMATCH = "identity_tag_mismatch"

    # Cannot be decided
    EVIDENCE_MISSING = "evidence_missing"
    ENDORSEMENT_MISSING = "endorsement_missing"
    COLLATERAL_MISSING = "collateral_missing"
    REVOCATION_UNKNOWN = "revocation_unknown"
    CERTIFICATE_ON_HOLD = "certificate_on_hold"
    QUOTE_MISSING = "quote_missing"
    EVENT_LOG_MISSING = "event_log_missing"
    SIMULATED = "simulated"

"""AWS Nitro attestation documents: bytes to fields (docs/spec/attestation.md, 5.5.1).

A document is a COSE_Sign1 (RFC 9052, section 4.2; CBOR tag 18 or none) whose payload is the CBOR map of the AWS Nitro
Secure Module's "Attestation process".  One spelling only: no tag inside, no indefinite length, no duplicate key, no
byte behind, and what was read must encode to the very same bytes.

Not looked at: whether anyone signed it, and what its registers hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn

import cbor2
import msgspec
from msgspec import Meta

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import EvidenceMalformedError

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "PCR_BYTES",
    "SIGNATURE_BYTES",
    "NitroDocument",
    "UnverifiedDocument",
    "parse_document",
]

MAX_DOCUMENT_BYTES: Final = 17 * 1024  # AWS allows 16384 bytes of payload
PCR_BYTES: Final = 48  # SHA-384
SIGNATURE_BYTES: Final = 96  # r and s of P-384, big endian (RFC 9053, section 2.1)
_TAG_18: Final = b"\xd2"
_MAX_DEPTH: Final = 3  # document, `pcrs` and `cabundle`, their items

_Certificate = Annotated[bytes, Meta(min_length=1, max_length=1024)]
_UserData = Annotated[bytes, Meta(max_length=1024)]


class NitroDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The payload, with the lengths of AWS's syntactical rules; members it may get later are ignored.

    AWS writes 512 as the limit of `user_data` and `nonce`; its module signs up to 1024 bytes of each.

    Attributes:
        module_id: the module that issued it.
        digest: `SHA384`, the function behind the registers.
        timestamp: milliseconds since the Unix epoch.
        pcrs: index to value, 48 bytes each; registers that are not locked are absent.
        certificate: DER of the certificate whose key signed.
        cabundle: DER of its issuers, root first.
        public_key: what the enclave asked to have signed; not necessarily a key.
        user_data: likewise.
        nonce: likewise.
    """

    module_id: Annotated[str, Meta(pattern=r"\A[\x21-\x7e]{1,256}\Z")]
    digest: Annotated[str, Meta(pattern=r"\ASHA384\Z")]
    timestamp: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    pcrs: Annotated[
        dict[Annotated[int, Meta(ge=0, le=31)], Annotated[bytes, Meta(min_length=PCR_BYTES, max_length=PCR_BYTES)]],
        Meta(min_length=1),
    ]
    certificate: _Certificate
    cabundle: Annotated[tuple[_Certificate, ...], Meta(min_length=1, max_length=7)]
    public_key: _UserData | None = None
    user_data: _UserData | None = None
    nonce: _UserData | None = None


@dataclass(frozen=True, slots=True, repr=False)
class UnverifiedDocument:
    """A well-formed document; nothing says yet who signed it.

    Attributes:
        protected: the protected header as received.
        payload: the payload as received.
        signature: r and s, 48 bytes each, big endian.
        document: the payload's fields.
    """

    protected: bytes
    payload: bytes
    signature: bytes
    document: NitroDocument


def parse_document(data: bytes) -> UnverifiedDocument:
    """Parse an attestation document.

    Raises:
        EvidenceMalformedError: too large, not this COSE_Sign1, or a member missing, of another type or length.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise EvidenceMalformedError(
            AttestationCode.EVIDENCE_TOO_LARGE,
            f"Nitro document is {len(data)} bytes, want at most {MAX_DOCUMENT_BYTES}",
        )
    try:
        protected, unprotected, payload, signature = msgspec.convert(  # (1)
            _decode(data.removeprefix(_TAG_18)),
            tuple[bytes, Any, bytes, Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]],
            builtin_types=(bytes,),
        )
        document = msgspec.convert(_decode(payload), NitroDocument, builtin_types=(bytes,))  # (2)
    except msgspec.ValidationError as error:
        raise _malformed(str(error)) from error
    if unprotected != {}:  # nothing of it is signed, so nothing may stand there
        raise _malformed("unprotected header is not an empty map")
    return UnverifiedDocument(protected, payload, signature, document)


def _decode(data: bytes) -> Any:
    try:
        value = cbor2.loads(
            data,
            semantic_decoders=_NO_TAGS,
            max_depth=_MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
        )
        same = cbor2.dumps(value) == data
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _malformed(f"{len(data)} bytes are not plain CBOR") from error
    if not same:
        raise _malformed(f"{len(data)} bytes are not the shortest CBOR of what they hold")
    return value


def _refuse_tag(*_: object) -> NoReturn:
    raise cbor2.CBORDecodeError("no tag may stand inside")


class _NoTags(dict[int, Callable[..., NoReturn]]):
    """A decoder for every tag, that refuses it.

    Tags stand for big numbers, patterns, shared references and more: none belongs here, and decoding some is costly.
    """

    def __missing__(self, tag: int) -> Callable[..., NoReturn]:
        return _refuse_tag


_NO_TAGS: Final = _NoTags()


def _malformed(why: str) -> EvidenceMalformedError:
    return EvidenceMalformedError(AttestationCode.EVIDENCE_MALFORMED, f"Nitro document: {why}")

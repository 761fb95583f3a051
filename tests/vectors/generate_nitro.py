"""Write the AWS Nitro vectors: `PYTHONPATH=tests python tests/vectors/generate_nitro.py FOLDER`.

Always the same bytes; a test runs this and compares.  All documents are signed under the root of `support.fake_nitro`,
which stands beside the folders as `root.der`.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from support.fake_nitro import (
    AT,
    CHAIN,
    ES384,
    GOOD,
    Issued,
    document,
    issue,
    make_chain,
    raw_signature,
    sign,
    statement,
)

KEY: Final = CHAIN[-1].key
PCR0: Final = (b"\x01" * 48).hex()
OTHER: Final = "ab" * 48


@dataclass(frozen=True, kw_only=True)
class Case:
    """A document, what it is held against, and the verdict.

    Attributes:
        name: number and what is wrong, as the folder is called.
        spec: section of docs/spec/attestation.md that decides.
        code: of the refusal; None where it is accepted.
    """

    name: str
    title: str
    spec: str
    document: bytes
    code: str | None = None
    at: datetime = AT
    policy: dict[str, Any] | None = None
    report_data: bytes | None = None
    nonce: bytes | None = None


def made(chain: tuple[Issued, ...] = CHAIN, /, **changes: Any) -> bytes:
    """Return a document with changed members, signed by the leaf of `chain`."""
    return document(chain, **changes)


def good() -> Iterator[Case]:
    """Documents that are accepted."""
    spec = "5.5"
    yield Case(name="001-good", title="a good document", spec=spec, document=GOOD)
    yield Case(name="002-tag-18", title="the same under CBOR tag 18", spec=spec, document=b"\xd2" + GOOD)
    yield Case(
        name="003-bound",
        title="user data and nonce are the expected ones",
        spec=spec,
        document=GOOD,
        report_data=bytes(range(64)),
        nonce=b"n" * 32,
    )
    yield Case(
        name="004-registers-allowed",
        title="registers hold allowed values, the first or another of the list",
        spec=spec,
        document=GOOD,
        policy={"skip_pcrs": False, "allowed_pcrs": {"0": [PCR0], "4": [OTHER, (b"\x05" * 48).hex()]}},
    )
    yield Case(
        name="005-longest-members",
        title="user data, nonce and public key of 1024 bytes, as the module signs them",
        spec=spec,
        document=made(user_data=b"u" * 1024, nonce=b"n" * 1024, public_key=b"k" * 1024),
    )
    yield Case(
        name="006-optional-members-absent",
        title="user data, nonce and public key are absent",
        spec=spec,
        document=made(user_data=..., nonce=..., public_key=...),
    )
    yield Case(
        name="007-member-of-a-later-version", title="an unknown member is ignored", spec=spec, document=made(later=1)
    )


def encodings() -> Iterator[Case]:
    """Bytes that are not the one spelling of a document."""

    def case(name: str, title: str, document: bytes, code: str = "evidence_malformed") -> Case:
        return Case(name=name, title=title, spec="5.5.1", document=document, code=code)

    name = statement(CHAIN)["module_id"]
    payload = cbor2.dumps(statement(CHAIN))
    protected, _, _, signature = cbor2.loads(GOOD)
    yield case("101-empty", "no bytes", b"")
    yield case("102-cut-off", "the last byte is missing", GOOD[:-1])
    yield case("103-byte-behind", "a byte stands behind the document", GOOD + b"\0")
    yield case("104-byte-behind-payload", "a byte stands behind the signed map", sign(payload + b"\0", KEY))
    yield case("105-tag-98", "COSE_Sign in place of COSE_Sign1", b"\xd8\x62" + GOOD)
    yield case("106-tag-18-twice", "tag 18 stands twice", b"\xd2\xd2" + GOOD)
    yield case(
        "107-duplicate-member",
        "pcrs stands twice in the signed map",
        sign(bytes([payload[0] + 1]) + payload[1:] + cbor2.dumps("pcrs") + cbor2.dumps({0: b"\1" * 48}), KEY),
    )
    yield case("108-duplicate-register", "PCR0 stands twice", sign(_with_pcrs(b"\xa2" + _pcr0(1) + _pcr0(2)), KEY))
    yield case("109-indefinite-map", "the signed map has no stated length", sign(b"\xbf" + payload[1:] + b"\xff", KEY))
    yield case(
        "110-indefinite-string",
        "the module's name comes in pieces, of which there is one",
        sign(payload.replace(cbor2.dumps(name), b"\x7f" + cbor2.dumps(name) + b"\xff", 1), KEY),
    )
    yield case("111-long-integer", "a register's index takes more bytes than it needs", sign(_long_index(), KEY))
    yield case("112-nested", "ten thousand arrays in one another", b"\x81" * 10_000 + b"\x80")
    yield case("113-endless-array", "an array that says it has 2^32-1 items", b"\x9a\xff\xff\xff\xff")
    yield case("114-too-large", "more than 17408 bytes", made(user_data=b"u" * 17_408), "evidence_too_large")
    yield case(
        "115-tag-inside", "the time is a bignum (tag 2)", sign(cbor2.dumps(statement(CHAIN, timestamp=1 << 64)), KEY)
    )
    yield case("116-shared-reference", "a value is marked for sharing (tag 28)", sign(b"\xd8\x1c" + payload, KEY))
    yield case(
        "117-unprotected-header", "something stands where nothing is signed", sign(payload, KEY, unprotected={4: b"k"})
    )
    yield case("118-alg-unprotected", "the algorithm stands where nothing is signed", _unprotected_alg(payload))
    yield case("119-detached-payload", "the payload is nil", cbor2.dumps([protected, {}, None, signature]))
    yield case(
        "120-five-items", "an item more than COSE_Sign1 has", cbor2.dumps([protected, {}, payload, signature, b""])
    )
    yield case(
        "121-signature-95-bytes", "the signature is short", cbor2.dumps([protected, {}, payload, signature[:-1]])
    )
    yield case("122-signature-der", "the signature is DER", _der_signature(payload))
    yield case("123-json", "JSON in place of CBOR", b'{"module_id": "i-0"}')


def members() -> Iterator[Case]:
    """Members that are missing, of another type or length."""
    wrong: dict[str, tuple[str, dict[str, Any]]] = {
        "151-module-id-empty": ("module_id is empty", {"module_id": ""}),
        "152-module-id-control-character": ("module_id holds a line break", {"module_id": "i-0\ntrusted"}),
        "153-digest-sha512": ("digest is SHA512", {"digest": "SHA512"}),
        "154-timestamp-zero": ("timestamp is zero", {"timestamp": 0}),
        "155-timestamp-float": ("timestamp is no integer", {"timestamp": 1.5}),
        "156-timestamp-true": ("timestamp is a boolean", {"timestamp": True}),
        "157-pcrs-empty": ("no register", {"pcrs": {}}),
        "158-pcr-index-32": ("a register's index is 32", {"pcrs": {0: bytes(48), 32: bytes(48)}}),
        "159-pcr-index-text": ("a register's index is text", {"pcrs": {"0": bytes(48)}}),
        "160-pcr-32-bytes": ("a register is 32 bytes", {"pcrs": {0: bytes(32)}}),
        "161-pcr-hexadecimal": ("a register is 96 digits", {"pcrs": {0: b"0" * 96}}),
        "162-certificate-absent": ("no certificate", {"certificate": ...}),
        "163-certificate-empty": ("the certificate is empty", {"certificate": b""}),
        "164-certificate-1025-bytes": ("the certificate is 1025 bytes", {"certificate": b"\x30" * 1025}),
        "165-cabundle-null": ("cabundle is null", {"cabundle": None}),
        "166-cabundle-empty": ("cabundle is empty", {"cabundle": []}),
        "167-cabundle-endless": ("cabundle has eight certificates", {"cabundle": [b"\x30"] * 8}),
        "168-nonce-1025-bytes": ("the nonce is 1025 bytes", {"nonce": b"n" * 1025}),
        "169-nonce-text": ("the nonce is text", {"nonce": "6e6e6e6e"}),
        "170-user-data-text": ("user data is text", {"user_data": "dXNlcg=="}),
    }
    for name, (title, changes) in wrong.items():
        yield Case(name=name, title=title, spec="5.5.1", document=made(**changes), code="evidence_malformed")
    yield Case(
        name="171-certificate-with-byte-behind",
        title="a byte stands behind the DER of the certificate",
        spec="5.5.1",
        document=made(certificate=CHAIN[-1].der + b"\0"),
        code="certificate_malformed",
    )


def algorithms() -> Iterator[Case]:
    """Protected headers other than {alg: ES384}."""
    payload = cbor2.dumps(statement(CHAIN))
    headers: dict[str, tuple[str, bytes]] = {
        "201-alg-es256": ("alg is ES256 (-7), the signature as before", cbor2.dumps({1: -7})),
        "202-alg-es512": ("alg is ES512 (-36)", cbor2.dumps({1: -36})),
        "203-alg-hs256": ("alg is HMAC 256/256 (5)", cbor2.dumps({1: 5})),
        "204-alg-text": ("alg is the text ES384", cbor2.dumps({1: "ES384"})),
        "205-alg-absent": ("no algorithm", cbor2.dumps({})),
        "206-header-empty": ("no protected header", b""),
        "207-crit": ("a critical member that nobody knows", cbor2.dumps({1: -35, 2: [99], 99: 1})),
        "208-key-in-header": ("the certificates stand in the header (x5chain)", cbor2.dumps({1: -35, 33: b"\x30"})),
        "209-alg-twice": ("the algorithm stands twice", b"\xa2\x01\x38\x22\x01\x38\x22"),
        "210-byte-behind-header": ("a byte stands behind the header", ES384 + b"\0"),
    }
    for name, (title, protected) in headers.items():
        document = sign(payload, KEY, protected=protected)
        yield Case(name=name, title=title, spec="5.5.2", document=document, code="algorithm_not_allowed")
    p256 = make_chain(leaf={"ca": False, "curve": ec.SECP256R1()})
    yield Case(
        name="211-leaf-on-p256",
        title="the leaf's key is on P-256",
        spec="5.5.2",
        document=made(p256),
        code="algorithm_not_allowed",
    )


def chains() -> Iterator[Case]:
    """Chains that do not hold."""

    def case(name: str, title: str, code: str, document: bytes, at: datetime = AT) -> Case:
        return Case(name=name, title=title, spec="5.5.2", document=document, code=code, at=at)

    bundle = [issued.der for issued in CHAIN[:-1]]
    stranger = make_chain("stranger")
    second = timedelta(seconds=1)
    yield case("301-root-self-made", "all names are right, all keys are another's", "root_not_pinned", made(stranger))
    yield case("302-leaf-self-signed", "the leaf signed itself", "root_not_pinned", _self_signed())
    yield case(
        "303-leaf-of-another-world",
        "the leaf was signed by another key of its issuer's name",
        "chain_invalid",
        made((*CHAIN[:-1], stranger[-1])),
    )
    yield case("304-cabundle-reversed", "cabundle has the root last", "chain_invalid", made(cabundle=bundle[::-1]))
    for number, step in ((305, "root"), (306, "zone"), (307, "instance")):
        index = ["root", "region", "zone", "instance"].index(step)
        kept = bundle[:index] + bundle[index + 1 :]
        yield case(f"{number}-{step}-dropped", f"the {step} is missing", "chain_invalid", made(cabundle=kept))
    yield case(
        "308-stranger-in-cabundle",
        "cabundle holds a certificate that is no part of the chain",
        "chain_invalid",
        made(cabundle=[*bundle, stranger[1].der]),
    )
    yield case(
        "309-issuer-no-ca",
        "the leaf's issuer is no CA",
        "chain_invalid",
        made(make_chain(instance={"ca": False, "path_length": None})),
    )
    yield case(
        "316-issuer-may-not-issue",
        "the key of the leaf's issuer may not sign certificates",
        "chain_invalid",
        made(make_chain(instance={"usage": "digital_signature"})),
    )
    yield case(
        "310-path-too-long",
        "the zone may not have a CA below it",
        "chain_invalid",
        made(make_chain(zone={"path_length": 0})),
    )
    until = CHAIN[-1].certificate.not_valid_after_utc
    for number, what, title, leaf in (
        (314, "leaf-is-ca", "the leaf is a CA", {"ca": True, "usage": "digital_signature"}),
        (315, "leaf-may-not-sign", "the leaf's key is for key agreement", {"ca": False, "usage": "key_agreement"}),
    ):
        yield case(f"{number}-{what}", title, "chain_invalid", made(make_chain(leaf=leaf)))
    yield case("311-leaf-expired", "one second after the leaf", "certificate_expired", GOOD, until + second)
    yield case("312-before-the-leaf", "before the leaf", "certificate_not_yet_valid", GOOD, AT - 4 * second)
    yield case(
        "313-zone-expired",
        "the leaf is valid, an issuer is not",
        "certificate_expired",
        made(make_chain(zone={"valid_for": 2 * second})),
    )


def signatures() -> Iterator[Case]:
    """Signatures that do not hold."""
    protected, unprotected, payload, signature = cbor2.loads(GOOD)
    other = cbor2.dumps(statement(CHAIN, pcrs=dict.fromkeys(range(5), b"\x55" * 48)))
    wrong = {
        "401-signature-bit-flipped": ("one bit of s is another", payload, signature[:-1] + bytes([signature[-1] ^ 1])),
        "402-signature-zero": ("r and s are zero", payload, bytes(96)),
        "403-s-zero": ("s is zero", payload, signature[:48] + bytes(48)),
        "404-r-above-order": ("r is not below the order of the group", payload, b"\xff" * 48 + signature[48:]),
        "405-halves-exchanged": ("s stands before r", payload, signature[48:] + signature[:48]),
        "406-registers-replaced": ("PCR0 to PCR4 were replaced after signing", other, signature),
        "407-signed-by-issuer": ("the leaf's issuer signed", payload, cbor2.loads(sign(payload, CHAIN[-2].key))[3]),
        "408-no-sig-structure": ("the bare payload was signed", payload, raw_signature(payload, KEY)),
    }
    for name, (title, body, value) in wrong.items():
        document = cbor2.dumps([protected, unprotected, body, value])
        yield Case(name=name, title=title, spec="5.5.2", document=document, code="signature_invalid")


def appraisals() -> Iterator[Case]:
    """Genuine documents that are not wanted."""
    pcrs = statement(CHAIN)["pcrs"]
    debug, zero = "debug_enabled", bytes(48)
    milliseconds = int(AT.timestamp() * 1000)

    def case(name: str, title: str, code: str, document: bytes = GOOD, **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.5.3", document=document, code=code, **held)

    yield case("501-debug", "PCR0, PCR1 and PCR2 are zero", debug, made(pcrs={**pcrs, 0: zero, 1: zero, 2: zero}))
    yield case("502-pcr0-zero", "PCR0 alone is zero", debug, made(pcrs={**pcrs, 0: zero}))
    yield case("503-pcr2-absent", "PCR2 is absent", debug, made(pcrs={0: b"\1" * 48, 1: b"\2" * 48}))
    yield case(
        "504-debug-although-allowed",
        "a policy names the zeros of debug mode",
        debug,
        made(pcrs={**pcrs, 0: zero}),
        policy={"skip_pcrs": False, "allowed_pcrs": {"0": [zero.hex()]}},
    )
    yield case(
        "511-timestamp-in-seconds", "timestamp counts seconds", "time_implausible", made(timestamp=milliseconds // 1000)
    )
    yield case(
        "512-timestamp-before-leaf",
        "made before the leaf was",
        "time_implausible",
        made(timestamp=milliseconds - 3001),
    )
    yield case(
        "513-timestamp-in-future",
        "made more than a minute after now",
        "time_implausible",
        made(timestamp=milliseconds + 60_001),
    )
    yield case("514-timestamp-huge", "no calendar has this time", "time_implausible", made(timestamp=(1 << 63) - 1))
    not_allowed = "register_not_allowed"
    for number, what, title, allowed in (
        (521, "pcr0-not-allowed", "PCR0 is not in its list", {"0": [OTHER]}),
        (522, "pcr-absent", "a register of the policy is absent", {"0": [PCR0], "31": [zero.hex()]}),
        (523, "list-empty", "the list of a register is empty", {"0": []}),
        (524, "no-register-named", "no list at all, and registers are not skipped", {}),
        (525, "one-of-two-not-allowed", "PCR0 is allowed, PCR4 is not", {"0": [PCR0], "4": [OTHER]}),
    ):
        yield case(f"{number}-{what}", title, not_allowed, policy={"skip_pcrs": False, "allowed_pcrs": allowed})
    user = bytes(range(64))
    for number, what, title, data in (
        (531, "user-data-other", "user data differs in one bit", bytes([1]) + user[1:]),
        (532, "user-data-prefix", "the first half of user data was expected", user[:32]),
        (533, "user-data-padded", "user data and a zero were expected", user + b"\0"),
        (534, "user-data-empty", "empty user data was expected", b""),
    ):
        yield case(f"{number}-{what}", title, "user_data_mismatch", report_data=data)
    yield case(
        "535-user-data-absent", "user data is null", "user_data_mismatch", made(user_data=None), report_data=user
    )
    for number, what, title, nonce in (
        (541, "nonce-other", "another nonce was expected", b"m" * 32),
        (542, "nonce-prefix", "the beginning of the nonce was expected", b"n" * 16),
        (543, "nonce-hexadecimal", "the nonce was expected in digits", b"6e" * 32),
    ):
        yield case(f"{number}-{what}", title, "nonce_mismatch", nonce=nonce)
    yield case("544-nonce-absent", "the nonce is null", "nonce_mismatch", made(nonce=None), nonce=b"n" * 32)
    yield case("545-nonce-empty", "an empty nonce makes nothing fresh", "nonce_mismatch", made(nonce=b""), nonce=b"")


def _pcr0(value: int) -> bytes:
    return b"\0" + cbor2.dumps(bytes([value]) * 48)


def _with_pcrs(encoded: bytes) -> bytes:
    """Return the signed map with this encoding of `pcrs`."""
    return cbor2.dumps(statement(CHAIN, pcrs={0: b"?"})).replace(b"\xa1\0\x41?", encoded, 1)


def _long_index() -> bytes:
    return _with_pcrs(b"\xa1\x18" + _pcr0(1))


def _unprotected_alg(payload: bytes) -> bytes:
    return sign(payload, KEY, protected=b"", unprotected={1: -35})


def _der_signature(payload: bytes) -> bytes:
    signed = cbor2.dumps(["Signature1", ES384, b"", payload])
    signature = KEY.sign(signed, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    return cbor2.dumps([ES384, {}, payload, signature])


def _self_signed() -> bytes:
    leaf = issue("leaf.nitro.test", None, ca=False)
    return made((CHAIN[0], leaf))


def cases() -> list[Case]:
    """Return all cases by number.

    Raises:
        ValueError: two cases have one number.
    """
    families = (good(), encodings(), members(), algorithms(), chains(), signatures(), appraisals())
    found = [case for family in families for case in family]
    if len({case.name[:3] for case in found}) != len(found):
        raise ValueError("two cases have one number")
    return found


def write_case(case: Case, root: Path) -> None:
    """Write the folder of a case."""
    folder = root / case.name
    folder.mkdir()
    manifest: dict[str, Any] = {
        "title": case.title,
        "spec": case.spec,
        "expect": {"outcome": "rejected" if case.code else "accepted", "code": case.code},
        "verify_at": case.at.isoformat(),
        "evidence": "document.cbor",
        "policy": case.policy or {},
        "report_data": None if case.report_data is None else case.report_data.hex(),
        "nonce": None if case.nonce is None else case.nonce.hex(),
    }
    (folder / "document.cbor").write_bytes(case.document)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main(folder: str) -> None:
    """Write the root and all cases below `folder`, which is made."""
    root = Path(folder)
    root.mkdir(parents=True)
    (root / "root.der").write_bytes(CHAIN[0].der)
    for case in cases():
        write_case(case, root)


if __name__ == "__main__":
    main(sys.argv[1])

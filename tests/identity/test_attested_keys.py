"""Keys in memory: what is asked of the hardware, what comes of it, and what an operator hears where nothing does."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.ceremony import IMAGE_DIGEST, Ceremony, report_data_of, simulated_ceremony, spki_of
from support.certificates import Tls
from tresor.attestation.blocks import RouterAttestation
from tresor.attestation.envelope import Envelope, envelope_of, parse_envelope, parts_of
from tresor.attestation.evidence import Collateral, Need
from tresor.attestation.node import Demands, appraise_node
from tresor.encodings import digest_string
from tresor.errors import KeyNotAttestedError
from tresor.identity.attested_keys import AttestedKeys, load_workload, spki_sha256
from tresor.identity.source import CollectedEvidence, EvidenceSourceError, SourceCode
from tresor.identity.sources.simulated import SimulatedSource, open_root

SPKI = b"\1" * 32
NOW = datetime.now(UTC).timestamp()


def no_endorsement(_: Callable[[Collateral], tuple[Need, ...]], held: Collateral) -> Collateral:
    return held


class Source:
    """A simulated source that notes what it is asked, and fails on command."""

    tee = "simulated"

    def __init__(self, ceremony: Ceremony) -> None:
        root = open_root(ceremony.folder / "simulated-root.pem")
        self._source = SimulatedSource(root, image_digest=IMAGE_DIGEST)
        self.asked: list[bytes] = []
        self.error: EvidenceSourceError | None = None
        self.parts: dict[str, bytes] | None = None
        self.busy = 0
        self.most = 0
        self.pause = threading.Event()

    def collect(self, report_data: bytes) -> CollectedEvidence:
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.pause.wait(0.01)
        try:
            self.asked.append(report_data)
            if self.error is not None:
                raise self.error
            collected = self._source.collect(report_data)
            if self.parts is None:
                return collected
            return CollectedEvidence("simulated", self.parts, collected.certificates)  # type: ignore[arg-type]  # wrong
        finally:
            self.busy -= 1


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    return simulated_ceremony(tmp_path)


@pytest.fixture
def source(ceremony: Ceremony) -> Source:
    return Source(ceremony)


def keys_of(ceremony: Ceremony, source: Source, **changes: Any) -> AttestedKeys:
    arguments: dict[str, Any] = {
        "open_source": lambda: source,
        "workload": load_workload(ceremony.manifest_file),
        "tls_spki_sha256": SPKI,
        "trust_bundle_url": "https://router.test/bundle",
        "trust_bundle_file": ceremony.bundle_file,
        "max_age_s": 600,
        "endorse": no_endorsement,
        "lock_file": ceremony.folder / "lock",
        "clock": lambda: NOW,
    }
    return AttestedKeys(**arguments | changes)


def test_a_key_and_its_evidence(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source)
    assert keys.attested
    assert keys.load() is None  # type: ignore[func-returns-value]  # none, whatever happened before
    key = keys.make()
    attestation = keys.attest(key)
    assert source.asked == [report_data_of(SPKI, ceremony.tag, key.public_key())]
    assert (attestation.simulated, attestation.issued_at, attestation.expires_at) == (True, NOW, NOW + 600)
    result = appraise_node(
        parse_envelope(attestation.envelope),
        bundle=ceremony.in_force(),
        collateral=Collateral(),
        demands=Demands(tls_spki_sha256=SPKI),
        now=datetime.now(UTC),
    )
    assert result.outcome == "accepted"


def test_the_block_stands_for_the_envelope(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source)
    attestation = keys.attest(keys.make())
    envelope = parse_envelope(attestation.envelope)
    block = msgspec.json.decode(attestation.block.json, type=RouterAttestation)
    held = {f"sha256:{item.digest.hex()}": item.data for item in attestation.block.evidence}
    assert envelope_of(block, held) == envelope
    assert all(digest_string(data) == digest for digest, data in held.items())
    assert {reference.digest for reference in block.evidence} == set(held)
    assert ceremony.bundle_file.read_bytes() in held.values()
    assert len(held) == len(parts_of(envelope)) + 1
    for secret in (attestation.envelope, attestation.block.json):
        assert b"PRIVATE" not in secret
        assert b'"d"' not in secret


def test_a_nonce_is_bound(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source)
    key, nonce = keys.make(), os.urandom(32)
    envelope = keys.make_envelope(key, nonce=nonce)
    assert envelope.nonce == nonce.hex()
    assert source.asked == [report_data_of(SPKI, ceremony.tag, key.public_key(), nonce)]
    assert isinstance(envelope, Envelope)


def test_keys_are_all_different(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source)
    made = [keys.make() for _ in range(3)]
    assert len({key.private_numbers().private_value for key in made}) == 3
    assert list(ceremony.folder.glob("*.key")) == []


def test_without_a_bundle_there_is_none_among_the_evidence(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source, trust_bundle_file=None)
    attestation = keys.attest(keys.make())
    assert len(attestation.block.evidence) == len(parts_of(parse_envelope(attestation.envelope)))


def test_endorsements_come_along(ceremony: Ceremony, source: Source) -> None:
    def endorse(needs: Callable[[Collateral], tuple[Need, ...]], held: Collateral) -> Collateral:
        assert needs(held) == ()
        return held + Collateral(crls=(b"crl",), ocsp_responses=(b"ocsp",), rims=(b"rim",), tdx=(b"{}",), jwks=(b"[]",))

    attestation = keys_of(ceremony, source, endorse=endorse)
    envelope = attestation.make_envelope(attestation.make())
    assert [item.media_type.rpartition("/")[2] for item in envelope.collateral] == [
        "pkix-crl",
        "ocsp-response",
        "rim+xml",
        "vnd.tresor.tdx-collateral+json",
        "jwk-set+json",
    ]


def test_a_source_is_looked_for_until_it_is_there(ceremony: Ceremony, source: Source) -> None:
    found = iter([EvidenceSourceError(SourceCode.UNAVAILABLE, "not yet"), None])

    def open_source() -> Source:
        error = next(found)
        if error is not None:
            raise error
        return source

    keys = keys_of(ceremony, source, open_source=open_source)
    key = keys.make()
    with pytest.raises(KeyNotAttestedError) as refused:
        keys.attest(key)
    assert refused.value.code == "source_unavailable"
    for _ in range(2):
        keys.attest(key)


@pytest.mark.parametrize("code", SourceCode)
def test_a_source_that_fails(ceremony: Ceremony, source: Source, code: SourceCode) -> None:
    keys = keys_of(ceremony, source)
    source.error = EvidenceSourceError(code, "why")
    for ask in (keys.attest, keys.make_envelope):
        with pytest.raises(KeyNotAttestedError, match="why") as refused:
            ask(keys.make())
        assert refused.value.code == code
    source.error = None
    keys.attest(keys.make())


def test_a_source_that_gives_something_else(ceremony: Ceremony, source: Source) -> None:
    source.parts = {"tdx_quote": b"quote"}
    keys = keys_of(ceremony, source)
    with pytest.raises(KeyNotAttestedError) as refused:
        keys.make_envelope(keys.make())
    assert refused.value.code == "evidence_malformed"


def test_a_bundle_that_cannot_be_read(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source, trust_bundle_file=ceremony.folder / "nothing")
    with pytest.raises(KeyNotAttestedError) as refused:
        keys.attest(keys.make())
    assert refused.value.code == "trust_bundle_unusable"


def test_a_lock_that_cannot_be_made(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source, lock_file=ceremony.folder / "nothing" / "lock")
    with pytest.raises(KeyNotAttestedError) as refused:
        keys.make_envelope(keys.make())
    assert refused.value.code == "lock_unusable"
    assert source.asked == []


def test_the_hardware_is_asked_one_question_at_a_time(ceremony: Ceremony, source: Source) -> None:
    """Over threads, and over everybody who has the same lock."""
    both = [keys_of(ceremony, source) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: both[number % 2].make_envelope(both[0].make()), range(16)))
    assert (source.most, len(source.asked)) == (1, 16)


def test_nothing_secret_is_shown(ceremony: Ceremony, source: Source) -> None:
    keys = keys_of(ceremony, source)
    attestation = keys.attest(keys.make())
    assert "router" in repr(keys)
    assert "evidence=4" in repr(attestation)


def test_the_workload_is_what_the_manifest_says(ceremony: Ceremony) -> None:
    workload = load_workload(ceremony.manifest_file)
    assert (workload.name, workload.tag, workload.image_digest) == ("router", ceremony.tag, IMAGE_DIGEST)
    ceremony.manifest_file.write_text(workload.manifest_jws + "\n")  # as editors leave it
    assert load_workload(ceremony.manifest_file).tag == hashlib.sha256(workload.manifest_jws.encode()).digest()


@pytest.mark.parametrize("data", [b"", b"a.b.c", b"\xff", None])
def test_a_manifest_that_is_none(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "manifest").write_bytes(data)
    with pytest.raises(KeyNotAttestedError) as refused:
        load_workload(tmp_path / "manifest")
    assert refused.value.code == "manifest_unusable"


def test_the_spki_of_a_certificate(tls: Tls, tmp_path: Path) -> None:
    assert spki_sha256(tls.certificate_file) == spki_of(tls.certificate_file)
    (tmp_path / "wrong").write_text("-----BEGIN CERTIFICATE-----\n")
    for wrong in (tmp_path / "wrong", tmp_path / "nothing", tls.key_file):
        with pytest.raises(KeyNotAttestedError) as refused:
            spki_sha256(wrong)
        assert refused.value.code == "certificate_unusable"

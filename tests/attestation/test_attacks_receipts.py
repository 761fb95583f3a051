"""Attacks on receipts that once worked: what the upstream block says of itself, against what its evidence is."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from support.ceremony import Ceremony, simulated_ceremony, simulated_inference_block
from support.fake_nvidia import report
from support.fake_providers import ANCHORS, AT, COLLATERAL, NONCE, SPKI, dstack
from tresor.attestation.codes import AttestationCode
from tresor.attestation.envelope import TRUST_BUNDLE
from tresor.attestation.hop import HOP_KINDS, HopAnswer, HopKind, HopPolicy, appraise_hop
from tresor.cli import verify_attest
from tresor.cli import verify_receipt as program
from tresor.cli.reporting import ExitCode
from tresor.cli.verify import main
from tresor.cli.verify_input import Fetched
from tresor.encodings import digest_string, rfc3339
from tresor.jose.jwk import parse_jwks, public_jwk
from tresor.jose.jws import encode_protected_header, parse_compact, sign_jws
from tresor.receipts.attested import Trust
from tresor.receipts.claims import parse_claims
from tresor.receipts.verify import UnverifiedReceipt, verify_receipt
from tresor.trust.release_root import encode_public_jwk

GOOD: Final[dict[str, Any]] = msgspec.to_builtins(
    parse_claims(
        parse_compact(
            (Path(__file__).parents[1] / "vectors" / "receipt" / "001-bare-token" / "token.txt").read_text()
        ).payload
    )
)
KEY: Final = ec.generate_private_key(ec.SECP256R1())
NOW: Final = datetime.now(UTC).replace(microsecond=0)


def receipt(ceremony: Ceremony, **changes: Any) -> UnverifiedReceipt:
    """Return a receipt whose upstream is a simulated node; `changes` are what its block says instead."""
    answer = ceremony.envelope(SPKI, KEY.public_key(), issued_at=NOW, nonce=NONCE)
    bundle = ceremony.bundle_file.read_bytes()
    parts = (("answer", "application/json", answer), (TRUST_BUNDLE, "application/jose", bundle))
    block = simulated_inference_block(parts, spki=SPKI, nonce=NONCE, at=NOW)
    attempts = [attempt | {"started_at": rfc3339(NOW.timestamp())} for attempt in GOOD["attempts"]]
    payload = GOOD | {"iat": int(NOW.timestamp()), "attempts": attempts, "inference_attestation": block | changes}
    token = sign_jws(KEY, encode_protected_header(public_jwk(KEY.public_key()).kid), msgspec.json.encode(payload))
    return UnverifiedReceipt(
        jws=parse_compact(token.compact), id=None, evidence={digest_string(data): data for _, _, data in parts}
    )


@pytest.mark.parametrize("tee", ["simulated", "sev-snp"])
def test_a_simulation_is_called_so_whatever_the_block_calls_it(tee: str, tmp_path: Path) -> None:
    ceremony = simulated_ceremony(tmp_path, workload="inference")
    policy = HopPolicy(release_root=ceremony.trust_key, allow_simulated=True)
    verified = verify_receipt(
        receipt(ceremony, tee=tee),
        parse_jwks(msgspec.json.encode({"keys": [public_jwk(KEY.public_key())]})),
        now=NOW,
        trust=Trust(release_root=ceremony.trust_key, allow_simulated=True, inference=policy),
    )
    assert verified.simulated


@pytest.mark.parametrize("kind", HOP_KINDS)
def test_rules_for_one_kind_are_not_passed_by_another(kind: HopKind) -> None:
    """Who trusts one release root must not be shown any domain of anybody's under the policy that nobody gave."""
    answer = HopAnswer(kind=kind, document=dstack(), nonce=NONCE)
    wanted = tuple(other for other in HOP_KINDS if other != kind)
    arguments: dict[str, Any] = {"spki_sha256": SPKI, "collateral": COLLATERAL, "now": AT, "anchors": ANCHORS}
    refused = appraise_hop(answer, policy=HopPolicy(kinds=wanted), **arguments)
    assert (refused.result.outcome, refused.result.code) == ("rejected", AttestationCode.EVIDENCE_KIND_MISMATCH)
    assert refused.channel.type == "none"
    if kind == "dstack":
        assert appraise_hop(answer, policy=HopPolicy(kinds=(kind,)), **arguments).result.outcome == "accepted"


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ((), HOP_KINDS),
        (("root",), ("tresor",)),
        (("policy",), ("tinfoil", "dstack", "aci")),
        (("root", "policy"), HOP_KINDS),
    ],
)
def test_rules_that_are_given_are_demanded(
    options: tuple[str, ...], kinds: tuple[HopKind, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceremony = simulated_ceremony(tmp_path, workload="inference")
    files = {"root": tmp_path / "root.jwk", "policy": tmp_path / "policy.toml", "receipt": tmp_path / "receipt"}
    files["root"].write_bytes(encode_public_jwk(ceremony.trust_key))
    files["policy"].write_text("[tdx]\n")
    unverified = receipt(ceremony).jws
    files["receipt"].write_bytes(b"%b.%b" % (unverified.signing_input, b"A" * 86))
    seen: list[HopPolicy] = []

    def note(**members: Any) -> Trust:
        seen.append(members["inference"])
        return Trust(**members)

    monkeypatch.setattr(program, "Trust", note)
    given = {"root": f"--inference-release-root={files['root']}", "policy": f"--inference-policy={files['policy']}"}
    main(["receipt", f"--release-root={files['root']}", *(given[name] for name in options), str(files["receipt"])])
    assert [policy.kinds for policy in seen] == [kinds]


def test_a_router_sends_nobody_to_services_of_its_own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trust_bundle_url` is the word of whoever answers, before anything is verified."""
    ceremony = simulated_ceremony(tmp_path)
    envelope = ceremony.envelope(SPKI, KEY.public_key(), trust_bundle_url="http://127.0.0.1:1/shutdown")
    asked: list[str] = []

    def fetch(url: str, _what: str, **_limits: Any) -> Fetched:
        asked.append(url)
        return Fetched(envelope, SPKI)

    monkeypatch.setattr(verify_attest, "fetch", fetch)
    code = main(["attest", "--url=https://router.example", f"--release-root={ceremony.root_file}", "--offline"])
    assert code == ExitCode.UNDECIDED
    assert [url.partition("?")[0] for url in asked] == ["https://router.example/attestation"]


def test_a_challenge_beside_the_evidence_is_nobodys_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who hands over a folder can note in it whatever the evidence answers."""
    (tmp_path / "nonce").write_text(NONCE.hex())
    (tmp_path / "report").write_bytes(report(nonce=NONCE))
    main(["evidence", "--json", str(tmp_path)])
    noted = _omitted(capsys.readouterr().out)
    main(["evidence", "--json", f"--nonce={NONCE.hex()}", str(tmp_path)])
    sent = _omitted(capsys.readouterr().out)
    assert ("nonce" in noted, "nonce" in sent) == (True, False)


def _omitted(printed: str) -> set[str]:
    return {item["item"] for item in msgspec.json.decode(printed)["not_checked"]}

"""A router on a simulated machine: `GET /attestation`, what its receipts refer to, and keys that live in memory.

What a verifier refuses stands in tests/cli/test_verify_attest.py; here the answers are those of a real router.
"""

import base64
import contextlib
import re
import secrets
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import msgspec
import psutil  # type: ignore[import-untyped]  # ships no types
import pytest

from conftest import StartRouter
from support.ceremony import Ceremony, simulated_ceremony, spki_of
from support.certificates import Tls
from support.router import Completed, Router, UpstreamEntry, chat, running_router, tresor, wait_until, write_config
from support.upstream import DONE, Upstream, chunk, finish, stream
from tresor.encodings import digest_string
from tresor.jose.jws import parse_compact
from tresor.receipts.claims import ReceiptClaims, parse_claims
from tresor.store.sqlite.store import SqliteStore

CANARY = f"canary-{secrets.token_hex(12)}"


class StartAttested(Protocol):
    def __call__(self, *, workers: int = 1, server: Mapping[str, Any] | None = None, **identity: Any) -> Router: ...


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Ceremony:
    return simulated_ceremony(tmp_path_factory.mktemp("ceremony"))


@pytest.fixture
def start(start_router: StartRouter, ceremony: Ceremony, tls: Tls, alpha: Upstream) -> StartAttested:
    def started(*, workers: int = 1, server: Mapping[str, Any] | None = None, **identity: Any) -> Router:
        settings = {"server": {"workers": workers, **(server or {})}, "identity": ceremony.identity(**identity)}
        return start_router([UpstreamEntry(alpha)], tls=tls, settings=settings)

    return started


@pytest.fixture(scope="module")
def _attested(
    tmp_path_factory: pytest.TempPathFactory, ceremony: Ceremony, tls: Tls, _alpha: Upstream
) -> Iterator[Router]:
    settings = {"server": {"workers": 2}, "identity": ceremony.identity(nonces_per_minute=1000)}
    with running_router(tmp_path_factory.mktemp("router"), [UpstreamEntry(_alpha)], tls=tls, settings=settings) as it:
        yield it


@pytest.fixture
def attested(_attested: Router, alpha: Upstream) -> Router:
    """A router with two workers that this page's tests share."""
    return _attested


def attest(router: Router, ceremony: Ceremony, tls: Tls, *more: str | Path) -> tuple[int, dict[str, Any]]:
    done = tresor(
        "attest",
        f"--url={router.origin}",
        f"--release-root={ceremony.root_file}",
        f"--trust-bundle={ceremony.bundle_file}",  # the port of the one that it names is not known beforehand
        f"--ca-file={tls.ca_file}",
        "--json",
        *more,
        module="verify",
    )
    assert done.err == ""
    return done.exit_code, msgspec.json.decode(done.out)


def fetch_with_evidence(router: Router, receipt_id: str) -> bytes:
    answer = router.ask("GET", f"/v1/receipts/{receipt_id}?include=evidence", key=router.key)
    assert answer.status == 200, answer
    return answer.body


def claims_of(receipt: bytes) -> ReceiptClaims:
    return parse_claims(parse_compact(msgspec.json.decode(receipt)["receipt"]).payload)


def verify(
    folder: Path, receipt: bytes, ceremony: Ceremony, *more: str | Path, simulated: bool = True
) -> tuple[int, dict[str, Any]]:
    """Verify offline, from the one file and the release root."""
    file = folder / f"receipt-{secrets.token_hex(4)}.json"
    file.write_bytes(receipt)
    opt_in = ["--allow-simulated"] if simulated else []
    line = ["receipt", f"--release-root={ceremony.root_file}", "--json", *opt_in, *more, file]
    done: Completed = tresor(*line, module="verify")
    assert done.err == "", done
    return done.exit_code, msgspec.json.decode(done.out)


def codes(report: Mapping[str, Any]) -> set[str]:
    return {check["code"] for check in report["checks"] if check["code"] is not None}


# GET /attestation.


def test_a_router_is_what_its_release_says(attested: Router, ceremony: Ceremony, tls: Tls) -> None:
    code, report = attest(attested, ceremony, tls, "--allow-simulated")
    assert (code, report["result"], report["simulated"]) == (0, "pass", True)
    assert report["tls_spki_sha256"] == spki_of(tls.certificate_file).hex()
    assert report["receipt_key"] in attested.jwks()
    code, report = attest(attested, ceremony, tls)
    assert (code, report["code"]) == (1, "simulated_not_allowed")


def test_the_envelope_for_everybody(attested: Router, ceremony: Ceremony) -> None:
    answer = attested.ask("GET", "/attestation")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    envelope = answer.json
    assert "nonce" not in envelope
    assert envelope["tee"] == "simulated"
    assert envelope["trust_bundle_url"] == "https://router.test/.well-known/tresor-trust-bundle"
    assert envelope["workload_identity_manifest_jws"] == ceremony.manifest_jws
    with attested.connect() as wire:  # one worker: it is made once, not per request
        assert wire.ask("GET", "/attestation").body == wire.ask("GET", "/attestation").body


def test_the_trust_bundle_is_served_as_it_stands(attested: Router, ceremony: Ceremony) -> None:
    answer = attested.ask("GET", "/.well-known/tresor-trust-bundle")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/jose")
    assert answer.body == ceremony.bundle_file.read_bytes()


def test_a_nonce_is_answered_afresh(attested: Router) -> None:
    nonce = secrets.token_hex(32)
    answers = [attested.ask("GET", f"/attestation?nonce={text}") for text in (nonce, nonce.upper())]
    for answer in answers:
        assert (answer.status, answer.json["nonce"]) == (200, nonce)
        assert answer.headers["cache-control"] == "no-store"
    assert answers[0].json["snp_report_b64"] != answers[1].json["snp_report_b64"]


@pytest.mark.parametrize(
    "nonce", ["", "0", "0" * 63, "0" * 65, "g" * 64, "%00" * 64, "0" * 64 + "%0a", "+" + "0" * 63, "ü".encode().hex()]
)
def test_a_nonce_that_is_none(attested: Router, nonce: str) -> None:
    answer = attested.ask("GET", f"/attestation?nonce={nonce}")
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "invalid_field", "nonce")


def test_fresh_nonces_are_limited_by_address_and_cached_evidence_is_not(start: StartAttested) -> None:
    router = start(nonces_per_minute=2)
    deadline = time.monotonic() + 20
    refused = None
    while refused is None and time.monotonic() < deadline:  # minutes of the clock: at most two begin meanwhile
        answer = router.ask("GET", f"/attestation?nonce={secrets.token_hex(32)}")
        refused = answer if answer.status != 200 else None
    assert refused is not None
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert router.ask("GET", "/attestation").status == 200
    assert router.complete().status == 200


def test_equal_nonces_that_come_together_share_an_answer(attested: Router) -> None:
    nonce = secrets.token_hex(32)

    def ask(_: int) -> str:
        answer = attested.ask("GET", f"/attestation?nonce={nonce}")
        assert answer.status == 200
        assert answer.json["nonce"] == nonce
        return str(answer.json["snp_report_b64"])

    with ThreadPoolExecutor(12) as pool:
        assert 1 <= len(set(pool.map(ask, range(12)))) <= 12


def test_a_router_without_a_tee_attests_nothing(router: Router) -> None:
    for target in ("/attestation", f"/attestation?nonce={'0' * 64}", "/.well-known/tresor-trust-bundle"):
        answer = router.ask("GET", target)
        assert (answer.status, answer.error["code"]) == (404, "not_found")


# Receipts.


def test_a_receipt_is_verified_offline_from_one_file(
    attested: Router, ceremony: Ceremony, tmp_path: Path, alpha: Upstream
) -> None:
    body = chat("m", "What is 2+2?")
    answer = attested.complete(body, X_Tresor_Nonce="n-1")
    receipt = fetch_with_evidence(attested, answer.receipt_id)
    (tmp_path / "request").write_bytes(body)
    (tmp_path / "response").write_bytes(answer.body)
    held = [f"--request={tmp_path / 'request'}", f"--response={tmp_path / 'response'}", "--nonce=n-1"]
    code, report = verify(tmp_path, receipt, ceremony, *held)
    assert (code, report["result"], report["simulated"], codes(report)) == (0, "pass", True, set())
    assert {"router_key", "router_tee", "request", "response", "nonce"} <= {c["check"] for c in report["checks"]}
    assert "key_set" not in {omission["item"] for omission in report["not_checked"]}
    claims = claims_of(receipt)
    assert "router_tee" in claims.not_checked  # simulated: the router does not say that it was shown
    assert claims.router_attestation is not None
    assert claims.router_attestation.nonce is None
    assert verify(tmp_path, receipt, ceremony, simulated=False)[1]["code"] == "simulated_not_allowed"


def test_a_stream_has_the_same(attested: Router, ceremony: Ceremony, tmp_path: Path, alpha: Upstream) -> None:
    alpha.script(stream(chunk("a"), finish(), DONE))
    answer = attested.complete(chat(stream=True))
    assert verify(tmp_path, fetch_with_evidence(attested, answer.receipt_id), ceremony)[0] == 0


def test_evidence_that_was_taken_away_leaves_it_open(attested: Router, ceremony: Ceremony, tmp_path: Path) -> None:
    receipt = fetch_with_evidence(attested, attested.complete().receipt_id)
    document = msgspec.json.decode(receipt)
    bare = attested.receipt(document["id"])
    assert "evidence" not in msgspec.json.decode(bare)
    code, report = verify(tmp_path, bare, ceremony)
    assert (code, report["result"], report["code"]) == (3, "undecided", "evidence_missing")
    assert verify(tmp_path, document["receipt"].encode(), ceremony)[0] == 3
    types = {digest: item["media_type"] for digest, item in document["evidence"].items()}
    assert len(types) == 4  # report, chain, manifest, bundle
    for digest, media_type in types.items():
        left = {d: item for d, item in document["evidence"].items() if d != digest}
        code, report = verify(tmp_path, msgspec.json.encode({**document, "evidence": left}), ceremony)
        assert (code, report["result"]) == (3, "undecided"), media_type
    folder = tmp_path / "evidence"
    folder.mkdir()
    for number, item in enumerate(document["evidence"].values()):
        (folder / str(number)).write_bytes(base64.b64decode(item["data"]))
    assert verify(tmp_path, bare, ceremony, f"--evidence={folder}")[0] == 0


def test_evidence_that_was_changed_is_refused(attested: Router, ceremony: Ceremony, tmp_path: Path) -> None:
    document = msgspec.json.decode(fetch_with_evidence(attested, attested.complete().receipt_id))
    for digest, item in document["evidence"].items():
        data = bytearray(base64.b64decode(item["data"]))
        data[len(data) // 2] ^= 1
        changed = {**item, "data": base64.b64encode(data).decode()}
        under_its_name = {**document, "evidence": {**document["evidence"], digest: changed}}
        code, report = verify(tmp_path, msgspec.json.encode(under_its_name), ceremony)
        assert (code, report["code"]) == (1, "evidence_digest_mismatch")
        others = {d: i for d, i in document["evidence"].items() if d != digest}
        renamed = {**document, "evidence": {**others, digest_string(bytes(data)): changed}}
        code, report = verify(tmp_path, msgspec.json.encode(renamed), ceremony)
        assert (code, report["result"]) == (3, "undecided")


def test_evidence_of_another_router_is_not_this_ones(
    attested: Router, start: StartAttested, ceremony: Ceremony, tmp_path: Path
) -> None:
    mine = msgspec.json.decode(fetch_with_evidence(attested, attested.complete().receipt_id))
    other_router = start()
    other = msgspec.json.decode(fetch_with_evidence(other_router, other_router.complete().receipt_id))
    spliced = msgspec.json.encode({**mine, "evidence": other["evidence"]})
    assert verify(tmp_path, spliced, ceremony)[0] == 3


def test_only_the_owner_gets_evidence(attested: Router) -> None:
    receipt_id = attested.complete().receipt_id
    stranger = tresor("customers", "add", "stranger", "--plan", "default", "--config", attested.config)
    assert stranger.exit_code == 0
    key = tresor("keys", "create", "--customer", "stranger", "--config", attested.config).out.strip()
    assert attested.ask("GET", f"/v1/receipts/{receipt_id}?include=evidence", key=key).status == 404
    assert attested.ask("GET", f"/v1/receipts/{receipt_id}?include=everything", key=attested.key).status == 400


def test_evidence_is_kept_once(attested: Router) -> None:
    for _ in range(5):
        assert attested.complete().status == 200
    with contextlib.closing(sqlite3.connect(attested.database)) as database:
        digests = [row[0] for row in database.execute("SELECT digest FROM evidence")]
    referring = {
        reference.digest
        for _, claims in attested.stored_claims()
        if (block := claims.router_attestation) is not None
        for reference in block.evidence
    }
    assert len(digests) == len(set(digests))
    assert referring == {f"sha256:{digest.hex()}" for digest in digests}
    assert len(digests) < 5 * 4


def test_retention_keeps_evidence_while_a_receipt_refers_to_it(start: StartAttested) -> None:
    router = start()
    for _ in range(3):
        router.complete()
    assert router.stop() == 0
    later = int(time.time()) + 10 * 86_400
    with contextlib.closing(sqlite3.connect(router.database)) as database, database:
        n = [row[0] for row in database.execute("SELECT n FROM receipts ORDER BY n")]
        kept = database.execute("SELECT count(*) FROM evidence").fetchone()[0]
        used_until = database.execute("SELECT max(used_until) FROM evidence").fetchone()[0]
    store = SqliteStore(router.database)
    assert kept == 4
    assert store.delete_receipts(later, limit=2) == 2
    assert store.delete_receipts(int(time.time()) - 86_400, limit=100) == 0
    with contextlib.closing(sqlite3.connect(router.database)) as database:
        assert [row[0] for row in database.execute("SELECT n FROM receipts")] == n[2:]
        assert database.execute("SELECT count(*) FROM evidence").fetchone()[0] == kept
    assert used_until < later
    assert store.delete_receipts(later, limit=100) == 1
    store.close()
    with contextlib.closing(sqlite3.connect(router.database)) as database:
        assert database.execute("SELECT count(*) FROM evidence").fetchone()[0] == 0


def test_nothing_of_an_exchange_is_in_evidence(attested: Router, alpha: Upstream) -> None:
    answer = attested.complete(chat("m", CANARY))
    document = msgspec.json.decode(fetch_with_evidence(attested, answer.receipt_id))
    for item in document["evidence"].values():
        assert CANARY.encode() not in base64.b64decode(item["data"])
    assert CANARY not in attested.ask("GET", "/attestation").body.decode()
    assert CANARY.encode() not in attested.database.read_bytes()


# Keys live in memory.


def test_no_signing_key_is_written_anywhere(start: StartAttested, ceremony: Ceremony) -> None:
    router = start(workers=2)
    for _ in range(4):
        router.complete()
    assert tresor("keys", "rotate-signing", "--config", router.config).exit_code == 0
    wait_until(lambda: len(router.jwks()) >= 4, "both workers have a new key")
    files = [path for path in router.folder.rglob("*") if path.is_file()]
    assert not (router.folder / "receipt-keys").exists()
    for path in files:
        data = path.read_bytes()
        assert b"PRIVATE KEY" not in data, path
        assert path.suffix not in (".pem", ".key"), path
    assert ceremony.folder not in router.folder.parents


def test_a_new_process_has_a_new_key_and_old_receipts_verify(
    start: StartAttested, ceremony: Ceremony, tls: Tls, tmp_path: Path
) -> None:
    router = start()
    old = router.complete().receipt_id
    (kid,) = router.jwks()
    assert router.stop() == 0
    again = Router(router.config, tls=tls, key=router.key)
    try:
        again.wait_ready()
        new = again.complete().receipt_id
        keys = again.jwks()
        assert len(keys) == 2
        assert keys[kid].not_after is not None  # it is gone with its process
        for receipt_id in (old, new):
            assert verify(tmp_path, fetch_with_evidence(again, receipt_id), ceremony)[0] == 0
        assert again.verify(old).kid == kid != again.verify(new).kid
        assert again.verify(new).claims.seq == 1
        assert again.stop() == 0
    finally:
        again.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rotation_makes_key_and_evidence_together(
    start: StartAttested, ceremony: Ceremony, tls: Tls, tmp_path: Path, workers: int
) -> None:
    router = start(workers=workers, nonces_per_minute=1000)
    before = set(router.jwks())
    seen: dict[str, bytes] = {}
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = router.complete()
            assert answer.status == 200
            seen[answer.receipt_id] = answer.body

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert tresor("keys", "rotate-signing", "--config", router.config).exit_code == 0
        wait_until(lambda: sum(key.not_after is not None for key in router.jwks().values()) == workers, "all rotated")
        enough = len(seen) + 6
        wait_until(lambda: len(seen) > enough, "the new keys sign")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    keys = router.jwks()
    assert len(keys) == 2 * workers
    signed: dict[str, bytes] = {}
    for receipt_id in seen:
        receipt = router.receipt(receipt_id)
        block = claims_of(receipt).router_attestation
        assert block is not None
        assert block.receipt_key.kid == parse_compact(msgspec.json.decode(receipt)["receipt"]).kid
        signed.setdefault(block.receipt_key.kid, receipt)
        signed[block.receipt_key.kid] = fetch_with_evidence(router, receipt_id)
    assert set(signed) - before
    for receipt in signed.values():
        assert verify(tmp_path, receipt, ceremony)[0] == 0
    for _ in range(2 * workers):
        _, report = attest(router, ceremony, tls, "--allow-simulated")
        assert (report["result"], report["receipt_key"] in set(keys) - before) == ("pass", True)
    router.check_numbers()


# Evidence has a life.


@pytest.mark.parametrize("workers", [1, 2])
def test_evidence_is_renewed_under_load(start: StartAttested, ceremony: Ceremony, tmp_path: Path, workers: int) -> None:
    router = start(workers=workers, max_age_seconds=4)
    receipt_ids: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with router.connect() as wire:
                for _ in range(10):
                    answer = wire.ask("POST", "/v1/chat/completions", key=router.key, body=chat())
                    assert answer.status == 200, answer
                    receipt_ids.append(answer.receipt_id)

    def evidence_count() -> int:
        with contextlib.closing(sqlite3.connect(router.database)) as database:
            found: int = database.execute("SELECT count(*) FROM evidence").fetchone()[0]
            return found

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: evidence_count() >= 2 + 2 * 3 * workers, "each worker has had three pieces of evidence", 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    blocks: dict[bytes, str] = {}
    with contextlib.closing(sqlite3.connect(router.database)) as database:
        kept = {f"sha256:{row[0].hex()}" for row in database.execute("SELECT digest FROM evidence")}
    stored = {claims.jti: claims for _, claims in router.stored_claims()}
    assert set(receipt_ids) <= stored.keys()
    for receipt_id in receipt_ids:
        block = stored[receipt_id].router_attestation
        assert block is not None
        assert {reference.digest for reference in block.evidence} <= kept
        blocks[msgspec.json.encode(block)] = receipt_id
    assert len(blocks) >= 3 * workers
    for receipt_id in blocks.values():
        code, report = verify(tmp_path, fetch_with_evidence(router, receipt_id), ceremony)
        assert (code, codes(report)) == (0, set())


def test_workers_that_are_killed_lose_no_evidence(start: StartAttested, ceremony: Ceremony, tmp_path: Path) -> None:
    router = start(workers=2, max_age_seconds=4)
    told: list[str] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                answer = router.complete()
                if answer.status == 200:
                    told.append(answer.receipt_id)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for kill in (True, True, True, False):
            enough = len(told) + 20
            wait_until(lambda n=enough: len(told) > n, "the load goes on", 40)
            for worker in router.workers() if kill else ():  # all: any of them may be the one that answers
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.send_signal(signal.SIGKILL)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    router.wait_ready()
    distinct: dict[bytes, bytes] = {}
    for receipt_id in told:
        receipt = fetch_with_evidence(router, receipt_id)
        block = claims_of(receipt).router_attestation
        assert block is not None
        assert {r.digest for r in block.evidence} == set(msgspec.json.decode(receipt)["evidence"])
        distinct[msgspec.json.encode(block)] = receipt
    assert len(distinct) >= 4  # those that were killed, and the last
    for receipt in list(distinct.values())[:8]:
        assert verify(tmp_path, receipt, ceremony)[0] == 0
    router.check_numbers()


def test_a_new_trust_bundle_is_taken_up(start: StartAttested, tmp_path: Path, tls: Tls, alpha: Upstream) -> None:
    own = simulated_ceremony(tmp_path)
    settings: dict[str, Any] = {name: file for name, file in own.identity().items() if name.endswith("_file")}
    router = start(max_age_seconds=2, **settings)
    first = claims_of(router.receipt(router.complete().receipt_id)).router_attestation
    assert first is not None
    token = own.publish(version=2)
    assert router.ask("GET", "/.well-known/tresor-trust-bundle").body == token.encode()

    def holds_the_new_one() -> bool:
        answer = router.complete()
        if answer.status != 200:
            return False
        block = claims_of(router.receipt(answer.receipt_id)).router_attestation
        return block is not None and digest_string(token.encode()) in {r.digest for r in block.evidence}

    wait_until(holds_the_new_one, "receipts carry the new bundle")


# A simulation cannot be mistaken for more, nor switched on from outside.


def serve(config: Path, *more: str, environment: Mapping[str, str] | None = None) -> Completed:
    return tresor("serve", "--config", config, *more, environment=environment)


def test_a_simulation_is_not_shown_to_others(tmp_path: Path, ceremony: Ceremony, tls: Tls, alpha: Upstream) -> None:
    settings = {"server": {"listen": "0.0.0.0:0"}, "identity": ceremony.identity()}
    config = write_config(tmp_path, [UpstreamEntry(alpha)], tls=tls, settings=settings)
    done = serve(config)
    assert done.exit_code != 0
    assert re.search(r"identity\.tee is simulated and server\.listen is not loopback", done.err)


def test_the_environment_cannot_switch_it_on(tmp_path: Path, ceremony: Ceremony, tls: Tls, alpha: Upstream) -> None:
    settings = {"identity": ceremony.identity(tee="none")}
    config = write_config(tmp_path, [UpstreamEntry(alpha)], tls=tls, settings=settings)
    for name in ("TRESOR_IDENTITY__TEE", "TRESOR_identity__tee"):
        for more in ([], ["--allow-simulated"]):
            done = serve(config, *more, environment={name: "simulated"})
            assert done.exit_code != 0
            assert f"{name}: identity.tee is simulated" in done.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest_file": "nothing.jws"}, "which is no file"),
        ({"trust_bundle_file": "nothing.jws"}, "which is no file"),
        ({"trust_bundle_url": "ftp://x"}, "is not an http or https URL"),
        ({"tee": "sgx"}, "identity.tee"),
        ({"max_age_seconds": 1}, "identity.max_age_seconds"),
        ({"max_age_seconds": 86_401}, "identity.max_age_seconds"),
        ({"nonces_per_minute": 0}, "identity.nonces_per_minute"),
        ({"tme": "x"}, "is not a setting"),
    ],
    ids=str,
)
def test_settings_that_are_refused(
    tmp_path: Path, ceremony: Ceremony, tls: Tls, change: dict[str, Any], message: str
) -> None:
    identity = ceremony.identity() | change
    config = write_config(tmp_path, [UpstreamEntry("http://127.0.0.1:1/v1")], tls=tls, settings={"identity": identity})
    done = tresor("config", "check", "--config", config)
    assert done.exit_code == 1
    assert message in done.err


def test_evidence_takes_tls_and_a_manifest(tmp_path: Path, ceremony: Ceremony, tls: Tls) -> None:
    upstream = [UpstreamEntry("http://127.0.0.1:1/v1")]
    config = write_config(tmp_path, upstream, settings={"identity": ceremony.identity()})
    assert "needs TLS by the router itself" in tresor("config", "check", "--config", config).err
    config = write_config(tmp_path, upstream, tls=tls, settings={"identity": {"tee": "auto"}})
    assert "manifest_file is missing" in tresor("config", "check", "--config", config).err


def test_a_manifest_that_is_none_stops_the_start(tmp_path: Path, ceremony: Ceremony, tls: Tls) -> None:
    (tmp_path / "manifest.jws").write_text("a.b.c")
    settings = {"identity": ceremony.identity(manifest_file="manifest.jws")}
    config = write_config(tmp_path, [UpstreamEntry("http://127.0.0.1:1/v1")], tls=tls, settings=settings)
    done = serve(config)
    assert done.exit_code == 1
    assert "workload manifest" in done.err

"""A router whose evidence comes from configfs-tsm, or from nowhere: ready or not, and never an unattested receipt.

The directory is `support.emulated_mount`, the hardware behind it an AMD of the tests' own.
"""

import contextlib
import errno
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from support.ceremony import AmdHost, Ceremony, amd_ceremony, certificate_table, fingerprint, report_data_of
from support.certificates import Tls
from support.emulated_mount import mounted, why_not_mounted
from support.emulated_tsm import Blobs, EmulatedTsm, refuse
from support.router import Router, UpstreamEntry, new_state, tresor, wait_until, write_config
from support.upstream import Upstream
from tresor.attestation import node
from tresor.attestation.snp.abi import parse_report
from tresor.cli.verify import main
from tresor.jose.jwk import parse_jwks
from tresor.jose.jws import parse_compact
from tresor.receipts.claims import parse_claims

needs_fuse = pytest.mark.skipif(why_not_mounted() is not None, reason=why_not_mounted() or "")
NONCE = "ab" * 32


class Machine(NamedTuple):
    """A router, the hardware under it, and what it is released as."""

    router: Router
    tsm: EmulatedTsm
    ceremony: Ceremony
    host: AmdHost


def begin(folder: Path, upstream: Upstream, tls: Tls, identity: Mapping[str, Any]) -> Router:
    """Start a router without waiting for it to be ready."""
    config = write_config(folder, [UpstreamEntry(upstream)], tls=tls, settings={"identity": identity})
    router = Router(config, tls=tls, key=new_state(config))
    wait_until(lambda: is_alive(router), "the router lives")
    return router


def is_alive(router: Router) -> bool:
    try:
        return router.ask("GET", "/healthz").status == 200
    except OSError:
        return False


@contextlib.contextmanager
def machine(
    folder: Path, upstream: Upstream, tls: Tls, tsm: EmulatedTsm | None = None, **identity: Any
) -> Iterator[Machine]:
    ceremony, host = amd_ceremony(folder)
    table = certificate_table(host.chip.der, host.amd.issuers[0])

    def report(inblob: bytes, privlevel: int) -> Blobs:
        host.fields["vmpl"] = privlevel
        return Blobs(host.report(inblob)[0], table)

    emulated = tsm or EmulatedTsm()
    emulated.report = report
    place = folder / "tsm"
    place.mkdir()
    with mounted(emulated, place):
        settings = ceremony.identity(tee="auto", tsm_path=str(place), sev_guest_path="/nothing", tpm_path="/nothing")
        router = begin(folder, upstream, tls, settings | identity)
        try:
            yield Machine(router, emulated, ceremony, host)
            assert router.stop() == 0
        finally:
            router.kill()


def readiness(router: Router) -> tuple[int, dict[str, Any]]:
    answer = router.ask("GET", "/readyz")
    return answer.status, answer.json


def check_that_nothing_goes(router: Router, upstream: Upstream) -> None:
    """No prompt leaves, no receipt is made, and everybody is told why."""
    before = len(upstream.requests)
    answer = router.complete()
    assert (answer.status, answer.error["code"]) == (503, "attestation_failed")
    assert int(answer.headers["retry-after"]) > 0
    assert "x-tresor-receipt-id" not in answer.headers
    opted_out = router.complete(X_Tresor_Receipt="false")
    assert (opted_out.status, opted_out.error["code"]) == (503, "attestation_failed")
    assert len(upstream.requests) == before
    attestation = router.ask("GET", "/attestation")
    assert (attestation.status, attestation.error["code"]) == (503, "attestation_failed")
    assert "retry-after" in attestation.headers
    assert router.ask("GET", "/healthz").status == 200


# No hardware.


def test_a_source_that_is_not_there(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    ceremony, _ = amd_ceremony(tmp_path)
    identity = ceremony.identity(tee="sev-snp", tsm_path="/nothing", sev_guest_path="/nothing")
    router = begin(tmp_path, alpha, tls, identity)
    try:
        status, body = readiness(router)
        assert (status, body["status"], body["checks"]["attestation"]) == (503, "not_ready", False)
        assert body["faults"]["attestation"] == "source_unavailable"
        assert any("/nothing" in line.get("fault", "") for line in router.log_lines())
        check_that_nothing_goes(router, alpha)
        fresh = router.ask("GET", f"/attestation?nonce={NONCE}")
        assert (fresh.status, fresh.error["code"]) == (503, "attestation_failed")
        assert router.ask("GET", "/v1/receipts", key=router.key).json["data"] == []
        assert {line["event"] for line in router.log_lines()} >= {"evidence not renewed"}
        line = ["attest", f"--url={router.origin}", f"--release-root={ceremony.root_file}", f"--ca-file={tls.ca_file}"]
        assert tresor(*line, module="verify").exit_code == 3
        assert router.stop() == 0
    finally:
        router.kill()


def test_hardware_that_comes_later(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    """Nothing has to be restarted."""
    if (why := why_not_mounted()) is not None:
        pytest.skip(why)
    tsm = EmulatedTsm(provider=None)
    with machine(tmp_path, alpha, tls, tsm) as it:
        assert readiness(it.router)[0] == 503
        check_that_nothing_goes(it.router, alpha)
        tsm.provider = "sev_guest"
        it.router.wait_ready()
        assert readiness(it.router)[1]["faults"] == {}
        assert it.router.complete().status == 200


# Hardware.


@needs_fuse
def test_a_router_on_hardware(
    tmp_path: Path, alpha: Upstream, tls: Tls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with machine(tmp_path, alpha, tls) as it:
        it.router.wait_ready()
        monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(it.host.amd.ark)}))
        answer = it.router.complete()
        document = it.router.ask("GET", f"/v1/receipts/{answer.receipt_id}?include=evidence", key=it.router.key).body
        (tmp_path / "receipt.json").write_bytes(document)
        root = f"--release-root={it.ceremony.root_file}"
        assert main(["receipt", root, "--json", str(tmp_path / "receipt.json")]) == 0
        report = msgspec.json.decode(capsys.readouterr().out)
        assert not report["simulated"]
        assert "router_tee" not in report["claims"]["not_checked"]
        bundle = f"--trust-bundle={it.ceremony.bundle_file}"
        line = ["attest", f"--url={it.router.origin}", root, bundle, f"--ca-file={tls.ca_file}", "--offline", "--json"]
        assert main(line) == 0
        report = msgspec.json.decode(capsys.readouterr().out)
        assert (report["tee"], report["claims"]["workload"]["status"]) == ("sev-snp", "proven")
        assert report["measurements"]["MEASUREMENT"] == "ab" * 48
        # What hardware signed is what is known here from elsewhere, not from the envelope.
        kid = report["receipt_key"]
        key = parse_jwks(it.router.ask("GET", "/.well-known/jwks.json").body)[kid].public_key
        envelope = it.router.ask("GET", f"/attestation?nonce={NONCE}").json
        signed = parse_report(msgspec.json.decode(f'"{envelope["snp_report_b64"]}"', type=bytes)).report_data
        spki = bytes.fromhex(report["tls_spki_sha256"])
        assert signed == report_data_of(spki, it.ceremony.tag, key, bytes.fromhex(NONCE))


@needs_fuse
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_hardware_that_is_busy_is_asked_again(tmp_path: Path, alpha: Upstream, tls: Tls, number: int) -> None:
    tsm = EmulatedTsm()
    tsm.on("read", "outblob", refuse(number), times=2)
    with machine(tmp_path, alpha, tls, tsm) as it:
        it.router.wait_ready()
        tsm.on("write", "inblob", refuse(number), times=2)
        assert it.router.ask("GET", f"/attestation?nonce={NONCE}").status == 200


@needs_fuse
def test_another_process_that_writes_into_our_request(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    tsm = EmulatedTsm()
    tsm.on("read", "outblob", lambda name: tsm.write(name, "inblob", bytes(64)), times=2)
    with machine(tmp_path, alpha, tls, tsm) as it:
        it.router.wait_ready()
        tsm.on("read", "outblob", lambda name: tsm.write(name, "inblob", b"\1" * 64), times=2)
        answer = it.router.ask("GET", f"/attestation?nonce={NONCE}")
        assert answer.status == 200
        report = parse_report(msgspec.json.decode(f'"{answer.json["snp_report_b64"]}"', type=bytes))
        assert report.report_data not in (bytes(64), b"\1" * 64)


@needs_fuse
def test_hardware_that_fails_later(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    """What is fresh goes on; what is not is refused; and it comes back by itself."""
    with machine(tmp_path, alpha, tls, max_age_seconds=4) as it:
        router = it.router
        router.wait_ready()
        it.tsm.provider = None
        failed_at = time.monotonic()
        assert router.complete().status == 200
        assert router.ask("GET", "/attestation").status == 200
        fresh = router.ask("GET", f"/attestation?nonce={NONCE}")
        assert (fresh.status, fresh.error["code"]) == (503, "attestation_failed")
        wait_until(lambda: readiness(router)[0] == 503, "the evidence has run out")
        assert time.monotonic() - failed_at < 15
        _, body = readiness(router)
        assert body["checks"]["attestation"] is False
        assert body["checks"]["store"] is True
        assert body["faults"]["attestation"].startswith("source_")
        check_that_nothing_goes(router, alpha)
        it.tsm.provider = "sev_guest"
        router.wait_ready()
        answer = router.complete()
        assert answer.status == 200
        issued = []
        for entry in router.ask("GET", "/v1/receipts?limit=100", key=router.key).json["data"]:
            document = msgspec.json.decode(router.receipt(entry["id"]))
            claims = parse_claims(parse_compact(document["receipt"]).payload)
            assert claims.router_attestation is not None
            issued.append(claims.jti)
        assert answer.receipt_id in issued
        assert {line["event"] for line in router.log_lines()} >= {"evidence not renewed"}


@needs_fuse
def test_the_hardware_is_asked_one_question_at_a_time(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    tsm = EmulatedTsm()
    most = [0]

    def made(_: str) -> None:
        most[0] = max(most[0], len(tsm.entries))

    with machine(tmp_path, alpha, tls, tsm, nonces_per_minute=1000) as it:
        it.router.wait_ready()
        tsm.on("write", "inblob", made, times=1000)
        before = tsm.reports
        with ThreadPoolExecutor(8) as pool:
            nonces = [f"{number:064x}" for number in range(8)]
            answers = list(pool.map(lambda n: it.router.ask("GET", f"/attestation?nonce={n}"), nonces))
        assert {answer.status for answer in answers} == {200}
        assert [answer.json["nonce"] for answer in answers] == nonces
        assert most[0] == 1
        assert tsm.reports - before == 8


@needs_fuse
def test_slow_hardware_holds_nobody_up(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    """Not those who wait for the store, and equal questions are asked once."""
    tsm = EmulatedTsm()
    go_on = threading.Event()
    with machine(tmp_path, alpha, tls, tsm, nonces_per_minute=1000) as it:
        it.router.wait_ready()
        it.router.complete()
        before = tsm.reports
        tsm.on("read", "outblob", lambda _: go_on.wait(30), times=1)
        with ThreadPoolExecutor(12) as pool:
            equal = [pool.submit(it.router.ask, "GET", f"/attestation?nonce={NONCE}") for _ in range(6)]
            others = [pool.submit(it.router.ask, "GET", f"/attestation?nonce={n:064x}") for n in range(6)]
            wait_until(lambda: ("read", "outblob") in [seen[::2] for seen in tsm.seen[-3:]], "the hardware is asked")
            began = time.monotonic()
            for _ in range(3):
                answer = it.router.complete()
                assert answer.status == 200
                it.router.receipt(answer.receipt_id)
            assert it.router.ask("GET", "/attestation").status == 200
            assert time.monotonic() - began < 10
            go_on.set()
            assert {future.result(30).status for future in (*equal, *others)} == {200}
        assert tsm.reports - before <= 8  # seven questions, and perhaps a renewal


@needs_fuse
def test_a_rotation_waits_for_hardware_and_nobody_for_it(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    tsm = EmulatedTsm()
    go_on = threading.Event()
    with machine(tmp_path, alpha, tls, tsm) as it:
        it.router.wait_ready()
        (old,) = it.router.jwks()
        reads = sum(seen[::2] == ("read", "outblob") for seen in tsm.seen)
        tsm.on("read", "outblob", lambda _: go_on.wait(30), times=1)
        assert tresor("keys", "rotate-signing", "--config", it.router.config).exit_code == 0
        wait_until(
            lambda: sum(seen[::2] == ("read", "outblob") for seen in tsm.seen) > reads, "a key is being attested"
        )
        assert it.router.complete().status == 200  # by the old key, whose evidence is fresh
        assert list(it.router.jwks()) == [old]
        go_on.set()
        wait_until(lambda: len(it.router.jwks()) == 2, "there is a new key")
        wait_until(lambda: it.router.verify(it.router.complete().receipt_id).kid != old, "the new key signs")


@needs_fuse
def test_a_key_that_cannot_be_attested_does_not_sign(tmp_path: Path, alpha: Upstream, tls: Tls) -> None:
    with machine(tmp_path, alpha, tls) as it:
        it.router.wait_ready()
        (old,) = it.router.jwks()
        it.tsm.provider = None
        assert tresor("keys", "rotate-signing", "--config", it.router.config).exit_code == 0
        event = "signing key not replaced, or not retired"
        wait_until(lambda: event in {line["event"] for line in it.router.log_lines()}, "a rotation was tried")
        assert it.router.verify(it.router.complete().receipt_id).kid == old
        assert list(it.router.jwks()) == [old]
        it.tsm.provider = "sev_guest"
        wait_until(lambda: len(it.router.jwks()) == 2, "the rotation was tried again")

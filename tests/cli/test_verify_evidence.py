"""`tresor-verify evidence` as a program: every sample, every file of the samples, and anything else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.evidence import facts, sample, verify_at
from support.fake_providers import COLLATERAL, NONCE, tinfoil
from tresor.attestation.evidence import Collateral, Need
from tresor.cli import verify_evidence
from tresor.cli.verify import main
from tresor.collateral.directory import load_folder
from tresor.collateral.fetcher import Fetcher, FetchError

PROGRAM: Final = Path(sys.executable).with_name("tresor-verify")
OUTCOMES: Final = {"accept": ("accepted", 0), "reject": ("rejected", 1), "cannot-be-decided": ("undecided", 3)}
MEMBERS: Final = {"outcome", "code", "tee", "claims", "measurements", "findings", "not_checked"}
FURTHER: Final = {"simulated", "exceptions", "details", "verified_at", "valid_from", "valid_until"}
CODES: Final = {
    "azure/snp-genoa": None,
    "azure/snp-milan-userdata": None,
    "azure/snp-wrong-chip": "chip_id_mismatch",
    "azure/tdx-2023": "collateral_missing",
    "bundles/dstack-tdx-8gpu-address-20260610": None,
    "bundles/dstack-tdx-8gpu-tls-20260629": None,
    "bundles/nonce-not-ours-a": "nonce_mismatch",
    "bundles/tdx-8gpu-mlkem-20260629": None,
    "bundles/tinfoil-snp-20260629": None,
    "bundles/tinfoil-tdx-gpu-20260629": None,
    "nitro/enclave-debug": "debug_enabled",
    "nitro/enclave-good": None,
    "nitro/self-signed": "evidence_malformed",
    "nvidia/blackwell-gb100": None,
    "nvidia/h100-bad-signature": "signature_invalid",
    "nvidia/h100-cert-on-hold-json": "certificate_on_hold",
    "nvidia/h100-driver-580": None,
    "nvidia/h100-full-local": None,
    "nvidia/h100-multi-json": None,
    "roots/amd": None,
    "roots/others": None,
    "snp/genoa-v5-vcek": None,
    "snp/milan-v2-debug-policy": "debug_enabled",
    "snp/milan-v2-forged-vcek-legacy": "chain_invalid",
    "snp/milan-v2-forged-vcek-new": "chain_invalid",
    "snp/milan-v2-vcek": None,
    "snp/milan-v3-vcek": None,
    "snp/milan-v3-vlek-aws": "vmpl_not_allowed",
    "snp/turin-v5-vcek": None,
    "tdx/pcs-raw-20260629": None,
    "tdx/sgx-v3-not-a-td": "evidence_kind_mismatch",
    "tdx/v4-debug": "debug_enabled",
    "tdx/v4-gce-with-event-log": "collateral_missing",
    "tdx/v4-outofdate": "tcb_status_not_allowed",
    "tdx/v4-uptodate": None,
    "tdx/v5-tcb-below-every-level": "tcb_below_floor",
    "tdx/v5-uptodate": None,
}
QUOTE_HEADER: Final = bytes.fromhex("0400020081000000000000009" + "39a7233f79c4ca9940a0db3957f0607")
RIMS: Final = {
    "driver_550.144.03.xml": None,
    "driver_550.144.03_bad_signature.xml": "collateral_signature_invalid",
    "gb100_wrong_chain.xml": "root_not_pinned",
    "driver_535.86.09_tampered.xml": "collateral_signature_invalid",
    "driver_570.124.03_expired_and_tampered.xml": "collateral_signature_invalid",
}


def at(name: str) -> str:
    return f"--at={verify_at(name).isoformat()}"


def report(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    exit_code = main(["evidence", "--json", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    document: dict[str, Any] = msgspec.json.decode(out)
    assert set(document) == MEMBERS | FURTHER
    return exit_code, document


# --- Samples


@pytest.mark.parametrize("name", CODES)
def test_samples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, document = report(at(name), sample(name), capsys=capsys)
    assert (document["outcome"], exit_code) == OUTCOMES[facts(name)["verdict"]]
    assert document["code"] == CODES[name]
    if (tee := facts(name)["tee"]) not in {"sgx", "several"}:
        assert document["tee"] == tee
    wrong = [finding for finding in document["findings"] if finding["status"] != "ok"]
    assert bool(wrong) == (exit_code != 0)
    assert document["code"] is None or document["code"] in {finding["code"] for finding in wrong}


def test_the_table_names_every_sample() -> None:
    beside = Path(sample("bundles/tinfoil-snp-20260629")).parents[1]
    folders = {str(path.parent.relative_to(beside)) for path in beside.glob("*/*/facts.json")}
    assert folders - {"nvidia/rims"} == set(CODES)


@pytest.mark.parametrize("name", RIMS)
def test_each_manifest_by_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, document = report(at("nvidia/rims"), sample("nvidia/rims") / name, capsys=capsys)
    assert (exit_code, document["code"]) == (0 if RIMS[name] is None else 1, RIMS[name])
    assert set(RIMS) == set(facts("nvidia/rims")["rims"])


STATED: Final = {
    "MEASUREMENT": ("report.measurement", "rep.measurement"),
    "REPORT_DATA": ("report.report_data",),
    "MRTD": ("quote.mrtd",),
    "RTMR0": ("quote.rtmr0",),
    "RTMR3": ("quote.rtmr3",),
    "MRSEAM": ("quote.mrseam",),
    "PCR0": ("document.pcrs.0",),
}


def stated(name: str, register: str) -> str | None:
    """Return what the facts of a sample say about a register; None where they do not."""
    for path in STATED[register]:
        value: Any = facts(name)
        for member in path.split("."):
            value = value.get(member, {})
        if value:
            return str(value)
    return None


@pytest.mark.parametrize("name", [name for name, code in CODES.items() if code is None and "bundles" not in name])
def test_stated_values(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, document = report(at(name), sample(name), capsys=capsys)
    held = {register for register in STATED if register in document["measurements"] and stated(name, register)}
    assert held or not document["tee"].startswith(("sev", "azure-sev", "aws")) or name.startswith("roots")
    for register in held:
        assert document["measurements"][register] == stated(name, register)


def test_forged_evidence_states_no_measurements(capsys: pytest.CaptureFixture[str]) -> None:
    name = "snp/milan-v2-forged-vcek-new"
    assert report(at(name), sample(name), capsys=capsys)[1]["measurements"] == {}


@pytest.mark.parametrize("name", [name for name in CODES if name.startswith("bundles/") and "ours" not in name])
def test_the_nonce_of_an_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    nonce = facts(name)["client_nonce"]
    exit_code, document = report(at(name), f"--nonce={nonce}", sample(name), capsys=capsys)
    assert exit_code == 0
    assert all(
        "nonce proven, key proven" in v for n, v in document["details"].items() if n.endswith("binding") and ", " in v
    )
    exit_code, document = report(at(name), f"--nonce={nonce[::-1]}", sample(name), capsys=capsys)
    assert (exit_code, document["outcome"]) == (1, "rejected")
    assert document["code"] in {"nonce_mismatch", "report_data_mismatch"}


def test_the_negative_token(capsys: pytest.CaptureFixture[str]) -> None:
    """By itself it is refused; beside evidence that it is not about, it is reported and does not count."""
    name = "bundles/tdx-8gpu-mlkem-20260629"
    token, keys = (sample(name) / file for file in ("nras_eat_negative.json", "nras_jwks.json"))
    exit_code, document = report(at(name), token, keys, capsys=capsys)
    assert (exit_code, document["code"]) == (1, "gpu_result_negative")
    exit_code, document = report(at(name), token, capsys=capsys)
    assert (exit_code, document["code"]) == (3, "collateral_missing")
    exit_code, document = report(at(name), sample(name), capsys=capsys)
    omitted = {item["item"]: item["detail"] for item in document["not_checked"]}
    assert exit_code == 0
    assert "gpu_result_negative" in omitted["nras"]
    assert facts(name)["client_nonce"] in omitted["nras"]


def test_a_file_from_the_folder_alone(capsys: pytest.CaptureFixture[str]) -> None:
    name = "snp/milan-v3-vcek"
    folder = sample(name)
    exit_code, document = report(at(name), folder / "report.bin", capsys=capsys)
    assert (exit_code, document["code"]) == (3, "endorsement_missing")
    exit_code, document = report(at(name), folder / "report.bin", folder / "vcek.pem", capsys=capsys)
    assert exit_code == 0


def test_further_collateral(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "snp/milan-v3-vcek"
    (tmp_path / "x").write_bytes((sample(name) / "vcek.pem").read_bytes())
    arguments = (
        at(name),
        sample(name) / "report.bin",
        f"--collateral={tmp_path}",
        f"--collateral={sample('roots/amd')}",
    )
    assert report(*arguments, capsys=capsys)[0] == 0
    (tmp_path / "y").write_bytes(b"{")
    exit_code, document = report(*arguments, capsys=capsys)
    assert (exit_code, document["code"]) == (1, "evidence_malformed")


# --- Policy


def test_a_policy_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "snp/milan-v3-vcek"
    measurement = facts(name)["report"]["measurement"]
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[snp]\nskip_measurement = false\nallowed_measurements = ["{measurement}"]\n')
    exit_code, document = report(at(name), f"--policy={policy}", sample(name), capsys=capsys)
    assert (exit_code, document["claims"]["workload"]["status"]) == (0, "proven")
    policy.write_text('{"snp": {"skip_measurement": false}}')
    exit_code, document = report(at(name), f"--policy={policy}", sample(name), capsys=capsys)
    assert (exit_code, document["code"]) == (1, "measurement_not_allowed")


def test_an_exception_for_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "tdx/v4-outofdate"
    policy = tmp_path / "policy.json"
    weakness = {"weakness": "OutOfDate", "until": "2026-06-01T00:00:00Z", "reason": "recovery is under way"}
    policy.write_text(json.dumps({"exceptions": [weakness]}))
    exit_code, document = report(at(name), f"--policy={policy}", sample(name), capsys=capsys)
    assert exit_code == 0
    assert document["exceptions"] == [weakness]
    assert main(["evidence", at(name), f"--policy={policy}", str(sample(name))]) == 0
    line = "  !     OutOfDate     until 2026-06-01T00:00:00Z: recovery is under way"
    assert line in capsys.readouterr().out.splitlines()


# --- Text


def test_text_of_a_good_answer(capsys: pytest.CaptureFixture[str]) -> None:
    name = "bundles/tinfoil-tdx-gpu-20260629"
    assert main(["evidence", at(name), str(sample(name))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["PASS", "TEE:             tdx+nvidia-gpu", "Verified as of:  2026-06-29T02:13:04Z"]
    assert {"Claims:", "Measurements:", "Details:", "Findings:", "Not checked:"} <= set(lines)
    findings = lines[lines.index("Findings:") + 1 : lines.index("Not checked:") - 1]
    assert all(line.startswith("  ok    ") for line in findings)


def test_text_of_a_bad_one_and_of_an_open_one(capsys: pytest.CaptureFixture[str]) -> None:
    name = "snp/milan-v2-debug-policy"
    assert main(["evidence", at(name), str(sample(name))]) == 1
    assert capsys.readouterr().out.startswith("FAIL  debug_enabled\n")
    name = "tdx/v4-gce-with-event-log"
    assert main(["evidence", at(name), str(sample(name))]) == 3
    assert capsys.readouterr().out.startswith("FAIL  could not be decided: collateral_missing\n")


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    name = "tdx/v4-gce-with-event-log"
    _, document = report(at(name), sample(name), capsys=capsys)
    omitted = {item["item"]: item["detail"] for item in document["not_checked"]}
    assert "https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=00806f050000" in omitted["collateral"]


def test_a_file_name_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "\x1b[2J\nPASS").write_bytes(b"prose")
    assert main(["evidence", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    assert out.count("\nPASS") == 0


# --- Wrong usage and unreadable input


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--nonce=", "x"],
        ["--nonce=0", "x"],
        ["--nonce=zz", "x"],
        ["--nonce=00 00", "x"],
        [f"--nonce={'00' * 1025}", "x"],
        ["--at=2026-01-01", "x"],
        ["--at=yesterday", "x"],
        ["--jso", "x"],
        ["--allow-simulated", "x"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evidence", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: tresor-verify")


@pytest.mark.parametrize(
    "arguments",
    [
        ["{missing}"],
        ["{good}", "{missing}"],
        ["{empty}"],
        ["--policy={missing}", "{good}"],
        ["--policy={good}", "{good}"],
        ["--policy={unknown}", "{good}"],
        ["--collateral={missing}", "{good}"],
        ["--cache={good}/x", "{good}"],
        ["--nonce=" + "00" * 32, "{nonce}"],
        ["{nonce}", "{other}"],
    ],
)
def test_unreadable_input(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {name: tmp_path / name for name in ("good", "missing", "empty", "unknown", "nonce", "other")}
    names["good"].write_bytes(tinfoil())
    names["empty"].mkdir()
    names["unknown"].write_text("[snp]\nmax_vmpl = 0\n")
    names["nonce"].write_text("11" * 32)
    names["other"].write_text("22" * 32)
    assert main(["evidence", *(part.format(**names) for part in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tresor-verify: ")
    assert err.count("\n") == 1


def test_giant_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    exit_code, document = report(tmp_path / "giant", capsys=capsys)
    assert (exit_code, document["code"]) == (1, "evidence_too_large")
    exit_code, document = report("/dev/zero", capsys=capsys)
    assert (exit_code, document["code"]) == (1, "evidence_too_large")


def test_too_many_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(257):
        (tmp_path / str(number)).touch()
    assert main(["evidence", str(tmp_path)]) == 2
    assert "more than 256 files" in capsys.readouterr().err


@given(data=st.binary(max_size=2000), as_json=st.booleans(), inside=st.booleans())
@example(data=b"", as_json=True, inside=True)
@example(data=b"{" * 100_000, as_json=False, inside=False)
@example(data=QUOTE_HEADER, as_json=False, inside=True)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_gets_a_verdict(
    data: bytes, as_json: bool, inside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(data)
    exit_code = main(["evidence", *(["--json"] if as_json else []), str(tmp_path if inside else path)])
    out, err = capsys.readouterr()
    assert (exit_code in {1, 3}, err) == (True, "")
    assert out.isascii()
    assert out.replace("\n", "").isprintable()


# --- The program


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([PROGRAM, "evidence", *arguments], capture_output=True, timeout=60, check=False, **options)


def test_as_a_program() -> None:
    name = "snp/milan-v3-vcek"
    done = run(at(name), sample(name))
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"PASS\n")
    done = run(at(name), "--json", sample(name) / "report.bin")
    assert (done.returncode, msgspec.json.decode(done.stdout)["outcome"]) == (3, "undecided")
    assert run("/nowhere").returncode == 2
    assert run("--help").returncode == 0


def test_without_a_network() -> None:
    name = "bundles/tdx-8gpu-mlkem-20260629"
    folder = sample(name)
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", PROGRAM, "evidence", at(name), folder],
        capture_output=True,
        timeout=60,
        check=False,
    )
    if b"unshare failed" in done.stderr:
        pytest.skip("this machine has no network namespaces for its users")
    assert (done.returncode, done.stderr) == (0, b"")


# --- Fetching


class Asked:
    """Stands for the network: answers from what is given, and remembers the questions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[str, Collateral]) -> None:
        self.needs: list[Need] = []
        self.online: list[bool] = []
        asked = self

        class Stand(Fetcher):
            def __init__(self, **options: Any) -> None:
                asked.online.append(options["online"])
                super().__init__(**options)

            def fetch(self, need: Need) -> Collateral:
                asked.needs.append(need)
                for part, answer in answers.items():
                    if part in need.url:
                        return answer
                raise FetchError(f"{need.url} answered 404")

        monkeypatch.setattr(verify_evidence, "Fetcher", Stand)


def test_nothing_is_asked_by_default(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = Asked(monkeypatch, {})
    name = "snp/milan-v3-vcek"
    report(at(name), sample(name) / "report.bin", capsys=capsys)
    assert (asked.needs, asked.online) == ([], [])


def test_what_is_missing_is_fetched(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = "snp/turin-v5-vcek"
    folder = sample(name)
    vcek = load_folder([folder / "vcek.pem"]).collateral
    asked = Asked(monkeypatch, {"/vcek/v1/Turin/": vcek})
    exit_code, document = report(at(name), "--fetch", folder / "report.bin", capsys=capsys)
    assert (exit_code, document["outcome"]) == (0, "accepted")
    assert asked.online == [True]
    omitted = {item["item"]: item["detail"] for item in document["not_checked"]}
    assert "crl" in omitted.get("collateral", "crl")


def test_what_could_not_be_fetched_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Asked(monkeypatch, {})
    name = "snp/milan-v3-vcek"
    exit_code, document = report(at(name), "--fetch", sample(name) / "report.bin", capsys=capsys)
    assert (exit_code, document["code"]) == (3, "endorsement_missing")
    omitted = {item["item"]: item["detail"] for item in document["not_checked"]}
    assert "answered 404" in omitted["collateral"]


def test_a_cache_without_fetch_is_read_only_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "snp/milan-v3-vcek"
    exit_code, document = report(at(name), f"--cache={tmp_path / 'c'}", sample(name) / "report.bin", capsys=capsys)
    assert exit_code == 3
    omitted = {item["item"]: item["detail"] for item in document["not_checked"]}
    assert "the network is not asked" in omitted["collateral"]


def test_home_made_answers_are_not_the_vendors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tests' own Intel has the right names and another key."""
    (tmp_path / "answer").write_bytes(tinfoil())
    (tmp_path / "collateral").write_bytes(COLLATERAL.tdx[0])
    (tmp_path / "nonce").write_text(NONCE.hex())
    exit_code, document = report("--at=2026-03-01T12:00:00Z", tmp_path, capsys=capsys)
    assert (exit_code, document["code"], document["measurements"]) == (1, "root_not_pinned", {})

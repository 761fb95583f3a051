"""`tresor-verify receipt` as a program: arguments and files in, output and exit code out; nothing makes it crash."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.certificates import Tls
from tresor import __version__
from tresor.cli import verify_input, verify_receipt
from tresor.cli.verify import main
from tresor.limits import MAX_JWKS_BYTES

PROGRAM = Path(sys.executable).with_name("tresor-verify")
VECTORS = Path(__file__).parents[1] / "vectors" / "receipt"
TOKEN = VECTORS / "001-bare-token" / "token.txt"
API_JSON = VECTORS / "002-api-json" / "receipt.json"
JWKS = VECTORS / "jwks.json"
AT = "--at=2026-03-01T12:05:00Z"
GOOD = ["receipt", f"--jwks={JWKS}", AT, str(TOKEN)]


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, timeout=60, check=False, **options)


# --- Wrong usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["verify"],
        ["receipt"],
        ["receipt", str(TOKEN)],
        ["receipt", f"--jwks={JWKS}"],
        ["receipt", f"--jwks={JWKS}", "--jwks-url=https://localhost/", str(TOKEN)],
        ["receipt", f"--jwks={JWKS}", f"--ca-file={JWKS}", str(TOKEN)],
        [*GOOD, str(TOKEN)],
        [*GOOD, "--nonc=x"],
        [*GOOD, "--at=yesterday"],
        [*GOOD, "--at=1772366400"],
        [*GOOD, "--at=2026-03-01T12:05:00"],
        [*GOOD, "--at=2026-02-30T12:05:00Z"],
        [*GOOD, "--require=router"],
        [*GOOD, f"--release-root={JWKS}", "--require=all"],
        [*GOOD, "--evidence=x"],
        [*GOOD, "--trust-bundle=x"],
        [*GOOD, "--min-bundle-version=1"],
        [*GOOD, f"--release-root={JWKS}", "--min-bundle-version=x"],
        [*GOOD, "--inference-release-root=x"],
        [*GOOD, "--inference-policy=x"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("usage: tresor-verify")


@pytest.mark.parametrize(
    "url", ["http://router.example/", "ftp://localhost/", "localhost/jwks", "https://", "http://[::1"]
)
def test_addresses_that_are_not_fetched(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["receipt", f"--jwks-url={url}", AT, str(TOKEN)]) == 2
    assert "--jwks-url" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["receipt", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    assert f"tresor-verify {__version__}\n" in capsys.readouterr().out


# --- Input that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--jwks={good}", "{missing}"],
        ["--jwks={good}", "{folder}"],
        ["--jwks={good}", "{empty}"],
        ["--jwks={good}", "{blank}"],
        ["--jwks={missing}", "{token}"],
        ["--jwks={folder}", "{token}"],
        ["--jwks={good}", "--request={missing}", "{token}"],
        ["--jwks={good}", "--response={folder}", "{token}"],
        ["--jwks-url=https://localhost:9", "--ca-file={missing}", "{token}"],
        ["--jwks-url=https://localhost:9", "--ca-file={token}", "{token}"],
        ["--jwks-url=https://localhost:9", "--ca-file={folder}", "{token}"],
    ],
)
def test_unreadable_input(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, blank = tmp_path / "empty", tmp_path / "blank"
    empty.touch()
    blank.write_bytes(b" \r\n\t")
    names = {"good": JWKS, "token": TOKEN, "missing": tmp_path / "no\x1bne", "folder": tmp_path, "empty": empty}
    assert main(["receipt", AT, *(part.format(blank=blank, **names) for part in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tresor-verify: ")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_bodies_are_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify_receipt, "MAX_EXCHANGE_BYTES", 100)
    assert main([*GOOD, "--request=/dev/zero"]) == 2
    assert "longer than 100 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("jwks", "receipt", "code"),
    [("{good}", "{giant}", "token_too_large"), ("{giant}", "{token}", "jwks_malformed")],
)
def test_giant_input_is_refused(
    jwks: str, receipt: str, code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    giant = tmp_path / "giant"
    with giant.open("wb") as file:
        file.write(b" {")
        file.truncate(1 << 40)  # takes no space
    names = {"giant": giant, "good": JWKS, "token": TOKEN}
    assert main(["receipt", f"--jwks={jwks.format(**names)}", receipt.format(**names)]) == 1
    assert capsys.readouterr().out.startswith(f"FAIL  {code}\n")


# --- Standard streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("receipt", [TOKEN, API_JSON])
def test_receipt_from_a_pipe(receipt: Path) -> None:
    done = run("receipt", "--jwks", JWKS, AT, "-", input=receipt.read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"PASS\nReceipt type: ")


def test_nothing_comes_through_the_pipe() -> None:
    done = run("receipt", "--jwks", JWKS, "-", input=b"")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"tresor-verify: there is no receipt: the input is empty\n"


@pytest.mark.parametrize(
    ("shell", "exit_code"),
    [
        pytest.param('"$0" receipt --jwks "$1" "$2" - <&-', 2, id="stdin-closed"),
        pytest.param('"$0" receipt --jwks "$1" "$2" "$3" >&-', 0, id="stdout-closed"),
        pytest.param('"$0" receipt --jwks "$1" "$2" "$3" >/dev/full', 0, id="disk-full"),
        pytest.param('"$0" receipt --jwks "$1" "$2" "$3" | true; exit "${PIPESTATUS[0]}"', 0, id="reader-gone"),
        pytest.param('"$0" receipt --jwks "$1" "$2" "$1" | true; exit "${PIPESTATUS[0]}"', 1, id="reader-gone-fail"),
        pytest.param('"$0" receipt --jwks "$1" "$2" /none 2>&-', 2, id="stderr-closed"),
        pytest.param('"$0" receipt --jwks "$1" "$2" /none 2>/dev/full', 2, id="stderr-full"),
        pytest.param('LC_ALL=C PYTHONIOENCODING=ascii "$0" receipt --jwks "$1" "$2" "$3"', 0, id="ascii-terminal"),
    ],
)
def test_awkward_streams(shell: str, exit_code: int) -> None:
    token = VECTORS / "026-route-with-slashes" / "token.txt"
    done = subprocess.run(["bash", "-c", shell, PROGRAM, JWKS, AT, token], capture_output=True, timeout=60, check=False)
    assert done.returncode == exit_code
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception" not in done.stderr + done.stdout


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: int) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify_receipt, "read_stdin", interrupted)
    assert main(["receipt", f"--jwks={JWKS}", "-"]) == 130


# --- A key set over the network -------------------------------------------------------------------------------------


class KeyServer(ThreadingHTTPServer):
    """Serves the key set and every way of not serving it."""

    daemon_threads = True
    asked: list[str]
    stop: threading.Event

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that leave."""


class Handler(BaseHTTPRequestHandler):
    server: KeyServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/silent":
            self.server.stop.wait(20)
            return
        answer = ANSWERS[self.path]
        length = len(answer.body) if answer.length is None else answer.length
        head = f"HTTP/1.1 {answer.status} X\r\n{answer.field}\r\nContent-Length: {length}\r\n\r\n"
        self.wfile.write(head.encode() + answer.body)
        while self.path == "/endless" and not self.server.stop.wait(0.02):
            self.wfile.write(b" ")


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = JWKS.read_bytes()
    field: str = "X-Nothing: 0"
    length: int | None = None


ANSWERS = {
    "/jwks": Answer(),
    "/elsewhere": Answer(302, field="Location: /jwks"),
    "/missing": Answer(404),
    "/broken": Answer(500),
    "/partial": Answer(206),
    "/page": Answer(body=b"<!doctype html>"),
    "/compressed": Answer(body=b"\x1f\x8b" + bytes(60), field="Content-Encoding: gzip"),
    "/giant": Answer(body=JWKS.read_bytes() + b" " * MAX_JWKS_BYTES),
    "/cut": Answer(length=10_000),
    "/endless": Answer(body=b"", length=1 << 20),
}


@dataclass(frozen=True)
class Served:
    url: str
    asked: list[str]


@contextlib.contextmanager
def key_server(tls: Tls | None) -> Iterator[Served]:
    server = KeyServer(("127.0.0.1", 0), Handler)
    server.asked, server.stop = [], threading.Event()
    if tls is not None:
        server.socket = tls.server_context().wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Served(f"{'http' if tls is None else 'https'}://localhost:{server.server_port}", server.asked)
    finally:
        server.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with key_server(None) as served:
        yield served


@pytest.fixture(scope="module")
def secure(tls: Tls) -> Iterator[Served]:
    with key_server(tls) as served:
        yield served


def verdict(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str | None]:
    exit_code = main(["receipt", AT, "--json", *arguments])
    report = msgspec.json.decode(capsys.readouterr().out)
    return exit_code, report["result"], report["code"]


def test_key_set_over_tls(secure: Served, tls: Tls, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--jwks-url={secure.url}/jwks", str(TOKEN)]
    assert verdict([*arguments, f"--ca-file={tls.ca_file}"], capsys) == (0, "pass", None)
    assert verdict(arguments, capsys) == (3, "undecided", "jwks_unavailable")


def test_certificate_of_another_host(secure: Served, tls: Tls, capsys: pytest.CaptureFixture[str]) -> None:
    url = secure.url.replace("localhost", "127.0.0.2")
    arguments = [f"--jwks-url={url}/jwks", f"--ca-file={tls.ca_file}", str(TOKEN)]
    assert verdict(arguments, capsys) == (3, "undecided", "jwks_unavailable")


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/jwks", (0, "pass", None)),
        ("/elsewhere", (3, "undecided", "jwks_unavailable")),
        ("/missing", (3, "undecided", "jwks_unavailable")),
        ("/broken", (3, "undecided", "jwks_unavailable")),
        ("/partial", (3, "undecided", "jwks_unavailable")),
        ("/cut", (3, "undecided", "jwks_unavailable")),
        ("/silent", (3, "undecided", "jwks_unavailable")),
        ("/endless", (3, "undecided", "jwks_unavailable")),
        ("/page", (1, "fail", "jwks_malformed")),
        ("/compressed", (1, "fail", "jwks_malformed")),
        ("/giant", (1, "fail", "jwks_malformed")),
    ],
)
def test_what_a_server_may_answer(
    path: str,
    wanted: tuple[int, str, str | None],
    plain: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(verify_input, "_TIMEOUT_S", 0.3)
    monkeypatch.setattr(verify_input, "_DEADLINE_S", 0.3)
    plain.asked.clear()
    assert verdict([f"--jwks-url={plain.url}{path}", str(TOKEN)], capsys) == wanted
    assert plain.asked == [path]


def test_undecided_is_no_pass(plain: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["receipt", AT, f"--jwks-url={plain.url}/elsewhere", str(TOKEN)]) == 3
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "FAIL  could not be decided: jwks_unavailable"
    assert second.endswith("the server answered 302, and redirects are not followed")


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with key_server(None) as served:
        pass
    assert verdict([f"--jwks-url={served.url}/jwks", str(TOKEN)], capsys) == (3, "undecided", "jwks_unavailable")


def test_a_token_that_is_none_needs_no_network(plain: Served, capsys: pytest.CaptureFixture[str]) -> None:
    plain.asked.clear()
    assert verdict([f"--jwks-url={plain.url}/jwks", str(JWKS)], capsys) == (1, "fail", "token_malformed")
    assert plain.asked == []


def test_no_proxy_stands_before_this_machine(
    plain: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert verdict([f"--jwks-url={plain.url}/jwks", str(TOKEN)], capsys) == (0, "pass", None)


# --- Anything as a receipt ------------------------------------------------------------------------------------------


@given(data=st.one_of(st.binary(min_size=1), st.text(min_size=1).map(str.encode)), as_json=st.booleans())
@example(data=b"\x00", as_json=False)
@example(data=b"{" * 100_000, as_json=True)
@example(data=b'{"id":"\x1b","receipt":"\x1b..."}', as_json=False)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_gets_a_verdict(
    data: bytes, as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = tmp_path / "receipt"
    receipt.write_bytes(data)
    exit_code = main(["receipt", f"--jwks={JWKS}", *(["--json"] if as_json else []), str(receipt)])
    out, err = capsys.readouterr()
    if not data.strip():
        assert (exit_code, out) == (2, "")
        return
    assert (exit_code, err) == (1, "")
    assert out.isascii()
    assert out.replace("\n", "").isprintable()

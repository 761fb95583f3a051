"""`tresor demo`: a real model behind sidecar and router, the lines it prints, and what is left when it ends."""

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import psutil  # type: ignore[import-untyped]  # ships no types
import pytest
from openai.types.chat import ChatCompletionMessageParam

from support.router import tresor, wait_until

PROMPT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 2+2?"}]


class Demo:
    """A running `tresor demo`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._printed = folder.with_suffix(".out")
        with self._printed.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tresor.cli.main", "demo", f"--port={port}", f"--directory={folder}"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder.parent,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text()

    @property
    def facts(self) -> dict[str, str]:
        """What `demo.json` says."""
        facts: dict[str, str] = msgspec.json.decode((self.folder / "demo.json").read_bytes())
        return facts

    def wait_ready(self) -> None:
        """Wait until `demo.json` is there, and everything has been printed."""
        wait_until(lambda: self.has_ended() or "\nEND\n" in self.printed, "the demo is ready", 60)
        assert not self.has_ended(), self.printed
        assert (self.folder / "demo.json").is_file()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def family(self) -> list[Any]:
        """Return all processes below this one."""
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def end(self, number: signal.Signals, *, whole_group: bool = False) -> int:
        """Send a signal, as Ctrl-C does to the whole group, and return the exit code."""
        if not self.has_ended():
            (os.killpg if whole_group else os.kill)(self.process.pid, number)
        return self.process.wait(60)


@contextlib.contextmanager
def running_demo(folder: Path, port: int) -> Iterator[Demo]:
    demo = Demo(folder, port)
    family: list[Any] = []
    try:
        demo.wait_ready()
        family = demo.family()
        yield demo
    finally:
        demo.end(signal.SIGTERM)
        for process in psutil.wait_procs(family, 20)[1]:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def sdk(facts: dict[str, str]) -> openai.OpenAI:
    context = ssl.create_default_context(cafile=facts["ca_file"])
    http_client = openai.DefaultHttpxClient(verify=context, trust_env=False)
    return openai.OpenAI(base_url=facts["base_url"], api_key=facts["api_key"], http_client=http_client)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo") / "state", free_port()) as running:
        yield running


def test_the_facts_are_for_scripts_and_for_their_owner(demo: Demo) -> None:
    facts = demo.facts
    assert sorted(facts) == ["api_key", "base_url", "ca_file", "model"]
    assert facts["base_url"].startswith("https://localhost:")
    assert facts["model"] == "smollm2-135m"
    assert (demo.folder / "demo.json").stat().st_mode & 0o777 == 0o600
    assert demo.folder.stat().st_mode & 0o777 == 0o700
    assert facts["api_key"] in demo.printed


def test_the_model_answers_through_the_router(demo: Demo) -> None:
    facts = demo.facts
    with sdk(facts) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=facts["model"], messages=PROMPT, temperature=0, max_tokens=24
        )
        again = client.chat.completions.create(model=facts["model"], messages=PROMPT, temperature=0, max_tokens=24)
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.choices[0].message.content == again.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 24


def test_the_model_streams_through_the_router(demo: Demo) -> None:
    facts = demo.facts
    with sdk(facts) as client:
        chunks = list(
            client.chat.completions.create(
                model=facts["model"], messages=PROMPT, temperature=0, max_tokens=16, stream=True
            )
        )
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 3
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["tresor"]["routed_model"] == "local/embedded/smollm2-135m"


def test_the_printed_lines_work_when_pasted(demo: Demo) -> None:
    """Everything below the greeting is for a shell: ask, fetch, verify; then ask with the SDK, and verify that."""
    lines = demo.printed.partition("In a second terminal, in this folder:\n")[2]
    verify = "#" + lines.partition("# 3.")[2].partition("\n# 4.")[0]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{lines}\n{verify}"],
        cwd=demo.folder.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdicts = [line for line in done.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert verdicts == ["PASS  SIMULATED"] * 3  # a receipt, the router, and the SDK's receipt
    for hop in ("router", "inference"):
        assert len(re.findall(rf"\n  ok    {hop}_tee +SIMULATED, [^\n]+\n", done.stdout)) == 2
    assert '"tresor":{"receipt_id"' in done.stdout
    assert done.stderr == ""


def test_one_changed_byte_fails_and_so_does_simulated_evidence_that_nobody_asked_for(demo: Demo) -> None:
    test_the_printed_lines_work_when_pasted(demo)
    response = demo.folder / "response.json"
    hops: list[str | Path] = ["--release-root", demo.folder / "release-root.jwk", "--require", "router,inference"]
    files: list[str | Path] = ["--response", response, demo.folder / "receipt.json"]
    real = tresor("receipt", *hops, *files, module="verify")
    assert (real.exit_code, real.out.splitlines()[0]) == (1, "FAIL  simulated_not_allowed, simulated_not_allowed")
    response.write_bytes(response.read_bytes().replace(b"assistant", b"assistanT"))
    done = tresor("receipt", *hops, "--allow-simulated", *files, module="verify")
    assert (done.exit_code, done.out.splitlines()[0]) == (1, "FAIL  response_digest_mismatch")


def test_a_second_start_finds_everything_again_and_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with running_demo(folder, free_port()) as first:
        facts, family = first.facts, first.family()
        with sdk(facts) as client:
            answer = client.chat.completions.create(model=facts["model"], messages=PROMPT, max_tokens=4)
        assert first.end(signal.SIGINT, whole_group=True) == 0
        assert "Traceback" not in first.printed
        assert psutil.wait_procs(family, 0)[1] == []
    assert answer.model_extra is not None
    receipt_id = answer.model_extra["tresor"]["receipt_id"]
    with running_demo(folder, free_port()) as second:
        assert second.facts["api_key"] == facts["api_key"]
        with sdk(second.facts) as client:
            assert client.get(f"/receipts/{receipt_id}", cast_to=dict[str, str])["id"] == receipt_id
        family = second.family()
        assert len(family) == 4  # the model, the sidecar, the supervisor, its worker
        second.end(signal.SIGKILL)
        assert psutil.wait_procs(family, 20)[1] == []


def test_ctrl_c_in_the_middle_of_an_answer_leaves_nothing_running(tmp_path: Path) -> None:
    with running_demo(tmp_path / "state", free_port()) as demo:
        family = demo.family()
        with sdk(demo.facts) as client:
            chunks = client.chat.completions.create(
                model="smollm2-135m", messages=PROMPT, stream=True, max_tokens=150, temperature=1
            )
            next(iter(chunks))
            assert demo.end(signal.SIGINT, whole_group=True) == 0
        assert psutil.wait_procs(family, 0)[1] == []


@pytest.mark.parametrize(
    ("argument", "name"), [("tresor.demo.model", "the language model"), ("sidecar", "the sidecar")]
)
def test_the_demo_ends_with_any_of_its_processes(tmp_path: Path, argument: str, name: str) -> None:
    with running_demo(tmp_path / "state", free_port()) as other:
        family = other.family()
        (process,) = [process for process in family if argument in process.cmdline()]
        process.kill()
        assert other.process.wait(60) == 1
        assert other.printed.endswith(f"tresor: {name} ended by itself with exit code -9\n")
        assert psutil.wait_procs(family, 0)[1] == []


def test_a_port_that_is_taken_is_said_before_anything_slow(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = tresor("demo", f"--port={port}", f"--directory={tmp_path / 'state'}")
    assert (done.exit_code, done.out) == (1, "")
    assert done.err == (
        f"tresor: port {port} on 127.0.0.1 is taken (Address already in use); "
        f"choose another: tresor demo --port {port + 1}\n"
    )
    assert not (tmp_path / "state").exists()


def test_a_folder_that_cannot_be_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    done = tresor("demo", f"--port={free_port()}", f"--directory={tmp_path / 'state'}")
    assert (done.exit_code, done.err) == (1, f"tresor: {tmp_path}/state: File exists\n")


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_a_port_that_is_none_is_wrong_usage(port: str) -> None:
    assert tresor("demo", f"--port={port}").exit_code == 2

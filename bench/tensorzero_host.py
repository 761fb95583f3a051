"""Hosts TensorZero's embedded HTTP gateway; runs in the environment of the `tensorzero` package.

    tensorzero_host.py CONFIGURATION PORT_FILE

The package starts its gateway for the client library of OpenAI and hands it the address; an object with a `base_url`
stands in for that client here.  No Python code runs while requests are served.
"""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

from tensorzero import patch_openai_client  # type: ignore[import-not-found]  # lives in its own environment


def main(configuration: str, port_file: Path) -> None:
    """Start the gateway and stay until killed."""
    client = SimpleNamespace(base_url="")
    patch_openai_client(client, config_file=configuration, async_setup=False)
    written = port_file.with_suffix(".new")
    written.write_text(str(urlsplit(client.base_url).port))
    written.rename(port_file)  # whole or not there
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

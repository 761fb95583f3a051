"""Requests to the metadata service of a cloud, which answers on a link-local address of the machine.

What it answers comes from the host and is worth nothing until it is verified.
"""

import http.client
import time
from collections.abc import Callable
from typing import Final

from tresor.identity.source import EvidenceSourceError, SourceCode

__all__ = ["Fetch", "fetch_metadata"]

Fetch = Callable[[str, bytes | None], bytes]
"""GET a path, or POST a JSON body to it; returns the body of a 200.  Raises EvidenceSourceError."""

_ADDRESS: Final = "169.254.169.254"
_TIMEOUT_S: Final = 30.0
_MAX_BODY_BYTES: Final = 1 << 20
_TOO_MANY, _SERVER_ERROR = 429, 500


def fetch_metadata(path: str, body: bytes | None, *, host: str = _ADDRESS, port: int = 80) -> bytes:
    """Ask the metadata service: without proxy, without redirects, at most 30 seconds and 1 MiB.

    Raises:
        EvidenceSourceError: no answer, another status than 200, or too long an answer.
    """
    end = time.monotonic() + _TIMEOUT_S
    url = f"http://{host}{path}"
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        headers = {"Metadata": "true"} | ({} if body is None else {"Content-Type": "application/json"})
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        answer = bytearray()
        while chunk := response.read1(1 << 16):
            answer += chunk
            if len(answer) > _MAX_BODY_BYTES or time.monotonic() > end:
                raise EvidenceSourceError(
                    SourceCode.FAILED,
                    f"{url} answers more than {_MAX_BODY_BYTES} bytes, or for longer than {_TIMEOUT_S} s",
                )
    except (OSError, http.client.HTTPException) as error:
        # A machine that has the vTPM and not this address keeps processes of ours from it, by firewall or namespace.
        raise EvidenceSourceError(
            SourceCode.BUSY, f"{url} does not answer ({type(error).__name__}): let this process reach the address"
        ) from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        passing = response.status == _TOO_MANY or response.status >= _SERVER_ERROR
        raise EvidenceSourceError(
            SourceCode.BUSY if passing else SourceCode.FAILED, f"{url} answers with status {response.status}"
        )
    return bytes(answer)

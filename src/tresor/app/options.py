"""What a caller asks for with `X-Tresor-*` headers (docs/spec/http-api.md section 4.3)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tresor.errors import RequestError
from tresor.limits import Limits

__all__ = ["CLAIM_NAMES", "ExchangeOptions", "parse_options"]

CLAIM_NAMES: Final = frozenset({"cpu_tee", "gpu_tee", "tcb", "workload"})
_HEADERS: Final = frozenset(
    {"x-tresor-receipt", "x-tresor-nonce", "x-tresor-timeout-seconds", "x-tresor-require-attestation"}
)
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+\Z")
_DECIMAL = re.compile(r"[0-9]{1,30}(?:\.[0-9]{1,30})?\Z")


@dataclass(frozen=True, slots=True)
class ExchangeOptions:
    """Options of one exchange.

    Attributes:
        receipt: whether a receipt is to be made.
        timeout_s: budget of an exchange that is not a stream, over all attempts.
        nonce: echoed in the receipt.
        required_claims: what must be proven of the upstream that serves.
    """

    receipt: bool
    timeout_s: float
    nonce: str | None
    required_claims: frozenset[str]


def parse_options(headers: Mapping[str, str], limits: Limits) -> ExchangeOptions:
    """Read the options of a request.

    Raises:
        RequestError: 400 `invalid_field`; a wish that is not understood is never dropped.
    """
    if _HEADERS.isdisjoint(headers):
        return _defaults(limits.default_timeout_s)
    receipt = headers.get("x-tresor-receipt", "true").lower()
    if receipt not in ("true", "false"):
        raise _invalid("X-Tresor-Receipt", "true or false")
    nonce = headers.get("x-tresor-nonce")
    if nonce is not None and not (_VISIBLE_ASCII.match(nonce) and len(nonce) <= limits.max_nonce_chars):
        raise _invalid("X-Tresor-Nonce", f"1 to {limits.max_nonce_chars} visible ASCII characters")
    return ExchangeOptions(
        receipt=receipt == "true",
        timeout_s=_timeout_s(headers.get("x-tresor-timeout-seconds"), limits),
        nonce=nonce,
        required_claims=_claims(headers.get("x-tresor-require-attestation")),
    )


@lru_cache(maxsize=1)
def _defaults(timeout_s: float) -> ExchangeOptions:
    return ExchangeOptions(receipt=True, timeout_s=timeout_s, nonce=None, required_claims=frozenset())


def _timeout_s(text: str | None, limits: Limits) -> float:
    if text is None:
        return limits.default_timeout_s
    seconds = float(text) if _DECIMAL.match(text) else math.nan
    if not seconds > 0:
        raise _invalid("X-Tresor-Timeout-Seconds", "a positive number")
    return min(seconds, limits.max_timeout_s)


def _claims(text: str | None) -> frozenset[str]:
    if text is None:
        return frozenset()
    names = frozenset(name.strip() for name in text.split(","))
    if not names <= CLAIM_NAMES:
        raise _invalid("X-Tresor-Require-Attestation", f"a list of {', '.join(sorted(CLAIM_NAMES))}")
    return names


def _invalid(header: str, wanted: str) -> RequestError:
    return RequestError(400, "invalid_field", f"{header} is not {wanted}", param=header)

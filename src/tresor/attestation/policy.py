"""One policy language for every TEE, readable from TOML and JSON (docs/spec/attestation.md, 7).

A policy is frozen; an unknown member is refused, because a restriction that is not understood must not be dropped; an
empty allow-list allows nothing.  What may be skipped is called so (`skip_measurement = true`), and what is skipped
stands in `not_checked`.  A TEE whose table is missing is judged by the strict default of that TEE.
"""

import tomllib
from typing import Annotated

import msgspec

from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.errors import PolicyError
from tresor.attestation.nitro.policy import NitroPolicy
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.results import PolicyException
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.encodings import parse_json
from tresor.errors import JsonError

__all__ = ["MAX_POLICY_BYTES", "STRICT", "Policy", "parse_policy"]

MAX_POLICY_BYTES = 1 << 20


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What evidence must show to be accepted; the defaults are the strict policy without reference values."""

    snp: SnpPolicy = SnpPolicy()
    tdx: TdxPolicy = TdxPolicy()
    nvidia: NvidiaPolicy = NvidiaPolicy()
    azure: AzurePolicy = AzurePolicy()
    nitro: NitroPolicy = NitroPolicy()
    exceptions: Annotated[tuple[PolicyException, ...], msgspec.Meta(max_length=64)] = ()
    """Weaknesses that are accepted by name for a limited time."""


STRICT = Policy()
"""The policy of `tresor-verify evidence` without `--policy`."""


def parse_policy(data: bytes) -> Policy:
    """Parse a policy: JSON where the first character is `{`, else TOML.

    Raises:
        PolicyError: neither, an unknown or missing member, or a value of the wrong form.
    """
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError(f"policy is {len(data)} bytes, want at most {MAX_POLICY_BYTES}")
    try:
        document = parse_json(data) if data.lstrip().startswith(b"{") else tomllib.loads(data.decode("utf-8"))
        return msgspec.convert(document, Policy)
    except (JsonError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"policy is neither JSON nor TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise PolicyError(f"policy: {error}") from error

"""Several appraisals that belong together, in one result (docs/spec/attestation.md, 2.4).

Every check of every part stays; one failure anywhere rejects the whole.  A claim is refuted where any part refutes it,
and proven only where every part that could speak of it proves it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tresor.attestation.results import AttestationResult, Claim, ClaimName, Claims

__all__ = ["GPU_TEE", "Part", "join", "without"]

GPU_TEE: Final = "nvidia-gpu"
_EACH_OTHERS: Final = frozenset({"cpu_tee", "gpu_tee"})
Part = tuple[str, AttestationResult]
"""A word that tells the part from the others, empty where nothing has to, and its result."""


def join(parts: Sequence[Part]) -> AttestationResult:
    """Join results; the words of the parts stand before the names of their checks, measurements and details.

    Raises:
        ValueError: there are no parts.
    """
    if not parts:
        raise ValueError("nothing to join: no result says nothing")
    results = [result for _, result in parts]
    tees = dict.fromkeys(tee for result in results for tee in result.tee.split("+"))
    cpu = [result for result in results if result.tee != GPU_TEE]
    gpu = [result for result in results if GPU_TEE in result.tee]
    # Beside a whole node with GPUs, one without any speaks of them, too: either may be the one that serves.
    nodes = any(result.tee != GPU_TEE for result in gpu)
    return AttestationResult(
        tee="+".join(tees),
        checks=tuple(
            replace(check, check=_named(word, check.check)) for word, result in parts for check in result.checks
        ),
        claims=Claims(
            cpu_tee=_claim("cpu_tee", cpu, results),
            gpu_tee=_claim("gpu_tee", results if nodes else gpu or cpu, results),
            tcb=_claim("tcb", cpu or gpu, results),
            workload=_claim("workload", cpu or gpu, results),
        ),
        measurements=_gathered(parts, [result.measurements for result in results]),
        not_checked=_omissions(results, settled=frozenset() if nodes or not (gpu and cpu) else _EACH_OTHERS),
        report_data=results[0].report_data if len(cpu) == 1 and results[0] is cpu[0] else None,
        valid_from=max((r.valid_from for r in results if r.valid_from is not None), default=None),
        valid_until=min((r.valid_until for r in results if r.valid_until is not None), default=None),
        exceptions=tuple(dict.fromkeys(exception for result in results for exception in result.exceptions)),
        simulated=any(result.simulated for result in results),
        details=_gathered(parts, [result.details for result in results]),
    )


def without(result: AttestationResult, items: Iterable[str]) -> AttestationResult:
    """Return `result` without `items` among what was not checked, because the caller checks them itself."""
    dropped = frozenset(items)
    return replace(result, not_checked={k: v for k, v in result.not_checked.items() if k not in dropped})


def _named(word: str, name: str) -> str:
    return f"{word}.{name}" if word else name


def _gathered(parts: Sequence[Part], values: Sequence[Mapping[str, str]]) -> dict[str, str]:
    return {
        _named(word, name): value
        for (word, _), mapping in zip(parts, values, strict=True)
        for name, value in mapping.items()
    }


def _omissions(results: Sequence[AttestationResult], settled: frozenset[str]) -> dict[str, str]:
    reasons: dict[str, dict[str, None]] = {}
    for result in results:
        for item, reason in result.not_checked.items():
            if item not in settled:
                reasons.setdefault(item, {})[reason] = None
    return {item: "; ".join(found) for item, found in reasons.items()}


def _claim(name: ClaimName, speakers: Sequence[AttestationResult], everyone: Sequence[AttestationResult]) -> Claim:
    claims: list[Claim] = [getattr(result.claims, name) for result in speakers]
    refuted = [claim for claim in (getattr(r.claims, name) for r in everyone) if claim.status == "refuted"]
    unknown = [claim for claim in claims if claim.status == "unknown"]
    return (refuted or unknown or claims or [getattr(Claims(), name)])[0]

"""Whatever lies together: recognised, joined and appraised as a whole (docs/spec/attestation.md, 3.3 and 5.8).

`gather` sorts the contents of files into evidence, providers' answers and endorsements; `appraise_folder` gives one
result for all of it.  Where nothing is evidence, the endorsements are verified by themselves; where nothing is known,
nothing is accepted.  Pure: names of files are for messages only.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, NamedTuple

from tresor.attestation import registry
from tresor.attestation.codes import AttestationCode
from tresor.attestation.endorsements import appraise_endorsements
from tresor.attestation.errors import AttestationError, EvidenceMalformedError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat, Expected, Need
from tresor.attestation.join import Part, join, without
from tresor.attestation.nvidia.evidence_list import parse_evidence_list
from tresor.attestation.nvidia.nras import parse_eat
from tresor.attestation.policy import Policy
from tresor.attestation.providers.aci import parse_aci
from tresor.attestation.providers.answer import Known, Node, appraise_answer
from tresor.attestation.providers.chutes import parse_chutes, parse_chutes_keys
from tresor.attestation.providers.dstack import parse_dstack
from tresor.attestation.providers.tinfoil import parse_tinfoil
from tresor.attestation.recognise import DocumentKind, Item, Kind, recognise
from tresor.attestation.results import AttestationResult, failed, undecided
from tresor.attestation.roots import TrustAnchors
from tresor.attestation.tdx.collateral import PcsAnswer, assemble
from tresor.attestation.x509 import load_crl
from tresor.encodings import base64url_decode, parse_json
from tresor.errors import EncodingError, JsonError

__all__ = ["File", "Folder", "appraise_folder", "gather", "needs"]

_SPDM_NONCE: Final = slice(4, 36)
_BESIDE: Final = ("nras", "file")
_UNKNOWN_KIND: Final = "not of a known kind"


class File(NamedTuple):
    """Content of a file; `named` says that somebody gave it as evidence, and did not just find it beside some."""

    name: str
    data: bytes
    named: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What lies together.

    Attributes:
        evidence: pieces that stand for themselves.
        tokens: of NVIDIA's verifier, about GPUs that may be among the evidence.
        answers: whole answers of providers.
        collateral: every endorsement.
        nonces: distinct challenges, which somebody noted beside the evidence.
        keys: keys of a provider's nodes, by the id of the node.
        event_logs: logs that no quote came with.
        not_used: name of a file to why it plays no part.
        unread: name of a file that was given as evidence, or looks like some, and why it cannot be read.
    """

    evidence: tuple[Evidence, ...] = ()
    tokens: tuple[Evidence, ...] = ()
    answers: tuple[Item, ...] = ()
    collateral: Collateral = field(default_factory=Collateral)
    nonces: tuple[bytes, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    event_logs: tuple[bytes, ...] = ()
    not_used: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[tuple[str, AttestationError], ...] = ()


_PARSERS: Final[dict[Kind, Callable[[bytes, Known], tuple[Node, ...]]]] = {
    DocumentKind.TINFOIL: parse_tinfoil,
    DocumentKind.DSTACK: parse_dstack,
    DocumentKind.CHUTES: parse_chutes,
    DocumentKind.ACI: parse_aci,
}


# --- Sorting --------------------------------------------------------------------------------------------------------


def gather(files: Iterable[File]) -> Folder:
    """Sort the contents of files by what they are; whatever cannot be read is noted and raises nothing."""
    found: dict[Kind, list[bytes]] = {}
    not_used: dict[str, str] = {}
    unread: list[tuple[str, AttestationError]] = []
    for file in files:
        try:
            items = _recognise(file)
        except AttestationError as error:
            unread.append((file.name, error))
            continue
        for item in items:
            if item.kind is DocumentKind.NOT_USED:
                not_used[file.name] = item.note
            else:
                found.setdefault(item.kind, []).append(item.data)
    evidence = [Evidence(kind, data) for kind in EvidenceFormat for data in dict.fromkeys(found.get(kind, ()))]
    quotes = [piece for piece in evidence if piece.format is EvidenceFormat.TDX_QUOTE]
    logs = tuple(dict.fromkeys(found.get(DocumentKind.EVENT_LOG, ())))
    if len(quotes) == 1:  # of several quotes, nothing says whose log it is
        evidence = [replace(piece, event_logs=logs) if piece is quotes[0] else piece for piece in evidence]
        logs = ()
    keys: dict[str, str] = {}
    for document in found.get(DocumentKind.CHUTES_KEYS, ()):
        try:
            keys |= parse_chutes_keys(document)
        except AttestationError as error:
            unread.append(("end-to-end keys", error))
    return Folder(
        evidence=tuple(piece for piece in evidence if piece.format is not EvidenceFormat.NVIDIA_NRAS),
        tokens=tuple(piece for piece in evidence if piece.format is EvidenceFormat.NVIDIA_NRAS),
        answers=tuple(Item(kind, data) for kind in _PARSERS for data in dict.fromkeys(found.get(kind, ()))),
        collateral=_collateral(found, unread),
        nonces=tuple(dict.fromkeys(found.get(DocumentKind.NONCE, ()))),
        keys=keys,
        event_logs=logs,
        not_used=not_used,
        unread=tuple(unread),
    )


def _recognise(file: File) -> tuple[Item, ...]:
    items = recognise(file.data)
    if items:
        return items
    if file.named:
        detail = f"{len(file.data)} bytes are no evidence or endorsement of a known kind"
        raise EvidenceMalformedError(AttestationCode.EVIDENCE_UNKNOWN, detail)
    return (Item(DocumentKind.NOT_USED, file.data, _UNKNOWN_KIND),)


def _collateral(found: Mapping[Kind, list[bytes]], unread: list[tuple[str, AttestationError]]) -> Collateral:
    def of(kind: CollateralKind) -> tuple[bytes, ...]:
        return tuple(found.get(kind, ()))

    crls, tdx = of(CollateralKind.CRL), of(CollateralKind.TDX)
    if DocumentKind.INTEL_TCB_INFO in found:
        try:
            assembled, used = _assemble(found, crls)
        except AttestationError as error:
            unread.append(("Intel's answers", error))
        else:
            tdx, crls = (*tdx, assembled), tuple(crl for crl in crls if crl not in used)
    return (
        Collateral(
            certificates=of(CollateralKind.CERTIFICATE),
            crls=crls,
            ocsp_responses=of(CollateralKind.OCSP),
            rims=of(CollateralKind.RIM),
            tdx=tdx,
            jwks=of(CollateralKind.JWKS),
        )
        + Collateral()
    )


def _assemble(found: Mapping[Kind, list[bytes]], crls: tuple[bytes, ...]) -> tuple[bytes, tuple[bytes, ...]]:
    """Make one document of Intel's four raw answers and their headers; return it and the lists it took in.

    Raises:
        EvidenceMalformedError: one of them is missing, is there twice, or cannot be read.
    """
    bodies = [found.get(kind, []) for kind in (DocumentKind.INTEL_TCB_INFO, DocumentKind.INTEL_QE_IDENTITY)]
    by_issuer = [[crl for crl in crls if _is_of_intel(crl, root=root)] for root in (False, True)]
    if [len(part) for part in (*bodies, *by_issuer)] != [1, 1, 1, 1]:
        raise EvidenceMalformedError(
            AttestationCode.COLLATERAL_MALFORMED,
            "want one each of Intel's TCB info, QE identity, PCK CRL and root CRL",
        )
    headers: dict[str, str] = {}
    for document in found.get(DocumentKind.INTEL_HEADERS, ()):
        headers |= _headers(document)
    parts = [PcsAnswer(body[0], headers) for body in (*bodies, *by_issuer)]
    return assemble(*parts), tuple(crl for part in by_issuer for crl in part)


def _is_of_intel(crl: bytes, *, root: bool) -> bool:
    issuer = load_crl(crl).issuer.rfc4514_string()
    return "Intel SGX" in issuer and ("Intel SGX Root CA" in issuer) == root


def _headers(document: bytes) -> dict[str, str]:
    """Return the issuer chains of a recorded set of answers, `{file: {"headers": {name: value}}}`."""
    chains: dict[str, str] = {}
    answers = parse_json(document)
    for answer in answers.values() if isinstance(answers, dict) else ():
        headers = answer.get("headers") if isinstance(answer, dict) else None
        for name, value in headers.items() if isinstance(headers, dict) else ():
            if name.lower().endswith("issuer-chain") and isinstance(value, str):
                chains[name.lower()] = value
    return chains


# --- Needs ----------------------------------------------------------------------------------------------------------


def needs(folder: Folder) -> tuple[Need, ...]:
    """Return what the appraisal of a folder could use besides what lies in it, most needed first of each piece."""
    pieces = [*folder.evidence, *folder.tokens]
    for node in _nodes(folder):
        pieces += [node.cpu] if node.gpus is None else [node.cpu, node.gpus]
    wanted = [need for piece in pieces for need in registry.needs(piece, folder.collateral)]
    return tuple(dict.fromkeys(wanted))


def _nodes(folder: Folder) -> list[Node]:
    nodes: list[Node] = []
    for answer in folder.answers:
        try:
            nodes += _PARSERS[answer.kind](answer.data, Known(keys=folder.keys))
        except AttestationError:  # which its appraisal says
            continue
    return nodes


# --- Appraisal ------------------------------------------------------------------------------------------------------


def appraise_folder(
    folder: Folder, *, nonce: bytes | None, policy: Policy, anchors: TrustAnchors, now: datetime
) -> AttestationResult:
    """Appraise everything that lies together, as one.

    Args:
        folder: from `gather`.
        nonce: the challenge that was sent, where the caller knows it; else the one noted in the folder counts.
        policy: what is acceptable of each TEE.
        anchors: pinned roots.
        now: instant to appraise at (aware, UTC).
    """
    nonce = folder.nonces[0] if nonce is None and folder.nonces else nonce
    known = Known(nonce=nonce, keys=folder.keys)

    def appraised(evidence: Evidence, expected: bytes | None) -> AttestationResult:
        return registry.appraise(
            evidence,
            collateral=folder.collateral,
            policy=policy,
            expected=Expected(nonce=expected),
            anchors=anchors,
            now=now,
        )

    parts: list[Part] = []
    for answer in folder.answers:
        answered = appraise_answer(
            _PARSERS[answer.kind],
            answer.data,
            known=known,
            collateral=folder.collateral,
            policy=policy,
            anchors=anchors,
            now=now,
        )
        parts.append(("answer", answered.result))
    parts += [(piece.format.value, appraised(piece, nonce)) for piece in folder.evidence]
    other_tokens: list[str] = []
    asked = _gpu_nonces(folder)
    for token in folder.tokens:
        about = _token_nonce(token)
        if not asked or about is None or about in asked:
            result = appraised(token, about if asked else nonce)
            parts.append(("nras", without(result, ("gpu_evidence",)) if asked else result))
        else:
            alone = appraised(token, None)
            other_tokens.append(
                f"a token of NVIDIA's verifier answers {about.hex()}, which no GPU here does: it is about other "
                f"evidence and does not count (by itself: {alone.outcome}, {alone.code})"
            )
    if not parts:
        parts.append(_without_evidence(folder, anchors=anchors, now=now))
    parts += [("file", _unreadable(name, error)) for name, error in folder.unread]
    result = join(_numbered(parts))
    return replace(result, not_checked={**result.not_checked, **_not_used(folder, other_tokens)})


def _without_evidence(folder: Folder, *, anchors: TrustAnchors, now: datetime) -> Part:
    """Appraise what is left where there is no evidence; what is unknown may have been it, so nothing is accepted."""
    detail = "nothing here is evidence or an endorsement of a known kind"
    unknown = failed("evidence", AttestationCode.EVIDENCE_UNKNOWN, detail)
    strange = _UNKNOWN_KIND in folder.not_used.values()
    if folder.collateral != Collateral() and not strange:
        return "", appraise_endorsements(folder.collateral, anchors=anchors, now=now)
    if folder.event_logs or folder.nonces or folder.keys:
        detail = "there is no evidence that the event logs, nonces or keys here belong to"
        unknown = undecided("evidence", AttestationCode.EVIDENCE_MISSING, detail)
    return "", AttestationResult(tee="unknown", checks=() if folder.unread else (unknown,))


def _unreadable(name: str, error: AttestationError) -> AttestationResult:
    return AttestationResult(tee="unknown", checks=(failed("file", error.code, f"{name}: {error}"),))


def _numbered(parts: list[Part]) -> list[Part]:
    """Give parts of equal words a number, and what stands alone beside tokens and unread files no word at all."""
    words = [word for word, _ in parts]
    main = [word for word in words if word not in _BESIDE] or words
    seen: dict[str, int] = {}
    numbered: list[Part] = []
    for word, result in parts:
        number = seen[word] = seen.get(word, 0) + 1
        plain = "" if [word] == main else word
        numbered.append((f"{word}{number}" if words.count(word) > 1 else plain, result))
    return numbered


def _gpu_nonces(folder: Folder) -> set[bytes]:
    """Return the challenges that the GPU evidence of a folder answers."""
    pieces = [*folder.evidence, *(node.gpus for node in _nodes(folder) if node.gpus is not None)]
    nonces = {piece.data[_SPDM_NONCE] for piece in pieces if piece.format is EvidenceFormat.NVIDIA_GPU_REPORT}
    for piece in pieces:
        if piece.format is EvidenceFormat.NVIDIA_GPU_LIST:
            try:
                nonces |= {device.report[_SPDM_NONCE] for device in parse_evidence_list(piece.data)}
            except AttestationError:  # which its appraisal says
                continue
    return nonces


def _token_nonce(token: Evidence) -> bytes | None:
    """Return the challenge that a token says it is about, unverified; None where it cannot be read.

    Nothing is gained by a false one: a token that does not count says neither good nor bad.
    """
    try:
        claims = parse_json(base64url_decode(parse_eat(token.data).overall.split(".")[1]))
        nonce = claims.get("eat_nonce") if isinstance(claims, dict) else None
        return bytes.fromhex(nonce) if isinstance(nonce, str) else None
    except (AttestationError, EncodingError, JsonError, IndexError, ValueError):
        return None


def _not_used(folder: Folder, other_tokens: list[str]) -> dict[str, str]:
    omitted: dict[str, str] = {}
    if other_tokens:
        omitted["nras"] = "; ".join(other_tokens)
    if folder.event_logs and (folder.evidence or folder.answers):
        omitted["event_log"] = f"{len(folder.event_logs)} event logs lie here, and nothing says which quote is theirs"
    if folder.not_used:
        omitted["files"] = "; ".join(f"{name}: {reason}" for name, reason in folder.not_used.items())
    return omitted

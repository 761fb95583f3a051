"""The cache: until when, for whom, and whatever happens to its files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.fake_intel import AT, ENDS, INTEL
from support.fake_nvidia import GPU, jwks, ocsp, rim, rim_chain
from tresor.attestation.evidence import CollateralKind, Need
from tresor.collateral.cache import CollateralCache, ends_at

NEED: Final = Need(CollateralKind.CERTIFICATE, "https://kds.example/vcek")
DOCUMENTS: Final = (b"one", b"two")


def test_what_was_put_is_got(tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path / "a" / "b")
    assert cache.get(NEED, now=AT) == ()
    cache.put(NEED, DOCUMENTS, now=AT)
    assert cache.get(NEED, now=AT) == DOCUMENTS
    assert CollateralCache(tmp_path / "a" / "b").get(NEED, now=AT) == DOCUMENTS
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "other",
    [
        Need(CollateralKind.CRL, NEED.url),
        Need(NEED.kind, NEED.url + "?x"),
        Need(NEED.kind, NEED.url, body=b"question"),
        Need(NEED.kind, NEED.url, also=("https://kds.example/more",)),
    ],
)
def test_another_question_is_another_entry(other: Need, tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path)
    cache.put(NEED, DOCUMENTS, now=AT)
    assert cache.get(other, now=AT) == ()


FOREVER: Final = datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "document", "end"),
    [
        (CollateralKind.CERTIFICATE, GPU.leaf.der, FOREVER),
        (CollateralKind.CRL, bytes.fromhex(INTEL.crl(INTEL.root)), ENDS),
        (CollateralKind.TDX, INTEL.collateral(), ENDS),
        (CollateralKind.RIM, rim(chain=rim_chain(valid_until=AT + timedelta(days=9))), AT + timedelta(days=9)),
        (CollateralKind.OCSP, ocsp(GPU.chain[1], life=timedelta(hours=3)), AT + timedelta(hours=2)),
        (CollateralKind.OCSP, ocsp(GPU.chain[1], life=timedelta(days=9)), AT + timedelta(hours=24)),
        (CollateralKind.OCSP, ocsp(GPU.chain[1], life=None), AT),
        (CollateralKind.JWKS, jwks(), AT + timedelta(hours=4)),
        (CollateralKind.CRL, b"no list", AT),
        (CollateralKind.TDX, b"{}", AT),
        (CollateralKind.RIM, b"<x/>", AT),
        (CollateralKind.OCSP, b"no answer", AT),
    ],
    ids=range(12),
)
def test_an_entry_ends_when_its_content_does(
    kind: CollateralKind, document: bytes, end: datetime, tmp_path: Path
) -> None:
    assert ends_at(kind, (document,), now=AT) == end
    cache, need = CollateralCache(tmp_path), Need(kind, "https://vendor.example/")
    cache.put(need, (document,), now=AT)
    for instant in (AT, end - timedelta(seconds=1), end):
        assert cache.get(need, now=instant) == ((document,) if AT <= instant < end else ())


def test_of_several_documents_the_first_end_counts() -> None:
    short, long = (ocsp(GPU.chain[1], life=timedelta(hours=hours)) for hours in (3, 9))
    assert ends_at(CollateralKind.OCSP, (long, short), now=AT) == AT + timedelta(hours=2)
    assert ends_at(CollateralKind.OCSP, (), now=AT) == AT


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(at=st.integers(0, 400), value=st.integers(0, 255), cut=st.booleans())
def test_a_corrupt_entry_is_not_there(at: int, value: int, cut: bool, tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path)
    cache.put(NEED, DOCUMENTS, now=AT)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if cut:
        data = data[: at % len(data)]
    else:
        data[at % len(data)] = value
    path.write_bytes(data)
    assert cache.get(NEED, now=AT) in {(), DOCUMENTS}
    cache.put(NEED, DOCUMENTS, now=AT)
    assert cache.get(NEED, now=AT) == DOCUMENTS


def test_documents_exchanged_in_a_valid_entry_are_noticed(tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path)
    cache.put(NEED, DOCUMENTS, now=AT)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"b25l", b"b25m"))
    assert cache.get(NEED, now=AT) == ()


def test_a_directory_in_place_of_an_entry(tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path)
    cache.put(NEED, DOCUMENTS, now=AT)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    assert cache.get(NEED, now=AT) == ()
    cache.put(NEED, DOCUMENTS, now=AT)
    assert [child for child in tmp_path.iterdir() if child.name.startswith(".")] == []


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        CollateralCache(tmp_path / "file" / "cache")


def test_a_directory_that_went_away(tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    cache.put(NEED, DOCUMENTS, now=AT)
    assert cache.get(NEED, now=AT) == ()

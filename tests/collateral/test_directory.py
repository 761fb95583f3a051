"""Files and folders, within limits."""

import os
from pathlib import Path

import pytest

from support.fake_intel import INTEL
from tresor.attestation.recognise import MAX_FILE_BYTES
from tresor.collateral import directory
from tresor.collateral.directory import UnreadableError, load_folder, read_files


def test_files_of_a_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).write_text(name)
    assert [(file.name, file.data, file.named) for file in read_files([tmp_path])] == [
        ("a", b"a", False),
        ("b", b"b", False),
        ("c", b"c", False),
    ]


def test_a_file_that_is_given_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    assert [file.named for file in read_files([tmp_path / "a", tmp_path])] == [True, False]


def test_facts_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_bytes(INTEL.quote())
    (tmp_path / "quote.bin").write_bytes(INTEL.quote())
    assert [file.name for file in read_files([tmp_path])] == ["quote.bin"]


def test_only_regular_files_of_one_level_count(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "quote").write_bytes(INTEL.quote())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "deeper" / "quote")
    assert [file.name for file in read_files([tmp_path])] == ["link"]


def test_evidence_and_collateral_are_sorted(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(INTEL.quote())
    (tmp_path / "y").write_bytes(INTEL.collateral())
    folder = load_folder([tmp_path])
    assert (len(folder.evidence), len(folder.collateral.tdx)) == (1, 1)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "no\x1bne", "cannot read"), (tmp_path / "empty", "there is no file")):
        with pytest.raises(UnreadableError, match=words) as caught:
            read_files([path])
        assert "\x1b" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    with pytest.raises(UnreadableError):
        read_files([tmp_path])


def test_a_giant_is_read_up_to_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "giant").open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    (read,) = read_files([tmp_path])
    assert len(read.data) == MAX_FILE_BYTES + 1


def test_an_endless_device_is_read_up_to_the_limit() -> None:
    (read,) = read_files([Path("/dev/zero")])
    assert len(read.data) == MAX_FILE_BYTES + 1


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).touch()
    with pytest.raises(UnreadableError, match="more than 3 files"):
        read_files([tmp_path])


def test_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_TOTAL_BYTES", 10)
    for number in range(4):
        (tmp_path / str(number)).write_bytes(bytes(3))
    with pytest.raises(UnreadableError, match="more than 10 bytes"):
        read_files([tmp_path])

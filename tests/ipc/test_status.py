"""Status files: whole or not at all."""

from pathlib import Path

import pytest

from robotd.errors import IpcError
from robotd.ipc.status import read_status, write_status


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "observer.json"
    write_status(path, {"ready": True, "cameras": {"front": {"age_ms": None}}})
    assert read_status(path) == {"ready": True, "cameras": {"front": {"age_ms": None}}}
    write_status(path, {"ready": False})
    assert read_status(path) == {"ready": False}
    assert [entry.name for entry in tmp_path.iterdir()] == ["observer.json"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="is that process running"):
        read_status(tmp_path / "observer.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "observer.json"
    path.write_bytes(content)
    with pytest.raises(IpcError, match="is damaged"):
        read_status(path)

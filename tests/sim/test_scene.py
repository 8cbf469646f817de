"""The physics' newest state in shared memory."""

import threading
from pathlib import Path

import pytest

from robotd.errors import IpcError
from robotd.sim.scene import SceneReader, SceneWriter


def test_the_newest_snapshot_is_read(tmp_path: Path) -> None:
    writer = SceneWriter(tmp_path / "scene", 5)
    reader = SceneReader(tmp_path / "scene")
    assert reader.latest() is None
    for number in range(1, 6):
        writer.publish(bytes([number]) * 5, number * 1000)
        assert reader.latest() == (number * 1000, bytes([number]) * 5)
    reader.close()
    writer.close()


def test_a_new_writer_starts_a_new_file(tmp_path: Path) -> None:
    first = SceneWriter(tmp_path / "scene", 4)
    first.publish(b"old!", 1)
    second = SceneWriter(tmp_path / "scene", 8)
    second.publish(b"new data", 2)
    reader = SceneReader(tmp_path / "scene")
    assert reader.latest() == (2, b"new data")
    for one in (first, second, reader):
        one.close()


def test_a_snapshot_is_never_torn(tmp_path: Path) -> None:
    size = 4000
    writer = SceneWriter(tmp_path / "scene", size)
    reader = SceneReader(tmp_path / "scene")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            writer.publish(bytes([number % 256]) * size, number)

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while seen < 300:
        newest = reader.latest()
        if newest is not None:
            seen += 1
            assert newest[1] == bytes([newest[0] % 256]) * size
    stop.set()
    thread.join()
    reader.close()
    writer.close()


@pytest.mark.parametrize("content", [None, b"", b"something else entirely", b"x" * 200])
def test_what_is_no_scene_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scene"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IpcError, match="scene"):
        SceneReader(path)

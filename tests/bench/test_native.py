"""The C programs, and what happens without a compiler."""

import os
import shutil
import time
from pathlib import Path

import pytest

from robotd.bench.loop import CThread
from robotd.bench.native import Native
from robotd.bench.stage import busy_cores
from robotd.bench.wire import Wire, emulator
from robotd.bus import feetech

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@needs_compiler
def test_the_c_thread_reports_every_wake_up(tmp_path: Path) -> None:
    native = Native(tmp_path)
    program = native.build("wake")
    assert program is not None, native.why_not
    wakes = CThread(program, 2_000_000, 0.1, 50, time.monotonic_ns()).result()
    assert len(wakes.late_ns) == 50
    row = wakes.row("C thread")
    assert row["wake_p50"] > 0
    assert row["missed"] == wakes.missed


@needs_compiler
def test_a_program_is_compiled_once(tmp_path: Path) -> None:
    native = Native(tmp_path)
    first = native.build("responder")
    assert first is not None
    stamp = first.stat().st_mtime_ns
    assert native.build("responder") == first
    assert first.stat().st_mtime_ns == stamp


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'no headers here' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    native = Native(tmp_path)
    assert native.build("wake") is None
    assert "could not compile wake.c: no headers here" in native.why_not


@pytest.mark.parametrize("compiler", ["cc", "none-at-all"])
def test_both_responders_give_the_emulators_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    if compiler == "cc" and shutil.which("cc") is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("CC", compiler)
    protocol, teacher = emulator("so101")
    request = feetech.sync_read(56, 2, range(1, 7))
    expected = teacher(request)
    assert len(expected) == 48
    with Wire(protocol, teacher, Native(tmp_path)) as wire:
        fd = os.open(wire.path, os.O_RDWR | os.O_NOCTTY)
        try:
            for baud in (None, 1_000_000):
                wire.set_baud(baud)
                os.write(fd, b"\x00\xff" + request)  # noise before a packet is skipped
                assert read(fd, 48) == expected
            os.write(fd, feetech.sync_write(42, 2, {1: b"\x00\x08"}))
            os.write(fd, feetech.write(3, 41, b"\x05"))
            assert read(fd, 6) == bytes((0xFF, 0xFF, 3, 2, 0, 0xFA))
            os.write(fd, feetech.read(3, 41, 1))
            assert read(fd, 7)[5] == 5, "a write reached the emulator, and nothing older is told"
        finally:
            os.close(fd)
        counters = wire.counters()
    assert counters.requests == 5
    assert counters.asked == 3
    assert counters.junk > 0


def read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def test_every_core_is_kept_busy_and_let_go(tmp_path: Path) -> None:
    with busy_cores(Native(tmp_path)) as count:
        assert count == len(os.sched_getaffinity(0))

"""`robotd bench tick`: tiny runs of the real thing."""

import json
import os
import pty
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robotd.bench.clients import CLIENTS
from robotd.bench.tick import bench_port, bench_tick
from robotd.bus.tty import make_raw
from robotd.errors import CalibrationError, PortError, ServoError
from robotd.sim.arms import sim_calibration
from robotd.sim.bus import SimBus

LIGHT = [spec for spec in CLIENTS if spec.name in ("robotd", "rustypot", "bytes only")]
READING = {0x01, 0x02, 0x82, 0x8A}  # ping, read, sync read, fast sync read
OURS = [spec for spec in CLIENTS if spec.name == "robotd"]


@contextmanager
def bus_on_a_port(sim: SimBus) -> Iterator[tuple[str, bytearray]]:
    """A simulated bus on a pseudo-terminal, and all bytes that clients send it."""
    heard = bytearray()
    master, slave = pty.openpty()
    make_raw(slave, "pty")
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            if not select.select((master,), (), (), 0.02)[0]:
                continue
            data = os.read(master, 4096)
            heard.extend(data)
            for _, reply in sim.feed(data, time.monotonic_ns()):
                os.write(master, reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield os.ttyname(slave), heard
    finally:
        stop.set()
        thread.join()
        os.close(master)
        os.close(slave)


def feetech_instructions(heard: bytes) -> set[int]:
    """The instruction bytes of all packets."""
    found, at = set(), 0
    while at < len(heard):
        assert heard[at : at + 2] == b"\xff\xff"
        found.add(heard[at + 4])
        at += 4 + heard[at + 3]
    return found


def dynamixel_writes(heard: bytes) -> set[tuple[int, int]]:
    """(instruction, address) of all packets that change a servo."""
    found, at = set(), 0
    while at < len(heard):
        assert heard[at : at + 4] == b"\xff\xff\xfd\x00"
        instruction = heard[at + 7]
        if instruction not in READING:
            found.add((instruction, int.from_bytes(heard[at + 8 : at + 10], "little")))
        at += 7 + int.from_bytes(heard[at + 5 : at + 7], "little")
    return found


@pytest.mark.parametrize("arm", ["koch", "so101"])
def test_every_client_is_timed_on_both_wires(arm: str) -> None:
    report = bench_tick(20, (arm,), LIGHT).as_dict()
    json.dumps(report, allow_nan=False)
    assert len(report["tables"]) == 2
    for table in report["tables"]:
        assert [row["client"] for row in table["rows"]] == [spec.name for spec in LIGHT]
        for row in table["rows"]:
            assert row["failed"] == 0
            assert row["wall_p50_us"] > 0
            assert row["cpu_us"] > 0
    wired = report["tables"][1]["rows"][0]
    assert wired["wall_p50_us"] > 800, "1 Mbaud takes its time"
    measured = [goal["met"] is not None for goal in report["goals"]]
    assert measured == [False, True, False], "LeRobot took no part"


def test_a_peer_that_is_not_installed_is_skipped_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rustypot.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = bench_tick(20, ("so101",), LIGHT)
    assert "rustypot skipped: not installed (not here)" in report.notes
    assert {row["client"] for row in report.tables[0].rows} == {"robotd", "bytes only"}


def test_a_peer_that_fails_says_so_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rustypot.py").write_text(
        "def Sts3215PyController(*arguments):\n    raise OSError('no luck')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = bench_tick(20, ("so101",), LIGHT).as_dict()
    rows = {row["client"]: row for row in report["tables"][0]["rows"]}
    assert rows["rustypot"]["failed"] == 1
    assert "Feetech, instant wire: rustypot: OSError: no luck" in report["notes"]
    assert rows["rustypot"]["wall_p50_us"] is None
    assert rows["robotd"]["wall_p50_us"] > 0


def test_without_a_compiler_python_answers_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    report = bench_tick(20, ("so101",), OURS)
    assert report.settings["responder"] == "responder.py"
    assert any("no C compiler" in note for note in report.notes)
    assert report.tables[0].rows[0]["failed"] == 0


def saved_calibration(arm: str, folder: Path) -> Path:
    path = folder / f"{arm}.json"
    sim_calibration(arm).save(path)
    return path


def test_a_port_is_only_read(tmp_path: Path) -> None:
    calibration = saved_calibration("so101", tmp_path)
    with bus_on_a_port(SimBus("so101")) as (path, heard):
        report = bench_port(path, "so101", calibration, 20, False, clients=LIGHT)
    assert feetech_instructions(heard) <= READING
    assert [row["failed"] for row in report.tables[0].rows] == [0, 0, 0]


def test_goals_written_to_a_port_are_the_present_positions(tmp_path: Path) -> None:
    calibration = saved_calibration("koch", tmp_path)
    sim = SimBus("koch")
    with bus_on_a_port(sim) as (path, heard):
        bench_port(path, "koch", calibration, 20, True, clients=OURS)
    for servo in sim.servos:
        servo.refresh(time.monotonic_ns())
        assert servo.get("Torque_Enable") == 0
        assert servo.get("Goal_Position") == servo.get("Present_Position")
    assert dynamixel_writes(heard) == {(0x83, 116)}, "sync writes of Goal_Position alone"


def test_nothing_is_written_to_an_arm_whose_torque_is_on() -> None:
    sim = SimBus("koch")
    sim.servos[2].set("Torque_Enable", 1)
    with (
        bus_on_a_port(sim) as (path, heard),
        pytest.raises(ServoError, match=r"servo 3 \(elbow_flex\) has its torque on"),
    ):
        bench_port(path, "koch", None, 20, True, clients=OURS)
    assert dynamixel_writes(heard) == set()


def test_servos_whose_torque_a_goal_switches_on_are_never_written_to() -> None:
    with (
        bus_on_a_port(SimBus("so101")) as (path, heard),
        pytest.raises(ServoError, match="switches its torque on"),
    ):
        bench_port(path, "so101", None, 20, True, clients=OURS)
    assert not heard


def test_a_port_without_a_calibration_is_read_too() -> None:
    with bus_on_a_port(SimBus("koch")) as (path, _):
        report = bench_port(path, "koch", None, 20, False, clients=OURS)
    assert report.tables[0].rows[0]["wall_p50_us"] > 0


def test_what_cannot_work_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(PortError, match="no such port"):
        bench_port(str(tmp_path / "ttyUSB9"), "koch", None, 20, False, clients=OURS)
    with pytest.raises(CalibrationError, match="no such file"):
        bench_port("/dev/null", "koch", tmp_path / "none.json", 20, False, clients=OURS)


def test_a_silent_servo_is_named() -> None:
    sim = SimBus("so101")
    sim.connect_only(["gripper"])
    with bus_on_a_port(sim) as (path, _), pytest.raises(ServoError, match="servo 1"):
        bench_port(path, "so101", None, 20, False, clients=OURS)

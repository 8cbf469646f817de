"""Clearing faults that servos keep: a Dynamixel's shutdown, a Feetech servo's overload."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robotd.ipc.ring import Fault, Mode, Result
from tests.control.rig import Rig

LIFT = 1
MakeRig = Callable[..., Rig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeRig]:
    rigs = []

    def build(model: str = "koch") -> Rig:
        rigs.append(Rig(tmp_path, (model,)))
        return rigs[-1]

    yield build
    for rig in rigs:
        rig.close()


def torque(rig: Rig) -> list[bool]:
    return [servo.torque_on for servo in rig.bus.servos]


def inject(rig: Rig, text: str) -> None:
    rig.bus.inject(text, rig.clock.now_ns())


def shut_down(rig: Rig) -> None:
    """Armed, then a shoulder whose servo has shut down for overload."""
    rig.done("arm")
    inject(rig, "overload:id=2")
    report = rig.run_s(0.1)
    assert (report.mode, report.fault, report.fault_joint) == (Mode.FAULT, Fault.SERVO_ERROR, LIFT)
    assert "a.shoulder_lift: its servo reports: overload" in report.message


def test_a_dynamixel_that_has_shut_down_is_restarted_and_set_up(make: MakeRig) -> None:
    rig = make()
    gain = rig.bus.servos[LIFT].get("Position_P_Gain")
    shut_down(rig)
    assert torque(rig) == [at != LIFT for at in range(6)]
    report = rig.done("clear")
    assert report.mode is Mode.IDLE
    assert report.message == "SERVO_ERROR cleared: torque is off; restarted: a.shoulder_lift"
    assert not any(torque(rig))
    assert [servo.ready_ns > 0 for servo in rig.bus.servos] == [at == LIFT for at in range(6)]
    assert rig.bus.servos[LIFT].get("Position_P_Gain") == gain
    before = rig.positions()
    rig.done("arm")
    assert rig.run_s(0.5).mode is Mode.HOLD
    assert rig.positions() == pytest.approx(before, abs=0.5)


def test_ticks_go_on_and_commands_wait_while_it_restarts(make: MakeRig) -> None:
    rig = make()
    shut_down(rig)
    number = rig.send("clear")
    report = rig.tick(3)
    assert report.mode is Mode.FAULT
    assert "a.shoulder_lift restarts" in report.message
    assert "being cleared" in rig.refused("arm")
    assert "being cleared" in rig.refused("clear")
    assert "being cleared" in rig.refused("disarm")
    seen = [rig.tick() for _ in range(200)]
    results = {(one.command_id, one.command_result) for one in seen}
    assert (number, Result.DONE) in results
    assert seen[-1].mode is Mode.IDLE


def test_an_emergency_stop_ends_the_clearing(make: MakeRig) -> None:
    rig = make()
    shut_down(rig)
    number = rig.send("clear")
    rig.tick(2)
    rig.send("estop")
    seen = [rig.tick() for _ in range(10)]
    assert (number, Result.REFUSED) in {(one.command_id, one.command_result) for one in seen}
    assert seen[-1].fault is Fault.ESTOP
    rig.run_s(0.5)
    assert rig.done("clear").mode is Mode.IDLE


def test_a_servo_that_does_not_come_back_keeps_the_fault(make: MakeRig) -> None:
    rig = make()
    shut_down(rig)
    rig.send("clear")
    rig.tick(2)
    inject(rig, "mute:id=2")
    report = rig.run_s(3.5)
    assert report.mode is Mode.FAULT
    inject(rig, "")
    rig.run_s(0.5)
    assert rig.done("clear").mode is Mode.IDLE


def test_an_error_that_stays_keeps_the_fault(make: MakeRig) -> None:
    rig = make()
    shut_down(rig)
    number = rig.send("clear")
    for _ in range(400):
        report = rig.tick()
        rig.bus.servos[LIFT].overload()
        if report.command_id == number:
            break
    assert report.command_result is Result.REFUSED
    assert "shoulder_lift" in report.command_text
    assert "overload" in report.command_text
    assert report.mode is Mode.FAULT
    assert not any(torque(rig))
    assert rig.done("clear").mode is Mode.IDLE


def test_heat_is_cleared_once_it_is_gone(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    inject(rig, "overheat:id=2:c=90:for=1s")
    report = rig.run_s(0.9)
    assert (report.mode, report.fault, report.fault_joint) == (Mode.FAULT, Fault.OVERHEAT, LIFT)
    assert "degrees" in rig.refused("clear")
    rig.run_s(0.2)
    rig.bus.rest()  # it has cooled down
    rig.run_s(1.0)
    assert rig.done("clear").message.endswith("restarted: a.shoulder_lift")
    assert rig.done("arm").mode is Mode.HOLD


def test_a_feetech_overload_is_cleared_without_a_restart(make: MakeRig) -> None:
    rig = make("so101")
    shut_down(rig)
    assert all(torque(rig))  # it holds on, with less torque
    report = rig.done("clear")
    assert report.message == "SERVO_ERROR cleared: torque is off"
    assert rig.run_s(0.5).mode is Mode.IDLE
    assert not any(torque(rig))
    rig.done("arm")
    report = rig.run_s(0.5)
    assert report.mode is Mode.HOLD
    assert report.joints[LIFT].status == 0


def test_a_grip_that_was_too_firm_does_not_prevent_arming(make: MakeRig) -> None:
    rig = make("so101")
    rig.done("arm")
    inject(rig, "overload:id=6")
    assert rig.run_s(0.2).mode is Mode.HOLD
    rig.done("disarm")
    assert rig.run_s(0.2).mode is Mode.IDLE
    assert rig.done("arm").mode is Mode.HOLD


def test_servos_without_an_error_are_not_restarted(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    rig.done("estop")
    assert rig.done("clear").message == "ESTOP cleared: torque is off"
    assert all(servo.ready_ns == 0 for servo in rig.bus.servos)

"""What the loop does when buses, servos or its own parts fail, and how it stops."""

from collections.abc import Callable, Sequence

import pytest

from robotd.bus.port import Port
from robotd.errors import PortError
from robotd.ipc.ring import Fault, Mode, Result
from tests.control.rig import Rig
from tests.control.test_loop import following, make, torque

__all__ = ["make"]

MakeRig = Callable[..., Rig]


def inject(rig: Rig, text: str, arm: int = 0) -> None:
    rig.buses[arm].inject(text, rig.clock.now_ns())


# The bus


def test_a_few_failed_reads_change_nothing(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.1)
    inject(rig, "mute:id=2:for=12ms")
    report = rig.tick()
    assert not report.joints[1].valid
    report = rig.tick(30)
    assert report.mode is Mode.POLICY
    assert 1 <= report.failed_ticks <= 3
    assert report.bus_retries > 0
    assert report.joints[1].valid


def test_more_of_them_hold_the_arm_and_name_the_servo(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.1)
    inject(rig, "mute:id=2:for=60ms")
    report = rig.tick(40)
    assert report.mode is Mode.HOLD
    assert report.fault is Fault.NONE
    assert report.message == "a: no answer from a.shoulder_lift: holding"


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_a_silent_servo_is_a_fault_that_names_it(make: MakeRig, model: str) -> None:
    rig = make(model)
    following(rig)
    inject(rig, "mute:id=2:for=600ms")
    report = rig.run_s(0.4)
    assert (report.mode, report.fault) == (Mode.FAULT, Fault.BUS_SILENT)
    assert report.message == (
        "a: no answer from a.shoulder_lift for 50 ticks; check cable and power"
    )
    assert all(torque(rig))  # the servos hold by themselves
    assert "a.shoulder_lift" in rig.refused("clear")
    rig.run_s(0.8)
    assert rig.done("clear").mode is Mode.IDLE
    assert not any(torque(rig))
    assert rig.done("arm").mode is Mode.HOLD


def test_the_same_fault_is_noticed_again_after_it_was_cleared(make: MakeRig) -> None:
    rig = make()
    for _ in range(2):
        rig.done("arm")
        inject(rig, "mute:id=2:for=300ms")
        assert rig.run_s(0.25).fault is Fault.BUS_SILENT
        rig.run_s(0.5)
        rig.done("clear")


def test_a_motion_that_a_silence_cut_off_is_taken_up_from_rest(make: MakeRig) -> None:
    rig = make(control={"failed_ticks_hold": 1000, "failed_ticks_fault": 2000})
    pose = [joint.applied for joint in rig.done("arm").joints]
    rig.done("policy", "policy")
    rig.chunk([[*pose[:4], 2.0 * i, pose[5]] for i in range(45)], 1)
    rig.run_s(0.2)
    limb = rig.loop.limbs[0]
    inject(rig, "mute:for=100ms")
    rig.run_s(0.15)
    assert not limb.driven
    last = limb.guard.last[4]
    while not limb.driven:
        report = rig.tick()
    assert report.mode is Mode.POLICY
    assert report.joints[4].asked > last + 20
    assert 0 < report.joints[4].applied - last <= limb.limits[4].change


def test_a_silent_bus_is_noticed_while_idle(make: MakeRig) -> None:
    rig = make()
    inject(rig, "mute")
    report = rig.run_s(0.3)
    assert report.fault is Fault.BUS_SILENT
    assert "any servo" in report.message
    assert not any(joint.valid for joint in report.joints)


def test_ticks_go_on_while_the_bus_is_gone(make: MakeRig) -> None:
    rig = make()
    before = rig.tick().sequence
    inject(rig, "unplug")
    assert rig.tick(500).sequence == before + 500


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_an_unplugged_port_is_a_fault_and_comes_back_disarmed(make: MakeRig, model: str) -> None:
    rig = make(model)
    following(rig)
    rig.run_s(0.1)
    inject(rig, "unplug:for=500ms")
    report = rig.tick(3)
    assert (report.mode, report.fault) == (Mode.FAULT, Fault.PORT_LOST)
    assert "unplugged" in report.message
    assert not any(joint.valid for joint in report.joints)
    assert "unplugged" in rig.refused("clear")
    report = rig.run_s(1.0)
    assert report.mode is Mode.FAULT
    assert all(joint.valid for joint in report.joints)
    assert rig.done("clear").mode is Mode.IDLE
    assert not any(torque(rig))
    assert rig.done("arm").mode is Mode.HOLD


def test_while_one_arm_is_lost_the_other_holds(make: MakeRig) -> None:
    rig = make("so101", "koch")
    rig.done("arm")
    rig.done("park")
    rig.run_s(0.2)
    inject(rig, "unplug", arm=0)
    report = rig.run_s(0.5)
    assert report.fault is Fault.PORT_LOST
    assert all(torque(rig, 1))
    other = report.joints[6:]
    assert all(joint.valid and joint.applied == joint.asked for joint in other)
    held = [joint.applied for joint in other]
    assert [joint.applied for joint in rig.run_s(0.5).joints[6:]] == held


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_after_a_longer_silence_torque_is_checked_before_goals_are_written(
    make: MakeRig, model: str
) -> None:
    rig = make(model)
    following(rig)
    rig.run_s(0.1)
    inject(rig, "mute:for=100ms")
    rig.run_s(0.15)
    limb = rig.loop.limbs[0]
    last = limb.guard.last
    assert rig.loop.mode is Mode.HOLD
    assert not limb.driven
    assert "torque is being checked" in rig.refused("policy", "policy")
    rig.run_s(0.8)
    assert limb.guard.last == last
    rig.run_s(0.2)
    assert limb.driven
    rig.done("policy", "policy")
    rig.chunk([list(last)] * 16, 2)
    report = rig.run_s(0.3)
    assert report.mode is Mode.POLICY
    assert [joint.applied for joint in report.joints] == list(last)
    assert all(torque(rig))


class Frayed:
    """A port whose cable breaks at the n-th call of one operation, until it is mended."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self.operation, self.calls = "", 0

    def _may(self, operation: str) -> None:
        if operation == self.operation:
            self.calls -= 1
            if self.calls <= 0:
                raise PortError("the cable broke")

    def write(self, data: bytes) -> None:
        self._may("write")
        self._port.write(data)

    def read(self, size: int, deadline_ns: int) -> bytes:
        self._may("read")
        return self._port.read(size, deadline_ns)

    def flush_input(self) -> int:
        return self._port.flush_input()

    def reopen(self) -> bool:
        return self.operation == ""

    def close(self) -> None:
        self._port.close()


@pytest.mark.parametrize(
    ("operation", "calls"), [("write", 1), ("read", 1), ("write", 2)], ids=["ask", "read", "goals"]
)
def test_wherever_in_the_tick_the_cable_breaks(make: MakeRig, operation: str, calls: int) -> None:
    ports: list[Frayed] = []

    def fray(port: Port) -> Port:
        ports.append(Frayed(port))
        return ports[-1]

    rig = make(wrap=fray)
    following(rig)
    rig.run_s(0.1)
    ports[0].operation, ports[0].calls = operation, calls
    report = rig.tick(2)
    assert (report.mode, report.fault) == (Mode.FAULT, Fault.PORT_LOST)
    assert report.message == "the cable broke"
    assert "the cable broke" in rig.refused("clear")
    ports[0].operation = ""
    rig.run_s(0.3)
    assert rig.done("clear").mode is Mode.IDLE
    assert rig.done("arm").mode is Mode.HOLD


def test_an_emergency_stop_over_a_cable_that_breaks_is_completed_when_it_is_back(
    make: MakeRig,
) -> None:
    ports: list[Frayed] = []

    def fray(port: Port) -> Port:
        ports.append(Frayed(port))
        return ports[-1]

    rig = make(wrap=fray)
    rig.done("arm")
    rig.send("estop")
    ports[0].operation, ports[0].calls = "write", 2  # the first asks for readings
    report = rig.tick()
    assert report.fault is Fault.ESTOP
    assert "the cable broke" in report.message
    assert report.torque  # as far as anybody knows
    ports[0].operation = ""
    report = rig.run_s(0.3)
    assert not any(torque(rig))
    assert not report.torque


def test_clearing_is_refused_when_the_arm_that_came_back_is_another(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    inject(rig, "unplug:for=50ms")
    rig.run_s(0.1)
    rig.bus.servos[0].keep("Homing_Offset", 5)
    rig.run_s(0.3)
    why = rig.refused("clear")
    assert "calibration" in why
    assert rig.loop.mode is Mode.FAULT


def test_an_arm_without_a_park_pose_holds_while_the_other_parks(make: MakeRig) -> None:
    rig = make("so101", "koch", arm=[{}, {"park": (10, -80, 60, 40, 0, 10)}])
    rig.done("arm")
    held = [joint.applied for joint in rig.loop.report.joints[:6]]
    rig.done("park")
    report = rig.run_s(3.0)
    assert report.message == "parked"
    assert [joint.applied for joint in report.joints[:6]] == held
    assert [joint.applied for joint in report.joints[6:]] == [10, -80, 60, 40, 0, 10]


# Servos


def test_an_error_bit_is_a_fault_with_its_name(make: MakeRig) -> None:
    rig = make()
    following(rig)
    inject(rig, "error:id=3:bits=0x02:for=100ms")
    report = rig.run_s(0.05)
    assert (report.mode, report.fault, report.fault_joint) == (Mode.FAULT, Fault.SERVO_ERROR, 2)
    assert report.message == "a.elbow_flex: its servo reports: position sensor error"
    assert all(torque(rig))
    assert "position sensor error" in rig.refused("clear")
    assert all(torque(rig))
    rig.run_s(0.3)
    rig.done("clear")


def test_the_first_fault_is_kept(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    inject(rig, "error:id=3:bits=0x20:for=100ms")
    rig.run_s(0.1)
    inject(rig, "unplug:for=100ms")
    report = rig.run_s(0.1)
    assert report.fault is Fault.SERVO_ERROR
    assert "unplugged" in report.message


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_a_restarted_servo_is_noticed_and_set_up_again(make: MakeRig, model: str) -> None:
    rig = make(model, control={"failed_ticks_fault": 400})  # it takes some time to restart
    rig.done("arm")
    elbow = rig.bus.servos[2]
    register = "P_Coefficient" if model == "so101" else "Position_P_Gain"
    configured = elbow.get(register)
    inject(rig, "reboot:id=3")
    report = rig.run_s(2.5)
    assert (report.mode, report.fault) == (Mode.FAULT, Fault.TORQUE_LOST)
    assert report.fault_joint == 2
    assert torque(rig) == [True, True, False, True, True, True]
    rig.run_s(1.0)
    assert not elbow.torque_on  # no goal was sent that would have switched it on
    inject(rig, "")
    assert rig.done("clear").mode is Mode.IDLE
    assert elbow.get(register) == configured
    assert rig.done("arm").mode is Mode.HOLD


def test_a_hot_servo_releases_its_arm_and_the_other_holds(make: MakeRig) -> None:
    rig = make("so101", "koch")
    rig.done("arm")
    inject(rig, "overheat:id=2:c=75", arm=0)
    report = rig.run_s(2.0)
    assert (report.mode, report.fault, report.fault_joint) == (Mode.FAULT, Fault.OVERHEAT, 1)
    assert not any(torque(rig, 0))
    assert all(torque(rig, 1))
    assert rig.refused("clear")


def test_a_joint_that_cannot_follow_is_a_fault(make: MakeRig) -> None:
    limits = {"body": {"following": 6}}
    rig = make(arm={"limits": limits, "park": (60, -85, 80, 60, 0, 10)})
    rig.done("arm")
    mechanism = rig.bus.mechanism
    mechanism.upper = (mechanism.position[0] + 0.1, *mechanism.upper[1:])  # type: ignore[attr-defined]
    rig.send("park")
    report = rig.run_s(1.6)
    assert report.mode is Mode.PARK
    assert report.joints[0].applied - report.joints[0].position < 6.5
    report = rig.run_s(2.0)
    assert (report.mode, report.fault, report.fault_joint) == (Mode.FAULT, Fault.FOLLOWING, 0)
    assert "shoulder_pan" in report.message


def test_a_gripper_that_holds_something_is_no_fault(make: MakeRig) -> None:
    rig = make(arm={"limits": {"gripper": {"following": 10}}})
    rig.done("arm")
    mechanism = rig.bus.mechanism
    mechanism.upper = (*mechanism.upper[:5], mechanism.position[5] + 0.1)  # type: ignore[attr-defined]
    pose = [joint.applied for joint in rig.done("policy", "policy").joints]
    rig.chunk([[*pose[:5], 100.0]] * 100, 1)
    report = rig.run_s(3.0)
    assert report.mode is Mode.POLICY
    assert report.joints[5].asked == 100.0
    assert report.joints[5].applied == pytest.approx(report.joints[5].position + 10)


def test_a_joint_pushed_out_of_its_hard_range_is_a_fault(make: MakeRig) -> None:
    rig = make(arm={"guard": {"shoulder_pan": {"position": (-20, 20)}},
                    "limits": {"shoulder_pan": {"position": (-15, 15)}}})  # fmt: skip
    rig.done("arm")
    mechanism = rig.bus.mechanism
    mechanism.lower = (0.6, *mechanism.lower[1:])  # type: ignore[attr-defined]
    report = rig.run_s(1.0)
    assert (report.mode, report.fault, report.fault_joint) == (Mode.FAULT, Fault.RANGE, 0)
    assert "hard range" in report.message


# Defects


def test_the_guard_stops_what_a_broken_limiter_lets_through(
    make: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.2)
    limb = rig.loop.limbs[0]
    good = limb.guard.last
    asked: list[object] = []

    def broken(wanted: Sequence[float]) -> list[float]:
        asked.append(wanted)
        return [float("nan"), *limb.guard.last[1:]]

    monkeypatch.setattr(limb, "shape", broken)
    report = rig.tick()
    assert (report.mode, report.fault, report.fault_joint) == (Mode.FAULT, Fault.GUARD, 0)
    assert report.message.startswith("blocked: a.shoulder_pan: nan is outside")
    report = rig.run_s(0.5)
    assert limb.guard.last == good
    assert [joint.applied for joint in report.joints] == list(good)
    assert [joint.asked for joint in report.joints] == list(good)
    assert len(asked) == 1  # a limiter that has failed is not asked again
    assert all(torque(rig))
    monkeypatch.undo()
    rig.done("clear")
    rig.done("arm")
    rig.done("park")
    assert rig.run_s(4.0).message == "parked"


def test_a_defect_is_a_fault_with_one_line_and_the_arm_holds(
    make: MakeRig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.2)
    good = rig.loop.limbs[0].guard.last

    def broken(mode: Mode, now_ns: int) -> list[float]:
        raise ZeroDivisionError("division by zero")

    with monkeypatch.context() as patch:
        patch.setattr(rig.loop.sources, "wanted", broken)
        before = rig.loop.report.sequence
        report = rig.tick(50)
        assert report.sequence == before + 50
        assert (report.mode, report.fault) == (Mode.FAULT, Fault.INTERNAL)
        assert "ZeroDivisionError" in report.message
        assert rig.loop.limbs[0].guard.last == good
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "ZeroDivisionError: division by zero" in lines[0]
    assert rig.run_s(0.2).mode is Mode.FAULT
    assert rig.done("clear").mode is Mode.IDLE


# Stopping


def stopped(rig: Rig, limit_s: float = 10.0) -> float:
    """Tick until finished; how long it took in seconds."""
    ticks = 0
    while not rig.loop.finished:
        rig.tick()
        ticks += 1
        assert ticks * rig.period_ns < limit_s * 1e9
    return ticks * rig.period_ns / 1e9


def test_a_stop_parks_and_then_switches_torque_off(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.3)
    rig.loop.request_stop()
    rig.tick()
    assert rig.loop.mode is Mode.PARK
    assert "stopping" in rig.refused("hold")
    assert 0.1 < stopped(rig) < 5
    assert rig.positions() == pytest.approx([0, -85, 80, 60, 0, 10], abs=0.5)
    assert not any(torque(rig))
    assert rig.loop.report.mode is Mode.IDLE
    assert rig.loop.report.message == "stopped: torque is off"


def test_a_stop_that_holds_keeps_torque_if_so_configured(make: MakeRig) -> None:
    rig = make(stop={"action": "hold", "torque_off": False})
    following(rig)
    rig.run_s(0.3)
    rig.loop.request_stop()
    assert stopped(rig) < 0.5
    assert all(torque(rig))
    assert rig.loop.report.mode is Mode.HOLD


def test_a_stop_while_idle_ends_at_once(make: MakeRig) -> None:
    rig = make()
    rig.loop.request_stop()
    rig.tick()
    assert rig.loop.finished


def test_a_stop_in_a_fault_switches_torque_off(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    inject(rig, "error:id=3:bits=0x20:for=100ms")
    rig.run_s(0.1)
    assert all(torque(rig))
    rig.loop.request_stop()
    rig.tick()
    assert rig.loop.finished
    assert not any(torque(rig))


def test_a_fault_while_stopping_ends_the_stop(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.3)
    rig.loop.request_stop()
    rig.tick(5)
    inject(rig, "error:id=3:bits=0x20:for=100ms")
    assert stopped(rig) < 0.2
    assert not any(torque(rig))


def test_a_second_request_switches_torque_off_at_once(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.3)
    rig.loop.request_stop()
    rig.tick(5)
    assert all(torque(rig))
    rig.loop.request_stop()
    rig.tick()
    assert rig.loop.finished
    assert not any(torque(rig))


def test_parking_that_never_ends_is_cut_short(make: MakeRig) -> None:
    rig = make(arm={"park": (60, -85, 80, 60, 0, 10), "limits": {"body": {"following": 20}}},
               stop={"park_timeout_s": 1.0})  # fmt: skip
    rig.done("arm")
    mechanism = rig.bus.mechanism
    mechanism.upper = (mechanism.position[0] + 0.1, *mechanism.upper[1:])  # type: ignore[attr-defined]
    rig.loop.request_stop()
    assert stopped(rig) == pytest.approx(1.0, abs=0.1)
    assert not any(torque(rig))


def test_an_emergency_stop_is_obeyed_while_stopping(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.3)
    rig.loop.request_stop()
    rig.tick(5)
    rig.send("estop")
    report = rig.tick()
    assert report.command_result is Result.DONE
    assert rig.loop.finished
    assert not any(torque(rig))

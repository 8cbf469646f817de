"""The loop with real arms and packets on simulated servos, in stepped time: commands and modes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robotd.errors import ConfigError
from robotd.ipc.ring import Fault, Mode, Result
from tests.control.rig import Rig

PARK = (0, -85, 80, 60, 0, 10)
POLICY = {"bundle": ".", "takeover": "replace", "silence_timeout_s": 0.5}

MakeRig = Callable[..., Rig]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def build(*models: str, **sections: Any) -> Rig:
        sections.setdefault("arm", {"park": PARK})
        sections.setdefault("policy", POLICY)
        rig = Rig(tmp_path, models or ("so101",), **sections)
        rigs.append(rig)
        rig.tick(3)
        return rig

    yield build
    for rig in rigs:
        rig.close()


def torque(rig: Rig, arm: int = 0) -> list[bool]:
    return [servo.torque_on for servo in rig.buses[arm].servos]


def following(rig: Rig, *, steps: int = 16) -> list[float]:
    """Arm, follow a chunk that moves the wrist; the chunk's last target."""
    rig.done("arm")
    report = rig.done("policy", "policy")
    pose = [joint.applied for joint in report.joints]
    walk = [[*pose[:3], pose[3] - 1.5 * i, *pose[4:]] for i in range(steps)]
    rig.chunk(walk, 1)
    return walk[-1]


# Idle and arming


def test_it_starts_idle_without_torque_and_reports_where_the_arm_is(make: MakeRig) -> None:
    rig = make()
    report = rig.tick(20)
    assert report.mode is Mode.IDLE
    assert not report.torque
    assert not any(torque(rig))
    assert all(joint.valid and joint.applied == joint.position for joint in report.joints)
    assert report.sequence == 23
    assert report.deadline_ns == rig.deadline_ns


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_arming_sets_the_goal_to_where_the_arm_is(make: MakeRig, model: str) -> None:
    rig = make(model)
    before = rig.positions()
    report = rig.done("arm")
    assert report.mode is Mode.HOLD
    assert report.torque
    assert all(torque(rig))
    assert rig.positions() == pytest.approx(before, abs=0.5)
    report = rig.run_s(0.5)
    assert rig.positions() == pytest.approx(before, abs=0.5)
    assert report.message == "armed"


def test_arming_is_refused_where_a_joint_stands_outside_its_hard_range(make: MakeRig) -> None:
    rig = make(arm={"guard": {"elbow_flex": {"position": (-70, 70)}},
                    "limits": {"elbow_flex": {"position": (-60, 60)}}})  # fmt: skip
    why = rig.refused("arm")
    assert "a.elbow_flex" in why
    assert "by hand" in why
    assert rig.loop.mode is Mode.IDLE
    assert not any(torque(rig))


def test_an_arm_outside_its_soft_range_is_not_pulled_inside_by_arming(make: MakeRig) -> None:
    rig = make(arm={"limits": {"elbow_flex": {"position": (-60, 60)}}})
    before = rig.positions()
    rig.done("arm")
    rig.run_s(0.5)
    assert before[2] > 60
    assert rig.positions() == pytest.approx(before, abs=0.5)


def test_arming_is_refused_while_a_servo_is_silent(make: MakeRig) -> None:
    rig = make()
    rig.bus.inject("mute:id=3", rig.clock.now_ns())
    rig.tick(5)
    assert "a.elbow_flex" in rig.refused("arm")


def test_when_torque_cannot_be_switched_on_it_is_off_everywhere(make: MakeRig) -> None:
    rig = make()
    rig.bus.inject("mute:id=6:for=200ms", rig.clock.now_ns())
    assert "gripper" in rig.refused("arm")
    report = rig.tick()
    assert report.mode is Mode.FAULT
    assert report.fault is Fault.ENGAGE_FAILED
    assert "gripper" in report.message
    assert not any(torque(rig))
    rig.run_s(0.4)
    assert rig.done("clear").mode is Mode.IDLE
    assert rig.done("arm").mode is Mode.HOLD


# Holding, parking, disarming


def test_disarming_brakes_and_then_switches_torque_off(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.2)
    before = rig.loop.report.joints[3].applied
    number = rig.send("disarm")
    seen = []
    for _ in range(200):
        report = rig.tick()
        seen.append((report.mode, report.torque, report.joints[3].applied))
        if report.command_id == number:
            break
    assert report.command_result is Result.DONE
    assert report.mode is Mode.IDLE
    assert not any(torque(rig))
    held = [target for mode, _, target in seen if mode is Mode.HOLD]
    assert held[0] < before  # it went on braking
    assert held[-20:] == [held[-1]] * 20  # and stood before torque went off


def test_hold_stops_where_braking_ends_and_keeps_torque(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.2)
    rig.done("hold")
    rig.run_s(0.2)
    first = [joint.applied for joint in rig.loop.report.joints]
    report = rig.run_s(1.0)
    assert report.mode is Mode.HOLD
    assert [joint.applied for joint in report.joints] == first
    assert all(torque(rig))


def test_parking_goes_to_the_pose_gently_and_holds(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    rig.done("park")
    fastest, last = 0.0, [joint.applied for joint in rig.loop.report.joints]
    while rig.loop.mode is Mode.PARK:
        now = [joint.applied for joint in rig.tick().joints]
        fastest = max(fastest, *(abs(a - b) for a, b in zip(now, last, strict=True)))
        last = now
    assert last == [float(value) for value in PARK]
    assert fastest <= 60 * 0.005 + 1e-9  # park_velocity
    assert rig.loop.report.message == "parked"
    assert rig.loop.mode is Mode.HOLD


def test_parking_needs_a_pose(make: MakeRig) -> None:
    rig = make(arm={})
    rig.done("arm")
    assert "park" in rig.refused("park")


def test_commands_that_do_not_fit_the_mode_are_refused_with_advice(make: MakeRig) -> None:
    rig = make()
    for name in ("hold", "park", "policy"):
        assert "robotd arm" in rig.refused(name, "policy")
    assert "no fault" in rig.refused("clear")
    rig.done("disarm")
    rig.done("arm")
    assert "already armed" in rig.refused("arm")
    assert "source" in rig.refused("policy")


def test_every_command_of_one_tick_gets_its_result(make: MakeRig) -> None:
    rig = make()
    first, second, third = rig.send("arm"), rig.send("policy"), rig.send("hold")
    results = {}
    for _ in range(5):
        report = rig.tick()
        results[report.command_id] = report.command_result
    assert results[first] is Result.DONE
    assert results[second] is Result.REFUSED
    assert results[third] is Result.DONE


def test_a_disarm_that_is_overtaken_is_refused_in_the_end(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    first, second = rig.send("disarm"), rig.send("hold")
    results = {}
    for _ in range(40):
        report = rig.tick()
        results[report.command_id] = (report.command_result, report.command_text)
    assert results[first] == (Result.REFUSED, "overtaken by hold")
    assert results[second][0] is Result.DONE
    assert rig.loop.mode is Mode.HOLD


# Policy


def test_chunks_move_the_arm_at_their_times(make: MakeRig) -> None:
    rig = make()
    goal = following(rig)
    report = rig.run_s(0.25)
    assert report.chunk_sequence == 1
    assert report.chunk_age_ns == 250_000_000
    assert report.chunk_step == pytest.approx(7.5, abs=0.01)
    assert report.chunks == 1
    report = rig.run_s(0.25)
    assert report.joints[3].position == pytest.approx(goal[3], abs=2.0)


def test_chunks_do_nothing_outside_mode_policy(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    before = rig.positions()
    rig.chunk([[0.0] * 6] * 16, 1)
    report = rig.run_s(0.5)
    assert report.chunks == 0
    assert report.chunks_dropped == 1
    assert rig.positions() == pytest.approx(before, abs=0.3)


def test_chunks_of_another_source_are_dropped_until_it_is_named(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.tick()
    rig.chunk([[0.0] * 6] * 16, 1, source="other")
    assert rig.tick().chunks_dropped == 1
    rig.done("policy", "other")
    rig.chunk([[0.0] * 6] * 16, 1, source="other")
    report = rig.tick()
    assert (report.chunks, report.chunks_dropped) == (2, 1)


def test_a_chunk_that_is_no_whole_number_of_steps_is_dropped(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.tick()
    rig.chunk([[0.0] * 5, [0.0] * 4], 2)
    assert rig.tick().chunks_dropped == 1


def test_when_the_policy_falls_silent_the_arm_stops_then_holds(make: MakeRig) -> None:
    rig = make()
    following(rig)
    report = rig.tick(98)  # 16 steps last 0.5 s
    assert report.chunk_sequence == 1
    report = rig.tick(20)
    assert (report.mode, report.chunk_sequence) == (Mode.POLICY, 0)
    still = [joint.applied for joint in report.joints]
    report = rig.tick(70)
    assert report.mode is Mode.POLICY
    assert [joint.applied for joint in report.joints] == still
    report = rig.tick(15)
    assert report.mode is Mode.HOLD
    assert report.message == "no usable chunk for 0.5 s: holding"
    assert [joint.applied for joint in report.joints] == still


def test_a_chunk_within_the_time_out_resumes(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.9)
    pose = [joint.applied for joint in rig.loop.report.joints]
    rig.chunk([[*pose[:5], 40.0]] * 16, 2)
    report = rig.run_s(0.4)
    assert report.mode is Mode.POLICY
    assert report.joints[5].applied == 40.0


def test_the_fade_into_a_chunk_after_a_silence_begins_where_the_arm_is_held(
    make: MakeRig,
) -> None:
    rig = make(policy={**POLICY, "takeover": "cross_fade"})
    goal = following(rig)
    report = rig.run_s(0.8)
    held = [joint.applied for joint in report.joints]
    assert held != goal  # braking took it past the chunk's last step
    rig.chunk([[*held[:5], held[5] + 5.0]] * 16, 2)
    report = rig.tick()
    assert [joint.asked for joint in report.joints] == pytest.approx(held, abs=0.01)


def test_an_observation_younger_than_the_deadline_is_not_from_the_future(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.tick()
    pose = [joint.applied for joint in rig.loop.report.joints]
    rig.deadline_ns += rig.period_ns
    rig.clock.time_ns = rig.deadline_ns + 2_000_000  # this tick is late
    rig.chunk([pose] * 4, 2, observed_ns=rig.deadline_ns + 1_000_000)
    rig.loop.tick(rig.deadline_ns)
    report = rig.loop.report
    assert (report.chunks, report.chunks_dropped) == (2, 0)
    assert report.wake_late_ns == 2_000_000
    assert report.chunk_age_ns == 0


def test_a_silent_policy_is_parked_where_that_is_configured(make: MakeRig) -> None:
    rig = make(policy={**POLICY, "park_when_silent": True})
    following(rig)
    report = rig.run_s(1.2)
    assert report.mode is Mode.PARK
    assert "parking" in report.message


# Emergency stop


def test_an_emergency_stop_switches_torque_off_within_its_tick(make: MakeRig) -> None:
    rig = make()
    following(rig)
    rig.run_s(0.1)
    rig.send("estop")
    report = rig.tick()
    assert not any(torque(rig))
    assert report.mode is Mode.FAULT
    assert report.fault is Fault.ESTOP
    assert report.command_result is Result.DONE
    assert not report.torque
    assert "robotd clear" in rig.refused("arm")
    rig.run_s(0.3)
    assert rig.done("clear").fault is Fault.NONE
    assert rig.loop.mode is Mode.IDLE


def test_nothing_beside_an_emergency_stop_is_obeyed(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    numbers = [rig.send(name) for name in ("hold", "estop", "clear", "arm")]
    results = {}
    for _ in range(6):
        report = rig.tick()
        results[report.command_id] = report.command_result
    assert [results[n] for n in numbers] == [
        Result.REFUSED, Result.DONE, Result.REFUSED, Result.REFUSED
    ]  # fmt: skip
    assert rig.loop.mode is Mode.FAULT


def test_disarming_in_a_fault_switches_torque_off_and_stays(make: MakeRig) -> None:
    rig = make()
    rig.done("arm")
    rig.bus.inject("error:id=4:bits=0x20:for=50ms", rig.clock.now_ns())
    rig.tick(20)
    assert all(torque(rig))
    assert rig.done("disarm").mode is Mode.FAULT
    assert not any(torque(rig))


# Configuration


def test_limits_that_the_guard_would_block_are_a_configuration_error(make: MakeRig) -> None:
    with pytest.raises(ConfigError, match=r"raise\s+control.rate_hz"):
        make(control={"rate_hz": 20})
    with pytest.raises(ConfigError, match=r"at least 1\.05 times"):
        make(arm={"limits": {"body": {"velocity": 199}}})
    with pytest.raises(ConfigError, match="acceleration"):
        make(arm={"limits": {"body": {"acceleration": 1e-6}}})

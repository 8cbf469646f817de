"""The arm in MuJoCo: motors, gravity, contact, and exact repetition."""

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest

from robotd.errors import SimError
from robotd.sim.kinematics import Kinematics
from robotd.sim.mechanism import Drive
from robotd.sim.physics import STEP_NS, Physics

ARMS = ["so101", "koch"]
STRETCHED = (0.0, -20.0, -20.0, 0.0, 0.0, 30.0)  # forward, high above the table

COLLISION_GROUP = 3


def run(physics: Physics, seconds: float) -> None:
    for _ in range(round(seconds * 500)):
        physics.step()


def lowest_link_m(physics: Physics) -> float:
    """Lowest corner of any collision shape of the arm's links."""
    model, data = physics.model, physics.data
    lowest = math.inf
    for geom in range(model.ngeom):
        moving = model.body_weldid[model.geom_bodyid[geom]] != 0
        if moving and model.geom_group[geom] == COLLISION_GROUP:
            down = np.abs(data.geom_xmat[geom].reshape(3, 3)[2]) @ model.geom_size[geom]
            lowest = min(lowest, float(data.geom_xpos[geom][2] - down))
    return lowest


@pytest.mark.parametrize("model", ARMS)
def test_a_powered_arm_holds_with_a_little_sag(model: str) -> None:
    physics = Physics(model)
    physics.place(physics.units.all_rad(STRETCHED))
    physics.command(STRETCHED)
    run(physics, 1.5)
    off = np.degrees(np.abs(np.array(physics.positions()) - physics.units.all_rad(STRETCHED)))
    assert max(off) < 4.0
    assert max(off[1:4]) > 0.2  # no servo without an integral term holds a load exactly
    assert max(np.abs(physics.velocities())) < 0.01
    assert abs(physics.sense(1).torque) > 0.05


@pytest.mark.parametrize("model", ARMS)
def test_an_unpowered_arm_sinks(model: str) -> None:
    physics = Physics(model)
    physics.place(physics.units.all_rad(STRETCHED))
    before = physics.data.site("pinch").xpos[2]
    run(physics, 2.0)
    assert physics.data.site("pinch").xpos[2] < before - 0.05
    assert all(physics.sense(joint).torque == 0.0 for joint in range(6))


@pytest.mark.parametrize("model", ARMS)
def test_a_hand_moves_unpowered_joints_and_lets_go(model: str) -> None:
    physics = Physics(model)
    wanted = physics.units.all_rad((15.0, -20.0, -20.0, 20.0, -30.0, 60.0))
    physics.hand(dict(enumerate(wanted)))
    run(physics, 2.0)
    assert np.allclose(physics.positions(), wanted, atol=0.06)
    physics.hand(None)
    run(physics, 1.5)
    assert abs(physics.positions()[1] - wanted[1]) > 0.1


@pytest.mark.parametrize("model", ARMS)
def test_power_on_at_the_present_position_does_not_jump(model: str) -> None:
    physics = Physics(model)
    physics.place(physics.units.all_rad((0.0, -30.0, 20.0, 10.0, 0.0, 20.0)))
    before = np.array(physics.measured_norm())
    physics.command(before.tolist())
    moved = np.zeros(6)
    for _ in range(300):
        physics.step()
        moved = np.maximum(moved, np.abs(physics.measured_norm() - before))
    assert max(moved) < 4.0


@pytest.mark.parametrize("model", ARMS)
def test_velocity_limit_and_the_motors_own_limit_hold(model: str) -> None:
    physics = Physics(model)
    physics.command(physics.arm.park_norm)
    physics.drive(0, Drive(torque_on=True, goal_rad=1.5, velocity_limit_rad_s=0.5))
    fastest = 0.0
    for _ in range(500):
        physics.step()
        fastest = max(fastest, abs(physics.velocities()[0]))
    assert 0.4 < fastest < 0.65
    assert physics.positions()[0] == pytest.approx(0.5, abs=0.05)
    physics.drive(0, Drive(torque_on=True, goal_rad=-1.5))
    for _ in range(1000):
        physics.step()
        fastest = max(fastest, abs(physics.velocities()[0]))
    assert 1.0 < fastest < physics.arm.mounts[0].motor.max_speed_rad_s
    assert physics.positions()[0] == pytest.approx(-1.5, abs=0.05)


@pytest.mark.parametrize("model", ARMS)
def test_torque_limit_bounds_the_motor(model: str) -> None:
    physics = Physics(model)
    physics.command(physics.arm.park_norm)
    physics.drive(0, Drive(torque_on=True, goal_rad=1.5, torque_limit=0.25))
    run(physics, 0.02)
    assert physics.sense(0).torque == pytest.approx(0.25)
    physics.drive(0, Drive(torque_on=True, goal_rad=1.5, torque_limit=0.0))
    run(physics, 0.02)
    assert physics.sense(0).torque == 0.0


@pytest.mark.parametrize("model", ARMS)
def test_hard_stops_end_every_joint(model: str) -> None:
    physics = Physics(model)
    start = (0.0, -20.0, -20.0, 0.0, 0.0, 50.0)
    for joint in (0, 3, 4, 5):
        mount = physics.arm.mounts[joint]
        for end, beyond in ((mount.lower_rad, -1.0), (mount.upper_rad, 1.0)):
            physics.place(physics.units.all_rad(start))
            physics.command(start)
            physics.drive(joint, Drive(True, end + beyond, mount.stiffness, mount.torque_limit))
            run(physics, 2.5)
            assert physics.positions()[joint] == pytest.approx(end, abs=0.03)


@pytest.mark.parametrize("model", ARMS)
def test_links_stop_at_the_table(model: str) -> None:
    physics = Physics(model)
    physics.place(physics.units.all_rad(STRETCHED))
    physics.set_cube(0.2, 0.2, 0.0)
    physics.command((0.0, 95.0, 30.0, -95.0, 0.0, 30.0))  # the wrist bent up, the elbow down
    lowest = math.inf
    for _ in range(1000):
        physics.step()
        lowest = min(lowest, lowest_link_m(physics))
    assert lowest > -0.006
    assert max(abs(physics.sense(joint).torque) for joint in (1, 2)) > 0.2


@pytest.mark.parametrize("model", ARMS)
def test_the_gripper_does_not_pass_through_the_base(model: str) -> None:
    physics = Physics(model)
    physics.place(physics.units.all_rad((0.0, -80.0, 40.0, 80.0, 0.0, 5.0)))
    goal = (0.0, -95.0, 98.0, 98.0, 0.0, 5.0)
    physics.command(goal)
    run(physics, 1.5)
    off = np.abs(np.array(physics.measured_norm()) - goal)
    assert max(off[1:4]) > 15.0
    deepest = min(contact.dist for contact in physics.data.contact)
    assert deepest > -0.006


@pytest.mark.parametrize("model", ARMS)
def test_a_link_pushes_the_cube(model: str) -> None:
    physics = Physics(model)
    kinematics = Kinematics(physics)
    x, z = 0.2, 0.02
    low = kinematics.solve(np.array([x, 0.0, z]), None, 1.0, np.array(physics.positions()[:5]))
    pose = [physics.units.norm(joint, float(low[joint])) for joint in range(5)]
    physics.place(physics.units.all_rad((-30.0, *pose[1:], 5.0)))
    physics.set_cube(x, 0.0, 0.0)
    physics.command((-30.0, *pose[1:], 5.0))
    run(physics, 0.3)
    physics.command((30.0, *pose[1:], 5.0))
    run(physics, 1.0)
    assert physics.data.joint("cube").qpos[1] < -0.02


@pytest.mark.parametrize("model", ARMS)
def test_a_restored_state_continues_exactly(model: str) -> None:
    physics, other = Physics(model), Physics(model)
    physics.command((10.0, -60.0, 50.0, 60.0, 5.0, 40.0))
    physics.drive(0, Drive(torque_on=True, goal_rad=0.6, velocity_limit_rad_s=0.4))
    run(physics, 0.3)
    here = physics.state()
    run(physics, 0.5)
    there = physics.snapshot()
    other.restore(here)
    run(other, 0.5)
    assert other.snapshot() == there
    physics.restore(here)
    run(physics, 0.5)
    assert physics.snapshot() == there


def test_advance_steps_up_to_a_time_and_never_back() -> None:
    physics = Physics("so101")
    start = 123_456_789_000
    physics.advance(start)
    assert physics.time_s == 0.0
    physics.advance(start + STEP_NS - 1)
    assert physics.time_s == 0.0
    physics.advance(start + 5 * STEP_NS)
    assert physics.time_s == pytest.approx(0.010)
    physics.advance(start)
    assert physics.time_s == pytest.approx(0.010)


_SCRIPT = """
import hashlib
from robotd.sim.physics import Physics
from robotd.sim.tasks import make_task
physics = Physics("{model}")
make_task(physics).reset(7)
for step in range(60):
    physics.command((step / 2, -80.0 + step, 60.0, 60.0, step / 3, step))
    for _ in range(10):
        physics.step()
print(hashlib.sha256(physics.state().integration.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("model", ARMS)
def test_a_run_repeats_exactly_in_another_process(model: str) -> None:
    script = _SCRIPT.format(model=model)
    digests = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        for _ in range(2)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0].strip()) == hashlib.sha256().digest_size * 2


def test_an_unknown_scene_names_the_known_ones() -> None:
    with pytest.raises(SimError, match="koch_lift"):
        Physics("koch", "juggle")
    with pytest.raises(SimError, match="so101_reach"):
        Physics("ur5")

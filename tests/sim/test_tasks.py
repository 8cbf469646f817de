"""Seeded scenes and when a task counts as done."""

import math

import numpy as np
import pytest

from robotd.sim.physics import Physics
from robotd.sim.tasks import (
    BEARING_RAD,
    CUBE_RADIUS_M,
    LIFT_HEIGHT_M,
    LIFT_HOLD_S,
    REACH_HOLD_S,
    Lift,
    Reach,
    make_task,
)

ARMS = ["so101", "koch"]


def hold_cube_at(physics: Physics, height_m: float, seconds: float) -> None:
    for _ in range(round(seconds * 500)):
        physics.set_cube(0.2, 0.1, 0.0, z_m=height_m)
        physics.step()


@pytest.mark.parametrize("model", ARMS)
@pytest.mark.parametrize("scene", ["lift", "reach"])
def test_a_seed_gives_one_scene_and_another_seed_another(model: str, scene: str) -> None:
    physics = Physics(model, scene)
    task = make_task(physics)
    seen = []
    for seed in (3, 4, 3):
        task.reset(seed)
        seen.append(physics.snapshot())
    assert seen[0] == seen[2]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("model", ARMS)
def test_scenes_lie_in_the_work_space_with_the_arm_parked_clear(model: str) -> None:
    physics = Physics(model)
    task = make_task(physics)
    pan = physics.data.xanchor[physics.model.joint(physics.arm.mounts[0].mujoco_joint).id][:2]
    low, high = CUBE_RADIUS_M[model]
    cube = physics.model.geom("cube").id
    bearings = []
    for seed in range(80):
        task.reset(seed)
        x, y = physics.data.joint("cube").qpos[:2] - pan
        assert low <= math.hypot(x, y) <= high
        bearings.append(math.atan2(y, x))
        assert np.allclose(physics.measured_norm(), physics.arm.park_norm, atol=2.01)
        touching = [pair for pair in physics.data.contact.geom if cube not in pair]
        assert not touching
    assert max(map(abs, bearings)) <= BEARING_RAD
    assert min(bearings) < -0.3
    assert max(bearings) > 0.3


def test_lift_counts_after_half_a_second_above_six_centimetres() -> None:
    physics = Physics("so101")
    task = Lift(physics)
    task.reset(0)
    hold_cube_at(physics, LIFT_HEIGHT_M + 0.01, LIFT_HOLD_S - 0.02)
    assert not task.success
    hold_cube_at(physics, LIFT_HEIGHT_M - 0.01, 0.01)  # a moment lower: from the start again
    hold_cube_at(physics, LIFT_HEIGHT_M + 0.01, LIFT_HOLD_S - 0.02)
    assert not task.success
    assert math.isnan(task.success_s)
    hold_cube_at(physics, LIFT_HEIGHT_M + 0.01, 0.03)
    assert task.success
    assert task.success_s == pytest.approx(0.99, abs=0.01)


def test_success_stays_until_the_next_reset() -> None:
    physics = Physics("so101")
    task = Lift(physics)
    task.reset(0)
    hold_cube_at(physics, 0.08, LIFT_HOLD_S + 0.01)
    hold_cube_at(physics, 0.0125, 0.2)
    assert task.success
    task.reset(1)
    assert not task.success
    assert task.info()["cube_z_m"] == pytest.approx(0.0125)


def test_a_reset_leaves_the_motors_as_they_are_driven() -> None:
    physics = Physics("so101")
    task = Lift(physics)
    physics.command(physics.arm.park_norm)
    task.reset(0)
    for _ in range(250):
        physics.step()
    assert np.allclose(physics.measured_norm(), physics.arm.park_norm, atol=1.5)


def test_reach_counts_while_the_pinch_point_is_at_the_ball() -> None:
    physics = Physics("so101", "reach")
    task = Reach(physics)
    task.reset(0)
    physics.command(physics.measured_norm())
    physics.data.mocap_pos[0] = physics.data.site("pinch").xpos + np.array([0.0, 0.03, 0.0])
    for _ in range(300):
        physics.step()
    assert not task.success
    physics.data.mocap_pos[0] = physics.data.site("pinch").xpos + np.array([0.0, 0.01, 0.0])
    for _ in range(round(REACH_HOLD_S * 500) + 1):
        physics.step()
    assert task.success
    assert task.distance_m() < 0.02

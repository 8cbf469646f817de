"""The scripted expert: it does the tasks, smoothly, from any state."""

import numpy as np
import pytest

from robotd.sim.expert import Expert
from robotd.sim.physics import Physics
from robotd.sim.tasks import Lift, Reach, make_task

ARMS = ["so101", "koch"]
PERIOD_S = 1 / 30


def play(
    physics: Physics, task: Lift | Reach, expert: Expert, limit_s: float
) -> list[tuple[float, ...]]:
    """Run until success or the time limit; the targets given."""
    targets = []
    due_s = physics.time_s
    end_s = physics.time_s + limit_s
    while not task.success and physics.time_s < end_s:
        targets.append(expert.act(PERIOD_S))
        physics.command(targets[-1])
        due_s += PERIOD_S
        while physics.time_s < due_s - 1e-9:
            physics.step()
    return targets


def begin(physics: Physics, seed: int) -> tuple[Lift | Reach, Expert]:
    task = make_task(physics)
    task.reset(seed)
    physics.command(physics.measured_norm())
    return task, Expert(physics)


@pytest.mark.parametrize("model", ARMS)
@pytest.mark.parametrize("scene", ["lift", "reach"])
def test_it_does_the_task_within_the_limits_of_safety(model: str, scene: str) -> None:
    physics = Physics(model, scene)
    for seed in range(9000, 9008):
        task, expert = begin(physics, seed)
        first = physics.measured_norm()
        targets = np.array([first, *play(physics, task, expert, 8.0)])
        assert task.success, seed
        assert task.success_s < 5.0, seed
        speed = np.diff(targets, axis=0) / PERIOD_S
        change = np.diff(speed, axis=0) / PERIOD_S
        assert np.max(np.abs(speed[:, :5])) <= 120
        assert np.max(np.abs(speed[:, 5])) <= 180
        assert np.percentile(np.abs(change[:, :5]), 99.9) <= 1200
        assert np.max(np.abs(change[:, 5])) <= 2000
        assert np.all(np.abs(targets[:, :5]) <= 98.001)
        assert np.all((targets[:, 5] >= 2.0) | (targets[:, 5] >= first[5] - 1e-9))


@pytest.mark.parametrize("model", ARMS)
def test_it_takes_over_from_disturbed_states_and_moved_cubes(model: str) -> None:
    physics = Physics(model)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        task, expert = begin(physics, seed)
        for _ in range(3):  # pushed about by somebody else
            away = rng.normal(0, [15, 15, 15, 15, 25, 25])
            goal = np.clip(expert.act(PERIOD_S) + away, [-95] * 5 + [5], 95)
            physics.command(goal.tolist())
            for _ in range(200):
                physics.step()
        x, y, z = (float(value) for value in physics.data.joint("cube").qpos[:3])
        if z < 0.02:
            moved = rng.uniform(-0.02, 0.02, 2)
            physics.set_cube(x + moved[0], y + moved[1], float(rng.uniform(-2, 2)))
        expert.start()
        play(physics, task, expert, 10.0)
        assert task.success, seed


def test_it_notices_a_cube_that_slips_out() -> None:
    physics = Physics("so101")
    task, expert = begin(physics, 11)
    while physics.data.joint("cube").qpos[2] < 0.04:
        physics.command(expert.act(PERIOD_S))
        for _ in range(17):
            physics.step()
    physics.set_cube(0.22, -0.06, 0.2)
    assert not task.success
    play(physics, task, expert, 8.0)
    assert task.success


def test_the_same_state_gets_the_same_answer() -> None:
    physics = Physics("koch")
    _, expert = begin(physics, 5)
    here = physics.state()
    first = expert.act(PERIOD_S)
    other = Physics("koch")
    other.restore(here)
    assert Expert(other).act(PERIOD_S) == first


@pytest.mark.parametrize("model", ARMS)
def test_a_plan_is_what_it_would_do_and_moves_nothing(model: str) -> None:
    physics = Physics(model)
    _, expert = begin(physics, 2)
    physics.advance(0)
    before = physics.snapshot()
    plan = expert.plan(12, PERIOD_S)
    assert physics.snapshot() == before
    done = []
    for step in range(12):
        done.append(expert.act(PERIOD_S))
        physics.command(done[-1])
        physics.advance(round((step + 1) * PERIOD_S * 1e9))
    assert np.allclose(plan, done, atol=0.3)
    assert plan[0] == done[0]

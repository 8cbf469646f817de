"""Pictures of the simulated cameras."""

import os
import subprocess
import sys

import numpy as np
import pytest

from robotd.errors import SimError
from robotd.sim.physics import Physics
from robotd.sim.render import Picture, Renderer
from robotd.sim.tasks import BEARING_RAD, CUBE_RADIUS_M, make_task

ARMS = ["so101", "koch"]


def red(picture: Picture) -> int:
    """Pixels that show the cube."""
    part = picture.astype(int)
    return int(np.sum((part[..., 0] > 2.5 * part[..., 1]) & (part[..., 0] > 60)))


@pytest.mark.parametrize("model", ARMS)
def test_pictures_have_their_shape_and_repeat(model: str) -> None:
    physics = Physics(model)
    one, other = Renderer(model), Renderer(model)
    assert set(one.cameras) == {"front", "wrist", "overhead"}
    for camera in one.cameras:
        one.load(physics.snapshot())
        other.load(physics.snapshot())
        picture = one.render(camera, 64, 48)
        assert picture.shape == (48, 64, 3)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, other.render(camera, 64, 48))
        assert picture.std() > 5


@pytest.mark.parametrize("model", ARMS)
def test_the_front_camera_sees_the_cube_all_over_the_work_space(model: str) -> None:
    physics = Physics(model)
    renderer = Renderer(model)
    pan = physics.data.xanchor[physics.model.joint(physics.arm.mounts[0].mujoco_joint).id]
    for radius in CUBE_RADIUS_M[model]:
        for bearing in (-BEARING_RAD, 0.0, BEARING_RAD):
            x, y = pan[0] + radius * np.cos(bearing), pan[1] + radius * np.sin(bearing)
            physics.set_cube(float(x), float(y), 0.3)
            renderer.load(physics.snapshot())
            assert red(renderer.render("front", 96, 96)) > 40, (radius, bearing)


@pytest.mark.parametrize("model", ARMS)
def test_the_wrist_camera_sees_fingers_and_cube_before_the_grasp(model: str) -> None:
    physics = Physics(model)
    renderer = Renderer(model)
    pose = {"so101": (0, 0, 15, 85, 0, 45), "koch": (0, -5, -45, 88, 0, 58)}[model]
    physics.place(physics.units.all_rad(pose))
    x, y, _ = physics.data.site("pinch").xpos
    physics.set_cube(float(x), float(y), 0.0)
    renderer.load(physics.snapshot())
    with_cube = renderer.render("wrist", 96, 96)
    assert 60 < red(with_cube) < 3000
    lower = with_cube[60:]
    assert len(np.unique(lower.reshape(-1, 3), axis=0)) > 10  # fingers at both sides


@pytest.mark.parametrize("model", ARMS)
def test_a_picture_follows_the_snapshot(model: str) -> None:
    physics = Physics(model)
    task = make_task(physics)
    renderer = Renderer(model)
    task.reset(1)
    renderer.load(physics.snapshot())
    before = renderer.render("front", 48, 48)
    physics.set_cube(0.15, 0.05, 0.0)
    assert np.array_equal(before, renderer.render("front", 48, 48))
    renderer.load(physics.snapshot())
    assert not np.array_equal(before, renderer.render("front", 48, 48))


def test_the_ball_of_reach_is_drawn_where_it_is() -> None:
    physics = Physics("so101", "reach")
    renderer = Renderer("so101", "reach")
    columns = []
    for y in (-0.08, 0.08):
        physics.data.mocap_pos[0] = (0.22, y, 0.08)
        renderer.load(physics.snapshot())
        part = renderer.render("front", 96, 96).astype(int)
        green = (part[..., 1] > 1.8 * part[..., 0]) & (part[..., 1] > 60)
        columns.append(float(np.mean(np.nonzero(green)[1])))
    assert columns[0] < 40
    assert columns[1] > 55


def test_what_does_not_fit_is_refused() -> None:
    renderer = Renderer("so101", "lift")
    with pytest.raises(SimError, match="front"):
        renderer.render("side", 32, 32)
    with pytest.raises(SimError, match="does not fit"):
        renderer.load(Physics("so101", "reach").snapshot())
    with pytest.raises(SimError, match="raycast"):
        Renderer("so101", "lift", "vulkan")  # type: ignore[arg-type]


def test_missing_egl_is_one_clear_error() -> None:
    code = (
        "from robotd.errors import SimError\n"
        "from robotd.sim.render import Renderer\n"
        "try:\n"
        "    Renderer('so101', backend='egl')\n"
        "except SimError as error:\n"
        "    print(error)\n"
    )
    # Asking for another platform makes the EGL loader refuse, as a missing library does.
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYOPENGL_PLATFORM": "osmesa"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "EGL rendering is not available" in run.stdout
    assert "raycast" in run.stdout


def test_egl_shows_the_same_scene() -> None:
    physics = Physics("so101")
    rays = Renderer("so101")
    try:
        egl = Renderer("so101", backend="egl")
    except SimError as error:
        pytest.skip(str(error))
    try:
        for renderer in (rays, egl):
            renderer.load(physics.snapshot())
        for camera in ("front", "wrist"):
            one = rays.render(camera, 96, 96).astype(int)
            other = egl.render(camera, 96, 96).astype(int)
            assert np.mean(np.abs(one - other)) < 12
        with pytest.raises(SimError, match="up to"):
            egl.render("front", 4000, 4000)
    finally:
        egl.close()

"""Pictures of the simulated scene: a ray caster that needs no OpenGL, or MuJoCo's renderer on EGL.

The ray caster asks MuJoCo for the geometry each pixel sees and shades it in numpy: the same picture
on every machine, about 2 ms for 96x96. A renderer has its own MuJoCo data and is fed by
`Physics.snapshot`, so it can live in another process than the physics.
"""

from __future__ import annotations

from typing import Literal, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from robotd.errors import SimError
from robotd.sim.physics import load_scene

Picture = NDArray[np.uint8]
Backend = Literal["raycast", "egl"]

AMBIENT = 0.30
SUN = 0.45
HEADLIGHT = 0.30
SUN_DIRECTION = np.array([0.1, 0.3, -1.0]) / np.linalg.norm([0.1, 0.3, -1.0])
SKY = np.array([0.80, 0.84, 0.88])
SHOWN_GROUPS = np.array([1, 1, 1, 0, 0, 0], dtype=np.uint8)  # group 3: collision shapes


class _Painter(Protocol):
    def paint(self, data: mujoco.MjData, camera: int, width: int, height: int) -> Picture: ...

    def close(self) -> None: ...


class Renderer:
    """Renders the cameras of one arm's scene (`front`, `wrist`, `overhead`)."""

    def __init__(self, model: str, scene: str = "lift", backend: Backend = "raycast") -> None:
        """Raises SimError for an unknown arm, scene or backend, and where EGL cannot be used."""
        self.model = load_scene(model, scene)
        self.data = mujoco.MjData(self.model)
        self.cameras = tuple(self.model.camera(i).name for i in range(self.model.ncam))
        if backend not in ("raycast", "egl"):
            raise SimError(f"no renderer {backend!r}; there are: raycast, egl")
        self._painter: _Painter = _Rays(self.model) if backend == "raycast" else _Egl(self.model)
        mujoco.mj_forward(self.model, self.data)

    def load(self, snapshot: bytes) -> None:
        """Show the state of a `Physics.snapshot` from now on; SimError if it does not fit."""
        values = np.frombuffer(snapshot, dtype=np.float64)
        count = self.model.nq
        if values.size != count + self.data.mocap_pos.size:
            raise SimError(
                f"a snapshot of {values.size} numbers does not fit this scene, "
                f"which has {count + self.data.mocap_pos.size}"
            )
        self.data.qpos[:] = values[:count]
        self.data.mocap_pos[:] = values[count:].reshape(self.data.mocap_pos.shape)
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def render(self, camera: str, width: int, height: int) -> Picture:
        """One picture, RGB uint8 [height, width, 3]. Raises SimError for an unknown camera."""
        if camera not in self.cameras:
            raise SimError(f"no simulated camera {camera!r}; there are: {', '.join(self.cameras)}")
        return self._painter.paint(self.data, self.cameras.index(camera), width, height)

    def close(self) -> None:
        """Free what the backend holds."""
        self._painter.close()


class _Rays:
    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._colours = np.vstack([model.geom_rgba[:, :3], SKY])  # index -1: nothing hit
        self._fans: dict[tuple[int, int, int], _Fan] = {}

    def paint(self, data: mujoco.MjData, camera: int, width: int, height: int) -> Picture:
        fan = self._fans.get((camera, width, height))
        if fan is None:
            fan = _Fan(width, height, float(self._model.cam_fovy[camera]))
            self._fans[camera, width, height] = fan
        frame = data.cam_xmat[camera].reshape(3, 3)
        rays = fan.directions @ frame.T
        mujoco.mj_multiRay(
            self._model,
            data,
            data.cam_xpos[camera],
            rays.reshape(-1),
            SHOWN_GROUPS,
            True,
            -1,
            fan.geom,
            fan.distance,
            fan.normal.reshape(-1),
            len(rays),
            10.0,
        )
        light = fan.normal @ -SUN_DIRECTION
        np.maximum(light, 0.0, out=light)
        facing = np.abs(np.einsum("ij,ij->i", fan.normal, rays))
        shade = AMBIENT + SUN * light + HEADLIGHT * facing
        shade[fan.geom < 0] = 1.0
        picture = self._colours[fan.geom] * (255.0 * shade)[:, None]
        np.minimum(picture, 255.0, out=picture)
        return np.asarray(picture, dtype=np.uint8).reshape(height, width, 3)

    def close(self) -> None:
        self._fans.clear()


class _Fan:
    """The rays of one camera in its own frame (x right, y up, looking along -z), and buffers."""

    def __init__(self, width: int, height: int, fovy_deg: float) -> None:
        half = np.tan(np.deg2rad(fovy_deg) / 2)
        x = (np.arange(width) + 0.5 - width / 2) / (height / 2) * half
        y = (height / 2 - np.arange(height) - 0.5) / (height / 2) * half
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        rays = np.concatenate([grid, np.full((len(grid), 1), -1.0)], axis=1)
        self.directions = rays / np.linalg.norm(rays, axis=1, keepdims=True)
        self.geom = np.full(len(rays), -1, dtype=np.int32)
        self.distance = np.zeros(len(rays))
        self.normal = np.zeros((len(rays), 3))


class _Egl:
    """MuJoCo's own renderer, off-screen, without shadows (they cost ten times the rest)."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._widest = int(model.vis.global_.offwidth), int(model.vis.global_.offheight)
        try:
            from mujoco.egl import GLContext

            self._gl = GLContext(*self._widest)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # whatever the OpenGL loader raises: it has no common base
            raise SimError(
                f"EGL rendering is not available here ({error}); "
                'install libegl1 and libgl1, or use the renderer "raycast"'
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = SHOWN_GROUPS
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def paint(self, data: mujoco.MjData, camera: int, width: int, height: int) -> Picture:
        if width > self._widest[0] or height > self._widest[1]:
            raise SimError(
                f"the renderer egl makes pictures up to {self._widest}, not {width, height}"
            )
        self._gl.make_current()
        self._camera.fixedcamid = camera
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, everything, self._scene
        )
        frame = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(frame, self._scene, self._context)
        picture = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(picture, None, frame, self._context)
        return np.ascontiguousarray(picture[::-1])

    def close(self) -> None:
        self._gl.make_current()
        self._context.free()
        self._gl.free()

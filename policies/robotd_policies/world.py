"""The simulated arm as a policy meets it: normalised units, encoder steps, rendered pictures."""

from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from robotd.sim.arms import half_range_counts
from robotd.sim.expert import Expert
from robotd.sim.mechanism import Drive
from robotd.sim.physics import Physics
from robotd.sim.render import Renderer
from robotd.sim.tasks import make_task

Vector = npt.NDArray[np.float64]
POSE_SIZE = 5


class World:
    """One arm, one task. Joints in robotd's order; times in seconds of simulated time.

    Goals and measured positions are rounded to the servos' counts, as on the bus.
    """

    def __init__(
        self,
        arm: str,
        task: str = "lift",
        cameras: tuple[str, ...] = ("front", "wrist"),
        image_size: int = 96,
    ) -> None:
        self.arm = arm
        self.task = task
        self.cameras = cameras
        self.image_size = image_size
        self.low = np.array([-100.0] * 5 + [0.0])
        self.high = np.full(6, 100.0)
        self._physics = Physics(arm, task)
        self._task = make_task(self._physics)
        self._expert = Expert(self._physics)
        self._renderer = Renderer(arm, task)
        mounts = self._physics.arm.mounts
        # Units per count: 200 over the calibrated range, the gripper 100.
        self._count = np.array([100.0 / half_range_counts(mount) for mount in mounts])
        self._count[5] /= 2
        self._origin = np.array([0.0] * 5 + [50.0])  # the middle of the range is a whole count
        self._time_ns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._renderer.close()

    def reset(self, seed: int) -> None:
        """The scene of this seed; the arm powered and holding where it stands."""
        self._task.reset(seed)
        self._physics.advance(self._time_ns)
        self.drive(self.position())

    def position(self) -> Vector:
        """Measured joint positions."""
        physics = self._physics
        rad = physics.positions()
        norm = np.array([physics.units.norm(joint, value) for joint, value in enumerate(rad)])
        return self._rounded(norm)

    def drive(self, targets: Vector) -> None:
        """Goal positions, with the servos' configured gains."""
        physics = self._physics
        for joint, (value, mount) in enumerate(
            zip(self._rounded(targets), physics.arm.mounts, strict=True)
        ):
            goal = physics.units.rad(joint, float(value))
            physics.drive(
                joint,
                Drive(True, goal, stiffness=mount.stiffness, torque_limit=mount.torque_limit),
            )

    def advance(self, seconds: float) -> None:
        """Let the world go on."""
        self._time_ns += round(seconds * 1e9)
        self._physics.advance(self._time_ns)

    def image(self, camera: str) -> npt.NDArray[np.uint8]:
        """What a camera sees now, `[size, size, 3]`."""
        self._renderer.load(self._physics.snapshot())
        return self._renderer.render(camera, self.image_size, self.image_size)

    def pose(self) -> npt.NDArray[np.float32]:
        """The cube's place in m and its yaw, `[x, y, z, cos 4 yaw, sin 4 yaw]` (a square's)."""
        x, y, z, w, _, _, k = self._physics.data.joint("cube").qpos
        yaw = 2 * np.arctan2(k, w)
        return np.array([x, y, z, np.cos(4 * yaw), np.sin(4 * yaw)], np.float32)

    def success(self) -> bool:
        """Whether the task has been done since the reset."""
        return self._task.success

    def expert_chunk(
        self, applied: Vector, speed: Vector, steps: int, period_s: float
    ) -> npt.NDArray[np.float32]:
        """The targets `[steps, 6]` that the expert would give from here, its first one now.

        `applied` and `speed` are the last targets and their rate. The world does not move.
        """
        self._expert.start(tuple(applied), tuple(speed))
        chunk = np.array(self._expert.plan(steps, period_s))
        return np.clip(chunk, self.low, self.high).astype(np.float32)

    def _rounded(self, norm: Vector) -> Vector:
        return np.round((norm - self._origin) / self._count) * self._count + self._origin

"""The simulated arm and its table in MuJoCo: a `Mechanism` with gravity, contact and a cube.

A motor is a torque source behind a position loop, with the servo's data of `robotd.sim.arms`:

    torque = clip(stiffness * k * (setpoint - q) - d * qd, +-limit * stall) - stall / max_speed * qd

The last term is the back EMF, which bounds the speed; without torque only the gear's friction is
left, so the arm is back-drivable and sinks. The setpoint is the goal, or moves to it at the
velocity limit. Every step is 2 ms and everything is a function of the state: runs repeat exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from robotd.errors import SimError
from robotd.sim.arms import Arm, Units, arm
from robotd.sim.mechanism import Drive, Sensed

STEP_NS = 2_000_000
STEP_S = STEP_NS * 1e-9
MODELS = Path(__file__).parent / "models"
SCENES = ("lift", "reach")
_INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True, slots=True)
class State:
    """Everything a `Physics` needs to continue exactly from here."""

    integration: NDArray[np.float64]
    drives: tuple[Drive, ...]
    setpoints: tuple[float, ...]
    hand: dict[int, float]


def load_scene(model: str, scene: str) -> mujoco.MjModel:
    """The MuJoCo model of an arm on its table, with motors `drive_*` and an idle hand `hand_*`.

    Raises SimError for an arm or a scene that is not there.
    """
    path = MODELS / f"{model}_{scene}.xml"
    if not path.is_file():
        known = sorted(file.stem for file in MODELS.glob("*_*.xml"))
        raise SimError(f"no simulated scene {model}_{scene}; there are: {', '.join(known)}")
    spec = mujoco.MjSpec.from_file(str(path))
    for prefix in ("drive", "hand"):
        for mount in arm(model).mounts:
            actuator = spec.add_actuator()
            actuator.name = f"{prefix}_{mount.mujoco_joint}"
            actuator.target = mount.mujoco_joint
            actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
            actuator.gaintype = mujoco.mjtGain.mjGAIN_FIXED
            actuator.biastype = mujoco.mjtBias.mjBIAS_AFFINE
            actuator.gainprm[0] = 0.0
            actuator.forcelimited = True
            actuator.forcerange[:] = (-mount.motor.stall_torque_nm, mount.motor.stall_torque_nm)
    return spec.compile()


class Physics:
    """One simulated arm on its table; joints in robotd's order, radians of the mechanism."""

    def __init__(self, model: str, scene: str = "lift", role: str = "follower") -> None:
        """Stand at the park pose with torque off. Raises SimError for an unknown arm or scene."""
        self.model = load_scene(model, scene)
        self.data = mujoco.MjData(self.model)
        self.arm: Arm = arm(model, role)
        self.units = Units(model, role)
        self.scene = scene
        self.after_step: Callable[[], None] | None = None
        names = [mount.mujoco_joint for mount in self.arm.mounts]
        self._qpos = [int(self.model.joint(name).qposadr[0]) for name in names]
        self._dof = [int(self.model.joint(name).dofadr[0]) for name in names]
        self._motor = [int(self.model.actuator(f"drive_{name}").id) for name in names]
        self._grip = [int(self.model.actuator(f"hand_{name}").id) for name in names]
        self._friction = [float(self.model.dof_damping[dof]) for dof in self._dof]
        self._drives = [Drive() for _ in names]
        self._setpoints = [0.0] * len(names)
        self._slewing: set[int] = set()
        self._hand: dict[int, float] = {}
        self._now_ns: int | None = None
        self.place(self.units.all_rad(self.arm.park_norm))

    # -- the mechanism behind the servos

    def drive(self, joint: int, drive: Drive) -> None:
        old = self._drives[joint]
        if drive == old:
            return
        if _only_goal_differs(drive, old) and math.isinf(drive.velocity_limit_rad_s):
            # A new goal at every tick is the common case: nothing else needs to be touched.
            old.goal_rad = self._setpoints[joint] = drive.goal_rad
            self.data.ctrl[self._motor[joint]] = drive.goal_rad
            return
        if drive.torque_on and not old.torque_on:
            self._setpoints[joint] = float(self.data.qpos[self._qpos[joint]])
        self._drives[joint] = copy.copy(drive)
        self._apply(joint)

    def sense(self, joint: int) -> Sensed:
        force = float(self.data.actuator_force[self._motor[joint]])
        return Sensed(
            float(self.data.qpos[self._qpos[joint]]),
            float(self.data.qvel[self._dof[joint]]),
            force / self.arm.mounts[joint].motor.stall_torque_nm,
        )

    def advance(self, to_ns: int) -> None:
        if self._now_ns is None:
            self._now_ns = to_ns
        while to_ns - self._now_ns >= STEP_NS:
            self._now_ns += STEP_NS
            self.step()

    def step(self) -> None:
        """Step once, by 2 ms."""
        if self._slewing:
            for joint in tuple(self._slewing):
                self._slew(joint)
        mujoco.mj_step(self.model, self.data)
        if self.after_step is not None:
            self.after_step()

    # -- the world from outside

    @property
    def time_s(self) -> float:
        """Simulated time since the last `place`."""
        return float(self.data.time)

    def positions(self) -> tuple[float, ...]:
        """Joint angles in rad."""
        return tuple(float(self.data.qpos[at]) for at in self._qpos)

    def velocities(self) -> tuple[float, ...]:
        """Joint speeds in rad/s."""
        return tuple(float(self.data.qvel[at]) for at in self._dof)

    def place(self, joints_rad: Sequence[float]) -> None:
        """Start anew: arm at rest in this pose, everything else as the model has it.

        The motors' drives stay as they are, for no servo has been told anything.
        """
        mujoco.mj_resetData(self.model, self.data)
        for at, angle in zip(self._qpos, joints_rad, strict=True):
            self.data.qpos[at] = angle
        self._setpoints = [float(angle) for angle in joints_rad]
        self.hand(None)
        for joint in range(len(self._drives)):
            self._apply(joint)
        mujoco.mj_forward(self.model, self.data)

    def command(self, targets_norm: Sequence[float]) -> None:
        """Power all joints as a configured arm does and send them to normalised targets.

        This is what a goal over the bus comes to, without the bus.
        """
        for joint, mount in enumerate(self.arm.mounts):
            goal = self.units.rad(joint, targets_norm[joint])
            self.drive(joint, Drive(True, goal, mount.stiffness, mount.torque_limit))

    def measured_norm(self) -> tuple[float, ...]:
        """Joint positions in normalised units."""
        return self.units.all_norm(self.positions())

    def set_cube(self, x_m: float, y_m: float, yaw_rad: float, z_m: float = 0.0125) -> None:
        """Put the cube's centre there, upright and at rest."""
        cube = self.data.joint("cube")
        half = yaw_rad / 2
        cube.qpos[:] = (x_m, y_m, z_m, math.cos(half), 0.0, 0.0, math.sin(half))
        cube.qvel[:] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def hand(self, joint_targets: Mapping[int, float] | None) -> None:
        """A hand from outside pulls joints towards angles in rad, springy and damped; None lets go.

        Its force on a joint is at most that of the joint's motor.
        """
        self._hand = dict(joint_targets or {})
        for joint, actuator in enumerate(self._grip):
            stall = self.arm.mounts[joint].motor.stall_torque_nm
            gain, damping = (15.0 * stall, 0.6 * stall) if joint in self._hand else (0.0, 0.0)
            self._gains(actuator, gain, damping)
            self.data.ctrl[actuator] = self._hand.get(joint, 0.0)

    def state(self) -> State:
        """A copy of the whole state, for `restore`."""
        vector = np.empty(mujoco.mj_stateSize(self.model, _INTEGRATION))
        mujoco.mj_getState(self.model, self.data, vector, _INTEGRATION)
        drives = tuple(copy.copy(drive) for drive in self._drives)
        return State(vector, drives, tuple(self._setpoints), dict(self._hand))

    def restore(self, state: State) -> None:
        """Continue from a state taken from a `Physics` of the same arm and scene."""
        self._drives = [copy.copy(drive) for drive in state.drives]
        self._setpoints = list(state.setpoints)
        self.hand(state.hand)
        for joint in range(len(self._drives)):
            self._apply(joint)
        mujoco.mj_setState(self.model, self.data, state.integration, _INTEGRATION)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, state.integration, _INTEGRATION)

    def snapshot(self) -> bytes:
        """What a `Renderer` of the same arm and scene needs: float64 qpos, then mocap positions."""
        return bytes(self.data.qpos.tobytes() + self.data.mocap_pos.tobytes())

    # -- motors

    def _apply(self, joint: int) -> None:
        drive, motor = self._drives[joint], self.arm.mounts[joint].motor
        actuator, dof = self._motor[joint], self._dof[joint]
        self._slewing.discard(joint)
        if not drive.torque_on:
            self._gains(actuator, 0.0, 0.0)
            self.model.dof_damping[dof] = self._friction[joint]
            self.data.ctrl[actuator] = 0.0
            return
        self._gains(actuator, drive.stiffness * motor.stiffness_nm_rad, motor.damping_nms_rad)
        limit = max(0.0, min(1.0, drive.torque_limit)) * motor.stall_torque_nm
        self.model.actuator_forcerange[actuator] = (-limit, limit)
        emf = motor.stall_torque_nm / motor.max_speed_rad_s
        self.model.dof_damping[dof] = self._friction[joint] + emf
        if drive.velocity_limit_rad_s < motor.max_speed_rad_s:
            self._slewing.add(joint)
        else:
            self._setpoints[joint] = drive.goal_rad
        self.data.ctrl[actuator] = self._setpoints[joint]

    def _gains(self, actuator: int, stiffness: float, damping: float) -> None:
        self.model.actuator_gainprm[actuator, 0] = stiffness
        self.model.actuator_biasprm[actuator, :3] = (0.0, -stiffness, -damping)

    def _slew(self, joint: int) -> None:
        drive = self._drives[joint]
        step = drive.velocity_limit_rad_s * STEP_S
        error = drive.goal_rad - self._setpoints[joint]
        self._setpoints[joint] += max(-step, min(step, error))
        self.data.ctrl[self._motor[joint]] = self._setpoints[joint]
        if abs(error) <= step:
            self._slewing.discard(joint)


def _only_goal_differs(drive: Drive, old: Drive) -> bool:
    return (
        drive.torque_on
        and old.torque_on
        and drive.stiffness == old.stiffness
        and drive.torque_limit == old.torque_limit
        and drive.velocity_limit_rad_s == old.velocity_limit_rad_s
    )

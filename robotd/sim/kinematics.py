"""Inverse kinematics of the simulated arms: pinch point, pitch and jaw direction to five joints.

Damped Newton steps on MuJoCo's Jacobian. Five joints, five conditions: the pinch point (3), how
steeply the gripper points down (1; the steepest the arm can reach there), and the jaws' direction
about that axis (1).
"""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

from robotd.sim.physics import Physics

Vector = NDArray[np.float64]
STEEPEST_RAD = math.radians(88)
FLATTEST_RAD = math.radians(-20)
STRETCH = 0.975  # of upper plus lower arm: the elbow is never quite straight
ITERATIONS = 30
TOLERANCE = 2e-4
DAMPING = 1e-5
ANGLE_WEIGHT_M = 0.05  # metres that a radian counts
# The gripper's closing direction, towards the fixed finger, in the gripper body's frame.
JAW_AXIS = {"so101": np.array([-1.0, 0.0, 0.0]), "koch": np.array([0.0, 1.0, 0.0])}


class Kinematics:
    """Kinematics of a `Physics`' arm; what is not measured is computed on a private copy."""

    def __init__(self, physics: Physics) -> None:
        self._physics = physics
        self._model = physics.model
        self._data = mujoco.MjData(physics.model)
        self._names = [mount.mujoco_joint for mount in physics.arm.mounts]
        self._qpos = [int(self._model.joint(name).qposadr[0]) for name in self._names]
        self._dof = [int(self._model.joint(name).dofadr[0]) for name in self._names[:5]]
        self._site = int(self._model.site("pinch").id)
        self._weight = np.zeros(self._model.nv)
        mounts = physics.arm.mounts[:5]
        self._gains = np.array([m.stiffness * m.motor.stiffness_nm_rad for m in mounts])
        self._gripper = int(self._model.body("gripper").id)
        self._jaw = JAW_AXIS[physics.arm.model]
        units = physics.units
        self._low, self._high = (
            np.array([units.rad(joint, edge) for joint in range(5)]) for edge in (-96.0, 96.0)
        )
        flipped = self._low > self._high
        self._low[flipped], self._high[flipped] = self._high[flipped], self._low[flipped]
        # Pitch (down positive) is the sum of lift, elbow and wrist in the register's sense.
        sense = np.array([mount.sign for mount in physics.arm.mounts[:5]], dtype=np.float64)
        self._pitch = sense * np.array([0.0, 1.0, 1.0, 1.0, 0.0])
        self._bend = float(np.max(self._pitch[3] * np.array([self._low[3], self._high[3]])))
        self._measure()

    def _measure(self) -> None:
        model, data = self._model, self._data
        mujoco.mj_kinematics(model, data)
        joint = [int(model.joint(name).id) for name in self._names]
        shoulder, elbow, wrist = (data.xanchor[joint[i]].copy() for i in (1, 2, 3))
        self._axis = data.xanchor[joint[0]][:2].copy()
        flat = [0, 2]  # at zero the arm lies in the x-z plane
        self._upper = math.dist(shoulder[flat], elbow[flat])
        self._fore = math.dist(elbow[flat], wrist[flat])
        self._fore_pitch = math.atan2(elbow[2] - wrist[2], wrist[0] - elbow[0])
        self._hand = math.dist(wrist[flat], data.site_xpos[self._site][flat])
        self._shoulder = (float(shoulder[0] - self._axis[0]), float(shoulder[2]))

    def pinch(self) -> Vector:
        """Where the pinch point is, in the world."""
        return np.array(self._physics.data.site_xpos[self._site])

    def outward(self) -> float:
        """How far the pinch point is from the pan axis, along the direction the arm points."""
        bearing = -self._physics.positions()[0]
        x, y = self.pinch()[:2] - self._axis
        return float(x * math.cos(bearing) + y * math.sin(bearing))

    def jaw(self) -> Vector:
        """Direction from the moving to the fixed finger, horizontal part, unit length."""
        frame = self._physics.data.xmat[self._gripper].reshape(3, 3)
        flat = (frame @ self._jaw) * (1.0, 1.0, 0.0)
        return np.array(flat / max(1e-9, float(np.linalg.norm(flat))))

    def facing(self, frame: Vector, place: Vector, near: bool) -> Vector:
        """The horizontal axis, of a cube's four, along which the jaws should close.

        From far it is the one nearest to the middle of the wrist's range with the gripper pointing
        down there (so it is the same all the way), from near the one nearest to the jaws.
        """
        flat = frame[:2, :]
        level = int(np.argmax(np.linalg.norm(flat, axis=0)))
        axis = np.array([*flat[:, level], 0.0])
        axis /= np.linalg.norm(axis)
        turned = np.array([-axis[1], axis[0], 0.0])
        liked = self.jaw() if near else self._middle_jaw(place)
        return max((axis, turned, -axis, -turned), key=lambda side: float(liked @ side))

    def _middle_jaw(self, place: Vector) -> Vector:
        x, y = place[:2] - self._axis
        away = max(1e-9, math.hypot(x, y))
        # Pointing down at wrist roll 0: SO-101 closes towards its base, Koch to its right.
        if self._jaw[0]:
            return np.array([-x / away, -y / away, 0.0])
        return np.array([y / away, -x / away, 0.0])

    def split(self, away: Vector, side: Vector) -> tuple[float, float]:
        """A horizontal offset across the jaws (along `side`) and along the fingers' width."""
        across = float(away[:2] @ side[:2])
        along = float(away[0] * -side[1] + away[1] * side[0])
        return across, along

    def sag(self, joints: Vector) -> Vector:
        """How far five powered joints stay behind their goals under gravity there, in rad."""
        self._pose(joints)
        mujoco.mj_comPos(self._model, self._data)
        mujoco.mj_rne(self._model, self._data, 0, self._weight)
        return np.asarray(self._weight[self._dof] / self._gains)

    def pitch_of(self, joints: Vector) -> float:
        """How far the gripper points down, in rad."""
        return float(self._pitch @ joints)

    def steepest(self, place: Vector) -> float:
        """The steepest pitch in rad (down positive) at which the arm reaches a place."""
        radius = float(np.linalg.norm(place[:2] - self._axis)) - self._shoulder[0]
        height = float(place[2]) - self._shoulder[1]
        low, high = FLATTEST_RAD, STEEPEST_RAD
        if self._reaches(radius, height, high):
            return high
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (middle, high) if self._reaches(radius, height, middle) else (low, middle)
        return low

    def _reaches(self, radius: float, height: float, pitch: float) -> bool:
        """Whether the wrist gets there with this pitch, and can then bend that far down."""
        out = radius - self._hand * math.cos(pitch)
        up = height + self._hand * math.sin(pitch)
        upper, fore, away = self._upper, self._fore, math.hypot(out, up)
        if away > STRETCH * (upper + fore) or away < 1e-6:
            return away < 1e-6
        cosine = (away * away + fore * fore - upper * upper) / (2 * away * fore)
        forearm = math.acos(max(-1.0, min(1.0, cosine))) - math.atan2(up, out)
        return pitch - forearm + self._fore_pitch < self._bend

    def pinch_of(self, joints: Vector) -> Vector:
        """Where the pinch point would be with these five joint angles."""
        self._pose(joints)
        return np.array(self._data.site_xpos[self._site])

    def _pose(self, joints: Vector) -> None:
        self._data.qpos[self._qpos[:5]] = joints
        mujoco.mj_kinematics(self._model, self._data)

    def solve(self, place: Vector, side: Vector | None, pitch: float, start: Vector) -> Vector:
        """Five joint angles in rad: the pinch point there, this pitch, jaws along `side`.

        The search starts from the angles `start`. Without `side` the wrist roll stays. A place out
        of reach gives the nearest found.
        """
        data, joints, roll = self._data, start.copy(), float(start[4])
        if side is not None and self._turned_away(joints, side):
            joints[4] = 0.0  # the other way round: from the middle of its range, not past its end
        jacp, jacr = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        matrix, error = np.zeros((5, 5)), np.zeros(5)
        for _ in range(ITERATIONS):
            self._pose(joints)
            mujoco.mj_comPos(self._model, data)
            mujoco.mj_jacSite(self._model, data, jacp, jacr, self._site)
            error[:3] = place - data.site_xpos[self._site]
            error[3] = (pitch - float(self._pitch @ joints)) * ANGLE_WEIGHT_M
            matrix[:3] = jacp[:, self._dof]
            matrix[3] = self._pitch * ANGLE_WEIGHT_M
            matrix[4], error[4] = 0.0, 0.0
            if side is None:
                error[4] = (roll - joints[4]) * ANGLE_WEIGHT_M
                matrix[4, 4] = ANGLE_WEIGHT_M
            else:
                self._align(side, jacr[:, self._dof], matrix, error)
            if float(np.max(np.abs(error))) < TOLERANCE:
                break
            square = matrix.T @ matrix + DAMPING * np.eye(5)
            step = np.linalg.solve(square, matrix.T @ error)
            joints = np.clip(joints + np.clip(step, -0.4, 0.4), self._low, self._high)
        return joints

    def _turned_away(self, joints: Vector, side: Vector) -> bool:
        self._pose(joints)
        frame = self._data.xmat[self._gripper].reshape(3, 3)
        return float((frame @ self._jaw) @ side) < 0

    def _align(self, side: Vector, jacr: Vector, matrix: Vector, error: Vector) -> None:
        """Fill in the condition that the jaws' horizontal angle from `side` is zero."""
        jaw = self._data.xmat[self._gripper].reshape(3, 3) @ self._jaw
        across = np.array([-side[1], side[0], 0.0])
        ahead, beside = float(jaw @ side), float(jaw @ across)
        turning = np.cross(jacr.T, jaw)
        size = max(1e-6, ahead * ahead + beside * beside)
        error[4] = -math.atan2(beside, ahead) * ANGLE_WEIGHT_M
        matrix[4] = (turning @ across * ahead - turning @ side * beside) / size * ANGLE_WEIGHT_M

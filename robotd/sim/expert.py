"""A scripted expert that sees the true state: demonstrations, labels for any state, a baseline.

What it wants depends only on the state (arm, cube, contacts), so it can take over anywhere; what it
remembers is the last targets and their speed, so that its targets are smooth. Speeds and
accelerations stay far inside the safety limiter's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robotd.sim.arms import GRIPPER
from robotd.sim.kinematics import Kinematics, Vector
from robotd.sim.physics import Physics

BODY_SPEED = 115.0  # normalised units/s
GRIPPER_SPEED = 170.0
BODY_ACCELERATION = 1000.0  # units/s^2
GRIPPER_ACCELERATION = 1200.0
SPEEDS = np.array([BODY_SPEED] * 5 + [GRIPPER_SPEED])
ACCELERATIONS = np.array([BODY_ACCELERATION] * 5 + [GRIPPER_ACCELERATION])
ROLL_SPEED = 100.0
ROLL_ACCELERATION = 400.0
PATH_SPEED_M_S = 0.28  # of the pinch point
PATH_ACCELERATION_M_S2 = 1.2
PITCH_SPEED_RAD_S = 1.2
PITCH_GAIN_1_S = 5.0
LOWEST = np.array([-98.0] * 5 + [2.0])
HIGHEST = np.array([98.0] * 6)


@dataclass(frozen=True, slots=True)
class Grip:
    """How one arm's gripper is used on the cube."""

    open_norm: float
    clearance_m: float  # sideways while open, so that the fixed finger passes beside the cube
    grasp_height_m: float

    folded_m: float  # nearer to the pan axis than this, the arm unfolds before anything else
    unfolded_norm: tuple[float, float, float]  # lift, elbow and wrist to go to then


GRIPS = {
    "so101": Grip(45.0, 0.009, 0.014, 0.09, (-60.0, 60.0, 75.0)),
    "koch": Grip(58.0, 0.007, 0.014, 0.05, (-70.0, 20.0, 72.0)),
}
SHUT_NORM = 2.0
HOVER_M = 0.055
LIFT_TO_M = 0.095
FUNNEL_M = 0.003  # sideways error within which the gripper goes down all the way
FUNNEL_WIDTH_M = 0.010  # sideways error beyond that at which it stays up
INSIDE_M = 0.010  # the cube is between the fingers
ALIGNED_RAD = 0.15  # jaws so far off the cube's faces still go down; beyond, they stay up
WIND_UP = 20.0  # targets of body joints run at most so far ahead of the measured positions


class Expert:
    """Targets for the task of a `Physics`, step by step."""

    def __init__(self, physics: Physics) -> None:
        self.physics = physics
        self._arm = Kinematics(physics)
        self._grip = GRIPS[physics.arm.model]
        self._targets: Vector = np.zeros(6)
        self._speed: Vector = np.zeros(6)
        self._shadow: Physics | None = None
        if physics.scene == "lift":
            self._fingers = self._finger_geoms()
            self._cube = int(physics.model.geom("cube").id)
        self.start()

    def start(
        self, targets_norm: Sequence[float] | None = None, speed_norm: Sequence[float] | None = None
    ) -> None:
        """Take over from these last targets (the measured positions unless given), at a speed."""
        given = targets_norm if targets_norm is not None else self.physics.measured_norm()
        self._targets = np.array(given, dtype=np.float64)
        self._speed = (
            np.array(speed_norm, dtype=np.float64) if speed_norm is not None else np.zeros(6)
        )

    def act(self, dt_s: float) -> tuple[float, ...]:
        """The next six normalised targets, one step of `dt_s` after the last."""
        measured = np.array(self.physics.measured_norm())
        bound = np.array([WIND_UP] * 5 + [200.0])
        self._targets = np.clip(self._targets, measured - bound, measured + bound)
        place, side, gripper = self._wanted()
        shut = _towards(gripper - self._targets[5], GRIPPER_SPEED, GRIPPER_ACCELERATION, dt_s)
        if self._arm.outward() < self._grip.folded_m:
            body = self._unfolding(dt_s)
        else:
            body = self._next_body(place, side, dt_s)
        goal = np.array([*body, self._targets[5]])
        speed = (goal - self._targets) / dt_s
        speed /= max(1.0, float(np.max(np.abs(speed) / SPEEDS)))  # all slower: the path stays
        speed[GRIPPER] = shut
        change = ACCELERATIONS * dt_s
        speed = self._speed + np.clip(speed - self._speed, -change, change)
        # Brake before the edges; from outside only come back.
        speed = np.minimum(speed, _stoppable(HIGHEST - self._targets, ACCELERATIONS, dt_s))
        speed = np.maximum(speed, -_stoppable(self._targets - LOWEST, ACCELERATIONS, dt_s))
        self._speed = speed
        self._targets = self._targets + speed * dt_s
        return tuple(float(value) for value in self._targets)

    def _unfolding(self, dt_s: float) -> Vector:
        """Five targets on the way out of a pose in which the gripper is at the arm's own foot."""
        goal = self._targets[:5].copy()
        goal[1:4] = self._grip.unfolded_norm
        away = goal - self._targets[:5]
        speed = [_towards(float(off), 60.0, ROLL_ACCELERATION, dt_s) for off in away]
        return self._targets[:5] + np.array(speed) * dt_s

    def _next_body(self, place: Vector, side: Vector | None, dt_s: float) -> Vector:
        """Five targets one step along a straight line of the pinch point, with a smooth speed."""
        arm, units = self._arm, self.physics.units
        targets = np.array(units.all_rad(self._targets.tolist()))[:5]
        before = np.array(units.all_rad((self._targets - self._speed * dt_s).tolist()))[:5]
        sag = arm.sag(targets)
        joints = targets - sag
        start = arm.pinch_of(joints)
        moving = (start - arm.pinch_of(before - sag)) / dt_s
        away = place - start
        distance = float(np.linalg.norm(away))
        pace = _towards(distance, PATH_SPEED_M_S, PATH_ACCELERATION_M_S2, dt_s)
        change = away * (pace / max(distance, 1e-9)) - moving
        most = 1.5 * PATH_ACCELERATION_M_S2 * dt_s
        moving = moving + change * min(1.0, most / max(1e-9, float(np.linalg.norm(change))))
        point = start + moving * dt_s
        pitch = arm.pitch_of(joints)
        steepest = arm.steepest(point)
        pitch += min(PITCH_SPEED_RAD_S, PITCH_GAIN_1_S * (steepest - pitch)) * dt_s
        pitch = min(pitch, steepest)  # any steeper and the place is out of reach
        if side is not None:  # the wrist turns at its own pace; the others make up for it
            roll = units.norm(4, float(arm.solve(point, side, pitch, joints)[4] + sag[4]))
            pace = _towards(roll - self._targets[4], ROLL_SPEED, ROLL_ACCELERATION, dt_s)
            joints[4] = units.rad(4, float(self._targets[4] + pace * dt_s)) - sag[4]
        goal = arm.solve(point, None, pitch, joints) + sag
        return np.array([units.norm(joint, float(goal[joint])) for joint in range(5)])

    def plan(self, steps: int, dt_s: float) -> list[tuple[float, ...]]:
        """The next `steps` targets, played ahead on a copy; neither physics nor expert moves on."""
        physics = self.physics
        if self._shadow is None:
            self._shadow = Physics(physics.arm.model, physics.scene, physics.arm.role)
        self._shadow.restore(physics.state())
        ahead = Expert(self._shadow)
        ahead.start(tuple(self._targets), tuple(self._speed))
        planned = []
        end_s = 0.0
        done = 0
        for _ in range(steps):
            planned.append(ahead.act(dt_s))
            self._shadow.command(planned[-1])
            end_s += dt_s
            while done * 0.002 < end_s - 1e-9:
                self._shadow.step()
                done += 1
        return planned

    # -- what it wants

    def _wanted(self) -> tuple[Vector, Vector | None, float]:
        """Where the pinch point should be, the jaws' direction (None: as it is), the gripper."""
        if self.physics.scene == "lift":
            return self._wanted_for_lift()
        return np.array(self.physics.data.mocap_pos[0]), None, 20.0

    def _wanted_for_lift(self) -> tuple[Vector, Vector | None, float]:
        data, grip = self.physics.data, self._grip
        cube = np.array(data.geom_xpos[self._cube])
        pinch = self._arm.pinch()
        near = float(np.linalg.norm(cube - pinch)) < 0.03
        side = self._arm.facing(data.geom_xmat[self._cube].reshape(3, 3), cube, near)
        if self._holding(cube, pinch):
            top = np.array([pinch[0], pinch[1], LIFT_TO_M + 0.01])
            return top, side, SHUT_NORM
        opened = self.physics.measured_norm()[GRIPPER]
        wanted = cube.copy()
        wanted[2] = max(grip.grasp_height_m, cube[2] + 0.0015)
        away = pinch - wanted
        across, along = self._arm.split(away, side)
        # Between the fingers: close, and let go of the clearance.
        low = away[2] < 0.010
        if low and abs(along) < INSIDE_M and abs(across) < INSIDE_M + grip.clearance_m / 2:
            return wanted, side, SHUT_NORM
        # Otherwise come down beside it in a funnel: the lower, the better centred and opened.
        beside = wanted + side * grip.clearance_m
        error = math.hypot(pinch[0] - beside[0], pinch[1] - beside[1])
        rise = max(0.0, error - FUNNEL_M) / FUNNEL_WIDTH_M
        rise += max(0.0, grip.open_norm - 10.0 - opened) / 20.0
        turned = math.acos(max(-1.0, min(1.0, float(self._arm.jaw() @ side))))
        rise = min(1.0, rise + max(0.0, turned - ALIGNED_RAD) / ALIGNED_RAD)
        if error > 0.02 and away[2] < 0.5 * HOVER_M:  # low and outside: straight up first
            beside[:2] = pinch[:2]
            side = self._arm.jaw()
        beside[2] += rise * HOVER_M
        return beside, side, grip.open_norm

    def _holding(self, cube: Vector, pinch: Vector) -> bool:
        """Both fingers press on the cube, and the gripper pushes."""
        if float(np.linalg.norm(cube - pinch)) > 0.03:
            return False
        touching = set()
        data = self.physics.data
        for pair in data.contact.geom[: data.ncon]:
            if self._cube in pair:
                touching.add(self._fingers.get(int(pair[0] if pair[1] == self._cube else pair[1])))
        pressing = abs(self.physics.sense(GRIPPER).torque) > 0.12
        return pressing and {"fixed", "moving"} <= touching

    def _finger_geoms(self) -> dict[int, str]:
        model = self.physics.model
        found = {}
        for geom in range(model.ngeom):
            name = model.geom(geom).name
            if name.startswith(("fixed", "moving")):
                found[geom] = name.split("_")[0]
        return found


def _towards(away: float, top: float, acceleration: float, dt_s: float) -> float:
    """Speed towards a point `away`, such that it can be stopped at."""
    size = abs(away)
    fastest = float(_stoppable(size, acceleration, dt_s))
    return math.copysign(min(top, fastest, size / dt_s), away)


def _stoppable(room: Vector | float, acceleration: Vector | float, dt_s: float) -> Vector:
    """The speed from which whole steps of braking end within `room`, with a margin."""
    brake = 0.8 * np.asarray(acceleration)
    lost = brake * dt_s / 2
    free = np.maximum(room, 0.0)
    return np.asarray(np.minimum(np.sqrt(lost * lost + 2 * brake * free) - lost, free / dt_s))

"""One arm as the loop sees it: its readings, its limiter, its guard, and whether torque is on.

Everything that talks to the bus is called at most once per tick and turns errors into state: an
arm that does not answer counts failed reads, an arm whose port is gone is `lost`. Only `engage`
and `release` take longer than a tick; the arm is then at rest or without torque.
"""

import math
from collections.abc import Sequence

from robotd.bus.arm import Arm, JointReading
from robotd.config import GRIPPER, ArmConfig
from robotd.control.faults import READINGS, Finding, Watch, WatchedJoint
from robotd.control.guard import Block, Guard, HardJoint
from robotd.control.limits import JointLimits, JointState, limit, seed, stopping_point
from robotd.errors import BusError, ConfigError, PortError
from robotd.ipc.ring import Fault

_TRUST_S = 0.05  # a servo that was silent for longer may have restarted, without torque
_DOUBT_S = 1.0  # every servo's torque has been read once more within that time
_RATE_MARGIN = 1.05  # between the limiter's velocity and the guard's rate: wake-up jitter


class Limb:
    """One arm. Positions and goals are in normalised units, in the order of `arm.joints`."""

    def __init__(self, config: ArmConfig, arm: Arm, first: int, period_s: float) -> None:
        """`first`: index of its first joint among those of all arms. Raises ConfigError."""
        self.id = config.id
        self.arm = arm
        self.joints = slice(first, first + len(arm.joints))
        self.first = first
        self.park = config.park
        self.park_step = config.park_velocity * period_s
        self.names = tuple(f"{config.id}.{joint}" for joint in arm.joints)
        self.limits = [soft_limits(config, joint, period_s) for joint in arm.joints]
        hard = [config.hard_limits(joint) for joint in arm.joints]
        self.guard = Guard(
            [
                HardJoint(n, *h.position, h.step, h.rate)
                for n, h in zip(self.names, hard, strict=True)
            ]
        )
        watched = [
            WatchedJoint(name, *h.position, gripper=joint == GRIPPER)
            for name, h, joint in zip(self.names, hard, arm.joints, strict=True)
        ]
        self.watch = Watch(watched, config.max_temperature_c, period_s)
        nothing = math.nan
        self.readings: list[JointReading] = []
        self.position = [nothing] * len(self.names)  # the last valid ones
        self.states: list[JointState] = [seed(nothing)] * len(self.names)
        self.limited = [0] * len(self.names)
        self.engaged = False
        self.silent = 0  # failed reads in a row
        self.failed = 0  # failed reads in all
        self.lost = ""  # why there is no contact, "" when there is
        self.lost_fault = Fault.NONE
        self.driven = False  # goals are written
        self._releasing = False  # torque off was not confirmed yet
        self._trust = math.ceil(_TRUST_S / period_s)
        self._check = math.ceil(_DOUBT_S / period_s)
        self._doubt = 0  # ticks until goals are written again after a silence
        self._settings_lost = False  # a servo may have restarted: configure before arming

    # Reading

    def request(self) -> None:
        """Ask for this tick's readings, without waiting."""
        if self.lost:
            return
        try:
            self.arm.request()
        except PortError as error:
            self.lose(Fault.PORT_LOST, str(error))

    def collect(self, deadline_ns: int) -> None:
        """Take the readings; a joint that did not answer is invalid, not as it was before."""
        if self.lost:
            return
        try:
            self.readings = self.arm.collect(deadline_ns)
        except PortError as error:
            self.lose(Fault.PORT_LOST, str(error))
            return
        good = True
        for index, reading in enumerate(self.readings):
            if reading.valid:
                self.position[index] = reading.position
            else:
                good = False
        if not good:
            self.silent += 1
            self.failed += 1
            if self.silent >= self._trust and (self.driven or self._doubt):
                self.driven = False
                self._doubt = self._check
                self.seed(self.guard.last)
            return
        self.silent = 0
        if self._doubt:
            self._doubt -= 1
            self.driven = self._doubt == 0

    @property
    def doubtful(self) -> bool:
        """Whether goals are held back until it is known that no servo has lost its torque.

        A Feetech servo that restarted would switch its torque on with the next goal, and jump.
        """
        return self._doubt > 0

    def leave(self) -> None:
        """Write no more goals: what torque there is holds the arm where it is."""
        self.driven = False
        self._doubt = 0

    def silent_joints(self) -> str:
        """The joints that did not answer in the last tick, in words."""
        missing = [n for n, r in zip(self.names, self.readings, strict=False) if not r.valid]
        return "any servo" if len(missing) == len(self.readings) else ", ".join(missing)

    def look(self) -> Finding | None:
        """The first fault in this tick's readings."""
        found = self.watch.look(self.readings, self.limited, self.engaged)
        if found is not None and found.fault in (Fault.SERVO_ERROR, Fault.TORQUE_LOST):
            self._settings_lost = True
        return found

    # Torque

    def obstacle(self, curable: int = 0) -> str:
        """What speaks against arming, or clearing a fault, "" for nothing.

        `curable`: ServoStatus bits that do not, because clearing ends them.
        """
        if self.lost:
            return self.lost
        if self.silent >= READINGS or not self.readings:
            return f"{self.id}: no answer from {self.silent_joints()}; check cable and power"
        return self.watch.obstacle(self.readings, curable)

    def misplaced(self) -> str:
        """What speaks against arming where the arm stands, "" for nothing."""
        outside = self.guard.outside(self.position)
        return "" if outside is None else f"{outside.reason}; move it inside by hand"

    def engage(self, now_ns: int) -> None:
        """Goal := present, then torque on; limiter and guard start there. Raises BusError."""
        self.engaged = True  # from now on torque may be on
        self._start(self.position, now_ns)
        positions = self.arm.engage()
        outside = self.guard.outside(positions)
        if outside is not None:
            raise BusError(f"{outside.reason}; move it inside by hand")
        self.driven = True
        self._releasing = False
        self._start(positions, now_ns)

    def _start(self, positions: Sequence[float], now_ns: int) -> None:
        """Limiter and guard go on from these goals."""
        self.seed(positions)
        self.guard.start(positions, now_ns)

    def release(self) -> str:
        """Torque off; "" when every servo has confirmed it. Otherwise it is tried again."""
        self.leave()
        self._releasing = self.engaged or self._releasing
        try:
            self.arm.release()
        except BusError as error:
            if isinstance(error, PortError):
                self.lose(Fault.PORT_LOST, str(error))
            return str(error)
        self.engaged = self._releasing = False
        return ""

    def restart_servos(self) -> list[str]:
        """Without torque: restart those that had shut down; their names. Raises BusError."""
        names = [f"{self.id}.{joint}" for joint in self.arm.reboot_alerted()]
        self._settings_lost = self._settings_lost or bool(names)
        return names

    def set_up_again(self) -> None:
        """After a fault, without torque: every servo is set up and well. Raises RobotdError.

        Checked and configured is what may have restarted, or was out of contact.
        """
        if self._settings_lost:
            self.arm.connect()
            self.arm.configure()
            self._settings_lost = False
        self.arm.check_health()

    # Goals

    def seed(self, positions: Sequence[float]) -> None:
        """The limiter continues from these targets, at rest."""
        self.states = [seed(position) for position in positions]
        self.limited = [0] * len(self.names)

    def stopping_points(self) -> list[float]:
        """Where the targets come to rest when they brake from now on."""
        return [stopping_point(s, x) for s, x in zip(self.states, self.limits, strict=True)]

    @property
    def at_rest(self) -> bool:
        """Whether the applied targets stand still."""
        return all(state.step == 0.0 for state in self.states)

    def reached(self, goal: Sequence[float]) -> bool:
        """Whether the applied targets stand at this goal."""
        return self.at_rest and [state.applied for state in self.states] == list(goal)

    def shape(self, wanted: Sequence[float]) -> list[float]:
        """The limiter: targets that may be applied in this tick."""
        applied = []
        states, limited = self.states, self.limited
        for index, asked in enumerate(wanted):
            state, limited[index] = limit(
                asked, self.position[index], states[index], self.limits[index]
            )
            states[index] = state
            applied.append(state.applied)
        return applied

    def check(self, goals: Sequence[float], now_ns: int) -> Block | None:
        """The guard; after a block the limiter continues from the last goals that passed."""
        block = self.guard.check(goals, now_ns)
        if block is not None:
            self.seed(self.guard.last)
        return block

    def write(self) -> None:
        """Write the last goals that passed the guard."""
        if not self.driven or self.lost:
            return
        try:
            self.arm.write(self.guard.last)
        except PortError as error:
            self.lose(Fault.PORT_LOST, str(error))

    # Loss of contact

    def lose(self, fault: Fault, reason: str) -> None:
        """There is no contact any more; the servos hold their last goal by themselves."""
        self.lost, self.lost_fault = reason, fault
        self.leave()
        self._settings_lost = True
        self.readings = [JointReading() for _ in self.names]

    def recover(self) -> None:
        """One cheap step towards contact, and towards torque off where that is outstanding."""
        if self.lost and self.arm.reconnect():
            self.lost = ""
            self.silent = 0
        if self._releasing and not self.lost and not self.silent:
            self.release()


def soft_limits(config: ArmConfig, joint: str, period_s: float) -> JointLimits:
    """The limiter's limits of one joint. Raises ConfigError when they do not fit the guard's."""
    soft, hard = config.soft_limits(joint), config.hard_limits(joint)
    where = f"arms.{config.id}: {joint}"
    if soft.velocity * period_s > hard.step:
        raise ConfigError(
            f"{where}: at {1 / period_s:.0f} Hz the velocity {soft.velocity:g} makes steps of "
            f"{soft.velocity * period_s:.2f}, above guard.{joint}.step {hard.step:g}; raise "
            "control.rate_hz or lower the velocity"
        )
    if soft.velocity * _RATE_MARGIN > hard.rate:
        raise ConfigError(
            f"{where}: guard rate {hard.rate:g} must be at least {_RATE_MARGIN:g} times the "
            f"velocity {soft.velocity:g}"
        )
    try:
        return JointLimits.per_second(
            soft.position, soft.velocity, soft.acceleration, soft.following, period_s
        )
    except ValueError:
        raise ConfigError(
            f"{where}: acceleration {soft.acceleration:g} is too small for velocity "
            f"{soft.velocity:g} at {1 / period_s:.0f} Hz"
        ) from None

"""What every emulated servo is: a control table, a controller, and a motor that draws and warms.

A `Servo` stands between the registers that clients read and write and one joint of a
`Mechanism`. Its two kinds, `dynamixel_servo.DynamixelServo` and `feetech_servo.FeetechServo`,
add their maker's semantics. Time comes in from outside, in nanoseconds of the bus's clock.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from robotd.sim.arms import COUNTS_PER_RAD, Mount
from robotd.sim.control_tables import Item, ServoModel
from robotd.sim.mechanism import Drive, Mechanism, Sensed

TURN = 4096  # counts of one turn
WATCH_NS = 10_000_000  # period of the slow checks: heat, voltage, protections
AMBIENT_C = 25.0
IDLE_RISE_C = 6.0  # above ambient with torque on and no load (estimate)


class Supply:
    """One power rail: its voltage sags with what the servos on it draw."""

    def __init__(self, nominal_v: float, resistance_ohm: float = 0.08) -> None:
        self.nominal_v = nominal_v
        self.resistance_ohm = resistance_ohm  # of supply, board and cables
        self.brownout_v: float | None = None  # what is left of it while it is down
        self.servos: list[Servo] = []

    @property
    def voltage(self) -> float:
        """Present voltage at the servos."""
        if self.brownout_v is not None:
            return self.brownout_v
        drawn = sum(servo.current_a for servo in self.servos)
        return self.nominal_v - self.resistance_ohm * drawn


class Profile:
    """A servo's trajectory generator: bounded speed and acceleration, ends at rest on the goal."""

    __slots__ = ("position", "velocity")

    def __init__(self) -> None:
        self.position = 0.0
        self.velocity = 0.0

    def hold(self, position: float) -> None:
        """Stand still there."""
        self.position = position
        self.velocity = 0.0

    def step(self, goal: float, max_velocity: float, max_acceleration: float, dt_s: float) -> None:
        """One step towards the goal; limits of `math.inf` go there at once."""
        distance = goal - self.position
        reach = max_acceleration * dt_s  # change of speed in one step
        if math.isinf(reach):
            if abs(distance) <= max_velocity * dt_s:
                self.hold(goal)
                return
            wanted = math.copysign(max_velocity, distance)
        else:
            if abs(distance) <= reach * dt_s and abs(self.velocity) <= 2 * reach:
                self.hold(goal)  # closer than one step can resolve
                return
            # The speed from which steps of -reach stop on the goal.
            half = reach / 2
            stoppable = math.sqrt(2 * max_acceleration * abs(distance) + half * half) - half
            wanted = math.copysign(min(max_velocity, stoppable), distance)
            wanted = max(self.velocity - reach, min(self.velocity + reach, wanted))
        self.position += wanted * dt_s
        self.velocity = wanted


class Servo(ABC):
    """One servo on one joint. Counts are encoder counts, 4096 a turn."""

    ready_after_ns: int  # how long it is silent after power-on or reboot

    def __init__(
        self, model: ServoModel, mount: Mount, joint: int, mechanism: Mechanism, supply: Supply
    ) -> None:
        self.model = model
        self.mount = mount
        self.joint = joint
        self.mechanism = mechanism
        self.supply = supply
        supply.servos.append(self)
        self.rom = model.factory()  # what it keeps without power
        self.table = bytearray(self.rom)
        self.connected = True  # plugged into the chain
        self.deaf = False  # neither hears nor answers (injected)
        self.ready_ns = 0  # silent until then
        self.torque_on = False
        self.drive = Drive()
        self.profile = Profile()
        self.settled = True  # the profile has arrived: nothing to do until something is written
        self.temperature_c = AMBIENT_C
        self.current_a = model.electrics.idle_a
        self.load = 0.0  # signed fraction of the stall torque, positive towards higher counts
        self.registered: tuple[int, bytes] | None = None
        self._watched_ns: int | None = None
        self._voltage_v = supply.nominal_v
        self._at = {item.name: item for item in model.items}
        self.id = 0
        self.baud = 0
        self.reply_delay_ns = 0

    # -- registers

    def item(self, name: str) -> Item:
        """The register of that name. KeyError when this model has none."""
        return self._at[name]

    def get(self, name: str) -> int:
        """Value of a register, as the servo itself sees it."""
        item = self._at[name]
        raw = int.from_bytes(self.table[item.address : item.address + item.size], "little")
        return item.decode(raw)

    def set(self, name: str, value: int) -> None:
        """Change a register from inside: no checks, not kept without power."""
        item = self._at[name]
        data = item.encode(value).to_bytes(item.size, "little")
        self.table[item.address : item.address + item.size] = data

    def keep(self, name: str, value: int) -> None:
        """Change a register from inside and keep it without power."""
        self.set(name, value)
        item = self._at[name]
        span = slice(item.address, item.address + item.size)
        self.rom[span] = self.table[span]

    # -- life

    def power_on(self, now_ns: int) -> None:
        """Start from what is kept: at once with `now_ns` 0, else after the boot time."""
        self.table[:] = self.rom
        self.torque_on = False
        self.registered = None
        self.ready_ns = now_ns + (self.ready_after_ns if now_ns else 0)
        self.address()
        self._start()
        self._apply_drive()

    def address(self) -> None:
        """Take id, baud rate and reply delay from the table."""
        self.id = self.get("ID")
        self.baud = self.model.bauds.get(self.get("Baud_Rate"), 0)
        self.reply_delay_ns = self.get("Return_Delay_Time") * 2000

    def tick(self, now_ns: int, dt_s: float) -> None:
        """Run the controller over the step of time that ends now."""
        if self.torque_on and not self.settled:
            self._control(dt_s)
            self._apply_drive()
        if self._watched_ns is None:
            self._watched_ns = now_ns
        elif now_ns - self._watched_ns >= WATCH_NS:
            self._watch(now_ns, (now_ns - self._watched_ns) * 1e-9)
            self._watched_ns = now_ns

    def _watch(self, now_ns: int, dt_s: float) -> None:
        electrics = self.model.electrics
        sensed = self.mechanism.sense(self.joint)
        self.load = sensed.torque * self.mount.sign
        effort = min(1.0, abs(sensed.torque))
        self.current_a = electrics.idle_a + effort * electrics.stall_a
        rise = IDLE_RISE_C * self.torque_on + electrics.heat_rise_c * effort * effort
        lag = 1.0 - math.exp(-dt_s / electrics.heat_time_s)
        self.temperature_c += (AMBIENT_C + rise - self.temperature_c) * lag
        self._voltage_v = self.supply.voltage
        if self._voltage_v < electrics.brownout_v:
            self.power_on(now_ns)
            return
        self._protect(now_ns, dt_s)

    @property
    def voltage_v(self) -> float:
        """Supply voltage as last measured."""
        return self._voltage_v

    # -- motion, common to both kinds

    def sensed(self) -> Sensed:
        """The joint's true state."""
        return self.mechanism.sense(self.joint)

    def actual(self) -> float:
        """Encoder reading without rounding, counted on over the turns."""
        return self.mount.actual_counts(self.mechanism.sense(self.joint).position_rad)

    def _apply_drive(self) -> None:
        self.drive.torque_on = self.torque_on
        self.mechanism.drive(self.joint, self.drive)

    def _push(self, effort: float) -> None:
        """Drive open-loop: a signed fraction of the full output, positive towards higher counts."""
        sign = self.mount.sign if effort >= 0 else -self.mount.sign
        self.drive.goal_rad = self.sensed().position_rad + sign * 1.0
        self.drive.torque_limit = min(1.0, abs(effort))
        self.drive.velocity_limit_rad_s = self.mount.motor.max_speed_rad_s * min(1.0, abs(effort))
        self.drive.stiffness = 1.0

    @abstractmethod
    def _start(self) -> None:
        """Set what power-on sets: RAM defaults, goal := present."""

    @abstractmethod
    def _control(self, dt_s: float) -> None:
        """Move profile and drive on by a step; torque is on."""

    @abstractmethod
    def _protect(self, now_ns: int, dt_s: float) -> None:
        """Watch voltage, heat and load; react as configured."""

    @abstractmethod
    def refresh(self, now_ns: int) -> None:
        """Bring the table's present values up to date."""

    @abstractmethod
    def settle(self) -> None:
        """The joint was put elsewhere from outside: goal := present, so that nothing jumps."""

    @abstractmethod
    def recover(self) -> None:
        """Forget loads that lasted; what only a restart clears stays."""

    @abstractmethod
    def overload(self) -> None:
        """Behave as after a load that lasted too long."""


def max_counts_per_s(mount: Mount) -> float:
    """The motor's speed without load, in counts per second."""
    return mount.motor.max_speed_rad_s * COUNTS_PER_RAD

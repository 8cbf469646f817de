"""An emulated Feetech STS3215: what it does with its registers.

Source: Feetech's memory table. A status packet acknowledges receipt only: a value out of range is
cut to it and one for a read-only register is dropped, both without an error. Known habits kept
here: the lock decides whether EEPROM writes survive a power cycle, not whether they are taken;
writing a goal position switches torque on (the maker's examples rely on it); torque-on goes to
whatever the goal register says, which is the present position only after power-on; Max Torque
reaches the Torque Limit that is in force at power-on only.
"""

from __future__ import annotations

import math
import struct

from robotd.sim.arms import COUNTS_PER_RAD, Mount
from robotd.sim.control_tables import Item, ServoModel
from robotd.sim.mechanism import Mechanism
from robotd.sim.servos import TURN, Servo, Supply, max_counts_per_s

# Bits of Status, Unloading Condition and of the error byte.
VOLTAGE, SENSOR, OVERHEAT, OVERCURRENT, ANGLE, OVERLOAD = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
POSITION_MODE, VELOCITY_MODE, PWM_MODE, STEP_MODE = 0, 1, 2, 3
CALIBRATE = 128  # written to Torque_Enable: here is 2048
_FINE_VELOCITY = 0x04  # Phase: velocities in counts/s, else in 50 counts/s
_MULTI_TURN = 0x10  # Phase: feedback counts on over the turns
_CURRENT_STEP_A = 0.0065
_PRESENT = struct.Struct("<HHHBBBBBxxHH")  # registers 56 to 72
_PRESENT_AT = 56
_GOAL_AT = 42
PRESENT_END = 73


def _sign(value: int, bit: int) -> int:
    top = (1 << bit) - 1
    return min(-value, top) | 1 << bit if value < 0 else min(value, top)


class FeetechServo(Servo):
    """One STS3215."""

    ready_after_ns = 800_000_000

    def __init__(
        self, model: ServoModel, mount: Mount, joint: int, mechanism: Mechanism, supply: Supply
    ) -> None:
        super().__init__(model, mount, joint, mechanism, supply)
        self._status = 0
        self._overloaded = False
        self._overload_s = 0.0
        self._overcurrent_s = 0.0
        self._goal = 0.0  # in counts of the encoder, counted on over the turns
        self._goal_side = 0.0  # goal minus position when it was written
        self._limits = (math.inf, math.inf)
        self._stiffness, self._limit = 1.0, 1.0  # of the drive
        self._mode = POSITION_MODE
        self._bounds = (0, 4095)
        self._offset = 0
        self._multi_turn = False
        self._velocity_step = 1.0  # counts/s per step of the velocity registers
        self._scale = mount.sign * COUNTS_PER_RAD
        self._zero = mount.zero_counts
        self._full_current = model.electrics.stall_a / _CURRENT_STEP_A
        self._shown_volts = round(self._voltage_v * 10)
        self._shown_degrees = round(self.temperature_c)
        self.power_on(0)

    # -- protocol side

    @property
    def status(self) -> int:
        """The error byte of every status packet."""
        return self._status

    def read(self, address: int, length: int) -> bytes:
        """Bytes of the table (refresh it first); beyond its end they are 0."""
        return bytes(self.table[address : address + length]).ljust(length, b"\0")

    def write(self, address: int, data: bytes) -> None:
        """Write what the bytes cover; whole registers only, anything else is dropped."""
        at, end = address, address + len(data)
        if at == _GOAL_AT and len(data) == 2 and self.torque_on:  # the write of every tick
            self.table[at:end] = data
            self._new_goal()
            return
        moved = False
        while at < end:
            item = self.model.by_address.get(at)
            if item is None or at + item.size > end:
                at += 1
                continue
            if item.writable:
                raw = int.from_bytes(data[at - address : at - address + item.size], "little")
                self._store(item, item.decode(raw))
                moved = moved or item.name == "Goal_Position"
            at += item.size
        if end > 40:
            self._replan()
        if moved:
            self._new_goal()

    def _store(self, item: Item, value: int) -> None:
        if item.low is not None and item.high is not None:
            value = max(item.low, min(item.high, value))
        if item.name == "Torque_Enable":
            self._torque(value)
            return
        span = slice(item.address, item.address + item.size)
        self.table[span] = item.encode(value).to_bytes(item.size, "little")
        if item.address >= self.model.eeprom_end:
            return
        if not self.get("Lock"):
            self.rom[span] = self.table[span]
        self._take_units()
        if item.name in ("ID", "Baud_Rate", "Return_Delay_Time"):
            self.address()
        elif item.name == "Operating_Mode":
            self._hold_here()

    def _torque(self, value: int) -> None:
        if value == CALIBRATE:
            offset = round(self.actual()) % TURN - TURN // 2
            self.keep("Homing_Offset", max(-2047, min(2047, offset)))
            self._take_units()
            self._hold_here()
            return
        on = value == 1
        self.set("Torque_Enable", value if value <= 2 else 0)
        if on and not self.torque_on:
            self._clear_protections()
            self.profile.hold(self.actual())
            self._aim()
        self.torque_on = on
        self.settled = False
        if not on:
            self._apply_drive()

    def _new_goal(self) -> None:
        if self._mode == STEP_MODE:
            self._goal = self.profile.position + self.get("Goal_Position")
        else:
            side = self._goal_side
            self._aim()
            if self._overloaded and side * self._goal_side < 0:
                self._clear_protections()  # driven the other way: released
        if not self.torque_on and not self._tripped():
            self._torque(1)
        self.settled = False

    def _tripped(self) -> bool:
        """Torque was taken away by heat, voltage or current that still lasts."""
        return bool(self._status & self.get("Unloading_Condition") & ~OVERLOAD)

    # -- position

    def _frame(self, actual: float) -> float:
        """An encoder reading as the position registers count it, before rounding."""
        position = actual - self._offset
        return position if self._multi_turn else position % TURN

    def position(self) -> int:
        """Present Position."""
        position = round(self._frame(self.actual()))
        return position if self._multi_turn else position % TURN

    def _take_units(self) -> None:
        """Take mode, offset, limits and units from the table."""
        phase = self.get("Phase")
        self._mode = self.get("Operating_Mode")
        self._bounds = self.get("Min_Position_Limit"), self.get("Max_Position_Limit")
        self._offset = self.get("Homing_Offset")
        self._multi_turn = bool(phase & _MULTI_TURN)
        self._velocity_step = 1.0 if phase & _FINE_VELOCITY else 50.0
        self._take_effort()

    def _aim(self) -> None:
        """Turn the goal register into encoder counts; single-turn goals never cross 0 / 4095."""
        raw = self.table[_GOAL_AT] | self.table[_GOAL_AT + 1] << 8
        goal = 0x8000 - raw if raw & 0x8000 else raw
        low, high = self._bounds
        if low < high:
            goal = max(low, min(high, goal))
        actual = self.actual()
        here = self._frame(actual)
        if not self._multi_turn and TURN - here < 0.5:
            here -= TURN  # it reads 0
        self._goal_side = goal - here
        self._goal = actual + self._goal_side

    def _hold_here(self) -> None:
        actual = self.actual()
        self.set("Goal_Position", self.position())
        self.profile.hold(actual)
        self._goal = actual
        self._goal_side = 0.0
        self._replan()

    def settle(self) -> None:
        self._hold_here()
        if self.torque_on:
            self._control(0.002)
            self._apply_drive()

    # -- control

    def _replan(self) -> None:
        self._take_effort()
        acceleration = self.get("Acceleration")
        ceiling = self.get("Maximum_Acceleration") or 254
        velocity = abs(self.get("Goal_Velocity")) * self._velocity_step
        if acceleration:
            top = velocity or max_counts_per_s(self.mount)
            self._limits = (top, min(acceleration, ceiling) * 100.0)
        else:
            self._limits = (velocity or math.inf, math.inf)
        self.settled = False

    def _control(self, dt_s: float) -> None:
        mode = self._mode
        drive = self.drive
        if mode == PWM_MODE:
            self._push(self.get("Goal_Time") / 1000)
            drive.torque_limit = min(drive.torque_limit, self._limit)
            return
        drive.stiffness = self._stiffness
        drive.torque_limit = self._limit
        drive.velocity_limit_rad_s = math.inf
        if mode == VELOCITY_MODE:
            self._spin(self.get("Goal_Velocity") * self._velocity_step, dt_s)
        else:
            self.profile.step(self._goal, *self._limits, dt_s)
            self.settled = self.profile.velocity == 0.0 and self.profile.position == self._goal
        drive.goal_rad = self.mount.rad_from_actual(self.profile.position)

    def _spin(self, goal: float, dt_s: float) -> None:
        reach = self._limits[1] * dt_s
        change = goal - self.profile.velocity
        self.profile.velocity += max(-reach, min(reach, change))
        here = self.actual()
        ahead = self.profile.position + self.profile.velocity * dt_s
        self.profile.position = max(here - 150.0, min(here + 150.0, ahead))  # no wind-up

    def _take_effort(self) -> None:
        """Take gain and torque limit from the table."""
        self._stiffness = self.get("P_Coefficient") / self.mount.motor.default_p_gain
        self._limit = self.get("Torque_Limit") / 1000
        if self._overloaded:
            self._limit = min(self._limit, self.get("Protective_Torque") / 100)

    # -- protections

    def _protect(self, now_ns: int, dt_s: float) -> None:
        status = 0
        volts = self._voltage_v * 10
        if not self.get("Min_Voltage_Limit") <= volts <= self.get("Max_Voltage_Limit"):
            status |= VOLTAGE
        if self.temperature_c > self.get("Max_Temperature_Limit"):
            status |= OVERHEAT
        self._watch_load(dt_s)
        if self._overloaded:
            status |= OVERLOAD
        if self._watch_current(dt_s) or (self._status & OVERCURRENT and not self.torque_on):
            status |= OVERCURRENT
        self._status = status
        self._shown_volts = max(0, min(255, round(volts)))
        self._shown_degrees = max(0, min(255, round(self.temperature_c)))
        if self.torque_on and self._tripped():
            self.set("Torque_Enable", 0)
            self.torque_on = False
            self._apply_drive()

    def _watch_load(self, dt_s: float) -> None:
        heavy = self.torque_on and abs(self.load) * 100 > self.get("Overload_Torque")
        if not heavy or self._overloaded:
            self._overload_s = 0.0
            return
        self._overload_s += dt_s
        if self._overload_s * 100 >= self.get("Protection_Time"):
            self.overload()

    def _watch_current(self, dt_s: float) -> bool:
        drawn = self.current_a / _CURRENT_STEP_A
        self._overcurrent_s = (
            self._overcurrent_s + dt_s if drawn > self.get("Protection_Current") else 0.0
        )
        return self._overcurrent_s * 100 >= max(1, self.get("Over_Current_Protection_Time"))

    def overload(self) -> None:
        if self.get("Unloading_Condition") & OVERLOAD:
            self._overloaded = True
        self._status |= OVERLOAD
        self._take_effort()
        self.settled = False

    def recover(self) -> None:
        self._clear_protections()

    def _clear_protections(self) -> None:
        self._overloaded = False
        self._overload_s = self._overcurrent_s = 0.0
        self._status &= ~(OVERLOAD | OVERCURRENT)
        self._take_effort()
        self.settled = False

    # -- what it shows

    def _start(self) -> None:
        self._status = 0
        self._clear_protections()
        self._take_units()
        self.set("Torque_Limit", self.get("Max_Torque_Limit"))
        self._hold_here()

    def factory_reset(self, now_ns: int) -> None:
        """Everything as delivered except the id; it restarts afterwards."""
        kept = self.get("ID")
        self.rom[:] = self.model.factory()
        self.table[:] = self.rom
        self.keep("ID", kept)
        self.power_on(now_ns)

    def refresh(self, now_ns: int) -> None:
        sensed = self.mechanism.sense(self.joint)
        position = round(self._scale * sensed.position_rad + self._zero - self._offset)
        if not self._multi_turn:
            position %= TURN
        speed = round(self._scale * sensed.velocity_rad_s / self._velocity_step)
        load = sensed.torque * self.mount.sign
        moving = self.torque_on and (not self.settled or abs(speed) > self.table[80])
        _PRESENT.pack_into(
            self.table,
            _PRESENT_AT,
            _sign(position, 15),
            _sign(speed, 15),
            _sign(round(load * 1000), 10),
            self._shown_volts,
            self._shown_degrees,
            self.registered is not None,
            self._status,
            moving,
            _sign(round(load * self._full_current), 15),
            self.table[42] | self.table[43] << 8,
        )

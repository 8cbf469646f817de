"""An emulated Dynamixel X servo: what XL430-W250, XL330-M288 and XL330-M077 do with registers.

Source: ROBOTIS e-Manual, the models' control tables. Where it is silent: a load of 95 % of the
full output for five seconds counts as overload; torque-on goes to whatever Goal Position says,
which is the present position only after power-on and after a change of mode.
"""

from __future__ import annotations

import math
import struct

from robotd.sim.arms import COUNTS_PER_RAD, Mount
from robotd.sim.control_tables import Item, ServoModel
from robotd.sim.dynamixel_table import (
    DATA_LIMIT,
    EXTENDED_MODE,
    GOALS,
    GRIP_MODE,
    POSITION_MODE,
    PWM_MODE,
    VELOCITY_MODE,
    DynamixelTable,
)
from robotd.sim.mechanism import Mechanism
from robotd.sim.servos import TURN, Supply, max_counts_per_s

ALERT = 0x80  # in the error byte, while Hardware Error Status is not 0
# Bits of Hardware Error Status and Shutdown.
VOLTAGE, OVERHEAT, OVERLOAD = 0x01, 0x04, 0x20
_POSITION_MODES = (POSITION_MODE, EXTENDED_MODE, GRIP_MODE)
_RPM_STEP = 0.229  # rev/min per step of a velocity register
_COUNTS_S = _RPM_STEP / 60 * TURN  # counts/s per step
_COUNTS_S2 = 214.577 / 3600 * TURN  # counts/s^2 per step of Profile Acceleration
_OVERLOAD_S = 5.0
_FULL = 0.95  # of the output allowed: counts as full
_PRESENT = struct.Struct("<HBBhhiiii")  # registers 120 to 143
_PRESENT_AT = 120
_GOAL_AT = 116


class DynamixelServo(DynamixelTable):
    """One X-series servo."""

    ready_after_ns = 300_000_000

    def __init__(
        self, model: ServoModel, mount: Mount, joint: int, mechanism: Mechanism, supply: Supply
    ) -> None:
        super().__init__(model, mount, joint, mechanism, supply)
        self._goal = 0
        self._direction = 1
        self._turns = 0  # counts added so that readings after a reset lie within one turn
        self._homing = 0
        self._sense, self._scale, self._zero = 1, 1.0, 0.0  # see _origin
        self._top_speed = max_counts_per_s(mount)
        self._full_load = model.electrics.stall_a * 1000 if self.senses_current else 1000.0
        self._moving_above = 0
        self._profile_kind = 0
        self._plain_goal: tuple[int, int] | None = None  # goals that need no more than this
        self._stiffness, self._limit = 1.0, 1.0  # of the drive
        self._limits = (math.inf, math.inf)  # of the profile: counts/s, counts/s^2
        self._shut_down = False
        self._overload_s = 0.0
        self.heard_ns = 0  # last instruction packet on the bus
        self.power_on(0)

    # -- protocol side

    def write(self, address: int, data: bytes) -> int:
        if address != _GOAL_AT or len(data) != 4 or not self.torque_on or self._plain_goal is None:
            return super().write(address, data)
        goal = int.from_bytes(data, "little", signed=True)  # the write of every tick
        if not self._plain_goal[0] <= goal <= self._plain_goal[1]:
            return DATA_LIMIT
        self.table[_GOAL_AT : _GOAL_AT + 4] = data
        self._goal = goal
        self.settled = False
        return 0

    @property
    def alert(self) -> int:
        """The alert bit of every status packet."""
        return ALERT if self.table[70] else 0

    def _store(self, item: Item, value: int) -> None:
        if item.name == "Torque_Enable" and value and self._shut_down:
            return  # only a reboot brings torque back (e-Manual, Shutdown)
        span = slice(item.address, item.address + item.size)
        self.table[span] = item.encode(value).to_bytes(item.size, "little")
        if item.address < self.model.eeprom_end:
            self.rom[span] = self.table[span]
            self._configured(item.name)
            self._replan()
            return
        if item.name == "Torque_Enable":
            self._torque(bool(value))
        elif item.name in GOALS and not self.torque_on and self.table[10] & 0x08:
            self.set("Torque_Enable", 1)  # Drive Mode: torque on by goal update
            self._torque(True)
        self._replan()

    def _configured(self, name: str) -> None:
        if name in ("ID", "Baud_Rate", "Return_Delay_Time"):
            self.address()
        elif name == "Operating_Mode":
            if self.get("Operating_Mode") != self._mode:
                self._change_mode()
        elif name in ("Drive_Mode", "Homing_Offset"):
            before = self._direction
            self._frame()
            if self._direction != before:
                self.within_one_turn()  # as it will be after a restart
            self._goal_here()

    def _change_mode(self) -> None:
        self._frame()
        for gain in ("Position_P_Gain", "Position_I_Gain", "Position_D_Gain"):
            self.set(gain, self.item(gain).default)
        for name in ("Velocity_P_Gain", "Velocity_I_Gain"):
            self.set(name, self.item(name).default)
        self.set("Profile_Velocity", 0)
        self.set("Profile_Acceleration", 0)
        self._full_goals()
        if self._mode == POSITION_MODE:
            self.within_one_turn()
        self._goal_here()

    def _full_goals(self) -> None:
        self.set("Goal_PWM", self.get("PWM_Limit"))
        if self.senses_current:
            self.set("Goal_Current", self.get("Current_Limit"))

    def _torque(self, on: bool) -> None:
        if on and not self.torque_on:
            if self._mode == POSITION_MODE:
                self.within_one_turn()
            self.profile.hold(self.position())
            self.heard_ns = 0
            self._overload_s = 0.0
        self.torque_on = on
        self.settled = False
        if not on:
            self._apply_drive()

    # -- position

    def _frame(self) -> None:
        """Take direction, mode and homing offset from the table."""
        self._direction = -1 if self.get("Drive_Mode") & 1 else 1
        self._mode = self.get("Operating_Mode")
        homing = self.get("Homing_Offset")
        # Position control mode ignores an offset beyond a quarter turn (e-Manual, Homing Offset).
        self._homing = 0 if self._mode == POSITION_MODE and abs(homing) > 1024 else homing

        self._origin()

    def within_one_turn(self) -> None:
        """Forget whole turns: the reading without homing offset starts again in 0..4095."""
        self._turns = -math.floor(self._direction * self.actual() / TURN) * TURN
        self._origin()

    def _origin(self) -> None:
        """Position registers read scale * rad + zero."""
        self._sense = self._direction * self.mount.sign
        self._scale = self._sense * COUNTS_PER_RAD
        self._zero = self._direction * self.mount.zero_counts + self._turns + self._homing

    def position(self) -> float:
        """Present Position before rounding."""
        return self._scale * self.sensed().position_rad + self._zero

    def _rad(self, position: float) -> float:
        return (position - self._zero) / self._scale

    def _goal_here(self) -> None:
        here = self.position()
        self.set("Goal_Position", round(here))
        self.profile.hold(here)
        self._replan()

    def settle(self) -> None:
        if self._mode == POSITION_MODE and not self.torque_on:
            self.within_one_turn()
        self._goal_here()
        if self.torque_on:
            self._control(0.002)
            self._apply_drive()

    # -- control

    def _replan(self) -> None:
        self._goal = self.get("Goal_Position")
        self._stiffness = self.get("Position_P_Gain") / self.mount.motor.default_p_gain
        self._limit = self._output_limit()
        self._limits = self._profile_limits()
        bounded = [not math.isinf(limit) for limit in self._limits]
        self._profile_kind = 0x30 if bounded[1] else 0x10 if bounded[0] else 0
        self._moving_above = self.get("Moving_Threshold")
        timed = self.get("Drive_Mode") & 0x04 or self.get("Bus_Watchdog") < 0
        self._plain_goal = None if timed else self._allowed("Goal_Position")
        self.settled = False

    def _profile_limits(self) -> tuple[float, float]:
        velocity, acceleration = self.get("Profile_Velocity"), self.get("Profile_Acceleration")
        if self.get("Drive_Mode") & 0x04 and velocity:  # time-based: ms
            total_s = velocity * 1e-3
            ramp_s = min(acceleration * 1e-3, total_s / 2)
            top = abs(self._goal - self.profile.position) / max(1e-3, total_s - ramp_s)
            return max(top, 1.0), top / ramp_s if ramp_s else math.inf
        if not velocity and not acceleration:
            return math.inf, math.inf
        top = velocity * _COUNTS_S if velocity else self._top_speed
        return top, acceleration * _COUNTS_S2 if acceleration else math.inf

    def _control(self, dt_s: float) -> None:
        drive = self.drive
        if self._mode in _POSITION_MODES:
            self.profile.step(self._goal, *self._limits, dt_s)
            drive.goal_rad = self._rad(self.profile.position)
            drive.stiffness = self._stiffness
            drive.torque_limit = self._limit
            drive.velocity_limit_rad_s = math.inf
            self.settled = self.profile.velocity == 0.0 and self.profile.position == self._goal
        elif self._mode == VELOCITY_MODE:
            self._spin(self.get("Goal_Velocity") * _COUNTS_S, dt_s)
        elif self._mode == PWM_MODE:
            self._push(self._direction * self.get("Goal_PWM") / 885)
        else:
            self._push(self._direction * self.get("Goal_Current") / self._full_current_ma())

    def _spin(self, goal: float, dt_s: float) -> None:
        acceleration = self._limits[1]
        change = goal - self.profile.velocity
        reach = acceleration * dt_s
        self.profile.velocity += max(-reach, min(reach, change))
        here = self.position()
        ahead = self.profile.position + self.profile.velocity * dt_s
        self.profile.position = max(here - 150.0, min(here + 150.0, ahead))  # no wind-up
        self.drive.goal_rad = self._rad(self.profile.position)
        self.drive.stiffness = 1.0
        self.drive.torque_limit = self._limit
        self.drive.velocity_limit_rad_s = math.inf

    def _output_limit(self) -> float:
        """Fraction of the full output that mode and limits allow."""
        allowed = min(abs(self.get("Goal_PWM")), self.get("PWM_Limit")) / 885
        if self._mode == GRIP_MODE:
            allowed = min(allowed, abs(self.get("Goal_Current")) / self._full_current_ma())
        return min(1.0, allowed)

    def _full_current_ma(self) -> float:
        return self.model.electrics.stall_a * 1000

    # -- protections

    def _protect(self, now_ns: int, dt_s: float) -> None:
        volts = self._voltage_v * 10
        found = 0
        if not self.get("Min_Voltage_Limit") <= volts <= self.get("Max_Voltage_Limit"):
            found |= VOLTAGE
        if self.temperature_c > self.get("Temperature_Limit"):
            found |= OVERHEAT
        # A grip that is limited may push for ever.
        full = self.torque_on and self._limit >= _FULL and abs(self.load) >= _FULL * self._limit
        self._overload_s = self._overload_s + dt_s if full else 0.0
        if self._overload_s >= _OVERLOAD_S:
            found |= OVERLOAD
        self.set("Present_Input_Voltage", max(0, round(volts)))
        self.set("Present_Temperature", max(0, min(255, round(self.temperature_c))))
        if found & ~self.table[70]:
            self._fault(found)
        self._watchdog(now_ns)

    def _fault(self, bits: int) -> None:
        self.table[70] |= bits
        if bits & self.get("Shutdown"):
            self._shut_down = True
            self.set("Torque_Enable", 0)
            self._torque(False)

    def overload(self) -> None:
        self._fault(OVERLOAD)

    def recover(self) -> None:
        self._overload_s = 0.0

    def _watchdog(self, now_ns: int) -> None:
        period = self.get("Bus_Watchdog")
        if period <= 0 or not self.torque_on:
            return
        if not self.heard_ns:
            self.heard_ns = now_ns
        if now_ns - self.heard_ns > period * 20_000_000:
            self.set("Bus_Watchdog", -1)
            self.set("Goal_Velocity", 0)
            self.set("Goal_PWM", 0 if self._mode == PWM_MODE else self.get("Goal_PWM"))
            self.set("Profile_Velocity", 0)
            self.set("Profile_Acceleration", 0)
            self._goal_here()

    # -- what it shows

    def _start(self) -> None:
        self._shut_down = False
        self._overload_s = 0.0
        self.heard_ns = 0
        self._frame()
        self.within_one_turn()
        self._full_goals()
        self.set("Present_Input_Voltage", max(0, round(self._voltage_v * 10)))
        self.set("Present_Temperature", max(0, min(255, round(self.temperature_c))))
        self._goal_here()

    def factory_reset(self, keep: tuple[str, ...], now_ns: int) -> None:
        """Everything as delivered, but for the registers named; it restarts afterwards."""
        kept = {name: self.get(name) for name in keep}
        self.rom[:] = self.model.factory()
        self.table[:] = self.rom
        for name, value in kept.items():
            self.keep(name, value)
        self.power_on(now_ns)

    def clear_turns(self) -> bool:
        """Clear instruction: readings within one turn again. False while it moves."""
        if self.table[122]:
            return False
        self.within_one_turn()
        self._goal_here()
        return True

    def refresh(self, now_ns: int) -> None:
        sensed = self.mechanism.sense(self.joint)
        position = self._scale * sensed.position_rad + self._zero
        counts_s = self._scale * sensed.velocity_rad_s
        load = sensed.torque * self._sense
        speed = round(counts_s / _COUNTS_S)
        pwm = round((load + counts_s / self._top_speed) * 885) if self.torque_on else 0
        profile = self.profile
        _PRESENT.pack_into(
            self.table,
            _PRESENT_AT,
            now_ns // 1_000_000 % 32768,
            speed > self._moving_above or -speed > self._moving_above,
            self._moving_status(position),
            885 if pwm > 885 else -885 if pwm < -885 else pwm,
            round(load * self._full_load),
            speed,
            round(position),
            round(profile.velocity / _COUNTS_S),
            round(profile.position),
        )

    def _moving_status(self, position: float) -> int:
        if self.torque_on and not self.settled:
            return self._profile_kind | 0x02
        return self._profile_kind | (-20 < self._goal - position < 20)

"""Register tables of the supported servos, one line per register, and their fixed properties.

Sources:
  XL430-W250, XL330-M288, XL330-M077   ROBOTIS e-Manual, control table of each model,
                                       https://emanual.robotis.com/docs/en/dxl/x/<model>/
  STS3215                              Feetech SMS/STS memory table
                                       (doc.feetech.cn, FT-SMS-STS-emanual)
Names are those of LeRobot's tables, so that its users find them again. Values of registers are
little-endian in both families.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
GRIPPER = "gripper"
COUNTS_PER_TURN = 4096


class Protocol(Enum):
    """The two languages on the wire."""

    DYNAMIXEL = "dynamixel"  # Protocol 2.0
    FEETECH = "feetech"  # STS


class Sign(Enum):
    """How a register stores negative values. Feetech gives the number of the sign bit."""

    UNSIGNED = -1
    TWOS = 0
    BIT10 = 10
    BIT11 = 11
    BIT15 = 15


@dataclass(frozen=True, slots=True)
class Register:
    """One register: where it is, how wide, what one step of it means."""

    name: str
    address: int
    size: int  # bytes
    unit: str = ""  # of one step
    sign: Sign = Sign.UNSIGNED
    writable: bool = True
    eeprom: bool = False  # kept without power; Dynamixel: writable only with torque off

    def decode(self, data: bytes) -> int:
        """The value in `size` little-endian bytes, with its sign."""
        raw = int.from_bytes(data[: self.size], "little")
        if self.sign is Sign.UNSIGNED:
            return raw
        if self.sign is Sign.TWOS:
            half = 1 << (8 * self.size - 1)
            return (raw ^ half) - half
        sign_bit: int = 1 << self.sign.value
        magnitude = raw & (sign_bit - 1)
        return -magnitude if raw & sign_bit else magnitude

    def encode(self, value: int) -> bytes:
        """`value` as the register stores it. Raises ValueError when it does not fit."""
        low, high = self.range
        if not low <= value <= high:
            raise ValueError(f"{self.name} takes {low} to {high}, not {value}")
        if value < 0:
            value = value + (1 << 8 * self.size) if self.sign is Sign.TWOS else self._signed(value)
        return value.to_bytes(self.size, "little")

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest value that can be encoded."""
        if self.sign is Sign.UNSIGNED:
            return 0, (1 << 8 * self.size) - 1
        if self.sign is Sign.TWOS:
            half = 1 << (8 * self.size - 1)
            return -half, half - 1
        largest = (1 << self.sign.value) - 1
        return -largest, largest

    def _signed(self, value: int) -> int:
        return -value | 1 << self.sign.value


type Table = Mapping[str, Register]


def _rom(
    name: str, address: int, size: int, unit: str = "", sign: Sign = Sign.UNSIGNED
) -> Register:
    return Register(name, address, size, unit, sign, eeprom=True)


def _ram(
    name: str, address: int, size: int, unit: str = "", sign: Sign = Sign.UNSIGNED
) -> Register:
    return Register(name, address, size, unit, sign)


def _now(
    name: str, address: int, size: int, unit: str = "", sign: Sign = Sign.UNSIGNED
) -> Register:
    return Register(name, address, size, unit, sign, writable=False)


def _table(*rows: Register) -> Table:
    return MappingProxyType({row.name: row for row in rows})


_TWOS = Sign.TWOS

_X_COMMON = (
    Register("Model_Number", 0, 2, writable=False, eeprom=True),
    Register("Model_Information", 2, 4, writable=False, eeprom=True),
    Register("Firmware_Version", 6, 1, writable=False, eeprom=True),
    _rom("ID", 7, 1),
    _rom("Baud_Rate", 8, 1),
    _rom("Return_Delay_Time", 9, 1, "2 us"),
    _rom("Drive_Mode", 10, 1),
    _rom("Operating_Mode", 11, 1),
    _rom("Secondary_ID", 12, 1),
    _rom("Protocol_Type", 13, 1),
    _rom("Homing_Offset", 20, 4, "count", _TWOS),
    _rom("Moving_Threshold", 24, 4, "0.229 rpm"),
    _rom("Temperature_Limit", 31, 1, "degC"),
    _rom("Max_Voltage_Limit", 32, 2, "0.1 V"),
    _rom("Min_Voltage_Limit", 34, 2, "0.1 V"),
    _rom("PWM_Limit", 36, 2, "0.113 %"),
    _rom("Velocity_Limit", 44, 4, "0.229 rpm"),
    _rom("Max_Position_Limit", 48, 4, "count"),
    _rom("Min_Position_Limit", 52, 4, "count"),
    _rom("Startup_Configuration", 60, 1),
    _rom("Shutdown", 63, 1),
    _ram("Torque_Enable", 64, 1),
    _ram("LED", 65, 1),
    _ram("Status_Return_Level", 68, 1),
    _now("Registered_Instruction", 69, 1),
    _now("Hardware_Error_Status", 70, 1),
    _ram("Velocity_I_Gain", 76, 2),
    _ram("Velocity_P_Gain", 78, 2),
    _ram("Position_D_Gain", 80, 2),
    _ram("Position_I_Gain", 82, 2),
    _ram("Position_P_Gain", 84, 2),
    _ram("Feedforward_2nd_Gain", 88, 2),
    _ram("Feedforward_1st_Gain", 90, 2),
    _ram("Bus_Watchdog", 98, 1, "20 ms"),
    _ram("Goal_PWM", 100, 2, "0.113 %", _TWOS),
    _ram("Goal_Velocity", 104, 4, "0.229 rpm", _TWOS),
    _ram("Profile_Acceleration", 108, 4, "214.577 rpm/min"),
    _ram("Profile_Velocity", 112, 4, "0.229 rpm"),
    _ram("Goal_Position", 116, 4, "count", _TWOS),
    _now("Realtime_Tick", 120, 2, "ms"),
    _now("Moving", 122, 1),
    _now("Moving_Status", 123, 1),
    _now("Present_PWM", 124, 2, "0.113 %", _TWOS),
    _now("Present_Velocity", 128, 4, "0.229 rpm", _TWOS),
    _now("Present_Position", 132, 4, "count", _TWOS),
    _now("Velocity_Trajectory", 136, 4, "0.229 rpm", _TWOS),
    _now("Position_Trajectory", 140, 4, "count", _TWOS),
    _now("Present_Input_Voltage", 144, 2, "0.1 V"),
    _now("Present_Temperature", 146, 1, "degC"),
    _now("Backup_Ready", 147, 1),
)

# No current sensor: 126 is the load inferred from the output, and there is no current limit.
XL430_TABLE = _table(*_X_COMMON, _now("Present_Load", 126, 2, "0.1 %", _TWOS))

XL330_TABLE = _table(
    *_X_COMMON,
    _rom("Current_Limit", 38, 2, "mA"),
    _rom("PWM_Slope", 62, 1, "1.977 mV/ms"),
    _ram("Goal_Current", 102, 2, "mA", _TWOS),
    _now("Present_Current", 126, 2, "mA", _TWOS),
)

STS_TABLE = _table(
    Register("Firmware_Major_Version", 0, 1, writable=False, eeprom=True),
    Register("Firmware_Minor_Version", 1, 1, writable=False, eeprom=True),
    Register("Model_Number", 3, 2, writable=False, eeprom=True),
    _rom("ID", 5, 1),
    _rom("Baud_Rate", 6, 1),
    _rom("Return_Delay_Time", 7, 1, "2 us"),
    _rom("Response_Status_Level", 8, 1),
    _rom("Min_Position_Limit", 9, 2, "count"),
    _rom("Max_Position_Limit", 11, 2, "count"),
    _rom("Max_Temperature_Limit", 13, 1, "degC"),
    _rom("Max_Voltage_Limit", 14, 1, "0.1 V"),
    _rom("Min_Voltage_Limit", 15, 1, "0.1 V"),
    _rom("Max_Torque_Limit", 16, 2, "0.1 %"),
    _rom("Phase", 18, 1),
    _rom("Unloading_Condition", 19, 1),
    _rom("LED_Alarm_Condition", 20, 1),
    _rom("P_Coefficient", 21, 1),
    _rom("D_Coefficient", 22, 1),
    _rom("I_Coefficient", 23, 1),
    _rom("Minimum_Startup_Force", 24, 2, "0.1 %"),
    _rom("CW_Dead_Zone", 26, 1, "count"),
    _rom("CCW_Dead_Zone", 27, 1, "count"),
    _rom("Protection_Current", 28, 2, "6.5 mA"),
    _rom("Angular_Resolution", 30, 1),
    _rom("Homing_Offset", 31, 2, "count", Sign.BIT11),
    _rom("Operating_Mode", 33, 1),
    _rom("Protective_Torque", 34, 1, "%"),
    _rom("Protection_Time", 35, 1, "10 ms"),
    _rom("Overload_Torque", 36, 1, "%"),
    _rom("Velocity_P_Coefficient", 37, 1),
    _rom("Over_Current_Protection_Time", 38, 1, "10 ms"),
    _rom("Velocity_I_Coefficient", 39, 1),
    _ram("Torque_Enable", 40, 1),
    _ram("Acceleration", 41, 1, "100 count/s^2"),
    _ram("Goal_Position", 42, 2, "count", Sign.BIT15),
    _ram("Goal_Time", 44, 2, "ms"),
    _ram("Goal_Velocity", 46, 2, "count/s", Sign.BIT15),
    _ram("Torque_Limit", 48, 2, "0.1 %"),
    _ram("Lock", 55, 1),
    _now("Present_Position", 56, 2, "count", Sign.BIT15),
    _now("Present_Velocity", 58, 2, "count/s", Sign.BIT15),
    _now("Present_Load", 60, 2, "0.1 %", Sign.BIT10),
    _now("Present_Voltage", 62, 1, "0.1 V"),
    _now("Present_Temperature", 63, 1, "degC"),
    _now("Async_Write_Flag", 64, 1),
    _now("Status", 65, 1),
    _now("Moving", 66, 1),
    _now("Present_Current", 69, 2, "6.5 mA", Sign.BIT15),
    _now("Goal_Position_2", 71, 2, "count"),
    _ram("Moving_Velocity_Threshold", 80, 1),
    _ram("DTs", 81, 1, "ms"),
    _ram("Velocity_Unit_Factor", 82, 1),
    _ram("Hts", 83, 1, "ns"),
    _ram("Maximum_Velocity_Limit", 84, 1),
    _ram("Maximum_Acceleration", 85, 1, "100 count/s^2"),
    _ram("Acceleration_Multiplier", 86, 1),
)

# Value of the Baud_Rate register by rate. e-Manual (XL430 also knows 7: 4.5 Mbaud); Feetech table.
X_BAUD: Mapping[int, int] = MappingProxyType(
    {9_600: 0, 57_600: 1, 115_200: 2, 1_000_000: 3, 2_000_000: 4, 3_000_000: 5, 4_000_000: 6}
)
STS_BAUD: Mapping[int, int] = MappingProxyType(
    {
        1_000_000: 0,
        500_000: 1,
        250_000: 2,
        128_000: 3,
        115_200: 4,
        76_800: 5,
        57_600: 6,
        38_400: 7,
    }
)


@dataclass(frozen=True, slots=True)
class ServoModel:
    """What is fixed for one kind of servo."""

    name: str
    number: int  # Model_Number register
    protocol: Protocol
    table: Table
    baud: Mapping[int, int]
    velocity_counts: float  # counts/s of one step of Present_Velocity
    load_register: str
    load_full: int  # steps of the load register at full torque


# 0.229 rpm is 0.229 / 60 * 4096 counts/s. A current of 1750 mA is the XL330's limit (e-Manual).
_X_VELOCITY = 0.229 / 60 * COUNTS_PER_TURN
_X = Protocol.DYNAMIXEL

XL430_W250 = ServoModel(
    "xl430-w250", 1060, _X, XL430_TABLE, X_BAUD, _X_VELOCITY, "Present_Load", 1000
)
XL330_M288 = ServoModel(
    "xl330-m288", 1200, _X, XL330_TABLE, X_BAUD, _X_VELOCITY, "Present_Current", 1750
)
XL330_M077 = ServoModel(
    "xl330-m077", 1190, _X, XL330_TABLE, X_BAUD, _X_VELOCITY, "Present_Current", 1750
)
STS3215 = ServoModel(
    "sts3215", 777, Protocol.FEETECH, STS_TABLE, STS_BAUD, 1.0, "Present_Load", 1000
)

SERVO_MODELS: Mapping[str, ServoModel] = MappingProxyType(
    {model.name: model for model in (XL430_W250, XL330_M288, XL330_M077, STS3215)}
)

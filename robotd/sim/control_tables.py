"""Control tables of the emulated servos: every register with its factory value and range.

Written from the makers' tables, apart from robotd's own register tables, so that each can be
checked against the other. Sources: ROBOTIS e-Manual, pages XL430-W250-T, XL330-M288-T and
XL330-M077-T ("Control Table of EEPROM Area", "... of RAM Area"); Feetech, STS3215 memory table.
Electrical figures are the makers' (stall current, supply range); the thermal ones are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Item:
    """One register. `low` and `high` bound what may be written; a missing range allows anything.

    `coding` is how a negative value is written: "" never, "twos" two's complement, "sign15",
    "sign11", "sign10" the sign in that bit and the magnitude below it.
    """

    name: str
    address: int
    size: int
    writable: bool
    default: int = 0
    low: int | None = None
    high: int | None = None
    coding: str = ""

    def decode(self, raw: int) -> int:
        """The value of the register's raw bits."""
        if self.coding == "twos":
            half = 1 << (8 * self.size - 1)
            return raw - 2 * half if raw >= half else raw
        if self.coding:
            bit = 1 << int(self.coding[4:])
            return -(raw & (bit - 1)) if raw & bit else raw & (bit - 1)
        return raw

    def encode(self, value: int) -> int:
        """The raw bits of a value; one that does not fit is cut to the register's width."""
        if self.coding == "twos":
            return value & ((1 << (8 * self.size)) - 1)
        if self.coding:
            bit = 1 << int(self.coding[4:])
            return min(-value, bit - 1) | bit if value < 0 else min(value, bit - 1)
        return value & ((1 << (8 * self.size)) - 1)


@dataclass(frozen=True, slots=True)
class Electrics:
    """What a servo draws, and how it warms."""

    supply_v: float  # of the rail it hangs on
    stall_a: float  # at that supply
    idle_a: float  # torque off
    brownout_v: float  # its controller resets below this
    heat_rise_c: float = 120.0  # above ambient, in the long run, at stall (estimate)
    heat_time_s: float = 240.0  # time constant of that rise (estimate)


@dataclass(frozen=True)
class ServoModel:
    """One kind of servo: its table and what belongs to it."""

    name: str
    number: int
    firmware: int
    items: tuple[Item, ...]
    table_size: int
    eeprom_end: int  # first address that is not kept without power
    bauds: Mapping[int, int]  # register value -> bits per second
    electrics: Electrics
    indirect: tuple[tuple[int, int, int], ...] = ()  # (addresses at, data at, count)
    by_name: Mapping[str, Item] = field(init=False)
    by_address: Mapping[int, Item] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {item.name: item for item in self.items})
        object.__setattr__(self, "by_address", {item.address: item for item in self.items})

    def factory(self) -> bytearray:
        """The table as it leaves the factory."""
        table = bytearray(self.table_size)
        for item in self.items:
            raw = item.encode(item.default)
            table[item.address : item.address + item.size] = raw.to_bytes(item.size, "little")
        for addresses, data, count in self.indirect:
            for k in range(count):
                table[addresses + 2 * k : addresses + 2 * k + 2] = (data + k).to_bytes(2, "little")
        return table


def _r(name: str, address: int, size: int, default: int = 0, coding: str = "") -> Item:
    return Item(name, address, size, False, default, coding=coding)


def _w(
    name: str,
    address: int,
    size: int,
    default: int,
    low: int | None = None,
    high: int | None = None,
    coding: str = "",
) -> Item:
    return Item(name, address, size, True, default, low, high, coding)


_TWOS32 = (-(2**31), 2**31 - 1)


_Own = Mapping[str, tuple[int, int, int]]  # default, low, high of what varies by model


def _x_eeprom(number: int, firmware: int, own: _Own) -> list[Item]:
    return [
        _r("Model_Number", 0, 2, number),
        _r("Model_Information", 2, 4),
        _r("Firmware_Version", 6, 1, firmware),
        _w("ID", 7, 1, 1, 0, 252),
        _w("Baud_Rate", 8, 1, 1, 0, own["Baud_Rate"][2]),
        _w("Return_Delay_Time", 9, 1, 250, 0, 254),
        _w("Drive_Mode", 10, 1, 0, 0, 13),
        _w("Operating_Mode", 11, 1, 3, 0, 16),
        _w("Secondary_ID", 12, 1, 255, 0, 255),
        _w("Protocol_Type", 13, 1, 2, 2, 2),
        _w("Homing_Offset", 20, 4, 0, -1_044_479, 1_044_479, "twos"),
        _w("Moving_Threshold", 24, 4, 10, 0, 1023),
        _w("Temperature_Limit", 31, 1, *own["Temperature_Limit"]),
        _w("Max_Voltage_Limit", 32, 2, *own["Max_Voltage_Limit"]),
        _w("Min_Voltage_Limit", 34, 2, *own["Min_Voltage_Limit"]),
        _w("PWM_Limit", 36, 2, 885, 0, 885),
        _w("Velocity_Limit", 44, 4, *own["Velocity_Limit"]),
        _w("Max_Position_Limit", 48, 4, 4095, 0, 4095),
        _w("Min_Position_Limit", 52, 4, 0, 0, 4095),
        _w("Startup_Configuration", 60, 1, 0, 0, 3),
        _w("Shutdown", 63, 1, *own["Shutdown"]),
    ]


def _x_ram(own: _Own) -> list[Item]:
    return [
        _w("Torque_Enable", 64, 1, 0, 0, 1),
        _w("LED", 65, 1, 0, 0, 1),
        _w("Status_Return_Level", 68, 1, 2, 0, 2),
        _r("Registered_Instruction", 69, 1),
        _r("Hardware_Error_Status", 70, 1),
        _w("Velocity_I_Gain", 76, 2, own["Velocity_I_Gain"][0], 0, 16383),
        _w("Velocity_P_Gain", 78, 2, own["Velocity_P_Gain"][0], 0, 16383),
        _w("Position_D_Gain", 80, 2, own["Position_D_Gain"][0], 0, 16383),
        _w("Position_I_Gain", 82, 2, 0, 0, 16383),
        _w("Position_P_Gain", 84, 2, own["Position_P_Gain"][0], 0, 16383),
        _w("Feedforward_2nd_Gain", 88, 2, 0, 0, 16383),
        _w("Feedforward_1st_Gain", 90, 2, 0, 0, 16383),
        _w("Bus_Watchdog", 98, 1, 0, 0, 127, "twos"),
        _w("Goal_PWM", 100, 2, 885, -885, 885, "twos"),
        _w("Goal_Velocity", 104, 4, 0, -2047, 2047, "twos"),
        _w("Profile_Acceleration", 108, 4, 0, 0, 32767),
        _w("Profile_Velocity", 112, 4, 0, 0, 32767),
        _w("Goal_Position", 116, 4, 0, *_TWOS32, "twos"),
        _r("Realtime_Tick", 120, 2),
        _r("Moving", 122, 1),
        _r("Moving_Status", 123, 1),
        _r("Present_PWM", 124, 2, coding="twos"),
        _r("Present_Velocity", 128, 4, coding="twos"),
        _r("Present_Position", 132, 4, coding="twos"),
        _r("Velocity_Trajectory", 136, 4, coding="twos"),
        _r("Position_Trajectory", 140, 4, coding="twos"),
        _r("Present_Input_Voltage", 144, 2),
        _r("Present_Temperature", 146, 1),
        _r("Backup_Ready", 147, 1),
    ]


def _x_series(number: int, firmware: int, own: _Own) -> tuple[Item, ...]:
    """The X-series table of one model."""
    items = _x_eeprom(number, firmware, own) + _x_ram(own)
    if "Current_Limit" in own:  # models with current sensing
        items += [
            _w("Current_Limit", 38, 2, *own["Current_Limit"]),
            _w("PWM_Slope", 62, 1, 140, 1, 255),
            _w("Goal_Current", 102, 2, own["Current_Limit"][0], -1750, 1750, "twos"),
            _r("Present_Current", 126, 2, coding="twos"),
        ]
    else:
        items.append(_r("Present_Load", 126, 2, coding="twos"))
    return tuple(sorted(items, key=lambda item: item.address))


_X_BAUDS = {0: 9600, 1: 57600, 2: 115200, 3: 1_000_000, 4: 2_000_000, 5: 3_000_000, 6: 4_000_000}

XL430_W250 = ServoModel(
    name="xl430-w250",
    number=1060,
    firmware=46,
    items=_x_series(
        1060,
        46,
        {
            "Baud_Rate": (1, 0, 7),
            "Temperature_Limit": (72, 0, 100),
            "Max_Voltage_Limit": (140, 60, 140),
            "Min_Voltage_Limit": (60, 60, 140),
            "Velocity_Limit": (265, 0, 1023),
            "Shutdown": (52, 0, 255),
            "Velocity_I_Gain": (1000, 0, 0),
            "Velocity_P_Gain": (100, 0, 0),
            "Position_D_Gain": (4000, 0, 0),
            "Position_P_Gain": (640, 0, 0),
        },
    ),
    table_size=662,
    eeprom_end=64,
    bauds={**_X_BAUDS, 7: 4_500_000},
    electrics=Electrics(supply_v=12.0, stall_a=1.4, idle_a=0.05, brownout_v=5.5),
    indirect=((168, 224, 28), (578, 634, 28)),
)


def _xl330(name: str, number: int, velocity_limit: int) -> ServoModel:
    own = {
        "Baud_Rate": (1, 0, 6),
        "Temperature_Limit": (70, 0, 100),
        "Max_Voltage_Limit": (70, 31, 70),
        "Min_Voltage_Limit": (35, 31, 70),
        "Velocity_Limit": (velocity_limit, 0, 2047),
        "Current_Limit": (1750, 0, 1750),
        "Shutdown": (53, 0, 255),
        "Velocity_I_Gain": (1600, 0, 0),
        "Velocity_P_Gain": (180, 0, 0),
        "Position_D_Gain": (0, 0, 0),
        "Position_P_Gain": (400, 0, 0),
    }
    return ServoModel(
        name=name,
        number=number,
        firmware=48,
        items=_x_series(number, 48, own),
        table_size=228,
        eeprom_end=64,
        bauds=_X_BAUDS,
        electrics=Electrics(supply_v=5.0, stall_a=1.47, idle_a=0.015, brownout_v=3.0),
        indirect=((168, 208, 20),),
    )


XL330_M288 = _xl330("xl330-m288", 1200, 445)
XL330_M077 = _xl330("xl330-m077", 1190, 1620)

_STS_ITEMS = (
    _r("Firmware_Major_Version", 0, 1, 3),
    _r("Firmware_Minor_Version", 1, 1, 10),
    _r("Model_Number", 3, 2, 777),
    _w("ID", 5, 1, 1, 0, 253),
    _w("Baud_Rate", 6, 1, 0, 0, 7),
    _w("Return_Delay_Time", 7, 1, 0, 0, 254),
    _w("Response_Status_Level", 8, 1, 1, 0, 1),
    _w("Min_Position_Limit", 9, 2, 0, 0, 4095),
    _w("Max_Position_Limit", 11, 2, 4095, 0, 4095),
    _w("Max_Temperature_Limit", 13, 1, 70, 0, 100),
    _w("Max_Voltage_Limit", 14, 1, 140, 0, 254),
    _w("Min_Voltage_Limit", 15, 1, 40, 0, 254),
    _w("Max_Torque_Limit", 16, 2, 1000, 0, 1000),
    _w("Phase", 18, 1, 12, 0, 254),
    _w("Unloading_Condition", 19, 1, 44, 0, 254),
    _w("LED_Alarm_Condition", 20, 1, 47, 0, 254),
    _w("P_Coefficient", 21, 1, 32, 0, 254),
    _w("D_Coefficient", 22, 1, 32, 0, 254),
    _w("I_Coefficient", 23, 1, 0, 0, 254),
    _w("Minimum_Startup_Force", 24, 2, 16, 0, 1000),
    _w("CW_Dead_Zone", 26, 1, 1, 0, 32),
    _w("CCW_Dead_Zone", 27, 1, 1, 0, 32),
    _w("Protection_Current", 28, 2, 500, 0, 511),
    _w("Angular_Resolution", 30, 1, 1, 1, 100),
    _w("Homing_Offset", 31, 2, 0, -2047, 2047, "sign11"),
    _w("Operating_Mode", 33, 1, 0, 0, 3),
    _w("Protective_Torque", 34, 1, 20, 0, 100),
    _w("Protection_Time", 35, 1, 200, 0, 254),
    _w("Overload_Torque", 36, 1, 80, 0, 100),
    _w("Velocity_P_Coefficient", 37, 1, 10, 0, 254),
    _w("Over_Current_Protection_Time", 38, 1, 200, 0, 254),
    _w("Velocity_I_Coefficient", 39, 1, 10, 0, 254),
    _w("Torque_Enable", 40, 1, 0, 0, 128),
    _w("Acceleration", 41, 1, 0, 0, 254),
    _w("Goal_Position", 42, 2, 0, -32767, 32767, "sign15"),
    _w("Goal_Time", 44, 2, 0, -1023, 1023, "sign10"),
    _w("Goal_Velocity", 46, 2, 0, -32767, 32767, "sign15"),
    _w("Torque_Limit", 48, 2, 1000, 0, 1000),
    _w("Lock", 55, 1, 1, 0, 1),
    _r("Present_Position", 56, 2, coding="sign15"),
    _r("Present_Velocity", 58, 2, coding="sign15"),
    _r("Present_Load", 60, 2, coding="sign10"),
    _r("Present_Voltage", 62, 1),
    _r("Present_Temperature", 63, 1),
    _r("Async_Write_Flag", 64, 1),
    _r("Status", 65, 1),
    _r("Moving", 66, 1),
    _r("Present_Current", 69, 2, coding="sign15"),
    _r("Goal_Position_2", 71, 2, coding="sign15"),
    _w("Moving_Velocity_Threshold", 80, 1, 50, 0, 254),
    _w("DTs", 81, 1, 10, 0, 254),
    _w("Velocity_Unit_Factor", 82, 1, 1, 0, 254),
    _w("Hts", 83, 1, 0, 0, 254),
    _w("Maximum_Velocity_Limit", 84, 1, 68, 0, 254),
    _w("Maximum_Acceleration", 85, 1, 254, 0, 254),
    _w("Acceleration_Multiplier", 86, 1, 1, 0, 254),
)

STS3215 = ServoModel(
    name="sts3215",
    number=777,
    firmware=3,
    items=_STS_ITEMS,
    table_size=256,
    eeprom_end=40,
    bauds={
        0: 1_000_000,
        1: 500_000,
        2: 250_000,
        3: 128_000,
        4: 115_200,
        5: 76_800,
        6: 57_600,
        7: 38_400,
    },
    electrics=Electrics(supply_v=12.0, stall_a=2.7, idle_a=0.03, brownout_v=3.6),
)

MODELS = {model.name: model for model in (XL430_W250, XL330_M288, XL330_M077, STS3215)}

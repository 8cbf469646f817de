"""What servos say about themselves: status packets, and one set of error bits for both families."""

from enum import IntFlag
from typing import NamedTuple


class Status(NamedTuple):
    """One status packet: who, the error byte as on the wire, the parameters without stuffing."""

    id: int
    error: int
    params: bytes


class ServoStatus(IntFlag):
    """Error bits of one servo as robotd reports them: Feetech's bits 0..5, then its own two.

    A Dynamixel's Hardware Error Status is translated by `dynamixel.hardware_status`.
    """

    VOLTAGE = 1
    SENSOR = 2  # angle sensor or encoder
    OVERHEAT = 4
    OVERCURRENT = 8  # or electrical shock
    ANGLE_LIMIT = 16
    OVERLOAD = 32
    TORQUE_LOST = 64  # the arm is engaged, this servo has restarted or shut its torque off
    ALERT = 128  # a Dynamixel has an error; which one is read next


# What ends without the servos' power being switched off and on.
# Feetech: remembered by a servo without torque, and forgotten when torque goes on again (memory
# table, Unloading Condition; the servo then watches afresh).
FORGOTTEN_BY_TORQUE = ServoStatus.OVERCURRENT | ServoStatus.OVERLOAD
# Dynamixel: Hardware Error Status and the shutdown stay until a reboot (e-Manual, Shutdown).
FORGOTTEN_BY_REBOOT = (
    ServoStatus.VOLTAGE
    | ServoStatus.SENSOR
    | ServoStatus.OVERHEAT
    | ServoStatus.OVERCURRENT
    | ServoStatus.OVERLOAD
    | ServoStatus.ALERT
)

_TEXT = {
    ServoStatus.VOLTAGE: "input voltage out of range",
    ServoStatus.SENSOR: "position sensor error",
    ServoStatus.OVERHEAT: "overheated",
    ServoStatus.OVERCURRENT: "overcurrent or electrical shock",
    ServoStatus.ANGLE_LIMIT: "angle limit",
    ServoStatus.OVERLOAD: "overload",
    ServoStatus.TORQUE_LOST: "torque went off or the servo restarted",
    ServoStatus.ALERT: "hardware alert",
}


def status_text(status: int) -> str:
    """The set bits in words, "" for none."""
    return ", ".join(text for bit, text in _TEXT.items() if status & bit)

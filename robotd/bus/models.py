"""The supported arms: their servos, and what is written to them before they are armed.

The settings are LeRobot's (koch_follower, koch_leader, so_follower, so_leader: `configure`), so an
arm behaves under robotd as its owner knows it. Differences, all on purpose: torque stays off until
`Arm.engage`, permanent registers are written only when they differ, and a Feetech servo's EEPROM
is locked again afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from robotd.bus.registers import (
    GRIPPER,
    JOINTS,
    STS3215,
    XL330_M077,
    XL330_M288,
    XL430_W250,
    Protocol,
    ServoModel,
)

EVERY_JOINT = JOINTS
BODY = tuple(joint for joint in JOINTS if joint != GRIPPER)


@dataclass(frozen=True, slots=True)
class Setting:
    """One register value for some joints; with a mask only those bits are set."""

    register: str
    value: int
    joints: tuple[str, ...] = EVERY_JOINT
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class ArmModel:
    """One kind of arm in one role."""

    name: str
    role: str  # "follower" or "leader"
    servos: tuple[ServoModel, ...]  # in the order of JOINTS
    settings: tuple[Setting, ...]  # written in this order
    torque: tuple[str, ...]  # joints that engage() powers
    spring: Mapping[str, float] = field(default_factory=dict)  # goal after engaging, units

    @property
    def protocol(self) -> Protocol:
        return self.servos[0].protocol


_KOCH_COMMON = (
    Setting("Return_Delay_Time", 0),
    Setting("Operating_Mode", 4, BODY),  # extended position: assembly may put 0/4095 in the range
    Setting("Operating_Mode", 5, (GRIPPER,)),  # current-based position: the grip has a limit
)
STS_ACCELERATION = 254  # 0 after a restart
_SO_COMMON = (
    Setting("Return_Delay_Time", 0),
    Setting("Maximum_Acceleration", 254),
    Setting("Acceleration", STS_ACCELERATION),
    Setting("Phase", 0, mask=0x10),  # angle feedback mode 0: positions stay in 0..4095
    Setting("Operating_Mode", 0),  # position
)

KOCH_FOLLOWER = ArmModel(
    "koch",
    "follower",
    (XL430_W250, XL430_W250, XL330_M288, XL330_M288, XL330_M288, XL330_M288),
    (
        *_KOCH_COMMON,
        Setting("Position_P_Gain", 1500, ("elbow_flex",)),
        Setting("Position_I_Gain", 0, ("elbow_flex",)),
        Setting("Position_D_Gain", 600, ("elbow_flex",)),
    ),
    torque=JOINTS,
)
KOCH_LEADER = ArmModel(
    "koch",
    "leader",
    (XL330_M077,) * 6,
    _KOCH_COMMON,
    torque=(GRIPPER,),
    spring=MappingProxyType({GRIPPER: 50.0}),  # a trigger that opens by itself
)
SO101_FOLLOWER = ArmModel(
    "so101",
    "follower",
    (STS3215,) * 6,
    (
        *_SO_COMMON,
        Setting("P_Coefficient", 16),  # the servo's default of 32 shakes
        Setting("I_Coefficient", 0),
        Setting("D_Coefficient", 32),
        Setting("Max_Torque_Limit", 500, (GRIPPER,)),  # half of it, so a stalled grip survives
        Setting("Protection_Current", 250, (GRIPPER,)),
        Setting("Overload_Torque", 25, (GRIPPER,)),
    ),
    torque=JOINTS,
)
SO101_LEADER = ArmModel("so101", "leader", (STS3215,) * 6, _SO_COMMON, torque=())

ARM_MODELS: Mapping[tuple[str, str], ArmModel] = MappingProxyType(
    {
        (arm.name, arm.role): arm
        for arm in (KOCH_FOLLOWER, KOCH_LEADER, SO101_FOLLOWER, SO101_LEADER)
    }
)

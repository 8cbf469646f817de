"""Register tables against LeRobot's, and the encodings of their values.

LeRobot is imported where it is used: that takes seconds.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robotd.bus.models import ARM_MODELS, EVERY_JOINT
from robotd.bus.registers import (
    JOINTS,
    SERVO_MODELS,
    STS_TABLE,
    XL330_TABLE,
    XL430_TABLE,
    Protocol,
    Register,
    ServoModel,
    Sign,
    Table,
)

# Registers that one kind of servo of the X series does not have (e-Manual); LeRobot has one table.
NOT_IN_XL430 = {"Current_Limit", "Goal_Current", "Present_Current", "Acceleration_Limit"}
NOT_IN_XL330 = {"Acceleration_Limit"}
# LeRobot's spellings that differ.
STS_NAMES = {
    "Velocity_closed_loop_P_proportional_coefficient": "Velocity_P_Coefficient",
    "Velocity_closed_loop_I_integral_coefficient": "Velocity_I_Coefficient",
    "Velocity_Unit_factor": "Velocity_Unit_Factor",
    "Moving_Velocity": "Moving_Velocity_Threshold",
    "Acceleration_Multiplier ": "Acceleration_Multiplier",
}


@pytest.mark.parametrize(
    ("ours", "absent"),
    [(XL430_TABLE, NOT_IN_XL430), (XL330_TABLE, NOT_IN_XL330), (STS_TABLE, set())],
    ids=["xl430", "xl330", "sts"],
)
def test_addresses_and_sizes_are_lerobots(ours: Table, absent: set[str]) -> None:
    from lerobot.motors.dynamixel.tables import X_SERIES_CONTROL_TABLE
    from lerobot.motors.feetech.tables import STS_SMS_SERIES_CONTROL_TABLE

    theirs = STS_SMS_SERIES_CONTROL_TABLE if ours is STS_TABLE else X_SERIES_CONTROL_TABLE
    for name, place in theirs.items():
        if name not in absent:
            register = ours[STS_NAMES.get(name, name)]
            assert (register.address, register.size) == place


def test_signs_are_lerobots() -> None:
    from lerobot.motors.dynamixel.tables import X_SERIES_ENCODINGS_TABLE
    from lerobot.motors.feetech.tables import STS_SMS_SERIES_ENCODINGS_TABLE

    for name, bit in STS_SMS_SERIES_ENCODINGS_TABLE.items():
        if name not in ("Goal_Speed", "Present_Speed"):  # not in the control table
            assert STS_TABLE[name].sign.value == bit
    for name in X_SERIES_ENCODINGS_TABLE:
        for table in (XL430_TABLE, XL330_TABLE):
            assert name not in table or table[name].sign is Sign.TWOS


@pytest.mark.parametrize("model", SERVO_MODELS.values(), ids=list(SERVO_MODELS))
def test_no_two_registers_overlap(model: ServoModel) -> None:
    taken: dict[int, str] = {}
    for register in model.table.values():
        for address in range(register.address, register.address + register.size):
            assert address not in taken, f"{register.name} and {taken[address]}"
            taken[address] = register.name


def test_model_numbers_and_rates_are_lerobots() -> None:
    from lerobot.motors.dynamixel import tables as dynamixel
    from lerobot.motors.feetech import tables as feetech

    numbers = {**dynamixel.MODEL_NUMBER_TABLE, **feetech.MODEL_NUMBER_TABLE}
    for model in SERVO_MODELS.values():
        assert model.number == numbers[model.name]
        assert 1_000_000 in model.baud
    for rate, value in dynamixel.X_SERIES_BAUDRATE_TABLE.items():
        assert SERVO_MODELS["xl430-w250"].baud[rate] == value
    # Below 115200 Feetech's own table has 76800, 57600, 38400 where LeRobot's is one rate off.
    for rate in (1_000_000, 500_000, 250_000, 128_000, 115_200):
        assert SERVO_MODELS["sts3215"].baud[rate] == feetech.STS_SMS_SERIES_BAUDRATE_TABLE[rate]


ALL = [register for model in SERVO_MODELS.values() for register in model.table.values()]


@given(st.sampled_from(ALL), st.data())
def test_values_come_back_as_written(register: Register, data: st.DataObject) -> None:
    low, high = register.range
    value = data.draw(st.integers(low, high))
    coded = register.encode(value)
    assert len(coded) == register.size
    assert register.decode(coded) == value
    for outside in (low - 1, high + 1):
        with pytest.raises(ValueError, match=register.name):
            register.encode(outside)


@given(st.sampled_from([11, 15]), st.data())
def test_sign_magnitude_is_lerobots(bit: int, data: st.DataObject) -> None:
    from lerobot.motors import encoding_utils

    register = Register("any", 0, 2, sign=Sign(bit))
    value = data.draw(st.integers(*register.range))
    assert int.from_bytes(register.encode(value), "little") == (
        encoding_utils.encode_sign_magnitude(value, bit)
    )


def test_arm_models_are_complete() -> None:
    for arm in ARM_MODELS.values():
        assert len(arm.servos) == len(JOINTS)
        assert len({servo.protocol for servo in arm.servos}) == 1
        for setting in arm.settings:
            assert set(setting.joints) <= set(EVERY_JOINT)
            for joint in setting.joints:
                register = arm.servos[JOINTS.index(joint)].table[setting.register]
                assert register.writable
                assert register.range[0] <= setting.value <= register.range[1]
        assert arm.role == "leader" or arm.torque == JOINTS
    assert ARM_MODELS["so101", "follower"].protocol is Protocol.FEETECH

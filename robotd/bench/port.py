"""Care for a real arm: a bench on its port never moves it and never touches its torque."""

import time
from pathlib import Path

from robotd.bench.clients import Setup
from robotd.bus.calibration import Calibration, JointCalibration
from robotd.bus.link import BusCounters, Link
from robotd.bus.models import ARM_MODELS
from robotd.bus.port import SerialPort
from robotd.bus.registers import COUNTS_PER_TURN, JOINTS, Protocol
from robotd.errors import ServoError


def full_turn_calibration(folder: Path) -> Path:
    """A stand-in for a calibration that was not given: ids 1 to 6, the whole turn as range."""
    rows = {
        joint: JointCalibration(number, 0, 0, 0, COUNTS_PER_TURN - 1)
        for number, joint in enumerate(JOINTS, start=1)
    }
    path = folder / "full_turn.json"
    Calibration(rows).save(path)
    return path


def refuse_if_unsafe(setup: Setup) -> tuple[int, ...]:
    """Torque_Enable of the six servos; reads only.

    Raises ServoError when goals are to be written to STS servos (a goal switches their torque on),
    or torque is on somewhere, or a joint stands outside its range (a client that clamps would write
    another goal than the present position).
    """
    model = ARM_MODELS[setup.arm, "follower"]
    if setup.write and model.protocol is Protocol.FEETECH:
        raise ServoError(
            "writing a goal to an STS servo switches its torque on: this arm is only read; "
            "leave out --write"
        )
    calibration = Calibration.load(setup.calibration, setup.arm)
    port = SerialPort.open(setup.path, setup.baud)
    try:
        link = Link(port, model.protocol, time.monotonic_ns, BusCounters(), lambda n: f"servo {n}")
        torque = []
        for joint, servo in zip(JOINTS, model.servos, strict=True):
            row = calibration.joints[joint]
            torque.append(link.read(row.id, servo.table["Torque_Enable"]))
            if not setup.write:
                continue
            if torque[-1]:
                raise ServoError(
                    f"servo {row.id} ({joint}) has its torque on: this writes goals only to a limp "
                    "arm; switch torque off, or leave out --write"
                )
            counts = link.read(row.id, servo.table["Present_Position"])
            if not row.range_min <= counts <= row.range_max:
                raise ServoError(
                    f"servo {row.id} ({joint}) stands at {counts}, outside its range "
                    f"{row.range_min} to {row.range_max}; move it inside by hand, or leave out "
                    "--write"
                )
    finally:
        port.close()
    return tuple(torque)

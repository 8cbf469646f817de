"""What is done with an arm's servos outside the tick: identify, compare, configure, power.

Every step reads back what it relies on. An error names servo, joint and arm, and what to do.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

from robotd.bus import dynamixel
from robotd.bus.calibration import Calibration
from robotd.bus.link import Link
from robotd.bus.models import ARM_MODELS, ArmModel, Setting
from robotd.bus.registers import COUNTS_PER_TURN, JOINTS, SERVO_MODELS, Protocol, Register
from robotd.bus.status import FORGOTTEN_BY_TORQUE, status_text
from robotd.errors import BusError, CalibrationError, ServoError

# A goal read back may follow the present position by some counts of noise; 16 are 1.4 degrees.
_GOAL_TOLERANCE = 16
_RELEASE_TRIES = 2
_ROUNDS = 4  # of asking silent servos again when an arm is connected


class ServoSetup:
    """The slow side of one arm."""

    def __init__(self, name: str, model: ArmModel, calibration: Calibration, link: Link) -> None:
        self._name = name
        self._model = model
        self._calibration = calibration
        self._link = link
        self._ids = {joint: calibration.joints[joint].id for joint in JOINTS}
        self._feetech = model.protocol is Protocol.FEETECH

    def identify(self) -> None:
        """Every servo answers, is of the right model, and (Feetech) runs the same firmware.

        Raises ServoError.
        """
        silent = list(JOINTS)
        for _ in range(_ROUNDS):  # just powered, or on a busy host, some answer a little later
            silent = [joint for joint in silent if self._link.ping(self._ids[joint]) is None]
            if not silent:
                break
        else:
            raise ServoError(self._silence(silent))
        found = {joint: self._version(joint) for joint in JOINTS}
        self._check_models({joint: number for joint, (number, _) in found.items()})
        firmware = {joint: version for joint, (_, version) in found.items()}
        if self._feetech and len(set(firmware.values())) > 1:
            each = ", ".join(f"{joint} {version}" for joint, version in firmware.items())
            raise ServoError(
                f"arm {self._name} mixes firmware versions ({each}): "
                "bring all servos to the same one with Feetech's own tool"
            )

    def check_calibration(self) -> None:
        """The servos hold the file's offsets and ranges. Raises CalibrationError."""
        differences = []
        for joint in JOINTS:
            for register, value in self._calibration_registers(joint):
                there = self._link.read(self._ids[joint], register)
                if there != value:
                    differences.append(
                        f"{joint} {register.name} is {there} in the servo, {value} in the file"
                    )
        if differences:
            raise CalibrationError(
                f"arm {self._name} does not match its calibration: {'; '.join(differences)}. Use "
                "the file of this arm, calibrate it again, or write this file to the servos"
            )

    def write_calibration(self) -> None:
        """Write the file's values to the servos; torque goes off. Raises ServoError."""
        self.release()
        with self._unlocked():
            for joint in JOINTS:
                for register, value in self._calibration_registers(joint):
                    self._keep(joint, register, value)

    def configure(self) -> None:
        """Torque off, then the settings of this arm model and role. Raises ServoError."""
        self.release()
        with self._unlocked():
            for setting in self._model.settings:
                for joint in setting.joints:
                    self._apply(joint, setting)

    def engage(self) -> dict[str, int]:
        """Goal := present, read back; then torque on, read back. Present counts by joint.

        When a step fails torque is taken off again. Raises ServoError.
        """
        self.check_health()
        present = {
            joint: self._link.read(self._ids[joint], self._at(joint, "Present_Position"))
            for joint in JOINTS
        }
        self._check_present(present)
        powered = self._model.torque
        try:
            self._set_goals({joint: present[joint] for joint in powered})
            for joint in powered:
                self._power(joint)
            spring = self._model.spring
            self._set_goals({j: self._calibration.counts(j, spring[j]) for j in spring})
        except BusError:
            with suppress(BusError):
                self.release()
            raise
        return present

    def check_health(self) -> None:
        """No servo reports an error. Raises ServoError.

        Not counted is what a Feetech servo without torque only remembers: see robotd/bus/status.py.
        """
        for joint in JOINTS:
            if bits := self._reported(joint):
                raise ServoError(
                    f"{self._link.label(self._ids[joint])} reports: {status_text(bits)}. Remove "
                    "the cause, then switch its power off and on"
                )

    def reboot_alerted(self) -> list[str]:
        """Restart the Dynamixels that have shut down: only where an error stands and torque is off.

        They are silent for some hundred milliseconds, and have to be configured afterwards. Returns
        their joints. Raises ServoError.
        """
        if self._feetech:
            return []
        alerted = [joint for joint in JOINTS if self._reported(joint)]
        for joint in alerted:
            servo_id = self._ids[joint]
            if self._link.read(servo_id, self._at(joint, "Torque_Enable")):
                raise ServoError(f"{self._link.label(servo_id)} is not restarted: its torque is on")
            self._link.ask(dynamixel.reboot(servo_id), servo_id, 0, tries=1)
        return alerted

    def release(self) -> None:
        """Torque off, at once for all and then one by one with confirmation.

        Tries every servo; raises ServoError afterwards when one did not confirm.
        """
        torque = self._at(JOINTS[0], "Torque_Enable")
        self._link.sync_write(torque, dict.fromkeys(self._ids.values(), 0))
        failed = []
        for servo_id in self._ids.values():
            try:
                self._link.write(servo_id, torque, 0, _RELEASE_TRIES)
            except ServoError:
                failed.append(self._link.label(servo_id))
        if failed:
            raise ServoError(f"torque off is not confirmed by {', '.join(failed)}")

    def _at(self, joint: str, register: str) -> Register:
        return self._model.servos[JOINTS.index(joint)].table[register]

    def _silence(self, silent: list[str]) -> str:
        if len(silent) == len(JOINTS):
            make, kind = ("Dynamixel", "koch") if self._feetech else ("Feetech", "so101")
            if self._other_make_answers():
                return (
                    f"arm {self._name} is configured as {self._model.name}, but {make} servos "
                    f'answer there: is it a {kind} (model = "{kind}"), or is the port wrong?'
                )
            return (
                f"no servo answers on arm {self._name}: check its power supply, the cable, the "
                "port and the baud rate"
            )
        who = ", ".join(self._link.label(self._ids[joint]) for joint in silent)
        return f"no answer from {who}: check its cable and its id"

    def _other_make_answers(self) -> bool:
        """Whether servos of the other protocol are on this bus."""
        other = Protocol.DYNAMIXEL if self._feetech else Protocol.FEETECH
        link = self._link.speaking(other)
        return any(link.ping(servo_id, tries=1) is not None for servo_id in (1, 2, 3))

    def _version(self, joint: str) -> tuple[int, str]:
        """Model number and firmware version."""
        servo_id = self._ids[joint]
        data = self._link.read_bytes(
            servo_id, 0, 5 if self._feetech else 7, "its model number (status return level?)"
        )
        if self._feetech:
            return int.from_bytes(data[3:5], "little"), f"{data[0]}.{data[1]}"
        return int.from_bytes(data[:2], "little"), str(data[6])

    def _check_models(self, found: Mapping[str, int]) -> None:
        names = {model.number: model.name for model in SERVO_MODELS.values()}
        expected = dict(zip(JOINTS, self._model.servos, strict=True))
        wrong = [joint for joint in JOINTS if found[joint] != expected[joint].number]
        if not wrong:
            return
        for other in ARM_MODELS.values():
            if tuple(found.values()) == tuple(servo.number for servo in other.servos):
                raise ServoError(
                    f"arm {self._name} should be a {self._model.name} {self._model.role}, but its "
                    f"servos are those of a {other.name} {other.role}: is this the right port?"
                )
        joint = wrong[0]
        number, servo = found[joint], expected[joint]
        raise ServoError(
            f"{self._link.label(self._ids[joint])} is model {number} "
            f"({names.get(number, 'unknown')}), expected {servo.number} ({servo.name})"
        )

    def _calibration_registers(self, joint: str) -> Iterable[tuple[Register, int]]:
        row = self._calibration.joints[joint]
        if not self._feetech:  # first: it changes the meaning of the offset
            yield self._at(joint, "Drive_Mode"), row.drive_mode
        yield self._at(joint, "Homing_Offset"), row.homing_offset
        yield self._at(joint, "Min_Position_Limit"), row.range_min
        yield self._at(joint, "Max_Position_Limit"), row.range_max

    @contextmanager
    def _unlocked(self) -> Iterator[None]:
        """Feetech servos keep EEPROM writes only while unlocked; locked again in any case."""
        self._lock(False)
        try:
            yield
        except BusError:
            with suppress(BusError):
                self._lock(True)
            raise
        self._lock(True)

    def _lock(self, locked: bool) -> None:
        if self._feetech:
            for joint in JOINTS:
                self._link.write(self._ids[joint], self._at(joint, "Lock"), int(locked))

    def _apply(self, joint: str, setting: Setting) -> None:
        register = self._at(joint, setting.register)
        if register.eeprom:
            self._keep(joint, register, setting.value, setting.mask)
        else:
            self._link.write(self._ids[joint], register, setting.value)

    def _keep(self, joint: str, register: Register, value: int, mask: int | None = None) -> None:
        """Write a permanent register when it differs, and read it back."""
        servo_id = self._ids[joint]
        there = self._link.read(servo_id, register)
        if mask is not None:
            value = (there & ~mask) | value
        if there == value:
            return
        self._link.write(servo_id, register, value)
        there = self._link.read(servo_id, register)
        if there != value:
            raise ServoError(
                f"{self._link.label(servo_id)} did not keep {register.name} = {value}: "
                f"it reads {there}"
            )

    def _reported(self, joint: str) -> int:
        """ServoStatus bits of a servo without torque that do not end by themselves."""
        register = self._at(joint, "Status" if self._feetech else "Hardware_Error_Status")
        bits = self._link.packets.hardware_status(self._link.read(self._ids[joint], register))
        return bits & ~int(FORGOTTEN_BY_TORQUE) if self._feetech else bits

    def _check_present(self, present: Mapping[str, int]) -> None:
        half_turn = COUNTS_PER_TURN // 2
        for joint, counts in present.items():
            row = self._calibration.joints[joint]
            if not row.range_min - half_turn < counts < row.range_max + half_turn:
                raise ServoError(
                    f"{self._link.label(row.id)} stands at {counts}, more than half a turn outside "
                    f"its range {row.range_min} to {row.range_max}: switch its power off and on, "
                    "or calibrate the arm again"
                )

    def _set_goals(self, goals: Mapping[str, int]) -> None:
        for joint, goal in goals.items():
            servo_id, register = self._ids[joint], self._at(joint, "Goal_Position")
            self._link.write(servo_id, register, goal)
            there = self._link.read(servo_id, register)
            if abs(there - goal) > _GOAL_TOLERANCE:
                raise ServoError(
                    f"{self._link.label(servo_id)} did not take {goal} as its goal but {there}: "
                    "move the joint inside its range by hand"
                )

    def _power(self, joint: str) -> None:
        servo_id, torque = self._ids[joint], self._at(joint, "Torque_Enable")
        self._link.write(servo_id, torque, 1)
        if self._feetech:
            self._link.write(servo_id, self._at(joint, "Lock"), 1)
        if self._link.read(servo_id, torque) != 1:
            raise ServoError(f"{self._link.label(servo_id)} did not switch its torque on")

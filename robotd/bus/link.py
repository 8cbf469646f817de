"""One question, one answer: the set-up traffic with single servos, with retries and clear errors.

Not for the tick: an answer may take tens of milliseconds here, and a servo that stays silent
raises ServoError naming joint, id and arm.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol as Interface

from robotd.bus import dynamixel, feetech
from robotd.bus.port import Port
from robotd.bus.registers import Protocol, Register
from robotd.bus.status import Status
from robotd.errors import ServoError

# The slowest adapters hand bytes on every 16 ms; writing EEPROM takes a servo some milliseconds.
ANSWER_NS = 40_000_000
TRIES = 3


@dataclass(slots=True)
class BusCounters:
    """What happened on one bus since the start."""

    reads: int = 0  # block reads asked for, retries not counted
    failed_reads: int = 0  # of these, with at least one servo's reading missing
    timeouts: int = 0  # attempts that ended with answers missing
    crc_errors: int = 0  # packets with a wrong CRC or checksum
    retries: int = 0
    resyncs: int = 0  # attempts in which bytes had to be skipped
    skipped_bytes: int = 0  # bytes that belonged to no packet, flushed ones included
    duplicates: int = 0  # a second answer of the same servo
    stale: int = 0  # answers to an earlier question
    wrong_id: int = 0  # answers of a servo that was not asked
    refused: int = 0  # answers without data: the servo did not do it
    slow_reads: int = 0  # reads of slow values asked for
    slow_missed: int = 0  # of these, not answered until the next tick
    slow_late: int = 0  # of these, answered among the next tick's readings
    fallbacks: int = 0  # fast sync read given up for sync read

    @property
    def errors(self) -> int:
        """Attempts and packets that failed."""
        return self.timeouts + self.crc_errors

    def as_dict(self) -> dict[str, int]:
        """Name to count, for status and metrics."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Parser(Interface):
    """What both protocols' StatusParser offer."""

    skipped: int
    bad: int

    def feed(self, data: bytes) -> list[Status]: ...
    def give_up(self) -> list[Status]: ...
    def reset(self) -> None: ...
    @property
    def needed(self) -> int: ...


class Packets(Interface):
    """What the modules `dynamixel` and `feetech` both offer."""

    OVERHEAD: int

    def ping(self, servo_id: int) -> bytes: ...
    def read(self, servo_id: int, address: int, size: int) -> bytes: ...
    def write(self, servo_id: int, address: int, data: bytes) -> bytes: ...
    def sync_read(self, address: int, size: int, ids: Sequence[int]) -> bytes: ...
    def sync_write(self, address: int, size: int, values: Mapping[int, bytes]) -> bytes: ...
    def error_text(self, error: int) -> str: ...
    def hardware_status(self, register: int) -> int: ...
    def refused(self, error: int) -> bool: ...


def packets_of(protocol: Protocol) -> Packets:
    """The packet functions of a protocol."""
    return dynamixel if protocol is Protocol.DYNAMIXEL else feetech


def new_parser(protocol: Protocol, longest: int = 255) -> Parser:
    """A status parser that believes length fields up to `longest`."""
    if protocol is Protocol.DYNAMIXEL:
        return dynamixel.StatusParser(longest)
    return feetech.StatusParser(longest)


class Link:
    """Set-up traffic on one bus. `label(id)` names a servo for messages."""

    def __init__(
        self,
        port: Port,
        protocol: Protocol,
        clock: Callable[[], int],
        counters: BusCounters,
        label: Callable[[int], str],
    ) -> None:
        self.packets = packets_of(protocol)
        self.label = label
        self._port = port
        self._protocol = protocol
        self._clock = clock
        self._counters = counters

    def speaking(self, protocol: Protocol) -> "Link":
        """The same line in the other protocol."""
        return Link(self._port, protocol, self._clock, self._counters, self.label)

    def ping(self, servo_id: int, tries: int = TRIES, wait_ns: int = ANSWER_NS) -> Status | None:
        """The answer of one servo, None when it is silent."""
        size = 3 if self._protocol is Protocol.DYNAMIXEL else 0  # model number and firmware
        return self.ask(self.packets.ping(servo_id), servo_id, size, tries, wait_ns)

    def read_bytes(self, servo_id: int, address: int, size: int, what: str) -> bytes:
        """`size` bytes of the control table. Raises ServoError."""
        status = self.ask(self.packets.read(servo_id, address, size), servo_id, size)
        if status is None:
            raise ServoError(f"no answer from {self.label(servo_id)} when reading {what}")
        self._accept(status, f"refused to show {what}")
        return status.params

    def read(self, servo_id: int, register: Register) -> int:
        """One register. Raises ServoError."""
        return register.decode(
            self.read_bytes(servo_id, register.address, register.size, register.name)
        )

    def write(self, servo_id: int, register: Register, value: int, tries: int = TRIES) -> None:
        """Write one register and wait for the servo to confirm. Raises ServoError."""
        try:
            packet = self.packets.write(servo_id, register.address, register.encode(value))
        except ValueError as error:
            raise ServoError(f"{self.label(servo_id)}: {error}") from None
        status = self.ask(packet, servo_id, 0, tries)
        if status is None:
            raise ServoError(
                f"{self.label(servo_id)} did not confirm {register.name} = {value}; "
                "is its status return level 'all'?"
            )
        self._accept(status, f"refused {register.name} = {value}")

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """Write one register of several servos; nothing is confirmed."""
        rows = {servo_id: register.encode(value) for servo_id, value in values.items()}
        self._port.write(self.packets.sync_write(register.address, register.size, rows))

    def ask(
        self,
        request: bytes,
        servo_id: int,
        size: int,
        tries: int = TRIES,
        wait_ns: int = ANSWER_NS,
    ) -> Status | None:
        """Send, and wait for that servo's answer with `size` bytes; None after `tries`."""
        for attempt in range(tries):
            self._counters.retries += attempt > 0
            self._counters.skipped_bytes += self._port.flush_input()
            self._port.write(request)
            status = self._await(servo_id, size, self._clock() + wait_ns)
            if status is not None:
                return status
            self._counters.timeouts += 1
        return None

    def _await(self, servo_id: int, size: int, deadline_ns: int) -> Status | None:
        parser = new_parser(self._protocol)
        whole = size + self.packets.OVERHEAD
        found: Status | None = None
        while found is None:
            want = parser.needed or whole
            data = self._port.read(want, deadline_ns)
            answers = parser.feed(data)
            ended = len(data) < want
            if ended:
                answers += parser.give_up()
            found = next((one for one in answers if self._fits(one, servo_id, size)), None)
            if ended:
                break
        self._counters.crc_errors += parser.bad
        self._counters.skipped_bytes += parser.skipped
        self._counters.resyncs += parser.skipped > 0
        return found

    def _fits(self, status: Status, servo_id: int, size: int) -> bool:
        if status.id != servo_id:
            self._counters.wrong_id += 1
        elif len(status.params) != size and not self.packets.refused(status.error):
            self._counters.stale += 1
        else:
            return True
        return False

    def _accept(self, status: Status, what: str) -> None:
        if self.packets.refused(status.error):
            self._counters.refused += 1
            reason = self.packets.error_text(status.error)
            raise ServoError(f"{self.label(status.id)} {what}: {reason}")

"""Reading one block from every servo of a chain, once per tick, within a deadline.

The usual case is one write, one wait, one read and one decode. When the answer is not exactly as
expected the bytes go through a resynchronising parser, and the servos still missing are asked
again while the deadline allows, in turn from the last and from the first: on a real chain a servo
waits for its predecessor's answer, so a silent one hides those behind it.

Neither protocol numbers its packets. So after a tick in which anything went wrong, and an answer
may still be on its way, every question asks for a different number of bytes, enough different ones
for two ticks with two retries each. An answer of any other length than those of the present tick's
questions is stale; it is counted and dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robotd.bus import dynamixel
from robotd.bus.blocks import (
    FULL,
    Blocks,
    DynamixelBlocks,
    FastDynamixelBlocks,
    FeetechBlocks,
    Row,
    Rows,
)
from robotd.bus.link import ANSWER_NS, BusCounters, new_parser, packets_of
from robotd.bus.port import Port
from robotd.bus.registers import Protocol
from robotd.bus.status import Status

_BITS_PER_BYTE = 10  # 8N1
_WARY_TICKS = 32  # after a failure
_FAST_FAILURES = 3  # in a row, then sync read for good
_LENGTH_SLACK = 16  # a length field holds a little more than the data, and stuffing


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a chain is read."""

    detail: str = FULL  # which block, see blocks.SPECS
    baud: int = 1_000_000
    margin_ns: int = 1_500_000  # patience beyond the wire time before servos are asked again
    retries: int = 2  # at most, and only inside the deadline
    fast: bool = True  # use fast sync read where all servos answer it


class ChainReader:
    """Block reads of one chain; `request`, then `collect` the rows in chain order."""

    def __init__(
        self,
        port: Port,
        protocol: Protocol,
        ids: Sequence[int],
        clock: Callable[[], int],
        counters: BusCounters,
        options: ReadOptions,
        side: Callable[[Status], bool] = lambda status: False,
    ) -> None:
        """`side` may take answers to questions of others on this bus; it says whether it did."""
        self._port = port
        self._clock = clock
        self._counters = counters
        self._ids = tuple(ids)
        self._index = {servo_id: at for at, servo_id in enumerate(ids)}
        self._packets = packets_of(protocol)
        self._byte_ns = _BITS_PER_BYTE * 1_000_000_000 // options.baud
        self._margin_ns = options.margin_ns
        self._retries = options.retries
        self._side = side
        self._fast: Blocks | None = None
        if protocol is Protocol.DYNAMIXEL:
            self._plain: Blocks = DynamixelBlocks(ids, options.detail)
            self._fast = FastDynamixelBlocks(ids, options.detail) if options.fast else None
        else:
            self._plain = FeetechBlocks(ids, options.detail)
        self._active: Blocks = self._plain
        longest = max(self._plain.lengths) + _LENGTH_SLACK
        if self._fast is not None:
            longest = max(longest, max(self._fast.sizes))
        self._parser = new_parser(protocol, longest)
        self._variant = 0
        self._wary = 0
        self._fast_failures = 0
        self._end_ns = 0  # of the attempt that is out
        self._taken: dict[int, Status] = {}  # first answer by place in the chain, in one attempt

    @property
    def fast(self) -> bool:
        """Whether fast sync read is in use."""
        return self._active is self._fast

    def probe_fast(self) -> bool:
        """Use fast sync read when all servos answer one; returns whether they did."""
        self._active = self._plain
        self._fast_failures = 0
        if self._fast is None:
            return False
        for _ in range(2):
            self._port.flush_input()
            self._port.write(self._fast.requests[0])
            data = self._port.read(self._fast.sizes[0], self._clock() + ANSWER_NS)
            if len(data) == self._fast.sizes[0] and self._fast.decode(data, 0) is not None:
                self._active = self._fast
                break
        return self.fast

    def request(self) -> None:
        """Ask all servos; does not wait."""
        if self._wary:
            self._wary -= 1
            self._variant = _cautious(self._variant)
        else:
            self._variant = 0
        self._send(self._active.requests[self._variant], self._active.sizes[self._variant])
        self._counters.reads += 1

    def collect(self, deadline_ns: int) -> Rows:
        """The servos' rows; error is None, and the values 0, where none came in time."""
        size = self._active.sizes[self._variant]
        data = self._port.read(size, min(self._end_ns, deadline_ns))
        if len(data) == size:
            rows = self._active.decode(data, self._variant)
            if rows is not None:
                self._fast_failures = 0
                return rows
        return self._recover(data, deadline_ns)

    def _send(self, packet: bytes, answer_size: int) -> None:
        self._port.write(packet)
        wire_ns = (len(packet) + answer_size) * self._byte_ns
        self._end_ns = self._clock() + wire_ns + self._margin_ns

    def _recover(self, data: bytes, deadline_ns: int) -> Rows:
        found: dict[int, Row] = {}
        self._taken = {}
        lengths = {self._active.lengths[self._variant]}
        trouble = self._trouble()
        self._gather(data, found, lengths, deadline_ns)
        if self.fast and not found:
            self._note_fast_failure()
        for retry in range(self._retries + 1):
            missing = [servo_id for at, servo_id in enumerate(self._ids) if at not in found]
            if not missing:
                break
            self._counters.timeouts += 1
            order = missing if retry % 2 else missing[::-1]
            if retry == self._retries or not self._ask_again(order, lengths, deadline_ns):
                break
            self._gather(b"", found, lengths, deadline_ns)
        self._counters.failed_reads += len(found) < len(self._ids)
        if self._trouble() != trouble:
            self._wary = _WARY_TICKS
        none = (None, 0, 0, 0)
        rows = [found.get(at, none) for at in range(len(self._ids))]
        errors, positions, velocities, loads = zip(*rows, strict=True)
        return errors, positions, velocities, loads

    def _trouble(self) -> int:
        """Grows with everything that may leave an answer behind; stuffed packets do not."""
        count = self._counters
        return count.timeouts + count.resyncs + count.stale + count.duplicates + count.wrong_id

    def _ask_again(self, missing: list[int], lengths: set[int], deadline_ns: int) -> bool:
        """Ask the missing servos once more; False when there is no time for their answer."""
        self._variant = _cautious(self._variant)
        length = self._plain.lengths[self._variant]
        packet = self._plain.request(self._variant, missing)
        size = (length + self._packets.OVERHEAD) * len(missing)
        if self._clock() + (len(packet) + size) * self._byte_ns >= deadline_ns:
            return False
        self._counters.skipped_bytes += self._port.flush_input()
        self._counters.retries += 1
        lengths.add(length)
        self._send(packet, size)
        return True

    def _gather(
        self, data: bytes, found: dict[int, Row], lengths: set[int], deadline_ns: int
    ) -> None:
        """Parse what arrives until no more servo is missing or the attempt's time is over."""
        parser, end_ns = self._parser, min(self._end_ns, deadline_ns)
        parser.reset()
        self._taken = {at: status for at, status in self._taken.items() if at in found}
        skipped, bad = parser.skipped, parser.bad
        one = min(lengths) + self._packets.OVERHEAD
        lost = 0  # bytes of packets that replaced an expected one
        while True:
            lost += self._sort(parser.feed(data), found, lengths)
            missing = len(self._ids) - len(found)
            begun = parser.needed
            if not missing or (not begun and lost + parser.skipped - skipped >= missing * one):
                break
            want = begun + (missing - (begun > 0)) * one
            data = self._port.read(want, end_ns)
            if len(data) < want:
                self._sort(parser.feed(data), found, lengths)
                self._sort(parser.give_up(), found, lengths)
                break
        self._counters.crc_errors += parser.bad - bad
        self._counters.skipped_bytes += parser.skipped - skipped
        self._counters.resyncs += parser.skipped > skipped

    def _sort(self, answers: list[Status], found: dict[int, Row], lengths: set[int]) -> int:
        """File answers under their servo; returns the bytes of packets nobody was to send."""
        lost = 0
        for status in answers:
            at = self._index.get(status.id)
            size = len(status.params)
            if at is None and status.id == dynamixel.BROADCAST and self.fast:
                self._sort_fast(status, found)
            elif at is None:
                self._counters.wrong_id += 1
                lost += size + self._packets.OVERHEAD
            elif size not in lengths:
                if not self._side(status):
                    refused = self._packets.refused(status.error)
                    self._counters.refused += refused
                    self._counters.stale += not refused
            elif at in self._taken:
                lost += self._again(at, status, found)
            else:
                self._taken[at] = status
                found[at] = self._plain.row(status.error, status.params)
        return lost

    def _again(self, at: int, status: Status, found: dict[int, Row]) -> int:
        """A second answer of one servo. If they differ one is another servo's: take neither."""
        self._counters.duplicates += 1
        first = self._taken[at]
        if at not in found or len(first.params) != len(status.params) or first == status:
            return 0
        del found[at]
        return 2 * (len(status.params) + self._packets.OVERHEAD)

    def _sort_fast(self, status: Status, found: dict[int, Row]) -> None:
        length = self._active.lengths[self._variant]
        rows = dynamixel.fast_blocks(status.params, status.error, length)
        if [row.id for row in rows] != list(self._ids):
            self._counters.stale += 1
            return
        for at, row in enumerate(rows):
            found[at] = self._active.row(row.error, row.params)

    def _note_fast_failure(self) -> None:
        self._fast_failures += 1
        if self._fast_failures >= _FAST_FAILURES:
            self._active = self._plain
            self._counters.fallbacks += 1


def _cautious(variant: int) -> int:
    """The next of the seven longer variants: 1, 2, 3, 4, 5, 6, 7, 1, ..."""
    return 1 + variant % 7

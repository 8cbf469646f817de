"""What the two protocol servers share: who hears a request, replies, collisions on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from robotd.sim.servos import Servo

BROADCAST = 0xFE
SILENCE_NS = 50_000_000  # a packet that stops half-way for so long is forgotten


@dataclass(slots=True)
class Reply:
    """One status packet on its way. `ids` are the servos that speak in it.

    `sizes` is how many bytes each of them has to say, where they share a packet on purpose.
    """

    ids: tuple[int, ...]
    data: bytes
    delay_ns: int = 0  # after the end of the request or of the reply before
    late_ns: int = 0  # injected: it reaches the client so much later
    sizes: tuple[int, ...] = ()


Word = tuple[int, int, bytes]  # error byte, id and data of one servo in a status packet


class ProtocolServer[S: Servo](ABC):
    """A chain of servos that understands a byte stream. Subclasses parse and answer."""

    alarm: int  # error bit that says a servo is not well

    def __init__(self, servos: Sequence[S]) -> None:
        self.servos = list(servos)
        self._buffer = bytearray()
        self._heard_ns = 0
        self._now_ns = 0
        self._baud: int | None = None
        self._all: list[S] = []
        self._ears: dict[int, list[S]] = {}

    def feed(self, data: bytes, now_ns: int, baud: int | None = None) -> list[Reply]:
        """Bytes that arrived at `now_ns` in; the replies they cause out, in order.

        `baud` is the sender's rate, None where there is none: then every servo understands it.
        """
        if baud != self._baud or now_ns - self._heard_ns > SILENCE_NS:
            self._buffer.clear()
            self._baud = baud
        self._heard_ns = self._now_ns = now_ns
        if baud is not None and all(servo.baud != baud for servo in self.servos):
            return []  # framing errors to everyone
        self._buffer += data
        replies: list[Reply] = []
        while self._next(replies):
            pass
        return replies

    def forget(self) -> None:
        """Drop a packet that began; its sender has gone."""
        self._buffer.clear()

    @abstractmethod
    def _next(self, replies: list[Reply]) -> bool:
        """Take one packet, or garbage, off the buffer; False when more bytes are needed."""

    @abstractmethod
    def take_apart(self, reply: Reply) -> list[Word]:
        """What each servo says in a status packet; nothing if it is none (a collision)."""

    @abstractmethod
    def put_together(self, reply: Reply, words: list[Word]) -> bytes:
        """A valid status packet like `reply`, saying something else."""

    def listen(self) -> None:
        """Find out who understands requests now; once per packet, for ids and rates may change."""
        now, baud = self._now_ns, self._baud
        self._ears = {}
        self._all = []
        for servo in self.servos:
            if (
                servo.connected
                and not servo.deaf
                and servo.ready_ns <= now
                and (baud is None or servo.baud == baud)
            ):
                self._all.append(servo)
                self._ears.setdefault(servo.id, []).append(servo)

    def hearing(self, servo_id: int) -> list[S]:
        """Servos that obey a request to an id (the broadcast id: all of them)."""
        return self._all if servo_id == BROADCAST else self._ears.get(servo_id, [])

    def named(self, servo_id: int) -> list[S]:
        """Servos of exactly that id; in a list of ids there is no broadcast."""
        return self._ears.get(servo_id, [])

    def _answer(self, replies: list[Reply], spoken: Sequence[Reply]) -> None:
        """Put replies to one request on the wire; several at once destroy each other."""
        if len(spoken) == 1:
            replies.append(spoken[0])
        elif spoken:
            ids = tuple(id_ for reply in spoken for id_ in reply.ids)
            data = collide([reply.data for reply in spoken])
            replies.append(Reply(ids, data, max(reply.delay_ns for reply in spoken)))


def collide(packets: Sequence[bytes]) -> bytes:
    """What is left when several servos talk at once: a wire low for one is low for all.

    They are never exactly in step: every further one is half a bit late here, which also keeps
    equal packets from surviving.
    """
    late = [
        bytes(b >> 1 | 0x80 for b in packet) if n else packet for n, packet in enumerate(packets)
    ]
    merged = bytearray()
    for column in zip_longest(*late, fillvalue=0xFF):
        byte = 0xFF
        for value in column:
            byte &= value
        merged.append(byte)
    return bytes(merged)

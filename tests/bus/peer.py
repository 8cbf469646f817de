"""A scripted peer at the other end of a socket pair: requests in, whatever the test says out."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from robotd.bus import dynamixel, feetech
from robotd.bus.port import SerialPort

type Script = Callable[[bytes], bytes]

LATER_NS = 10_000_000_000


def after(ns: int) -> int:
    return time.monotonic_ns() + ns


@contextlib.contextmanager
def served(script: Script) -> Iterator[SerialPort]:
    """A port whose peer answers each request with `script(request)`."""
    mine, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            while request := theirs.recv(4096):
                answer = script(request)
                if answer:
                    theirs.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    port = SerialPort.from_fd(mine.detach())
    try:
        yield port
    finally:
        port.close()
        thread.join()


def dynamixel_status(servo_id: int, params: bytes, error: int = 0) -> bytes:
    """A status packet of a Dynamixel, stuffed."""
    return dynamixel.instruction(servo_id, dynamixel.STATUS, bytes((error,)) + params)


def feetech_status(servo_id: int, params: bytes, error: int = 0) -> bytes:
    """A status packet of a Feetech servo."""
    return feetech.instruction(servo_id, error, params)


def fast_status(rows: Sequence[tuple[int, bytes]], error: int = 0) -> bytes:
    """The answer to a fast sync read: (id, data) of each servo."""
    length = sum(len(data) + 4 for _, data in rows) + 1
    packet = dynamixel.HEADER + bytes((dynamixel.BROADCAST,)) + length.to_bytes(2, "little")
    packet += bytes((dynamixel.STATUS,))
    for servo_id, data in rows:
        packet += bytes((error, servo_id)) + data
        packet += dynamixel.crc16(packet).to_bytes(2, "little")
    return packet


def close_quietly(fd: int) -> None:
    """Close a descriptor that may be closed already."""
    with contextlib.suppress(OSError):
        os.close(fd)

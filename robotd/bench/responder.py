"""What responder.c does, for machines without a C compiler: same arguments, same messages.

`python -m robotd.bench.responder MASTER_FD TEACHER_FD x|s`. Slower than the C program, and slower
by the same for every client; a tick then measures more of it and less of the client.
"""

import contextlib
import os
import select
import socket
import struct
import sys
import time

_REPEATABLE = {0x01, 0x02, 0x82, 0x8A, 0x92, 0x9A}  # ping and every kind of read
_SYNC_WRITE = 0x83
_PRIORITY = 40
_COUNTERS = struct.Struct("<6Q")


class Responder:
    """Packets in from the pseudo-terminal, remembered answers out."""

    def __init__(self, master: int, teacher: socket.socket, dynamixel: bool) -> None:
        self.master = master
        self.teacher = teacher
        self.dynamixel = dynamixel
        self.header = b"\xff\xff\xfd\x00" if dynamixel else b"\xff\xff"
        self.memory: dict[bytes, bytes] = {}
        self.buffer = b""
        self.byte_ns = 0
        self.bus_free_ns = 0
        self.requests = self.asked = self.request_bytes = self.answer_bytes = self.junk = 0
        self.realtime = False

    def run(self) -> None:
        """Serve until the teacher's end is closed."""
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
            self.realtime = True
        poller = select.poll()
        poller.register(self.master, select.POLLIN)
        poller.register(self.teacher, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self.master in ready:
                self._take()
            if self.teacher.fileno() in ready:
                message = self.teacher.recv(4096)
                if not message:
                    return
                self._command(message)

    def _take(self) -> None:
        try:
            data = os.read(self.master, 4096)
        except OSError:
            time.sleep(0.001)  # nobody has the other end open
            return
        self.buffer += data
        while self.buffer:
            size = self._packet_size()
            if size == 0:
                return
            if size > 0:
                self._serve(self.buffer[:size])
            else:
                self.junk += 1
            self.buffer = self.buffer[max(size, 1) :]

    def _packet_size(self) -> int:
        """Size of the packet at the start; 0: incomplete, -1: no packet starts here."""
        data, header = self.buffer, self.header
        if not data.startswith(header[: len(data)]):
            return -1
        smallest = 10 if self.dynamixel else 6
        if len(data) < smallest:
            return 0
        if not self.dynamixel and data[2] == 0xFF:
            return -1
        size = 7 + (data[5] | data[6] << 8) if self.dynamixel else 4 + data[3]
        if size < smallest:
            return -1
        return size if size <= len(data) else 0

    def _serve(self, request: bytes) -> None:
        self.requests += 1
        self.request_bytes += len(request)
        self.bus_free_ns = max(self.bus_free_ns, time.monotonic_ns())
        self.bus_free_ns += len(request) * self.byte_ns
        instruction = request[7 if self.dynamixel else 4]
        if instruction == _SYNC_WRITE:
            return
        answer = self.memory.get(request)
        if answer is None:
            answer = self._ask(request)
            if instruction not in _REPEATABLE:
                self.memory.clear()
            elif answer:
                self.memory[request] = answer
        self._deliver(answer)

    def _ask(self, request: bytes) -> bytes:
        self.teacher.send(b"R" + request)
        self.asked += 1
        while message := self.teacher.recv(4096):
            if message[:1] == b"R":
                return message[1:]
            self._command(message)
        sys.exit(0)

    def _deliver(self, answer: bytes) -> None:
        self.answer_bytes += len(answer)
        if self.byte_ns and answer:
            self.bus_free_ns += len(answer) * self.byte_ns
            time.sleep(max(0, self.bus_free_ns - time.monotonic_ns()) / 1e9)
        os.write(self.master, answer)

    def _command(self, message: bytes) -> None:
        if message[:1] == b"B":
            (self.byte_ns,) = struct.unpack_from("<I", message, 1)
        elif message[:1] == b"S":
            counters = _COUNTERS.pack(
                self.requests, self.asked, self.request_bytes, self.answer_bytes, self.junk,
                self.realtime,
            )  # fmt: skip
            self.teacher.send(b"S" + counters)


def main() -> None:
    master, teacher, kind = sys.argv[1:4]
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        Responder(int(master), socket.socket(fileno=int(teacher)), kind == "x").run()


if __name__ == "__main__":
    main()

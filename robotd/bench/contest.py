"""A client's own process: makes one client, then runs blocks of ticks as it is told.

`python -m robotd.bench.contest CLIENT FD`; one JSON message each way over an inherited socket. A
process each, because an import changes what everything else in its process costs: torch alone
multiplies the collector's work. `robotd.bench.peer` is the other end.
"""

import contextlib
import gc
import json
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robotd.bench.clients import CLIENTS, Client, Setup


@dataclass(frozen=True, slots=True)
class Block:
    """Some ticks in a row."""

    wall_ns: list[int]
    cpu_ns: int  # of the process, all threads, all ticks together


def run_block(client: Client, setup: Setup, ticks: int, warm_up: int) -> Block:
    """The measurement itself; the collector stays as Python has it."""
    client.open(setup)
    try:
        for _ in range(warm_up):
            client.tick()
        gc.collect()
        wall = []
        cpu = time.process_time_ns()
        for _ in range(ticks):
            begin = time.perf_counter_ns()
            client.tick()
            wall.append(time.perf_counter_ns() - begin)
        return Block(wall, time.process_time_ns() - cpu)
    finally:
        client.close()


def _serve(name: str, end: socket.socket) -> None:
    """The client's process: say that it is loaded, then run blocks until the bench has gone."""
    file = end.makefile("rwb")

    def say(answer: dict[str, Any]) -> None:
        file.write(json.dumps(answer).encode() + b"\n")
        file.flush()

    try:
        client = next(spec for spec in CLIENTS if spec.name == name).make()
    except ImportError as error:
        say({"error": f"not installed ({error})"})
        return
    say({})
    for line in file:
        request = json.loads(line)
        setup = request["setup"]
        setup["calibration"] = Path(setup["calibration"])
        try:
            block = run_block(client, Setup(**setup), request["ticks"], request["warm_up"])
        except Exception as error:  # a library may raise anything; its words are reported
            say({"error": f"{type(error).__name__}: {error}"})
        else:
            say(asdict(block))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))

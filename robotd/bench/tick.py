"""One tick of a bus, robotd's beside its peers': read six positions, write six goals.

Simulated: for both protocols every client works on the same kind of wire (robotd.bench.wire),
instant and at 1 Mbaud, in short blocks in turn, so that a disturbance hits all alike. Ticks follow
each other without pause, so at 1 Mbaud a tick also waits for the goals of the one before. Figures
are medians over blocks, ratios are medians of ratios within a round.

On a port: the same clients on one real (or anybody's simulated) bus. Only reads, unless asked; with
`write` each goal is the position just read and torque must be off on every servo, so no arm moves.
An SO-101 is never written to: a goal would switch the torque of its servos on.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robotd.bench.clients import CLIENTS, ClientSpec, Setup
from robotd.bench.contest import Block
from robotd.bench.figures import median, percentile, ratio
from robotd.bench.machine import describe
from robotd.bench.native import Native
from robotd.bench.peer import Peer
from robotd.bench.port import full_turn_calibration, refuse_if_unsafe
from robotd.bench.progress import Steps, steps
from robotd.bench.report import Goal, Report, Table
from robotd.bench.wire import Wire, emulator
from robotd.errors import ProcessError

BAUD = 1_000_000
ARMS = ("koch", "so101")
_PROTOCOLS = {"koch": "Dynamixel", "so101": "Feetech"}
_ATTEMPTS = 3
_COLUMNS = {
    "client": "client",
    "version": "version",
    "wall_p50_us": "wall p50 us",
    "wall_p99_us": "p99",
    "cpu_us": "CPU us",
    "failed": "failed blocks",
}


@dataclass
class Contest:
    """Blocks of every client under one condition. None: that block failed."""

    title: str
    blocks: dict[str, list[Block | None]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # last words of a client that failed

    def add(self, peer: Peer, setup: Setup, ticks: int, warm_up: int) -> None:
        """One more block; a client that fails may try again."""
        row = self.blocks.setdefault(peer.spec.name, [])
        for _ in range(_ATTEMPTS):
            try:
                row.append(peer.run(setup, ticks, warm_up))
                return
            except ProcessError as error:
                self.failures[peer.spec.name] = str(error).splitlines()[0]
        row.append(None)

    def wall(self, name: str) -> list[float]:
        """p50 of each block, microseconds; NaN for one that failed."""
        rows = self.blocks.get(name, [])
        return [percentile(b.wall_ns, 0.5) / 1000 if b else math.nan for b in rows]

    def cpu(self, name: str) -> list[float]:
        """CPU per tick of each block, microseconds; NaN for one that failed."""
        rows = self.blocks.get(name, [])
        return [b.cpu_ns / len(b.wall_ns) / 1000 if b else math.nan for b in rows]

    def table(self, specs: Sequence[ClientSpec]) -> Table:
        """One row per client that took part."""
        rows = [self._row(spec) for spec in specs if spec.name in self.blocks]
        return Table(self.title, _COLUMNS, rows)

    def _row(self, spec: ClientSpec) -> dict[str, object]:
        done = [block for block in self.blocks[spec.name] if block]
        return {
            "client": spec.name,
            "version": spec.version,
            "wall_p50_us": median(_known(self.wall(spec.name))),
            "wall_p99_us": percentile([t / 1000 for block in done for t in block.wall_ns], 0.99),
            "cpu_us": median(_known(self.cpu(spec.name))),
            "failed": len(self.blocks[spec.name]) - len(done),
        }

    def remarks(self) -> list[str]:
        """Who failed, in their own last words."""
        lost = [name for name, blocks in self.blocks.items() if None in blocks]
        return [f"{self.title}: {self.failures[name]}" for name in lost]


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Median over the rounds of `of` / `to` in the same round; NaN when there is none."""
    return median(_known([ratio(a, b) for a, b in zip(of, to, strict=False)]))


@contextlib.contextmanager
def peers(specs: Sequence[ClientSpec], notes: list[str]) -> Iterator[list[Peer]]:
    """Client processes, loaded; those that cannot take part are named in `notes`."""
    with contextlib.ExitStack() as stack:
        running = []
        for spec in specs:
            peer = Peer(spec)
            stack.callback(peer.close)
            running.append(peer)
        for peer in running:
            peer.await_loaded()
            if peer.missing:
                notes.append(f"{peer.spec.name} skipped: {peer.missing}")
        yield [peer for peer in running if not peer.missing]


def _turns(count: int, total: int) -> tuple[int, int]:
    """Rounds and ticks per block for about `total` ticks of each client."""
    rounds = max(1, min(count, total // 20))
    return rounds, max(1, total // rounds)


def bench_tick(
    ticks: int, arms: Sequence[str] = ARMS, clients: Sequence[ClientSpec] = CLIENTS
) -> Report:
    """Clients on simulated wires; `ticks` of each client, arm and wire time."""
    rounds, block = _turns(20, ticks)
    report = Report("tick", describe(), {"ticks": rounds * block, "blocks": rounds})
    with (
        tempfile.TemporaryDirectory(prefix="robotd-") as folder,
        peers(clients, report.notes) as running,
        steps("tick", 2 * rounds * len(arms)) as step,
    ):
        native = Native(Path(folder))
        for arm in arms:
            protocol, teacher = emulator(arm)
            taking_part = [peer for peer in running if arm in peer.spec.arms]
            with Wire(protocol, teacher, native) as wire:
                setup = Setup(wire.path, arm, BAUD, _sim_calibration(arm, native.folder), True)
                contests = _contests(setup, wire, taking_part, rounds, block, step)
                report.settings["responder"] = wire.program
            report.tables += [contest.table(clients) for contest in contests]
            report.goals += _goals(_PROTOCOLS[arm], *contests)
            report.notes += [remark for contest in contests for remark in contest.remarks()]
        if native.why_not:
            report.notes.append(f"answers come from Python: {native.why_not}")
    report.notes += [
        "all read positions alone, but 'robotd, full', which reads velocity and load as well, as "
        "the loop does at 200 Hz",
        "'bytes only' is the floor: the same bytes through the port, nothing checked or decoded",
    ]
    return report


def _contests(
    setup: Setup, wire: Wire, taking_part: Sequence[Peer], rounds: int, block: int, step: Steps
) -> tuple[Contest, Contest]:
    """Instant wire and 1 Mbaud: in every round one block of each client under both."""
    protocol = _PROTOCOLS[setup.arm]
    instant, wired = Contest(f"{protocol}, instant wire"), Contest(f"{protocol}, 1 Mbaud")
    for turn in range(rounds):
        for contest, baud in ((instant, None), (wired, BAUD)):
            step(f"{contest.title}, round {turn + 1} of {rounds}")
            wire.set_baud(baud)
            for peer in _rotated(taking_part, turn):
                contest.add(peer, setup, block, warm_up=10)
                wire.free()
    return instant, wired


def _rotated(items: Sequence[Peer], by: int) -> list[Peer]:
    by %= max(1, len(items))
    return [*items[by:], *items[:by]]


def _sim_calibration(arm: str, folder: Path) -> Path:
    from robotd.sim.arms import sim_calibration

    path = folder / f"{arm}.json"
    sim_calibration(arm).save(path)
    return path


def _goals(protocol: str, instant: Contest, wired: Contest) -> list[Goal]:
    ours, rusty = instant.wall("robotd"), instant.wall("rustypot")
    return [
        Goal(
            f"{protocol}, instant wire: LeRobot's wall time over ours",
            paired_ratio(instant.wall("lerobot"), ours), 3.0, "x", at_least=True,
        ),
        Goal(
            f"{protocol}, instant wire: our wall time over rustypot's",
            paired_ratio(ours, rusty), 1.0, "x",
        ),
        Goal(
            f"{protocol}, 1 Mbaud: LeRobot's CPU over ours",
            paired_ratio(wired.cpu("lerobot"), wired.cpu("robotd")), 8.0, "x", at_least=True,
        ),
    ]  # fmt: skip


def bench_port(
    path: str,
    arm: str,
    calibration: Path | None,
    ticks: int,
    write: bool,
    baud: int = BAUD,
    clients: Sequence[ClientSpec] = CLIENTS,
) -> Report:
    """All clients on one bus that is there; reads only, unless `write` (goal := present)."""
    rounds, block = _turns(10, ticks)
    settings = {"port": path, "arm": arm, "ticks": rounds * block, "writes": write}
    report = Report("tick", describe(), settings)
    contest = Contest(f"{path} ({arm}), {'read and write' if write else 'read only'}")
    specs = [spec for spec in clients if arm in spec.arms]
    with tempfile.TemporaryDirectory(prefix="robotd-") as folder:
        given = calibration or full_turn_calibration(Path(folder))
        setup = Setup(path, arm, baud, given, write)
        torque = refuse_if_unsafe(setup)
        with peers(specs, report.notes) as running, steps("tick", rounds * len(running)) as step:
            for turn in range(rounds):
                for peer in _rotated(running, turn):
                    step(f"{peer.spec.name}, round {turn + 1} of {rounds}")
                    contest.add(peer, setup, block, warm_up=3)
        if refuse_if_unsafe(setup) != torque:
            report.notes.append("torque changed while this ran, by somebody else")
    report.tables.append(contest.table(specs))
    report.notes += contest.remarks()
    report.notes.append(
        "goals written are the positions read, torque is off: nothing moves"
        if write
        else "nothing is written: nothing moves"
    )
    return report

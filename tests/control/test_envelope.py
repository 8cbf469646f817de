"""For any stream of chunks, commands, nonsense, late ticks and bus failures: the envelope holds.

What is checked is what the servos are told: the bytes, decoded by a witness of its own, and beside
them the targets that the loop reports.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robotd.config import JOINTS
from robotd.ipc.inbox import CommandName
from robotd.ipc.ring import Fault, Mode, TickReport
from robotd.sim.arms import calibration_table
from tests.control.rig import Rig
from tests.control.witness import Witness

PARK = (0, -85, 80, 60, 0, 10)
COMMANDS: tuple[CommandName, ...] = ("arm", "disarm", "hold", "park", "policy", "estop", "clear")
BUS_FAULTS = (
    "drop:p=0.3:for=60ms", "drop:for=30ms", "corrupt:p=0.3:for=60ms", "late:by=3ms:p=0.5:for=60ms",
    "stale:p=0.3:for=60ms", "duplicate:p=0.3:for=60ms", "wrong-id:p=0.3:for=60ms",
    "mute:id=3:for=40ms", "mute:id=3:for=100ms", "mute:for=400ms", "unplug:for=100ms",
    "reboot:id=2", "error:id=4:bits=0x20:for=50ms", "overheat:id=5:for=200ms", "",
)  # fmt: skip

target = st.one_of(
    st.floats(-100, 100),
    st.floats(0, 100),
    st.floats(-106, 106),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e300, 0.0, -0.0]),
)
good_step = st.tuples(*[st.floats(-100, 100)] * 5, st.floats(0, 100))
steps = st.one_of(
    st.lists(good_step, min_size=1, max_size=8),
    st.lists(st.tuples(*[target] * 6), min_size=1, max_size=4),
    st.lists(st.tuples(*[target] * 5), min_size=1, max_size=2),
)


@dataclass(frozen=True)
class Chunk:
    steps: list[tuple[float, ...]]
    sequence: int
    age_ms: int
    period_ms: int


# Most chunks are good and newer than those before; the sequence 0 stands for "the next one".
chunks = st.builds(
    Chunk,
    steps,
    st.sampled_from([0, 0, 0, 0, 1, 7]),
    st.sampled_from([0, 0, 5, 40, -50, 5000]),
    st.sampled_from([1, 20, 33, 100]),
)
action = st.one_of(
    st.tuples(st.just("tick"), st.integers(1, 40)),
    st.tuples(st.just("tick"), st.integers(1, 40)),
    st.tuples(st.just("late"), st.integers(1, 200)),
    st.tuples(st.just("chunk"), chunks),
    st.tuples(st.just("chunk"), chunks),
    st.tuples(st.just("command"), st.sampled_from(COMMANDS)),
    st.tuples(st.just("command"), st.sampled_from(("policy", "park", "hold"))),
    st.tuples(st.just("fault"), st.sampled_from(BUS_FAULTS)),
)


class Scene:
    """A rig whose wire is watched and whose every report is checked."""

    def __init__(self, folder: Path, model: str, takeover: str) -> None:
        self.model = model
        self.witness: Witness | None = None

        def wrap(port):  # type: ignore[no-untyped-def]
            self.witness = Witness(port, model)
            return self.witness

        policy = {"bundle": ".", "takeover": takeover, "silence_timeout_s": 0.3}
        policy["park_when_silent"] = takeover == "ensemble"
        self.rig = Rig(folder, (model,), wrap, policy=policy, arm={"park": PARK})
        self.sequence = 10
        self.last: TickReport | None = None
        self._applied: list[tuple[float, float]] = []
        self._limits = self.rig.loop.limbs[0].limits
        assert self.witness is not None
        self.witness.on_torque = self._check_engaging

    def _check_engaging(self, servo: int, goal: int) -> None:
        """Torque may go on only with the goal where the joint stands (it may sag a little)."""
        present = self.rig.bus.servos[servo - 1].get("Present_Position")
        assert abs(present - goal) <= 20

    def tick(self, count: int = 1, skip: int = 0) -> None:
        for _ in range(count):
            report = self.rig.tick(skip=skip)
            skip = 0
            assert report.fault not in (Fault.GUARD, Fault.INTERNAL), report.message
            self._check_applied(report)

    def _check_applied(self, report: TickReport) -> None:
        """Reported targets: exactly inside the limits, tick by tick, while goals are written."""
        if not self.rig.loop.limbs[0].driven:
            self._applied = []
            return
        now = [joint.applied for joint in report.joints]
        if self._applied:
            after = []
            for (last, last_step), value, limits in zip(
                self._applied, now, self._limits, strict=True
            ):
                step = value - last
                assert abs(step) <= limits.step
                assert abs(step - last_step) <= limits.change
                assert min(last, limits.lower) <= value <= max(last, limits.upper)
                after.append((value, step))
            self._applied = after
        else:
            self._applied = [(value, 0.0) for value in now]

    def act(self, kind: str, what: object) -> None:
        if kind == "tick":
            assert isinstance(what, int)
            self.tick(what)
        elif kind == "late":
            assert isinstance(what, int)
            self.tick(skip=what)
        elif kind == "command":
            self.rig.send(what, "policy" if what == "policy" else "")  # type: ignore[arg-type]
            self.tick()
        elif kind == "fault":
            self.rig.bus.inject(str(what), self.rig.clock.now_ns())
        elif kind == "chunk":
            assert isinstance(what, Chunk)
            self.sequence += 1
            self.rig.chunk(
                what.steps,
                what.sequence or self.sequence,
                period_ns=what.period_ms * 1_000_000,
                observed_ns=max(0, self.rig.deadline_ns - what.age_ms * 1_000_000),
            )
            self.tick(3)

    def check_wire(self) -> None:
        """All goals that were ever written, in counts."""
        assert self.witness is not None
        table = calibration_table(self.model)
        for engagement in self.witness.engagements:
            track = [engagement.begun_at, *engagement.goals]
            for index, joint in enumerate(JOINTS):
                row, limits = table[joint], self._limits[index]
                unit = (row["range_max"] - row["range_min"]) / (limits.upper - limits.lower)
                values = [goals[index] for goals in track]
                low = min(row["range_min"], values[0])
                high = max(row["range_max"], values[0])
                for before, value in pairwise(values):
                    assert low <= value <= high
                    assert abs(value - before) <= limits.step * unit + 1
                for a, b, c in zip(values, values[10:], values[20:], strict=False):
                    assert abs(c - 2 * b + a) <= 100 * limits.change * unit + 2


@contextmanager
def scene(model: str, takeover: str) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="robotd-") as folder:
        made = Scene(Path(folder), model, takeover)
        yield made
        made.rig.close()


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    st.sampled_from(["so101", "koch"]),
    st.sampled_from(["replace", "cross_fade", "ensemble"]),
    st.lists(action, min_size=10, max_size=40),
)
def test_nothing_that_happens_gets_a_goal_out_of_the_envelope(
    model: str, takeover: str, actions: list[tuple[str, object]]
) -> None:
    with scene(model, takeover) as made:
        made.tick(3)
        for name in ("arm", "policy"):
            made.act("command", name)
        for kind, what in actions:
            made.act(kind, what)
        made.check_wire()


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_a_smooth_policy_passes_unchanged(model: str) -> None:
    """Chunks of a motion inside the limits: what is asked is applied, bit for bit."""
    with scene(model, "replace") as made:
        made.tick(3)
        made.act("command", "arm")
        made.act("command", "policy")
        base = [joint.applied for joint in made.rig.loop.report.joints]
        start_ns = made.rig.deadline_ns

        def pose(time_s: float) -> tuple[float, ...]:
            # 40 units/s and 250 units/s^2 at most, beginning at rest
            return tuple(
                at + way * (1 - math.cos(4 * time_s)) / 2
                for at, way in zip(base, (20, 18, -18, -15, 12, 20), strict=True)
            )

        compared = 0
        for k in range(1, 13):
            now = made.rig.deadline_ns
            times = [(now - start_ns) / 1e9 + 0.005 * i for i in range(80)]
            made.rig.chunk([pose(t) for t in times], k, period_ns=5_000_000, observed_ns=now)
            for _ in range(40):
                made.tick()
                report = made.rig.loop.report
                assert report.mode is Mode.POLICY
                for joint in report.joints:
                    assert joint.applied == joint.asked
                    assert joint.limited == 0
                    compared += 1
        assert compared == 12 * 40 * 6
        assert max(abs(j.applied - b) for j, b in zip(report.joints, base, strict=True)) > 5
        made.check_wire()


def next_action(random: Random, mode: Mode, position: list[float]) -> tuple[str, object]:
    """What happens next in an eventful life: it recovers from faults and goes on."""
    if mode is Mode.FAULT and random.random() < 0.5:
        # Trouble ends, servos with hardware errors are restarted, time passes.
        return random.choice([("fault", ""), ("fault", "reboot"), ("late", 60), ("tick", 20)])
    if mode in (Mode.FAULT, Mode.IDLE) and random.random() < 0.5:
        return "command", "clear" if mode is Mode.FAULT else "arm"
    if mode in (Mode.HOLD, Mode.PARK) and random.random() < 0.5:
        return "command", "policy" if mode is Mode.HOLD else "hold"
    kind = random.random()
    if kind < 0.45:
        return "chunk", random_chunk(random, position)
    if kind < 0.75:
        return "tick", random.randint(1, 25)
    if kind < 0.85:
        return "late", random.choice([1, 2, 5, 60])
    if kind < 0.90:
        return "command", random.choice(["park", "hold", "disarm", "arm", "clear", "estop"])
    if random.random() < 0.5:
        return "fault", ""
    return "fault", random.choice([f for f in BUS_FAULTS if not f.startswith("overheat")])


def random_chunk(random: Random, position: list[float]) -> Chunk:
    """A walk from where the joints are, a jump, or something that must be rejected."""
    stride = random.choice([0.3, 3, 30, 200])
    pose, walk = list(position), []
    for _ in range(random.randint(1, 16)):
        pose = [value + random.uniform(-stride, stride) for value in pose]
        walk.append([min(max(v, 0 if i == 5 else -100), 100) for i, v in enumerate(pose)])
    if random.random() < 0.15:
        walk[-1][random.randrange(6)] = random.choice([math.nan, math.inf, -107.0, 1e300])
    if random.random() < 0.05:
        walk = [step[:5] for step in walk]
    sequence = 0 if random.random() < 0.9 else random.randint(1, 30)
    age_ms = random.choice([0, 0, 5, 60, -20, 3000])
    steps = [tuple(step) for step in walk]
    return Chunk(steps, sequence, age_ms, random.choice([5, 20, 33, 100]))


@pytest.mark.parametrize("takeover", ["replace", "cross_fade", "ensemble"])
@pytest.mark.parametrize("model", ["so101", "koch"])
def test_an_eventful_life_stays_inside_the_envelope(model: str, takeover: str) -> None:
    random = Random(f"{model} {takeover}")
    followed, engagements, faults = 0, 0, set()
    with scene(model, takeover) as made:
        made.tick(3)
        for _ in range(700):
            report = made.rig.loop.report
            position = [0.0 if math.isnan(j.position) else j.position for j in report.joints]
            made.act(*next_action(random, report.mode, position))
            followed += report.chunk_sequence > 0
            faults.add(report.fault)
        made.check_wire()
        assert made.witness is not None
        engagements = len(made.witness.engagements)
    # It was a life worth the name.
    assert followed > 30
    assert engagements > 3
    assert len(faults) >= 3

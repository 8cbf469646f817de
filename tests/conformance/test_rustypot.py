"""rustypot (Rust) as a client of both simulated arms, and its register tables beside ours."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import rustypot

from robotd.sim.control_tables import MODELS, Item
from tests.conformance.served import ServedBus

BAUD, TIMEOUT_S = 1_000_000, 2.0
IDS = [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def koch() -> Iterator[ServedBus]:
    with ServedBus("koch") as served:
        yield served


@pytest.fixture(scope="module")
def so101() -> Iterator[ServedBus]:
    with ServedBus("so101") as served:
        yield served


def eventually(read, goal: float, within: float) -> None:
    end = time.monotonic() + 20
    while abs(read() - goal) > within:
        assert time.monotonic() < end, (read(), goal)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("controller", "name"),
    [
        (rustypot.Xl430PyController, "xl430-w250"),
        (rustypot.Xl330PyController, "xl330-m288"),
        (rustypot.Sts3215PyController, "sts3215"),
    ],
)
def test_its_registers_are_where_ours_are(controller, name: str) -> None:
    ours: dict[int, Item] = dict(MODELS[name].by_address)
    theirs = {r.addr: r for r in controller.registers() if r.addr in ours}
    assert len(theirs) > 30
    for address, register in theirs.items():
        assert ours[address].size == register.size, register.name


def test_koch_moves(koch: ServedBus) -> None:
    with closing(rustypot.Xl430PyController(str(koch.path), BAUD, TIMEOUT_S)) as arm:
        assert arm.ping(1)
        assert arm.scan([1, 2, 3, 4]) == {1: 1060, 2: 1060, 3: 1200, 4: 1200}
        start = arm.sync_read_register(IDS, "present_position")
        arm.sync_write_torque_enable(IDS, [True] * 6)
        assert list(arm.sync_read_torque_enable(IDS)) == [True] * 6
        arm.sync_write_register([1, 5], "goal_position", [start[0] + 130, start[4] - 90])
        eventually(lambda: arm.read_register(1, "present_position"), start[0] + 130, 1)
        eventually(lambda: arm.read_register(5, "present_position"), start[4] - 90, 1)
        value, error = arm.read_raw_data_with_error(1, 146, 1)
        assert (list(value), error) == ([25], 0)
        arm.sync_write_torque_enable(IDS, [False] * 6)


def test_xl330_reads_its_current(koch: ServedBus) -> None:
    with closing(rustypot.Xl330PyController(str(koch.path), BAUD, TIMEOUT_S)) as arm:
        assert arm.read_register(4, "model_number") == 1200
        assert arm.read_register(4, "present_temperature") == 25
        assert abs(arm.read_register(4, "present_current")) < 1500


def test_so101_moves(so101: ServedBus) -> None:
    with closing(rustypot.Sts3215PyController(str(so101.path), BAUD, TIMEOUT_S)) as arm:
        assert all(arm.ping(i) for i in IDS)
        assert arm.scan(IDS) == dict.fromkeys(IDS, 777)
        start = arm.sync_read_present_position(IDS)
        arm.sync_write_torque_enable(IDS, [True] * 6)
        arm.sync_write_goal_position([1], [start[0] - 0.2])
        eventually(lambda: arm.sync_read_present_position([1])[0], start[0] - 0.2, 0.01)
        assert arm.read_register(1, "present_temperature") == 25
        arm.sync_write_torque_enable(IDS, [False] * 6)


def test_its_scan_by_broadcast_finds_all(koch: ServedBus, so101: ServedBus) -> None:
    with closing(rustypot.Xl430PyController(str(koch.path), BAUD, TIMEOUT_S)) as arm:
        assert sorted(arm.broadcast_scan()) == IDS
    with closing(rustypot.Sts3215PyController(str(so101.path), BAUD, TIMEOUT_S)) as arm:
        assert arm.supports_broadcast_ping()
        assert sorted(arm.broadcast_scan()) == IDS

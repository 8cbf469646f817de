"""Every fault that can be injected, on both protocols, and their text form."""

import pytest

from robotd.errors import SimError
from robotd.sim.bus import MemoryPort
from robotd.sim.faults import KINDS, parse_faults
from tests.sim.clients import BROADCAST, MS, Client, Dynamixel, Feetech
from tests.sim.test_dynamixel_server import fast_blocks

PING = 1
BOTH = [Dynamixel, Feetech]


@pytest.fixture(params=BOTH, ids=["koch", "so101"])
def arm(request: pytest.FixtureRequest) -> Client:
    return request.param("koch" if request.param is Dynamixel else "so101")


def positions(arm: Client) -> bytes:
    """A sync read of all present positions."""
    if isinstance(arm, Dynamixel):
        return arm.packet(BROADCAST, 0x82, bytes([132, 0, 4, 0, 1, 2, 3, 4, 5, 6]))
    return arm.packet(BROADCAST, 0x82, bytes([56, 2, 1, 2, 3, 4, 5, 6]))


def answered(arm: Client) -> list[int]:
    return [status.id for status in arm.parse(arm.raw(positions(arm)))]


def test_without_faults_all_answer(arm: Client) -> None:
    assert answered(arm) == [1, 2, 3, 4, 5, 6]
    assert not arm.bus.faults.active


def test_dropped_replies_are_lost(arm: Client) -> None:
    arm.bus.inject("drop:id=2", arm.now)
    assert answered(arm) == [1, 3, 4, 5, 6]
    arm.bus.inject("", arm.now)
    assert answered(arm) == [1, 2, 3, 4, 5, 6]


def test_a_fault_may_end_after_a_number_of_replies(arm: Client) -> None:
    arm.bus.inject("drop:n=8", arm.now)
    assert answered(arm) == []
    assert answered(arm) == [3, 4, 5, 6]
    assert answered(arm) == [1, 2, 3, 4, 5, 6]
    assert arm.bus.faults.injected["drop"] == 8


def test_a_fault_may_strike_with_a_probability_and_repeats_with_its_seed() -> None:
    def lost(seed: int) -> list[list[int]]:
        arm = Dynamixel("koch", seed=seed)
        arm.bus.inject("drop:p=0.2", arm.now)
        return [answered(arm) for _ in range(200)]

    first = lost(1)
    assert 150 < 1200 - sum(len(ids) for ids in first) < 330
    assert lost(1) == first
    assert lost(2) != first


def test_a_fault_may_begin_later_and_last_a_while(arm: Client) -> None:
    arm.bus.inject("drop:at=100ms:for=200ms", arm.now)
    assert len(answered(arm)) == 6
    arm.wait(0.15)
    assert answered(arm) == []
    arm.wait(0.1)
    assert answered(arm) == []
    arm.wait(0.06)
    assert len(answered(arm)) == 6
    assert not arm.bus.faults.active


def test_corrupted_replies_fail_their_check(arm: Client) -> None:
    clean = arm.raw(arm.packet(4, PING))
    arm.bus.inject("corrupt:id=4", arm.now)
    for _ in range(30):
        damaged = arm.raw(arm.packet(4, PING))
        assert len(damaged) == len(clean)
        assert sum(a != b for a, b in zip(damaged, clean, strict=True)) == 1
        with pytest.raises((AssertionError, IndexError)):
            arm.parse(damaged)


def test_late_replies_come_later_than_the_others(arm: Client) -> None:
    arm.bus.inject("late:id=3:by=7ms", arm.now)
    timed = arm.bus.feed(positions(arm), arm.now)
    assert [when - arm.now for when, _ in timed] == [0, 7 * MS]
    assert [s.id for s in arm.parse(timed[1][1])] == [3]
    assert [s.id for s in arm.parse(timed[0][1])] == [1, 2, 4, 5, 6]


def test_duplicate_replies_come_twice(arm: Client) -> None:
    arm.bus.inject("duplicate:id=3", arm.now)
    assert answered(arm) == [1, 2, 3, 3, 4, 5, 6]


def test_stale_replies_repeat_what_the_servo_said_before(arm: Client) -> None:
    before = arm.parse(arm.raw(positions(arm)))
    arm.bus.inject("stale:id=1:n=1", arm.now)
    arm.bus.mechanism.position[0] += 0.5
    arm.bus.mechanism.position[1] += 0.5
    stale = arm.parse(arm.raw(positions(arm)))
    assert stale[0] == before[0]
    assert stale[1] != before[1]
    assert arm.parse(arm.raw(positions(arm)))[0] != before[0]


def test_wrong_id_replies_are_valid_packets_of_another_servo(arm: Client) -> None:
    arm.bus.inject("wrong-id:id=2:as=5", arm.now)
    assert answered(arm) == [1, 5, 3, 4, 5, 6]
    arm.bus.inject("", arm.now)
    arm.bus.inject("wrong-id:id=2", arm.now)
    assert 2 not in answered(arm)
    assert len(answered(arm)) == 6


def test_error_bits_are_set_in_valid_packets(arm: Client) -> None:
    arm.bus.inject("error:id=6:bits=0x24", arm.now)
    replies = arm.parse(arm.raw(positions(arm)))
    assert [status.error for status in replies] == [0, 0, 0, 0, 0, 0x24]


def test_a_mute_servo_neither_hears_nor_answers_and_keeps_its_torque(arm: Client) -> None:
    goal = arm.get(2, "Present_Position")
    arm.put(2, "Torque_Enable", 1)
    arm.wait(0.1)
    arm.bus.inject("mute:id=2:for=300ms", arm.now)
    assert arm.ping(2) == []
    arm.raw(arm.packet(BROADCAST, 3, bytes([40, 0]) if isinstance(arm, Feetech) else b"\x40\0\0"))
    assert arm.servo(2).torque_on
    arm.wait(0.35)
    assert arm.get(2, "Torque_Enable") == 1
    assert arm.get(2, "Present_Position") == goal


def test_overload_is_shown_and_acted_on(arm: Client) -> None:
    arm.put(6, "Torque_Enable", 1)
    arm.bus.inject("overload:id=6", arm.now)
    arm.wait(0.05)
    assert arm.one(6, PING).error == (0x80 if isinstance(arm, Dynamixel) else 0x20)
    if isinstance(arm, Dynamixel):
        assert arm.get(6, "Hardware_Error_Status") == 0x20
        assert arm.get(6, "Torque_Enable") == 0
    else:
        assert arm.servo(6).drive.torque_limit == pytest.approx(0.2)


def test_overheating_is_measured_shown_and_acted_on(arm: Client) -> None:
    arm.put(2, "Torque_Enable", 1)
    arm.bus.inject("overheat:id=2:c=85:for=1s", arm.now)
    arm.wait(0.5)
    assert arm.get(2, "Present_Temperature") == 85
    assert arm.one(2, PING).error != 0
    assert arm.get(2, "Torque_Enable") == 0
    assert arm.get(3, "Present_Temperature") < 40
    arm.wait(60.0)
    assert arm.get(2, "Present_Temperature") < 80


def test_a_brownout_resets_every_servo_on_the_rail(arm: Client) -> None:
    for servo_id in range(1, 7):
        arm.put(servo_id, "Torque_Enable", 1)
    arm.bus.inject("brownout:v=2:for=50ms", arm.now)
    arm.wait(0.04)
    assert arm.ping(BROADCAST) == []
    assert not any(servo.torque_on for servo in arm.bus.servos)
    arm.wait(1.0)
    assert len(arm.ping(BROADCAST)) == 6
    assert [arm.get(i, "Torque_Enable") for i in range(1, 7)] == [0] * 6
    assert arm.one(1, PING).error == 0


def test_a_dip_of_the_supply_is_a_voltage_error(arm: Client) -> None:
    low = "5.8" if isinstance(arm, Dynamixel) else "3.8"
    arm.bus.inject(f"brownout:id=1:v={low}:for=100ms", arm.now)
    arm.wait(0.05)
    assert arm.one(1, PING).error != 0


def test_a_reboot_silences_a_servo_and_takes_its_torque(arm: Client) -> None:
    arm.put(4, "Torque_Enable", 1)
    arm.bus.inject("reboot:id=4:at=20ms", arm.now)
    assert len(arm.ping(4)) == 1
    arm.wait(0.05)
    assert arm.ping(4) == []
    arm.wait(1.0)
    assert arm.get(4, "Torque_Enable") == 0


def test_unplug_takes_the_port_away_until_it_ends(arm: Client) -> None:
    from robotd.errors import PortError

    port = MemoryPort(arm.bus, lambda: arm.now)
    arm.bus.inject("unplug:at=10ms:for=100ms", arm.now)
    port.write(arm.packet(1, PING))
    arm.now += 20 * MS
    with pytest.raises(PortError, match="gone away"):
        port.write(arm.packet(1, PING))
    with pytest.raises(PortError):
        port.read(10, 0)
    assert not port.reopen()
    arm.now += 120 * MS
    assert port.reopen()
    port.write(arm.packet(1, PING))
    assert [s.id for s in arm.parse(port.read(100, 0))] == [1]


def test_faults_combine(arm: Client) -> None:
    arm.bus.inject("drop:id=1, duplicate:id=2,wrong-id:id=2:as=6", arm.now)
    assert answered(arm) == [6, 6, 3, 4, 5, 6]


def test_fast_sync_read_suffers_too() -> None:
    koch = Dynamixel("koch")
    request = koch.packet(BROADCAST, 0x8A, bytes([132, 0, 4, 0, 1, 2, 3, 4, 5, 6]))

    def read() -> list[tuple[int, int, bytes]]:
        return fast_blocks(koch.raw(request), [4] * 6)

    clean = read()
    koch.bus.inject("drop:id=5:n=1", koch.now)
    assert koch.raw(request) == b""
    koch.bus.inject("error:id=3:n=1", koch.now)
    assert [error for error, _, _ in read()] == [0, 0, 0x80, 0, 0, 0]
    koch.bus.inject("wrong-id:id=4:as=9:n=1", koch.now)
    assert [servo_id for _, servo_id, _ in read()] == [1, 2, 3, 9, 5, 6]
    koch.bus.mechanism.position[0] += 0.3
    koch.bus.mechanism.position[1] += 0.3
    koch.bus.inject("stale:id=2:n=1", koch.now)
    stale = read()
    assert stale[1] == clean[1]
    assert stale[0] != clean[0]
    assert read()[1] != clean[1]


def test_error_bits_are_by_default_the_alarm(arm: Client) -> None:
    arm.bus.inject("error:id=2", arm.now)
    assert arm.one(2, PING).error == (0x80 if isinstance(arm, Dynamixel) else 0x20)


def test_text_form_is_understood_with_all_its_options() -> None:
    drop, mute, late, error = parse_faults(
        "drop:p=0.01, mute:id=3:at=2s:for=500ms,late:by=250us:n=7,error:bits=32"
    )
    assert (drop.kind, drop.probability, drop.servo_id) == ("drop", 0.01, None)
    assert (mute.servo_id, mute.at_ns, mute.for_ns) == (3, 2_000_000_000, 500_000_000)
    assert (late.amount, late.count) == (250_000, 7)
    assert error.amount == 32
    assert parse_faults("") == []
    assert [fault.kind for fault in parse_faults(",".join(KINDS))] == list(KINDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dorp", "no kind 'dorp'; there are: drop, corrupt"),
        ("drop:p=2", "p='2': must be 0 to 1"),
        ("drop:p=often", "is no number"),
        ("drop:q=1", "no option 'q=1' for drop; there are: id=, at=, for=, p=, n="),
        ("mute:id", "no option 'id' for mute"),
        ("mute:p=0.5", "no option 'p=0.5' for mute"),
        ("mute:id=300", "must be 0 to 253"),
        ("mute:id=three", "is no whole number"),
        ("mute:at=2", "is no time; write 200us, 5ms or 2s"),
        ("late:by=-3ms", "is no time"),
        ("drop:n=0", "must be 1 to"),
    ],
)
def test_a_wrong_text_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(SimError) as caught:
        parse_faults(text)
    assert said in str(caught.value)
    assert text.split(",")[0] in str(caught.value)


def test_a_servo_that_is_not_there_is_refused(arm: Client) -> None:
    with pytest.raises(SimError, match=r"no servo 9; there are: 1, 2, 3, 4, 5, 6"):
        arm.bus.inject("drop:id=9", arm.now)

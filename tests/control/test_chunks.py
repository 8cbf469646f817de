"""Chunk execution: time alignment, what is rejected, how a chunk takes over."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.control.chunks import ENSEMBLE_WEIGHT, ActionChunk, Plan, unflatten, unusable

MS = 1_000_000
PERIOD = 30 * MS
T0 = 1_000_000 * MS
RANGES = [(-105.0, 105.0), (-5.0, 105.0)]


def chunk(
    sequence: int = 1, observed_ns: int = T0, count: int = 10, base: float = 0.0, slope: float = 1.0
) -> ActionChunk:
    """Joint 0 follows base + slope * step, joint 1 stays at 50."""
    steps = tuple((base + slope * i, 50.0) for i in range(count))
    return ActionChunk(sequence, observed_ns, PERIOD, steps)


def plan(takeover: str = "replace", fade_ms: int = 100) -> Plan:
    made = Plan(RANGES, takeover, fade_ms * MS)  # type: ignore[arg-type]
    made.begin("p", (0.0, 50.0), T0)
    return made


def asked(made: Plan, now_ns: int) -> list[float]:
    sample = made.sample(now_ns)
    assert sample is not None
    return list(sample.targets)


# Time alignment


def test_steps_belong_to_their_times_and_are_interpolated() -> None:
    made = plan()
    assert made.offer("p", chunk(), T0) is None
    assert asked(made, T0) == [0.0, 50.0]
    assert asked(made, T0 + PERIOD) == [1.0, 50.0]
    assert asked(made, T0 + PERIOD * 5 // 2) == pytest.approx([2.5, 50.0])
    assert asked(made, T0 + 9 * PERIOD) == [9.0, 50.0]


def test_steps_already_past_on_arrival_are_skipped() -> None:
    made = plan()
    made.offer("p", chunk(), T0 + 4 * PERIOD)
    sample = made.sample(T0 + 4 * PERIOD)
    assert sample is not None
    assert list(sample.targets) == [4.0, 50.0]
    assert (sample.sequence, sample.age_ns, sample.step) == (1, 4 * PERIOD, 4.0)


def test_a_deadline_just_before_the_observation_gets_the_first_step() -> None:
    made = plan()
    made.offer("p", chunk(), T0 + MS)
    sample = made.sample(T0 - MS)
    assert sample is not None
    assert list(sample.targets) == [0.0, 50.0]
    assert sample.age_ns == 0


def test_after_the_last_step_there_is_nothing() -> None:
    made = plan()
    assert made.sample(T0) is None
    made.offer("p", chunk(), T0)
    assert made.sample(T0 + 9 * PERIOD + 1) is None


def test_a_chunk_of_one_step_is_a_moment() -> None:
    made = plan()
    assert made.offer("p", chunk(count=1), T0) is None
    assert asked(made, T0) == [0.0, 50.0]
    assert made.sample(T0 + 1) is None


# What is rejected


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (ActionChunk(1, T0 + 290 * MS, PERIOD, ()), "joints"),
        (ActionChunk(1, T0 + 290 * MS, PERIOD, ((0.0,),)), "joints"),
        (ActionChunk(1, T0 + 290 * MS, PERIOD, ((0.0, 1.0), (0.0, 1.0, 2.0))), "joints"),
        (chunk(observed_ns=T0 + 301 * MS), "future"),
        (chunk(observed_ns=T0 + 20 * MS), "stale"),
        (ActionChunk(1, T0 + 290 * MS, PERIOD, ((0.0, 1.0), (math.nan, 1.0))), "not_finite"),
        (ActionChunk(1, T0 + 290 * MS, PERIOD, ((0.0, math.inf), (0.0, 1.0))), "not_finite"),
        (ActionChunk(1, T0 + 290 * MS, PERIOD, ((0.0, 1.0), (0.0, 105.01))), "range"),
        (ActionChunk(1, T0 + 290 * MS, PERIOD, ((-106.0, 1.0), (0.0, 1.0))), "range"),
    ],
)
def test_a_bad_chunk_is_rejected_whole_and_counted(bad: ActionChunk, reason: str) -> None:
    made = plan()
    now = T0 + 300 * MS
    assert made.offer("p", chunk(count=20, base=7.0, slope=0.0), now) is None
    bad = ActionChunk(2, bad.observed_ns, bad.period_ns, bad.steps)
    before = asked(made, now)
    assert made.offer("p", bad, now) == reason
    assert made.rejected == {reason: 1}
    assert made.accepted == 1
    assert asked(made, now) == before


def test_another_source_is_rejected() -> None:
    made = plan()
    assert made.offer("q", chunk(), T0) == "source"
    assert made.sample(T0) is None


def test_a_late_older_sequence_never_replaces_a_newer_one() -> None:
    made = plan()
    made.offer("p", chunk(5, T0 + 10 * MS, base=5.0), T0 + 20 * MS)
    assert made.offer("p", chunk(4, T0, base=4.0), T0 + 21 * MS) == "old"
    assert made.offer("p", chunk(5, T0 + 12 * MS, base=4.0), T0 + 22 * MS) == "old"
    assert made.offer("p", chunk(4, T0 + 12 * MS, base=4.0), T0 + 22 * MS) == "old"
    assert made.offer("p", chunk(6, T0 + 9 * MS, base=4.0), T0 + 22 * MS) == "old"
    assert asked(made, T0 + 10 * MS) == [5.0, 50.0]
    assert made.rejected["old"] == 4


def test_a_restarted_sender_is_heard_once_the_old_chunk_is_over() -> None:
    made = plan()
    made.offer("p", chunk(500), T0)
    later = T0 + 10 * PERIOD
    assert made.sample(later) is None
    made.rest((9.0, 50.0))
    assert made.offer("p", chunk(1, T0 - 1), later) == "old"
    assert made.offer("p", chunk(1, later), later) is None


def test_observations_from_long_before_the_mode_began_are_rejected() -> None:
    made = plan()
    assert made.offer("p", chunk(1, T0 - 251 * MS, count=20), T0) == "old"
    assert made.offer("p", chunk(1, T0 - 30 * MS, count=20), T0) is None


def test_beginning_anew_forgets_the_chunks() -> None:
    made = plan()
    made.offer("p", chunk(9), T0)
    made.begin("p", (0.0, 50.0), T0 + MS)
    assert made.sample(T0 + MS) is None
    assert made.offer("p", chunk(1, T0 + MS), T0 + MS) is None


def test_unflatten_and_a_ragged_rest() -> None:
    assert unflatten([1.0, 2.0, 3.0, 4.0], 2) == ((1.0, 2.0), (3.0, 4.0))
    assert unusable(ActionChunk(1, T0, PERIOD, unflatten([1.0, 2.0, 3.0], 2)), RANGES, T0)


# Taking over


def test_replace_takes_over_at_once() -> None:
    made = plan("replace")
    made.offer("p", chunk(1, base=0.0), T0)
    made.offer("p", chunk(2, T0 + MS, base=30.0, slope=0.0), T0 + 2 * MS)
    assert asked(made, T0 + 2 * MS) == [30.0, 50.0]


def test_cross_fade_starts_where_the_targets_were_and_ends_on_the_new_chunk() -> None:
    made = plan("cross_fade")
    made.begin("p", (-10.0, 40.0), T0)
    made.offer("p", chunk(1, base=10.0, slope=0.0), T0)
    assert asked(made, T0) == [-10.0, 40.0]
    assert asked(made, T0 + 50 * MS) == pytest.approx([0.0, 45.0])
    assert asked(made, T0 + 100 * MS) == [10.0, 50.0]
    made.offer("p", chunk(2, T0 + 110 * MS, base=20.0, slope=0.0), T0 + 120 * MS)
    assert asked(made, T0 + 120 * MS) == [10.0, 50.0]
    assert asked(made, T0 + 170 * MS) == pytest.approx([15.0, 50.0])
    assert asked(made, T0 + 220 * MS) == [20.0, 50.0]


def test_cross_fades_within_a_cross_fade_stay_continuous() -> None:
    made = plan("cross_fade")
    last = 0.0
    for k in range(100):
        now = T0 + k * 5 * MS
        if k % 4 == 0:
            made.offer("p", chunk(k + 1, now, base=20.0 * (k % 8 == 0), slope=0.0), now)
        value = asked(made, now)[0]
        assert abs(value - last) <= 20.0 * 5 / 100 * 2
        last = value


def test_a_flood_of_chunks_stays_bounded_and_continuous() -> None:
    made = plan("cross_fade", fade_ms=2000)
    last = 0.0
    for k in range(200):
        now = T0 + k * MS
        assert made.offer("p", chunk(k + 1, now, base=float(k % 2) * 40, slope=0.0), now) is None
        value = asked(made, now)[0]
        assert abs(value - last) <= 2.0
        last = value
    assert len(made._layers) <= 32


def test_no_fade_time_replaces() -> None:
    made = plan("cross_fade", fade_ms=0)
    made.offer("p", chunk(1, base=10.0), T0)
    assert asked(made, T0) == [10.0, 50.0]


def test_the_fade_after_a_rest_starts_at_the_held_targets() -> None:
    made = plan("cross_fade")
    made.offer("p", chunk(1), T0)
    later = T0 + 400 * MS
    assert made.sample(later) is None
    made.rest((12.0, 51.0))
    made.offer("p", chunk(2, later, base=0.0), later)
    assert asked(made, later) == [12.0, 51.0]


def test_ensembling_uses_acts_weights_over_the_chunks_that_cover_the_moment() -> None:
    made = plan("ensemble")
    for k in range(3):
        made.offer("p", chunk(k + 1, T0 + k * PERIOD, base=10.0 * k, slope=0.0), T0 + k * PERIOD)
    weights = [math.exp(-ENSEMBLE_WEIGHT * i) for i in range(3)]
    expected = (0 * weights[0] + 10 * weights[1] + 20 * weights[2]) / sum(weights)
    assert asked(made, T0 + 3 * PERIOD) == pytest.approx([expected, 50.0])
    # After the first chunk's end the second is the oldest.
    expected = (10 * weights[0] + 20 * weights[1]) / (weights[0] + weights[1])
    assert asked(made, T0 + 10 * PERIOD) == pytest.approx([expected, 50.0])
    assert asked(made, T0 + 11 * PERIOD) == [20.0, 50.0]
    assert made.sample(T0 + 12 * PERIOD) is None


def test_ensembling_leaves_out_what_is_over_though_older_chunks_remain() -> None:
    made = plan("ensemble")
    made.offer("p", chunk(1, T0, count=20, base=1.0, slope=0.0), T0)
    made.offer("p", chunk(2, T0, count=2, base=5.0, slope=0.0), T0)
    made.offer("p", chunk(3, T0 + MS, count=20, base=3.0, slope=0.0), T0 + MS)
    weights = [1.0, math.exp(-ENSEMBLE_WEIGHT)]
    expected = (1.0 * weights[0] + 3.0 * weights[1]) / sum(weights)
    assert asked(made, T0 + 2 * PERIOD)[0] == pytest.approx(expected)


def test_ensembling_a_flood_drops_the_oldest() -> None:
    made = plan("ensemble")
    for k in range(40):
        made.offer("p", chunk(k + 1, T0 + k, base=float(k), slope=0.0), T0 + k)
    weights = [math.exp(-ENSEMBLE_WEIGHT * i) for i in range(32)]
    expected = sum(w * (8 + i) for i, w in enumerate(weights)) / sum(weights)
    assert asked(made, T0 + MS)[0] == pytest.approx(expected)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["replace", "cross_fade", "ensemble"]),
    st.lists(
        st.tuples(
            st.sampled_from(["p", "p", "p", "q"]),
            st.integers(1, 12),  # sequence
            st.integers(-20, 20),  # observation, 10 ms from now
            st.lists(
                st.one_of(
                    st.tuples(st.floats(-105, 105), st.floats(-5, 105)),
                    st.tuples(st.floats(), st.floats(-5, 105)),
                    st.tuples(st.floats(-105, 105)),
                ),
                max_size=6,
            ),
        ),
        max_size=30,
    ),
)
def test_whatever_arrives_only_good_chunks_are_used(
    takeover: str, offers: list[tuple[str, int, int, list[tuple[float, ...]]]]
) -> None:
    """Every target lies within what accepted chunks and the start asked for."""
    made = plan(takeover)
    good = [(0.0, 50.0)]
    now = T0
    for source, sequence, offset, steps in offers:
        now += 10 * MS
        offered = ActionChunk(sequence, now + offset * 10 * MS, PERIOD, tuple(steps))
        if made.offer(source, offered, now) is None:
            assert source == "p"
            assert offset <= 0
            good += steps
        sample = made.sample(now)
        if sample is None:
            made.rest(good[-1])
            continue
        for joint, value in enumerate(sample.targets):
            values = [step[joint] for step in good]
            assert min(values) - 1e-9 <= value <= max(values) + 1e-9
    assert made.accepted + sum(made.rejected.values()) == len(offers)

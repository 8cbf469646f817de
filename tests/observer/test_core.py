"""When the policy is asked, and what happens to its answers."""

import numpy as np
import pytest

from robotd.config import PolicyConfig
from robotd.errors import ChunkError
from robotd.ipc.ring import Mode
from robotd.observer.core import ObserverCore
from robotd.observer.detokenize import Reply
from robotd.observer.observation import Observation
from robotd.policy.bundle import Bundle
from robotd.policy.session import Detokenizer, PolicySession
from tests.bundles import SHIFT, make_bundle
from tests.observer.ticks import MS, NOW, pictures, tick

PERIOD = round(1e9 / 30)
HORIZON = 12 * PERIOD


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle")))


def core_of(bundle: Bundle, **config: object) -> ObserverCore:
    settings = PolicyConfig(bundle=bundle.folder, **config)  # type: ignore[arg-type]
    return ObserverCore(settings, bundle, Detokenizer(bundle))


def ask(core: ObserverCore, bundle: Bundle, now_ns: int, chunk_sequence: int = 0) -> Observation:
    report = tick(now_ns, chunk_sequence=chunk_sequence)
    assert core.wants_request(report, now_ns)
    made = core.observation(report, pictures(bundle.manifest, now_ns), now_ns)
    assert made is not None
    return made


def answer(bundle: Bundle, asked: Observation) -> Reply:
    tokens = PolicySession(bundle).act(asked.images, asked.state)
    return Reply(asked.sequence, asked.observed_ns, bundle.digest, tokens)


def test_asks_only_in_policy_mode(bundle: Bundle) -> None:
    core = core_of(bundle)
    for mode in Mode:
        assert core.wants_request(tick(mode=mode), NOW) == (mode is Mode.POLICY)


def test_one_request_at_a_time(bundle: Bundle) -> None:
    core = core_of(bundle)
    asked = ask(core, bundle, NOW)
    assert not core.wants_request(tick(NOW + 5 * MS), NOW + 5 * MS)
    core.on_reply(answer(bundle, asked), tick(NOW + 10 * MS), NOW + 10 * MS)
    assert core.open is None


def test_an_old_tick_is_not_observed(bundle: Bundle) -> None:
    core = core_of(bundle)
    assert not core.wants_request(tick(NOW), NOW + 100 * MS)
    assert core.wants_request(tick(NOW), NOW + 99 * MS)


def test_the_next_answer_is_timed_for_the_end_of_the_execution_horizon(bundle: Bundle) -> None:
    core = core_of(bundle)
    asked = ask(core, bundle, NOW)
    arrived = NOW + 20 * MS
    core.on_reply(answer(bundle, asked), tick(arrived), arrived)
    assert core.latency_ns == 20 * MS
    due = NOW + HORIZON - 20 * MS - 5 * MS
    assert not core.wants_request(tick(due - 1, chunk_sequence=1), due - 1)
    assert core.wants_request(tick(due, chunk_sequence=1), due)


def test_a_shorter_execution_horizon_may_be_configured(bundle: Bundle) -> None:
    core = core_of(bundle, execution_horizon=3)
    core.on_reply(answer(bundle, ask(core, bundle, NOW)), tick(), NOW)
    assert core.next_request_ns == NOW + 3 * PERIOD - 5 * MS


def test_an_execution_horizon_beyond_the_chunk_is_cut(bundle: Bundle) -> None:
    core = core_of(bundle, execution_horizon=1000)
    core.on_reply(answer(bundle, ask(core, bundle, NOW)), tick(), NOW)
    assert core.next_request_ns == NOW + 16 * PERIOD - 5 * MS


def test_continuous_asks_once_per_step(bundle: Bundle) -> None:
    core = core_of(bundle, replan="continuous")
    asked = ask(core, bundle, NOW)
    core.on_reply(answer(bundle, asked), tick(NOW + 8 * MS), NOW + 8 * MS)
    assert not core.wants_request(tick(NOW + PERIOD - 1, chunk_sequence=1), NOW + PERIOD - 1)
    assert core.wants_request(tick(NOW + PERIOD, chunk_sequence=1), NOW + PERIOD)


def test_a_chunk_moves_as_the_pictures_say(bundle: Bundle) -> None:
    core = core_of(bundle)
    report = tick()
    assert core.wants_request(report, NOW)
    asked = core.observation(report, pictures(bundle.manifest, NOW, level=255), NOW)
    assert asked is not None
    chunk = core.on_reply(answer(bundle, asked), report, NOW + MS)
    assert chunk.steps[-1][0] == pytest.approx(SHIFT, abs=0.5)


def test_a_missing_picture_is_counted_and_asked_for_at_the_next_tick(bundle: Bundle) -> None:
    core = core_of(bundle)
    assert core.wants_request(tick(), NOW)
    assert core.observation(tick(), {}, NOW) is None
    old = pictures(bundle.manifest, NOW - 251 * MS)
    assert core.observation(tick(), old, NOW) is None
    assert core.counts.skipped == {"no_frame": 1, "old_frame": 1}
    assert "front" in core.trouble
    asked = ask(core, bundle, NOW + 5 * MS)
    assert asked.sequence == 1


def test_a_late_answer_changes_nothing(bundle: Bundle) -> None:
    core = core_of(bundle)
    first = ask(core, bundle, NOW)
    core.fail("timeout", "no answer", NOW + 500 * MS)
    second_at = core.next_request_ns
    second = ask(core, bundle, second_at)
    with pytest.raises(ChunkError) as caught:
        core.on_reply(answer(bundle, first), tick(second_at), second_at + MS)
    assert caught.value.reason == "wrong_sequence"
    assert core.open is second
    assert core.on_reply(answer(bundle, second), tick(second_at), second_at + 2 * MS)
    with pytest.raises(ChunkError):
        core.on_reply(answer(bundle, second), tick(second_at), second_at + 3 * MS)
    assert core.counts.late == 2
    assert core.counts.chunks == 1


def test_a_rejected_answer_is_counted_and_asked_again_less_and_less_often(bundle: Bundle) -> None:
    core = core_of(bundle)
    now, gaps = NOW, []
    for _ in range(7):
        asked = ask(core, bundle, now)
        garbage = Reply(asked.sequence, now, bundle.digest, np.full(6, 10**6, np.int64))
        with pytest.raises(ChunkError):
            core.on_reply(garbage, tick(now), now)
        gaps.append((core.next_request_ns - now) // PERIOD)
        now = core.next_request_ns
    assert gaps == [1, 2, 4, 8, 16, 16, 16]
    assert core.counts.rejected == {"id_out_of_range": 7}
    assert core.trouble.startswith("chunk rejected")


def test_a_request_expires(bundle: Bundle) -> None:
    core = core_of(bundle, request_timeout_s=0.2)
    assert not core.expired(NOW)
    ask(core, bundle, NOW)
    assert not core.expired(NOW + 199 * MS)
    assert core.expired(NOW + 200 * MS)
    core.fail("timeout", "no answer", NOW + 200 * MS)
    assert not core.expired(NOW + 300 * MS)
    assert core.counts.failed == {"timeout": 1}


def test_a_chunk_that_control_does_not_take_is_asked_for_again(bundle: Bundle) -> None:
    core = core_of(bundle)
    core.on_reply(answer(bundle, ask(core, bundle, NOW)), tick(), NOW)
    assert not core.wants_request(tick(NOW + 150 * MS), NOW + 150 * MS)
    later = NOW + 201 * MS
    assert not core.wants_request(tick(later), later)
    assert core.counts.unused == 1
    assert core.wants_request(tick(later + PERIOD), later + PERIOD)


def test_a_chunk_that_is_replaced_before_control_took_it_is_counted(bundle: Bundle) -> None:
    core = core_of(bundle, replan="continuous")
    core.on_reply(answer(bundle, ask(core, bundle, NOW)), tick(), NOW)
    core.on_reply(answer(bundle, ask(core, bundle, NOW + PERIOD)), tick(), NOW + PERIOD)
    assert core.counts.unused == 1
    asked = ask(core, bundle, NOW + 2 * PERIOD, chunk_sequence=2)
    core.on_reply(answer(bundle, asked), tick(), NOW + 2 * PERIOD)
    assert core.counts.unused == 1


def test_a_chunk_that_control_lost_is_replaced_at_once(bundle: Bundle) -> None:
    core = core_of(bundle)
    core.on_reply(answer(bundle, ask(core, bundle, NOW)), tick(), NOW)
    in_use = NOW + 20 * MS
    assert not core.wants_request(tick(in_use, chunk_sequence=1), in_use)
    assert core.wants_request(tick(in_use + 5 * MS, chunk_sequence=0), in_use + 5 * MS)


def test_leaving_policy_mode_forgets_everything(bundle: Bundle) -> None:
    core = core_of(bundle)
    asked = ask(core, bundle, NOW)
    assert not core.wants_request(tick(NOW + MS, mode=Mode.HOLD), NOW + MS)
    with pytest.raises(ChunkError):
        core.on_reply(answer(bundle, asked), tick(NOW + 2 * MS), NOW + 2 * MS)
    assert core.counts.late == 1
    assert core.wants_request(tick(NOW + 3 * MS), NOW + 3 * MS)


def test_failures_are_forgotten_on_leaving_policy_mode(bundle: Bundle) -> None:
    core = core_of(bundle)
    for _ in range(3):
        core.fail("timeout", "no answer", NOW)
    assert core.next_request_ns == NOW + 4 * PERIOD
    assert not core.wants_request(tick(mode=Mode.HOLD), NOW)
    assert core.trouble == ""
    assert core.wants_request(tick(), NOW)
    core.fail("timeout", "no answer", NOW)
    assert core.next_request_ns == NOW + PERIOD


def test_sequences_go_on_where_they_are_told_to(bundle: Bundle) -> None:
    settings = PolicyConfig(bundle=bundle.folder)
    core = ObserverCore(settings, bundle, Detokenizer(bundle), first_sequence=1000)
    assert ask(core, bundle, NOW).sequence == 1000

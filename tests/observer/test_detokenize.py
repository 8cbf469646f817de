"""Detokenizing: every reason for which an answer is not used, and nothing but whole chunks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.errors import BundleError, ChunkError
from robotd.observer.detokenize import ChunkDecoder, Reply
from robotd.observer.observation import Observation
from robotd.policy.bundle import Bundle
from robotd.policy.session import Detokenizer, Floats, Ids
from tests.bundles import BINS, make_bundle
from tests.observer.ticks import MIDDLE, MS, NOW, tick

STATE = np.asarray([*MIDDLE, *MIDDLE], np.float32)
ASKED = Observation(5, NOW, STATE, {}, {})
HERE = np.full(6, BINS // 2, np.int64)  # the bin just above the middle of every range
PERIOD = round(1e9 / 30)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle"), cameras=()))


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> ChunkDecoder:
    return ChunkDecoder(bundle, Detokenizer(bundle), max_first_step=25.0)


@pytest.fixture
def reply(bundle: Bundle) -> Reply:
    return Reply(5, NOW, bundle.digest, HERE.copy())


class Says(Detokenizer):
    """A detokenizer that answers what a test tells it to."""

    def __init__(self, bundle: Bundle, actions: Floats | None) -> None:
        super().__init__(bundle)
        self.actions = actions

    def decode(self, tokens: Ids, state: Floats) -> tuple[Floats, bool]:
        if self.actions is None:
            raise BundleError("detokenizer.onnx: failed while running")
        return self.actions, True


def rejected(decoder: ChunkDecoder, reply: Reply, now_ns: int = NOW + MS) -> str:
    with pytest.raises(ChunkError) as caught:
        decoder.decode(ASKED, reply, tick(), now_ns)
    return caught.value.reason


def test_a_good_answer_is_the_whole_chunk(decoder: ChunkDecoder, reply: Reply) -> None:
    chunk = decoder.decode(ASKED, reply, tick(), NOW + 10 * MS)
    assert (chunk.sequence, chunk.observed_ns, chunk.period_ns) == (5, NOW, PERIOD)
    assert len(chunk.steps) == 16
    assert all(len(step) == 6 for step in chunk.steps)
    assert chunk.steps[-1][0] == pytest.approx(200 / BINS / 2, abs=1e-3)


def test_wrong_sequence(decoder: ChunkDecoder, reply: Reply) -> None:
    assert rejected(decoder, replace(reply, sequence=4)) == "wrong_sequence"
    assert rejected(decoder, replace(reply, observed_ns=NOW - 1)) == "wrong_sequence"


def test_foreign_bundle(decoder: ChunkDecoder, reply: Reply) -> None:
    assert rejected(decoder, replace(reply, digest="0" * 64)) == "foreign_bundle"


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros(0, np.int64),
        np.zeros(5, np.int64),
        np.zeros(7, np.int64),
        np.zeros((6, 1), np.int64),
        np.zeros(6, np.int32),
    ],
)
def test_wrong_count(decoder: ChunkDecoder, reply: Reply, tokens: Ids) -> None:
    assert rejected(decoder, replace(reply, tokens=tokens)) == "wrong_count"


@pytest.mark.parametrize("bad", [-1, BINS, 2**62, -(2**63)])
def test_id_out_of_range(decoder: ChunkDecoder, reply: Reply, bad: int) -> None:
    reply.tokens[3] = bad
    assert rejected(decoder, reply) == "id_out_of_range"


def test_undecodable(bundle: Bundle, reply: Reply) -> None:
    class Refuses(Detokenizer):
        def decode(self, tokens: Ids, state: Floats) -> tuple[Floats, bool]:
            return np.zeros((16, 6), np.float32), False

    assert rejected(ChunkDecoder(bundle, Refuses(bundle), 25.0), reply) == "undecodable"
    assert rejected(ChunkDecoder(bundle, Says(bundle, None), 25.0), reply) == "undecodable"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(bundle: Bundle, reply: Reply, value: float) -> None:
    actions = np.zeros((16, 6), np.float32)
    actions[15, 4] = value
    assert rejected(ChunkDecoder(bundle, Says(bundle, actions), 25.0), reply) == "not_finite"


@pytest.mark.parametrize(("joint", "value"), [(0, 100.5), (3, -101.0), (5, -0.5), (5, 100.5)])
def test_out_of_range(bundle: Bundle, reply: Reply, joint: int, value: float) -> None:
    actions = np.tile(np.asarray(MIDDLE, np.float32), (16, 1))
    actions[9, joint] = value
    assert rejected(ChunkDecoder(bundle, Says(bundle, actions), 25.0), reply) == "out_of_range"


def test_stale_when_all_of_it_is_past(decoder: ChunkDecoder, reply: Reply) -> None:
    end = NOW + 15 * PERIOD
    assert decoder.decode(ASKED, reply, tick(), end).steps
    assert rejected(decoder, reply, end + 1) == "stale"


def test_first_step_far_from_the_present(bundle: Bundle, reply: Reply) -> None:
    actions = np.tile(np.asarray(MIDDLE, np.float32), (16, 1))
    actions[:, 1] = 25.5
    decoder = ChunkDecoder(bundle, Says(bundle, actions), 25.0)
    assert rejected(decoder, reply) == "first_step"
    actions[:, 1] = 24.5
    assert decoder.decode(ASKED, reply, tick(), NOW + MS).steps


def test_the_step_compared_is_the_first_still_ahead(bundle: Bundle, reply: Reply) -> None:
    actions = np.tile(np.asarray(MIDDLE, np.float32), (16, 1))
    actions[:4, 0] = 90  # past by the time the answer comes
    decoder = ChunkDecoder(bundle, Says(bundle, actions), 25.0)
    assert rejected(decoder, reply, NOW + 3 * PERIOD) == "first_step"
    assert decoder.decode(ASKED, reply, tick(), NOW + 3 * PERIOD + 1).steps
    actions[:] = np.asarray(MIDDLE)
    actions[4:, 0] = 90
    assert decoder.decode(ASKED, reply, tick(), NOW + 3 * PERIOD).steps
    assert rejected(decoder, reply, NOW + 3 * PERIOD + 1) == "first_step"


def test_a_gripper_closed_on_an_object_may_keep_its_target(bundle: Bundle, reply: Reply) -> None:
    actions = np.tile(np.asarray(MIDDLE, np.float32), (16, 1))
    actions[:, 5] = 2  # applied is 5, measured 45
    decoder = ChunkDecoder(bundle, Says(bundle, actions), 25.0)
    present = tick(NOW, (*MIDDLE[:5], 45.0), (*MIDDLE[:5], 5.0))
    assert decoder.decode(ASKED, reply, present, NOW + MS).steps
    actions[:, 5] = 25
    assert decoder.decode(ASKED, reply, present, NOW + MS).steps
    actions[:, 5] = 71
    with pytest.raises(ChunkError, match=r"26\.0 units away"):
        decoder.decode(ASKED, reply, present, NOW + MS)


def test_an_unknown_present_is_not_taken_for_zero(decoder: ChunkDecoder, reply: Reply) -> None:
    present = tick()
    present.joints[2].valid = False
    assert decoder.decode(ASKED, reply, present, NOW + MS).steps  # the applied target is known
    present.joints[2].applied = float("nan")
    with pytest.raises(ChunkError, match="elbow_flex: the present position is not known"):
        decoder.decode(ASKED, reply, present, NOW + MS)
    present.joints.pop()
    with pytest.raises(ChunkError, match="other joints"):
        decoder.decode(ASKED, reply, present, NOW + MS)


@settings(max_examples=200)
@given(
    tokens=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-5, BINS + 5), max_size=8),
    position=st.floats(-100, 100),
    delay_ns=st.integers(0, 10**9),
)
def test_whatever_comes_back_is_rejected_or_starts_near_the_present(
    bundle: Bundle, decoder: ChunkDecoder, tokens: list[int], position: float, delay_ns: int
) -> None:
    reply = Reply(5, NOW, bundle.digest, np.asarray(tokens, np.int64))
    here = (position,) * 5 + (50.0,)
    try:
        chunk = decoder.decode(ASKED, reply, tick(NOW, here), NOW + delay_ns)
    except ChunkError:
        return
    steps = np.asarray(chunk.steps)
    assert steps.shape == (16, 6)
    first = min(15, -(-delay_ns // PERIOD))
    assert np.abs(steps[first] - here).max() <= 25.0
    assert (np.abs(steps) <= 100.001).all()

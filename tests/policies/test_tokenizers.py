"""Tokenizers: round trips, refusals, and the exported graph against the Python decoder."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from robotd_policies.tokenizers import SCHEMES, ChunkLayout, DctBins, Tokenizer, UniformBins, load
from robotd_policies.tokenizers.base import RANGE_TOLERANCE
from robotd_policies.tokenizers.bins import dct_basis

from robotd.errors import ChunkError

LAYOUT = ChunkLayout.arm(16)
VARIANTS = [
    (UniformBins, {"bins": 256}),
    (UniformBins, {"bins": 128, "relative": True}),
    (DctBins, {"coefficients": 5, "bins": 256}),
    (DctBins, {"coefficients": 7, "bins": 512, "relative": False}),
]


def corpus(count: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth chunks inside the joints' ranges, and the pose each starts from."""
    rng = np.random.default_rng(seed)
    low, high = np.asarray(LAYOUT.low), np.asarray(LAYOUT.high)
    start = rng.uniform(low, high, (count, 6))
    end = np.clip(start + rng.normal(0, 20, (count, 6)), low, high)
    ease = (1 - np.cos(np.linspace(0, np.pi, LAYOUT.horizon))) / 2
    chunks = start[:, None] + (end - start)[:, None] * ease[None, :, None]
    return chunks.astype(np.float32), start.astype(np.float32)


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0].scheme}-{len(v[1])}-{v[1]['bins']}")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    kind, options = request.param
    chunks, reference = corpus()
    return kind.fit(chunks, reference, LAYOUT, **options)


def session(tokenizer: Tokenizer) -> onnxruntime.InferenceSession:
    model = tokenizer.to_onnx(state_size=12, reference_at=6)
    return onnxruntime.InferenceSession(model.SerializeToString())


def test_dct_basis_is_orthonormal() -> None:
    basis = dct_basis(16, 16)
    np.testing.assert_allclose(basis @ basis.T, np.eye(16), atol=1e-12)


def test_round_trip_stays_within_the_bins(tokenizer: Tokenizer) -> None:
    chunks, reference = corpus()
    ids = tokenizer.encode(chunks, reference)
    assert ids.shape == (len(chunks), tokenizer.count)
    decoded = np.stack([tokenizer.decode(i, r) for i, r in zip(ids, reference, strict=True)])
    assert np.sqrt(((decoded - chunks) ** 2).mean()) < 1.0


def test_uniform_bins_are_off_by_half_a_bin_at_most() -> None:
    chunks, reference = corpus()
    tokenizer = UniformBins.fit(chunks, reference, LAYOUT, bins=256)
    ids = tokenizer.encode(chunks, reference)
    decoded = np.stack([tokenizer.decode(i, r) for i, r in zip(ids, reference, strict=True)])
    half = (np.asarray(LAYOUT.high) - np.asarray(LAYOUT.low)) / 512
    assert (np.abs(decoded - chunks).max((0, 1)) <= half + 1e-3).all()


def test_encoding_what_was_decoded_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    chunks, reference = corpus(50, seed=4)
    inside = np.clip(chunks, 8, 92) if isinstance(tokenizer, UniformBins) else chunks / 2 + 25
    for chunk, start in zip(inside, reference / 2 + 25, strict=True):
        ids = tokenizer.encode(chunk, start)
        again = tokenizer.encode(tokenizer.decode(ids, start), start)
        np.testing.assert_array_equal(again, ids)


def test_onnx_answers_like_python_for_valid_ids(tokenizer: Tokenizer) -> None:
    chunks, reference = corpus(60, seed=1)
    graph = session(tokenizer)
    for chunk, start in zip(chunks, reference, strict=True):
        tokens = tokenizer.encode(chunk, start)
        state = np.concatenate((np.zeros(6, np.float32), start))
        actions, valid = graph.run(["actions", "valid"], {"tokens": tokens, "state": state})
        assert valid.shape == ()
        assert valid
        np.testing.assert_allclose(actions, tokenizer.decode(tokens, start), atol=1e-4)


def test_onnx_answers_like_python_for_random_and_corrupt_ids(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(2)
    graph = session(tokenizer)
    verdicts = set()
    for _ in range(300):
        low, high = (-3, 3) if rng.random() < 0.3 else (0, 0)
        tokens = rng.integers(low, tokenizer.vocabulary + high, tokenizer.count)
        start = rng.uniform(-100, 100, 6).astype(np.float32)
        if rng.random() < 0.1:
            start[rng.integers(6)] = np.nan
        state = np.concatenate((start, start))
        actions, valid = graph.run(["actions", "valid"], {"tokens": tokens, "state": state})
        try:
            expected = tokenizer.decode(tokens, start)
        except ChunkError:
            expected = None
        assert bool(valid) == (expected is not None)
        if expected is not None:
            np.testing.assert_allclose(actions, expected, atol=1e-4)
        verdicts.add(bool(valid))
    assert False in verdicts


@pytest.mark.parametrize("wrong", [-1, 10**6, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
def test_one_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, wrong: int) -> None:
    chunks, reference = corpus(1)
    tokens = tokenizer.encode(chunks[0], reference[0])
    tokens[7] = wrong
    with pytest.raises(ChunkError, match="token 7") as caught:
        tokenizer.decode(tokens, reference[0])
    assert caught.value.reason == "token_id"
    state = np.concatenate((reference[0], reference[0]))
    _, valid = session(tokenizer).run(["actions", "valid"], {"tokens": tokens, "state": state})
    assert not valid


def test_a_wrong_number_of_tokens_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ChunkError) as caught:
        tokenizer.decode(np.zeros(tokenizer.count - 1, np.int64), np.zeros(6, np.float32))
    assert caught.value.reason == "token_count"


def test_a_target_far_outside_the_range_is_refused_and_a_near_one_clipped() -> None:
    chunks = np.tile(np.linspace(0, 8, 16, dtype=np.float32)[:, None], (1, 6))[None]
    tokenizer = DctBins.fit(chunks, np.zeros((1, 6), np.float32), LAYOUT)
    tokens = tokenizer.encode(chunks[0], np.zeros(6, np.float32))
    near = np.array([0, 0, 0, 0, 100 + RANGE_TOLERANCE - 8.5, 0], np.float32)
    assert tokenizer.decode(tokens, near).max() == 100.0
    with pytest.raises(ChunkError, match="joint 4") as caught:
        tokenizer.decode(tokens, near + np.float32(3))
    assert caught.value.reason == "out_of_range"


def test_a_state_that_is_not_a_number_is_refused() -> None:
    chunks, reference = corpus(10)
    tokenizer = DctBins.fit(chunks, reference, LAYOUT)
    tokens = tokenizer.encode(chunks[0], reference[0])
    state = np.full(12, np.nan, np.float32)
    _, valid = session(tokenizer).run(["actions", "valid"], {"tokens": tokens, "state": state})
    assert not valid
    with pytest.raises(ChunkError) as caught:
        tokenizer.decode(tokens, state[6:])
    assert caught.value.reason == "not_finite"


def test_encoding_refuses_wrong_shapes_and_numbers(tokenizer: Tokenizer) -> None:
    chunks, reference = corpus(2)
    with pytest.raises(ValueError, match="expected"):
        tokenizer.encode(chunks[:, :8], reference)
    chunks[0, 3, 2] = np.inf
    with pytest.raises(ValueError, match="finite"):
        tokenizer.encode(chunks, reference)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = load(path)
    assert type(again) is type(tokenizer)
    chunks, reference = corpus(20, seed=3)
    np.testing.assert_array_equal(
        again.encode(chunks, reference), tokenizer.encode(chunks, reference)
    )


def test_an_unknown_scheme_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"scheme": "semaphore"}')
    with pytest.raises(ValueError, match="semaphore"):
        load(path)
    assert set(SCHEMES) >= {"uniform_bins", "dct_bins"}

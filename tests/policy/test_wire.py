"""The wire: what goes in comes out, and nothing that comes in does anything but WireError."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robotd.errors import WireError
from robotd.policy.wire import (
    MAX_HEADER,
    Chunk,
    Error,
    Header,
    Hello,
    ImageInfo,
    Message,
    Observe,
    Ping,
    Pong,
    decode,
    encode,
    pack_state,
    pack_tokens,
    pixels_of,
    state_of,
    tokens_of,
)

DIGEST = "0123456789abcdef" * 4
CLIENT = "0123456789abcdef"
STATE = np.linspace(-100, 100, 12).astype(np.float32)
OBSERVE = Observe(
    CLIENT,
    3,
    10**12,
    DIGEST,
    12,
    (ImageInfo("front", 8, 4), ImageInfo("wrist", 100, 50, "jpeg")),
    "lift the cube",
)
OBSERVE_PARTS = encode(OBSERVE, pack_state(STATE), bytes(range(96)), b"\xff\xd8..\xff\xd9")
TOKENS = np.asarray([0, 255, 2**40], np.int64)
MESSAGES: list[list[bytes]] = [
    encode(Hello(CLIENT, DIGEST)),
    encode(Hello(CLIENT, DIGEST, "tiny", (12.5, 3.0), 7), b'{"a":1}'),
    OBSERVE_PARTS,
    encode(Chunk(3, 10**12, DIGEST, 3, 1000, 2000), pack_tokens(TOKENS)),
    encode(Error(3, "bad_image", "front is 3x3")),
    encode(Ping(7)),
    encode(Pong(7)),
]


@pytest.mark.parametrize("parts", MESSAGES)
def test_messages_come_out_as_they_went_in(parts: list[bytes]) -> None:
    message = decode(parts)
    assert encode(message.header, *message.buffers) == parts


def test_observations_and_tokens_keep_their_values() -> None:
    message = decode(OBSERVE_PARTS)
    assert message.header == OBSERVE
    assert state_of(message).tolist() == STATE.tolist()
    assert pixels_of(OBSERVE.images[0], message.buffers[1]).shape == (4, 8, 3)
    chunk = decode(MESSAGES[3])
    assert tokens_of(chunk).tolist() == TOKENS.tolist()


def test_another_version_is_named() -> None:
    parts = encode(Ping(1))
    with pytest.raises(WireError, match="protocol version 02, not 01"):
        decode([parts[0].replace(b"rbd\x01", b"rbd\x02"), *parts[1:]])


def test_a_state_that_is_not_finite_is_refused() -> None:
    spoiled = STATE.copy()
    spoiled[4] = np.nan
    message = decode([OBSERVE_PARTS[0], pack_state(spoiled), *OBSERVE_PARTS[2:]])
    with pytest.raises(WireError, match="not finite"):
        state_of(message)


def _raw(**fields: object) -> bytes:
    return b"rbd\x01" + msgspec.msgpack.encode(fields)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"rbd"],
        [b"rbd\x01"],
        [b"rbd\x01" + bytes(MAX_HEADER)],
        [b"rbd\x01" + b"\x91" * 5000],
        [_raw(kind="ping")],
        [_raw(kind="ping", nonce=-1)],
        [_raw(kind="ping", nonce=1.5)],
        [_raw(kind="ping", nonce="1")],
        [_raw(kind="ping", nonce=2**63)],
        [_raw(kind="ping", nonce=1, more=1)],
        [_raw(kind="pickle", nonce=1)],
        [_raw(nonce=1)],
        [_raw(kind="hello", client=CLIENT, digest="z" * 64)],
        [_raw(kind="hello", client=CLIENT, digest=DIGEST, manifest_size=2**30)],
        [_raw(kind="chunk", sequence=0, observed_ns=1, digest=DIGEST, count=1), bytes(8)],
        [_raw(kind="chunk", sequence=1, observed_ns=1, digest=DIGEST, count=10**9), bytes(8)],
        [_raw(kind="error", sequence=1, reason="Not A Word")],
        [*encode(Ping(1)), b"surplus"],
        OBSERVE_PARTS[:-1],
        [*OBSERVE_PARTS, b""],
        [*OBSERVE_PARTS[:1], OBSERVE_PARTS[1][:-1], *OBSERVE_PARTS[2:]],
        [*OBSERVE_PARTS[:2], bytes(95), OBSERVE_PARTS[3]],
        [*OBSERVE_PARTS[:3], bytes(70_000)],
        [*OBSERVE_PARTS[:3], b""],
    ],
)
def test_what_breaks_the_protocol_is_a_wire_error(parts: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(parts)


def test_a_message_that_would_not_be_understood_is_not_sent() -> None:
    with pytest.raises(WireError):
        encode(Chunk(3, 1, DIGEST, 3), b"\x00" * 23)


def _decoded(parts: list[bytes]) -> Message | None:
    try:
        message = decode(parts)
        if isinstance(message.header, Observe):
            state_of(message)
        return message
    except WireError:
        return None


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_garbage_is_never_anything_but_a_wire_error(parts: list[bytes]) -> None:
    assert _decoded(parts) is None


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4), st.binary(max_size=300))
def test_garbage_behind_the_right_prefix(parts: list[bytes], header: bytes) -> None:
    assert _decoded([b"rbd\x01" + header, *parts]) is None


@settings(max_examples=500)
@given(st.data())
def test_damaged_messages(data: st.DataObject) -> None:
    """Flipped, cut and inserted bytes, dropped and swapped parts: WireError or a sound message."""
    parts = [bytearray(part) for part in data.draw(st.sampled_from(MESSAGES))]
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from(parts)) if parts else bytearray()
        place = data.draw(st.integers(0, max(0, len(part) - 1)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "swap"]))
        if kind == "flip" and part:
            part[place] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del part[place:]
        elif kind == "insert":
            part[place:place] = data.draw(st.binary(max_size=8))
        elif kind == "drop" and parts:
            parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        elif kind == "swap" and len(parts) > 1:
            parts[0], parts[-1] = parts[-1], parts[0]
    message = _decoded([bytes(part) for part in parts])
    if message is not None:
        header: Header = message.header
        assert len(message.buffers) == len(header.buffers())
        assert _decoded(encode(header, *message.buffers)) == message

"""Observations: what goes in, what is refused, how pictures are made to fit."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robotd.errors import CameraError
from robotd.ipc.frames import Encoding, Frame
from robotd.observer.observation import (
    Missing,
    Observation,
    Picture,
    assemble,
    decode_frame,
    fit,
    picture,
)
from robotd.policy.bundle import Bundle, ImageInput, Manifest
from tests.bundles import make_bundle
from tests.observer.ticks import MS, NOW, pictures, tick

MAX_AGE = 250 * MS


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle"))).manifest


def test_state_is_positions_then_applied_targets_and_the_time_is_the_ticks(
    manifest: Manifest,
) -> None:
    positions = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    applied = (1.5, 2.5, 3.5, 4.5, 5.5, 6.5)
    made = assemble(manifest, 7, tick(NOW, positions, applied), pictures(manifest), MAX_AGE)
    assert isinstance(made, Observation)
    assert (made.sequence, made.observed_ns) == (7, NOW)
    assert made.state.dtype == np.float32
    assert made.state.tolist() == [*positions, *applied]
    assert set(made.images) == {"front", "wrist"}


def test_ages_are_relative_to_the_tick_and_never_negative(manifest: Manifest) -> None:
    shown = pictures(manifest)
    shown["front"] = Picture(NOW - 40 * MS, shown["front"].image)
    shown["wrist"] = Picture(NOW + 3 * MS, shown["wrist"].image)
    made = assemble(manifest, 1, tick(), shown, MAX_AGE)
    assert isinstance(made, Observation)
    assert made.ages_s == {"front": pytest.approx(0.04), "wrist": 0.0}


def test_an_old_picture_gives_no_observation(manifest: Manifest) -> None:
    shown = pictures(manifest)
    for age, usable in ((MAX_AGE, True), (MAX_AGE + 1, False)):
        shown["wrist"] = Picture(NOW - age, shown["wrist"].image)
        made = assemble(manifest, 1, tick(), shown, MAX_AGE)
        assert isinstance(made, Observation) == usable
    assert isinstance(made, Missing)
    assert made.reason == "old_frame"
    assert "wrist" in made.text


def test_a_camera_without_picture_gives_no_observation(manifest: Manifest) -> None:
    shown = pictures(manifest)
    del shown["front"]
    made = assemble(manifest, 1, tick(), shown, MAX_AGE)
    assert isinstance(made, Missing)
    assert (made.reason, "front" in made.text) == ("no_frame", True)


def test_a_joint_that_was_not_read_gives_no_observation(manifest: Manifest) -> None:
    for spoil in ("invalid", "position", "applied", "count"):
        report = tick()
        if spoil == "invalid":
            report.joints[2].valid = False
        elif spoil == "position":
            report.joints[2].position = math.inf
        elif spoil == "applied":
            report.joints[2].applied = math.nan
        else:
            report.joints.pop()
        made = assemble(manifest, 1, report, pictures(manifest), MAX_AGE)
        assert isinstance(made, Missing)
        assert made.reason == "invalid_state"
        assert spoil == "count" or "elbow_flex" in made.text


def test_a_picture_of_the_right_size_passes_unchanged() -> None:
    image = np.random.default_rng(1).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    assert fit(image, 24, 16) is image


def test_a_wide_picture_is_cropped_in_the_centre_and_averaged() -> None:
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[:, 20:80] = 200  # the centred square
    fitted = fit(wide, 20, 20)
    assert fitted.shape == (20, 20, 3)
    assert (fitted == 200).all()


def test_a_tall_picture_keeps_its_aspect() -> None:
    tall = np.zeros((100, 40, 3), np.uint8)
    tall[30:70] = 90
    assert (fit(tall, 10, 10) == 90).all()


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(8, 40), st.integers(8, 40)),
)
def test_any_size_fits_any_other(have: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = np.full((*have, 3), 77, np.uint8)
    fitted = fit(image, *wanted)
    assert fitted.shape == (wanted[1], wanted[0], 3)
    assert (fitted == 77).all()


def test_rgb_and_jpeg_frames_give_the_same_colours() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :, 0], image[:, :, 2] = 220, 30  # mostly red
    raw = Frame(1, NOW, 48, 32, Encoding.RGB, image.tobytes())
    coded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    jpeg = Frame(1, NOW, 48, 32, Encoding.JPEG, coded)
    assert (decode_frame(raw) == image).all()
    assert np.abs(decode_frame(jpeg).astype(int) - image).max() < 8
    wanted = ImageInput(camera="front", width=16, height=16)
    assert picture(jpeg, wanted).image.shape == (16, 16, 3)
    assert picture(jpeg, wanted).captured_ns == NOW


@pytest.mark.parametrize(
    "frame",
    [
        Frame(1, NOW, 48, 32, Encoding.RGB, b"\x00" * 100),
        Frame(1, NOW, 0, 0, Encoding.RGB, b""),
        Frame(1, NOW, 48, 32, Encoding.JPEG, b""),
        Frame(1, NOW, 48, 32, Encoding.JPEG, b"\xff\xd8\xff garbage" * 20),
    ],
)
def test_a_frame_without_a_picture_is_an_error(frame: Frame) -> None:
    with pytest.raises(CameraError):
        decode_frame(frame)

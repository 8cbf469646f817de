"""The observer as a real process, between a control loop and a worker that come, go and lie."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from robotd.config import Config
from robotd.errors import RobotdError
from robotd.ipc.lifetime import StopSignal
from robotd.ipc.ring import Mode
from robotd.observer.process import Observer
from robotd.policy.bundle import POLICY, Bundle
from robotd.policy.wire import Chunk, Error, Message, Observe, encode, pack_tokens
from tests.bundles import make_bundle
from tests.observer.fakes import chunk, control, fake, honest, observer
from tests.workers import alive, socket_folder, wait_until, worker


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle"), execution_horizon=4))


@pytest.fixture
def runtime() -> Iterator[Path]:
    with socket_folder() as folder:
        yield folder


@pytest.fixture
def endpoint(runtime: Path) -> str:
    return f"ipc://{runtime}/policy.sock"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    assert cv2.imwrite(str(path), np.full((48, 64, 3), 130, np.uint8))
    return path


@pytest.fixture
def config(runtime: Path, bundle: Bundle, picture: Path) -> Config:
    return make_config(runtime, bundle, picture)


def make_config(runtime: Path, bundle: Bundle, picture: Path, **changes: Any) -> Config:
    raw: dict[str, Any] = {
        "runtime_dir": str(runtime),
        "arms": [{"id": "follower", "model": "so101", "port": "x", "calibration": "x.json"}],
        "policy": {
            "bundle": str(bundle.folder),
            "endpoint": None,
            "max_frame_age_s": 5.0,  # the machine may be busy
            "request_timeout_s": 0.5,
        },
        "cameras": [
            {"name": name, "driver": "file", "device": str(picture), "reopen_s": 5}
            for name in ("front", "wrist")
        ],
    }
    return Config.model_validate(raw | changes)


def test_in_policy_mode_chunks_flow_and_otherwise_none(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    with (
        control(runtime, Mode.HOLD) as loop,
        worker(bundle.folder, endpoint),
        observer(config) as us,
    ):
        status = us.until(lambda s: s["ready"], "ready")
        assert status["waiting_for"] == ""
        assert (status["bundle"], status["digest"]) == ("tiny", bundle.digest)
        assert status["worker"]["state"] == "ready"
        assert status["latency_ms"] == {}
        assert loop.chunks == []
        loop.mode = Mode.POLICY
        loop.more(4)
        first, second = loop.chunks[:2]
        assert first.source == bundle.digest
        assert first.joints == 6
        assert len(first.values()) == 16 * 6
        assert second.sequence > first.sequence
        assert second.observed_ns > first.observed_ns
        status = us.until(lambda s: "applied" in s["latency_ms"], "latencies")
        latency = status["latency_ms"]
        assert 0 < latency["inference"]["p50"] <= latency["p50"] <= latency["p99"]
        assert status["counts"]["chunks"] >= 2
        assert status["counts"]["rejected"] == {}
        for camera in status["cameras"].values():
            assert camera["state"] == "live"
            assert camera["notice"] != ""
        loop.mode = Mode.HOLD
        requests = us.status["counts"]["requests"]
        us.until(lambda s: s["time_ns"] > status["time_ns"] + 10**9, "a second later")
        assert us.status["counts"]["requests"] <= requests + 2


def test_control_may_be_restarted(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    with worker(bundle.folder, endpoint), observer(config) as us:
        us.until(lambda s: "ring" in s["waiting_for"], "no control yet")
        for _ in range(2):
            with control(runtime) as loop:
                loop.more(2)
        us.until(lambda s: s["waiting_for"] == "control is not ticking", "control has ended")


def test_a_ring_with_other_joints_is_refused_in_words(
    bundle: Bundle, runtime: Path, picture: Path
) -> None:
    arms = [{"id": "somebody", "model": "so101", "port": "x", "calibration": "x.json"}]
    config = make_config(runtime, bundle, picture, arms=arms)
    with control(runtime), observer(config) as us:
        us.until(lambda s: "other joints than configured" in s["waiting_for"], "refused")


def test_a_worker_that_dies_is_replaced(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    with control(runtime) as loop, observer(config) as us:
        for _ in range(2):
            with worker(bundle.folder, endpoint) as process:
                loop.more(2)
                process.kill()
                us.until(lambda s: s["worker"]["state"] == "absent", "noticed")
                assert not us.status["ready"]
        us.until(lambda s: s["worker"]["restarts"] == 1, "counted")
        count = len(loop.chunks)
        us.until(lambda s, then=us.status["time_ns"]: s["time_ns"] > then + 10**9, "later")
        assert len(loop.chunks) == count


def test_a_worker_that_hangs_costs_its_request_and_is_used_again(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    with (
        control(runtime) as loop,
        observer(config) as us,
        worker(bundle.folder, endpoint) as process,
    ):
        loop.more(2)
        process.process.send_signal(signal.SIGSTOP)
        us.until(lambda s: s["counts"]["failed"].get("timeout", 0) >= 1, "timed out")
        assert not us.status["ready"]
        process.process.send_signal(signal.SIGCONT)
        loop.more(2)
        sequences = [made.sequence for made in loop.chunks]
        assert sequences == sorted(set(sequences))


def test_a_worker_with_another_bundle_moves_nothing(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", name="other")
    with control(runtime) as loop, observer(config) as us, worker(other, endpoint):
        us.until(lambda s: s["worker"]["state"] == "refused", "refused")
        assert "serves bundle other" in us.status["waiting_for"]
        assert loop.chunks == []


def _tokens(bundle: Bundle, header: Observe, tokens: np.ndarray, **changes: Any) -> list[bytes]:
    fields = {
        "sequence": header.sequence,
        "observed_ns": header.observed_ns,
        "digest": bundle.digest,
        "count": len(tokens),
    }
    return encode(Chunk(**(fields | changes)), pack_tokens(tokens))


@pytest.mark.parametrize(
    ("reason", "tokens", "changes"),
    [
        ("id_out_of_range", np.full(6, 256), {}),
        ("wrong_count", np.full(7, 128), {}),
        ("first_step", np.full(6, 255), {}),
        ("foreign_bundle", np.full(6, 128), {"digest": "0" * 64}),
        ("wrong_sequence", np.full(6, 128), {"observed_ns": 1}),
    ],
)
def test_garbage_tokens_never_reach_control(
    tmp_path: Path,
    runtime: Path,
    endpoint: str,
    picture: Path,
    reason: str,
    tokens: np.ndarray,
    changes: dict[str, Any],
) -> None:
    quick = Bundle.load(make_bundle(tmp_path / "quick", horizon=2, execution_horizon=1))

    def liar(message: Message) -> list[list[bytes]]:
        if isinstance(message.header, Observe):
            return [[b"garbage"], _tokens(quick, message.header, tokens, **changes)]
        return honest(quick, message)

    config = make_config(runtime, quick, picture)
    with control(runtime) as loop, fake(endpoint, liar), observer(config) as us:
        us.until(lambda s: s["counts"]["rejected"].get(reason, 0) >= 3, "rejected")
        assert us.status["worker"]["garbage"] >= 1
        assert us.status["trouble"].startswith("chunk rejected")
        assert loop.chunks == []


def test_late_and_repeated_answers_are_counted_and_dropped(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    before: list[list[bytes]] = []

    def twice(message: Message) -> list[list[bytes]]:
        if not isinstance(message.header, Observe):
            return honest(bundle, message)
        made = chunk(bundle, message.header)
        answers = [*before, made, made]
        before[:] = [made]
        return answers

    with control(runtime) as loop, fake(endpoint, twice), observer(config) as us:
        loop.more(4)
        us.until(lambda s: s["counts"]["late"] >= 4, "late answers")
        sequences = [made.sequence for made in loop.chunks]
        assert sequences == sorted(set(sequences))


def test_a_worker_that_refuses_is_asked_again(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    refused: list[int] = []

    def moody(message: Message) -> list[list[bytes]]:
        header = message.header
        if not isinstance(header, Observe):
            return honest(bundle, message)
        if len(refused) < 3:
            refused.append(header.sequence)
            return [encode(Error(header.sequence, "inference_failed", "out of memory"))]
        return [chunk(bundle, header)]

    with control(runtime) as loop, fake(endpoint, moody), observer(config) as us:
        loop.more(1)
        us.until(lambda s: s["counts"]["failed"] == {"inference_failed": 3}, "counted")


def test_chunks_that_control_does_not_follow_are_counted(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    with (
        control(runtime) as loop,
        worker(bundle.folder, endpoint),
        observer(config) as us,
    ):
        loop.follow = False
        loop.more(2)
        us.until(lambda s: s["counts"]["unused"] >= 2, "noticed")


def test_a_camera_that_is_not_there_keeps_the_policy_waiting(
    bundle: Bundle, runtime: Path, picture: Path, endpoint: str, tmp_path: Path
) -> None:
    missing = tmp_path / "later.png"
    cameras = [
        {"name": "front", "driver": "file", "device": str(picture), "reopen_s": 5},
        {"name": "wrist", "driver": "file", "device": str(missing), "reopen_s": 0.1},
    ]
    config = make_config(runtime, bundle, picture, cameras=cameras)
    with control(runtime) as loop, worker(bundle.folder, endpoint), observer(config) as us:
        us.until(lambda s: s["waiting_for"].startswith("camera wrist is failed"), "named")
        us.until(lambda s: s["counts"]["skipped"].get("no_frame", 0) > 0, "skipped")
        assert us.status["counts"]["requests"] == 0
        assert cv2.imwrite(str(missing), np.full((16, 16, 3), 130, np.uint8))
        loop.more(1)


def test_without_a_policy_cameras_are_published(
    runtime: Path, bundle: Bundle, picture: Path
) -> None:
    config = make_config(runtime, bundle, picture, policy=None)
    with observer(config) as us:
        status = us.until(lambda s: s["cameras"]["front"]["frames"] > 0, "frames")
        assert (status["ready"], status["waiting_for"]) == (False, "no policy is configured")
        assert (runtime / "frames" / "wrist").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(config: Config, number: int) -> None:
    with observer(config) as us:
        us.until(lambda s: True, "running")
        us.child.process.send_signal(number)
        assert us.child.wait() == 0


def test_it_ends_with_its_parent(config: Config, runtime: Path) -> None:
    path = runtime / "config.json"
    config.save(path)
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'robotd.observer', *sys.argv[1:]])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until(lambda: (runtime / "observer.json").exists(), "running")
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not alive(pid), "the observer ends")


def _spoil_graph(bundle: Path) -> None:
    (bundle / POLICY).write_bytes(b"no graph")


def test_a_control_loop_that_died_in_policy_mode_is_not_awaited_closely(
    config: Config, bundle: Bundle, runtime: Path, endpoint: str
) -> None:
    with StopSignal() as stop, worker(bundle.folder, endpoint):
        us = Observer(config, stop)
        with control(runtime) as loop:

            def running() -> bool:
                us.turn()
                return bool(loop.chunks)

            us.cameras.start()
            wait_until(running, "chunks")
        time.sleep(0.3)
        for _ in range(3):
            assert us.turn() - time.monotonic_ns() > 10_000_000
        us.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"arms": [{"id": "f", "model": "koch", "port": "x", "calibration": "x.json"}]},
            "made for arm 'so101', this arm is 'koch'",
        ),
        ({"cameras": []}, "needs camera front, wrist; configured: none"),
        ({"policy": {"bundle": "/nowhere"}}, r"bundle.json: cannot be read"),
        ({"policy": {"bundle": "{broken}"}}, "does not match its hash"),
        ({"policy": {"bundle": "{bundle}", "endpoint": "tcp://10.0.0.1:5"}}, "needs keys"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_start(
    runtime: Path,
    bundle: Bundle,
    picture: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
) -> None:
    broken = make_bundle(tmp_path / "broken")
    (broken / POLICY).write_bytes(b"no graph")
    if "policy" in changes:
        named = changes["policy"]["bundle"].format(broken=broken, bundle=bundle.folder)
        changes = {"policy": changes["policy"] | {"bundle": named}}
    config = make_config(runtime, bundle, picture, **changes)
    with StopSignal() as stop, pytest.raises(RobotdError, match=words) as caught:
        Observer(config, stop)
    assert "\n" not in str(caught.value)


def test_what_cannot_work_is_one_line_and_exit_code_2(
    runtime: Path, bundle: Bundle, picture: Path
) -> None:
    config = make_config(runtime, bundle, picture, cameras=[])
    with observer(config) as us:
        assert us.child.wait() == 2
        assert len(us.child.lines) == 1, us.child.lines
        assert "needs camera front, wrist" in us.child.lines[0]

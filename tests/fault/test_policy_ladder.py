"""The policy falls silent, hangs, dies or lies: rest of the chunk, hold, HOLD, and never a jump.

The whole daemon as real processes on a simulated arm; only the worker is the test's own. Pictures
come from files, so that the policy of tests.bundles moves every joint slowly one way.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from robotd.config import Config
from robotd.episodes import LiveStage, start_policy
from robotd.ipc.ring import Fault, Mode, TickReport
from robotd.ipc.status import read_status
from robotd.policy.bundle import Bundle
from robotd.policy.images import decode_image
from robotd.policy.session import PolicySession
from robotd.policy.wire import Chunk, Message, Observe, encode, pack_tokens, state_of
from robotd.sim.arms import sim_calibration
from tests.bundles import make_bundle
from tests.observer.fakes import fake, honest
from tests.workers import socket_folder, wait_until, worker

pytest.importorskip("mujoco")

RATE_HZ = 100
SILENCE_S = 0.6
Answer = Callable[[Message], list[list[bytes]]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(make_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def stage(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStage]:
    """A running daemon without a worker; it must survive all tests."""
    files = tmp_path_factory.mktemp("files")
    sim_calibration("so101").save(files / "so101.json")
    picture = files / "bright.png"
    assert cv2.imwrite(str(picture), np.full((16, 24, 3), 160, np.uint8))
    with socket_folder() as runtime:
        config = make_config(runtime, bundle, files / "so101.json", picture)
        with LiveStage(config) as running:
            yield running
            running.check()


def make_config(runtime: Path, bundle: Bundle, calibration: Path, picture: Path) -> Config:
    cameras = [
        {"name": name, "driver": "file", "device": str(picture), "reopen_s": 10}
        for name in ("front", "wrist")
    ]
    return Config.model_validate(
        {
            "runtime_dir": str(runtime),
            # a machine that is busy with other things must not look like a broken bus
            "control": {
                "rate_hz": RATE_HZ,
                "failed_ticks_hold": 500,
                "failed_ticks_fault": 1000,
            },
            "arms": [
                {
                    "id": "follower",
                    "model": "so101",
                    "port": "sim",
                    "calibration": str(calibration),
                }
            ],
            "sim": {"baud_time": False},
            "policy": {
                "bundle": str(bundle.folder),
                "endpoint": f"ipc://{runtime}/own.sock",
                "silence_timeout_s": SILENCE_S,
                "request_timeout_s": 0.3,
                "max_frame_age_s": 10,
            },
            "cameras": cameras,
            "stop": {"action": "hold"},
        }
    )


def endpoint(stage: LiveStage) -> str:
    assert stage.config.policy is not None
    assert stage.config.policy.endpoint is not None
    return stage.config.policy.endpoint


@pytest.fixture(scope="module")
def thinking(bundle: Bundle) -> Answer:
    """An honest worker, in the test's process."""
    session = PolicySession(bundle)

    def answer(message: Message) -> list[list[bytes]]:
        header = message.header
        if not isinstance(header, Observe):
            return honest(bundle, message)
        images = {
            info.camera: decode_image(info, buffer)
            for info, buffer in zip(header.images, message.buffers[1:], strict=True)
        }
        return [reply(bundle, header, session.act(images, state_of(message)))]

    return answer


def reply(bundle: Bundle, header: Observe, tokens: np.ndarray) -> list[bytes]:
    made = Chunk(header.sequence, header.observed_ns, bundle.digest, len(tokens))
    return encode(made, pack_tokens(tokens))


class Run:
    """One run of the policy: its ticks from the moment the arm was armed."""

    def __init__(self, stage: LiveStage) -> None:
        self._stage = stage
        self._reports: list[TickReport] = []
        self._from = stage.ring.last

    @property
    def reports(self) -> list[TickReport]:
        """Every tick so far."""
        after = self._reports[-1].sequence if self._reports else self._from
        self._reports += self._stage.ring.since(after)
        return self._reports

    @property
    def now(self) -> TickReport:
        """The newest tick."""
        return self.reports[-1]

    def until(self, happened: Callable[[], bool], what: str) -> None:
        wait_until(happened, lambda: f"{what}; {self.now.mode.name}: {self.now.message}")

    def moving(self) -> None:
        """Wait until chunks move the arm."""
        start = [joint.applied for joint in self.now.joints]

        def moved() -> bool:
            way = max(
                abs(joint.applied - before)
                for joint, before in zip(self.now.joints, start, strict=True)
            )
            return self.now.chunk_sequence > 0 and way > 1.0

        self.until(moved, "the policy moves the arm")

    def held(self) -> None:
        """Wait for the end of the ladder, and check every step of it."""
        self.until(lambda: self.now.mode is Mode.HOLD, "mode HOLD")
        assert self.now.message == f"no usable chunk for {SILENCE_S:g} s: holding"
        policy = [report for report in self.reports if report.mode is Mode.POLICY]
        followed = [report for report in policy if report.chunk_sequence]
        assert policy[-1].sequence > followed[-1].sequence  # at rest before HOLD
        resting = [joint.asked for joint in policy[-1].joints]
        for report in policy[-RATE_HZ // 4 :]:
            assert [joint.asked for joint in report.joints] == resting
        self.never_jumped()

    def never_jumped(self) -> None:
        """No tick's goal is further from the one before it than the velocity limit allows."""
        arm = self._stage.config.arms[0]
        names = [name.partition(".")[2] for name in self._stage.ring.layout.joints]
        for before, after in zip(self.reports, self.reports[1:], strict=False):
            assert after.fault is Fault.NONE, after.message
            if Mode.IDLE in (before.mode, after.mode):
                continue
            ticks = after.sequence - before.sequence
            for name, old, new in zip(names, before.joints, after.joints, strict=True):
                step = arm.soft_limits(name).velocity / RATE_HZ * ticks
                assert abs(new.applied - old.applied) <= step + 1e-6, name


@contextlib.contextmanager
def policy_running(stage: LiveStage) -> Iterator[Run]:
    """The arm armed and moved by the policy of whichever worker listens; held at the end."""
    stage.reset(0)
    run = Run(stage)
    start_policy(stage.runtime_dir, 60.0)
    run.moving()
    try:
        yield run
    finally:
        if run.now.mode is Mode.POLICY:
            stage.inbox.call("hold")


def test_a_worker_that_dies(stage: LiveStage, bundle: Bundle) -> None:
    with worker(bundle.folder, endpoint(stage)) as process, policy_running(stage) as run:
        process.kill()
        run.held()
        wait_until(lambda: not observer(stage)["ready"], "the observer says so")
        assert "has ended" in observer(stage)["waiting_for"]


def test_a_worker_that_hangs(stage: LiveStage, bundle: Bundle) -> None:
    with worker(bundle.folder, endpoint(stage)) as process, policy_running(stage) as run:
        process.process.send_signal(signal.SIGSTOP)
        run.held()
        chunks = run.now.chunks
        process.process.send_signal(signal.SIGCONT)
        wait_until(lambda: observer(stage)["ready"], "the worker is found again")
        assert run.now.mode is Mode.HOLD  # but the policy is not started again by itself
        assert run.now.chunks == chunks


def observer(stage: LiveStage) -> dict[str, object]:
    return read_status(stage.runtime_dir / "observer.json")


def _raw_garbage(bundle: Bundle, header: Observe) -> list[list[bytes]]:
    return [[b"\xff" * 300], [b""], [b"rbd\x01\x80", b"x"]]


def _unknown_ids(bundle: Bundle, header: Observe) -> list[list[bytes]]:
    return [reply(bundle, header, np.full(6, 2**40))]


def _too_few(bundle: Bundle, header: Observe) -> list[list[bytes]]:
    return [reply(bundle, header, np.full(5, 128))]


def _other_digest(bundle: Bundle, header: Observe) -> list[list[bytes]]:
    made = Chunk(header.sequence, header.observed_ns, "0" * 64, 6)
    return [encode(made, pack_tokens(np.full(6, 128)))]


def _another_request(bundle: Bundle, header: Observe) -> list[list[bytes]]:
    made = Chunk(header.sequence + 1, header.observed_ns, bundle.digest, 6)
    return [encode(made, pack_tokens(np.full(6, 128)))]


def _silence(bundle: Bundle, header: Observe) -> list[list[bytes]]:
    return []


def _too_late(bundle: Bundle, header: Observe) -> list[list[bytes]]:
    time.sleep(1.2)
    return [reply(bundle, header, np.full(6, 128))]


@pytest.mark.parametrize(
    "lie",
    [
        _raw_garbage,
        _unknown_ids,
        _too_few,
        _other_digest,
        _another_request,
        _silence,
        _too_late,
    ],
)
def test_a_worker_that_begins_to_lie(
    stage: LiveStage,
    bundle: Bundle,
    thinking: Answer,
    lie: Callable[[Bundle, Observe], list[list[bytes]]],
) -> None:
    lying = False

    def answer(message: Message) -> list[list[bytes]]:
        if lying and isinstance(message.header, Observe):
            return lie(bundle, message.header)
        return thinking(message)

    with fake(endpoint(stage), answer), policy_running(stage) as run:
        lying = True
        run.held()


def test_a_worker_that_is_replaced_by_one_with_another_bundle(
    stage: LiveStage, bundle: Bundle, thinking: Answer, tmp_path: Path
) -> None:
    other = Bundle.load(make_bundle(tmp_path / "other", name="other"))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(fake(endpoint(stage), thinking))
        run = stack.enter_context(policy_running(stage))
        first.close()
        stack.enter_context(fake(endpoint(stage), lambda message: honest(other, message)))
        run.held()
        wait_until(lambda: "serves bundle" in str(observer(stage)["waiting_for"]), "refused")


def test_a_listener_that_accepts_and_says_nothing(stage: LiveStage, thinking: Answer) -> None:
    path = Path(endpoint(stage).removeprefix("ipc://"))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(fake(endpoint(stage), thinking))
        run = stack.enter_context(policy_running(stage))
        first.close()
        path.unlink(missing_ok=True)
        mute = stack.enter_context(socket.socket(socket.AF_UNIX))
        mute.bind(str(path))
        mute.listen()
        run.held()
    path.unlink()


def test_a_worker_that_is_back_in_time_goes_on(stage: LiveStage, thinking: Answer) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(fake(endpoint(stage), thinking))
        run = stack.enter_context(policy_running(stage))
        first.close()
        before = run.now.chunks
        stack.enter_context(fake(endpoint(stage), thinking))
        run.until(
            lambda: run.now.chunks > before + 2 or run.now.mode is not Mode.POLICY, "chunks again"
        )
        run.never_jumped()
        if run.now.mode is Mode.HOLD:  # too slow a machine: then the ladder went to its end
            run.held()


def test_an_observer_that_dies(stage: LiveStage, thinking: Answer) -> None:
    with fake(endpoint(stage), thinking), policy_running(stage) as run:
        pid = observer(stage)["pid"]
        assert isinstance(pid, int)
        before = run.now.chunks
        os.kill(pid, signal.SIGKILL)
        run.until(
            lambda: run.now.chunks > before + 2 or run.now.mode is not Mode.POLICY,
            "a new observer goes on, or HOLD",
        )
        run.never_jumped()
        wait_until(lambda: observer(stage)["pid"] != pid, "the daemon starts another observer")
        if run.now.mode is Mode.HOLD:
            run.held()

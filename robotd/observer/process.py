"""The observer process: cameras and control's ticks in, checked action chunks out.

One loop on the main thread, which sleeps until the next thing is due; the cameras have a thread
each. Nothing but SIGTERM, SIGINT or the parent's death ends it once it runs: control and worker may
come and go.
"""

import gc
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import zmq

from robotd.config import JOINTS, Config, PolicyConfig, load
from robotd.errors import ChunkError, IpcError
from robotd.ipc.inbox import InboxClient
from robotd.ipc.lifetime import StopSignal
from robotd.ipc.ring import RING_NAME, Mode, TickReport
from robotd.ipc.status import write_status
from robotd.observer.cameras import Cameras
from robotd.observer.core import ObserverCore
from robotd.observer.detokenize import Reply
from robotd.observer.figures import Latencies
from robotd.observer.follow import RingFollower
from robotd.observer.link import Event, Link, Refusal
from robotd.policy.bundle import Bundle
from robotd.policy.check import check_detokenizer
from robotd.policy.endpoint import default_endpoint
from robotd.policy.fit import expected
from robotd.policy.session import Detokenizer

STATUS_NAME = "observer.json"
_STATUS_NS = 200_000_000
_IDLE_NS = 20_000_000  # between looks at the ring: a change of mode is seen this late
_RETRY_NS = 300_000  # a tick that should be there by now
_AFTER_WRITE_NS = 100_000  # control publishes a tick this long after its goals are written
_PAUSE_NS = 50_000_000  # no tick for longer than this: nothing to be awaited closely
_OLD_TICK_NS = 500_000_000
_STARTING_NS = 3_000_000_000  # without a worker for longer than this is worth a line
_SWITCH_S = 0.0005  # Python's 5 ms would let a camera thread hold up an answer

log = logging.getLogger("robotd.observer")


class Asker:
    """The policy's side of the observer: link, core, and the way to control's inbox."""

    def __init__(self, config: Config, policy: PolicyConfig, cameras: list[str]) -> None:
        """BundleError or ConfigError when bundle, arm, cameras and endpoint do not fit."""
        self.bundle = Bundle.load(policy.bundle)
        self.bundle.require_fit(*expected(config), cameras=cameras)
        detokenizer = Detokenizer(self.bundle)
        check_detokenizer(self.bundle, detokenizer)
        first = time.monotonic_ns() // 1000  # larger than any of an earlier observer
        self.core = ObserverCore(policy, self.bundle, detokenizer, first)
        endpoint = policy.endpoint or default_endpoint(config.runtime_dir)
        self.link = Link(endpoint, self.bundle, policy.keys, policy.request_timeout_s)
        self.latencies = Latencies()
        self._inbox = InboxClient(config.runtime_dir)
        self._tried = 0  # the last tick that was to be observed
        self._told = ""  # the link's state as last logged
        self._begun_ns = time.monotonic_ns()

    def attend(self, report: TickReport | None, now_ns: int) -> None:
        """Take what the worker has said, and mind its silence."""
        for event in self.link.events(now_ns):
            self._take(event, report)
        if self.core.expired(now_ns):
            text = f"the worker at {self.link.endpoint} did not answer a request in time"
            self.core.fail("timeout", text, now_ns)
            self.link.give_up("worker_silent", text)
        self.link.step(now_ns, waiting=self.core.open is not None)
        self._tell_link(now_ns)

    def _tell_link(self, now_ns: int) -> None:
        """Log when the worker becomes ready, refuses or is lost; a start only if it takes long."""
        state = "absent" if self.link.state == "greeting" else self.link.state
        starting = not self._told and now_ns - self._begun_ns < _STARTING_NS
        if state == self._told or (state == "absent" and starting):
            return
        self._told = state
        if state == "ready":
            log.info("worker ready")
        else:
            log.warning("worker %s: %s", state, self.link.text)

    def _take(self, event: Event, report: TickReport | None) -> None:
        now_ns = time.monotonic_ns()
        asked = self.core.open
        if isinstance(event, Reply):
            if report is not None:
                self._believe(event, report, now_ns)
        elif isinstance(event, Refusal):
            if asked is not None and event.sequence == asked.sequence:
                log.warning("request %d: %s: %s", event.sequence, event.reason, event.text)
                self.core.fail(event.reason, f"the worker refused: {event.text}", now_ns)
        elif asked is not None:
            self.core.fail(event.reason, event.text, now_ns)

    def _believe(self, reply: Reply, report: TickReport, now_ns: int) -> None:
        """Check an answer and hand it to control."""
        try:
            chunk = self.core.on_reply(reply, report, now_ns)
        except ChunkError as error:
            log.warning("chunk %d rejected (%s): %s", reply.sequence, error.reason, error)
            return
        try:
            self._inbox.send_chunk(
                self.bundle.digest, chunk.sequence, chunk.observed_ns, chunk.period_ns, chunk.steps
            )
        except IpcError as error:
            self.core.fail("not_sent", str(error), now_ns)
            return
        self.latencies.chunk_sent(chunk, reply.inference_ns, time.monotonic_ns())

    def ask(self, report: TickReport, cameras: Cameras, now_ns: int) -> None:
        """Send this tick's observation when it is time for one."""
        if not self.core.wants_request(report, now_ns) or not self.link.ready:
            return
        if report.sequence == self._tried:
            return  # this tick was no observation: something was missing
        self._tried = report.sequence
        observation = self.core.observation(report, cameras.pictures(), now_ns)
        if observation is not None and not self.link.send(observation):
            self.core.fail("not_sent", "the worker's queue is full", now_ns)

    def status(self) -> dict[str, Any]:
        """This side's part of the status file."""
        counts, link = self.core.counts, self.link
        return {
            "bundle": self.bundle.manifest.name,
            "digest": self.bundle.digest,
            "worker": {
                "state": link.state,
                "text": link.text,
                "endpoint": link.endpoint,
                "warmup_ms": [round(value, 2) for value in link.warmup_ms],
                "restarts": link.counts.reconnects,
                "garbage": link.counts.garbage,
            },
            "latency_ms": self.latencies.to_dict(),
            "counts": {
                "requests": counts.requests,
                "chunks": counts.chunks,
                "late": counts.late,
                "unused": counts.unused,
                "rejected": dict(counts.rejected),
                "failed": dict(counts.failed),
                "skipped": dict(counts.skipped),
            },
            "trouble": self.core.trouble,
        }

    def close(self) -> None:
        """Close link and inbox."""
        self.link.close()
        self._inbox.close()


class Observer:
    """The process. `run` returns when `stop` has been asked for."""

    def __init__(self, config: Config, stop: StopSignal) -> None:
        """Raises what makes the configuration unusable; cameras may still be absent."""
        self._config = config
        self._stop = stop
        self._asker: Asker | None = None
        if config.policy is not None:
            names = [camera.name for camera in config.cameras]
            self._asker = Asker(config, config.policy, names)
        images = [] if self._asker is None else self._asker.bundle.manifest.images
        self.cameras = Cameras(config.cameras, images, config.runtime_dir)
        self._needed = [image.camera for image in images]
        joints = [f"{arm.id}.{joint}" for arm in config.arms for joint in JOINTS]
        self._ring = RingFollower(config.runtime_dir / RING_NAME, joints)
        self._poller = zmq.Poller() if self._asker is None else self._asker.link.poller
        self._poller.register(stop.fileno(), zmq.POLLIN)
        self._status_ns = 0

    def run(self) -> None:
        """Observe until told to stop."""
        self.cameras.start()
        try:
            while not self._stop.requested:
                self._wait(self.turn())
        finally:
            self.close()

    def turn(self) -> int:
        """Do what is due now; returns the time at which to look again."""
        now_ns = time.monotonic_ns()
        report = self._ring.newest(now_ns)
        if self._asker is not None:
            self._asker.attend(report, now_ns)
            if report is not None:
                self.cameras.set_eager(report.mode is Mode.POLICY)
                if self._is_fresh(report, self._asker.core, now_ns):
                    self._asker.ask(report, self.cameras, now_ns)
                self._match_ticks(self._asker)
        if now_ns - self._status_ns >= _STATUS_NS:
            self._status_ns = now_ns
            self._write_status(report, now_ns)
        return self._next_look(report, now_ns)

    def close(self) -> None:
        """Stop the cameras, close ring and link."""
        self.cameras.stop()
        self._ring.close()
        if self._asker is not None:
            self._asker.close()

    def _match_ticks(self, asker: Asker) -> None:
        """Find the tick that first followed the last chunk."""
        if not asker.latencies.awaits_tick:
            self._ring.skip_unread()
            return
        for report in self._ring.unread():
            asker.latencies.tick_seen(report)
            if report.mode is not Mode.POLICY:
                asker.latencies.forget()

    def _published_ns(self, report: TickReport) -> int:
        """About when a tick was published: soon after its goals were written."""
        return report.deadline_ns + max(0, report.done_late_ns) + _AFTER_WRITE_NS

    def _is_fresh(self, report: TickReport, core: ObserverCore, now_ns: int) -> bool:
        """False when the next tick will make a better observation than this one.

        A request that is overdue takes whatever tick there is.
        """
        period_ns = self._ring.period_ns
        overdue = now_ns - core.next_request_ns > 2 * period_ns
        return overdue or now_ns - self._published_ns(report) < period_ns // 2

    def _next_look(self, report: TickReport | None, now_ns: int) -> int:
        """When a request is due: at the first tick from then on. Else a little later."""
        idle_ns = now_ns + _IDLE_NS
        asker = self._asker
        if asker is None or report is None or report.mode is not Mode.POLICY:
            return idle_ns
        core, period_ns = asker.core, self._ring.period_ns
        ticking = now_ns - report.deadline_ns < _PAUSE_NS + 2 * period_ns
        if core.open is not None or not asker.link.ready or not ticking:
            return idle_ns
        tick_ns = self._published_ns(report) + period_ns
        ticks = max(0, -(-(core.next_request_ns - tick_ns) // period_ns))
        return min(max(tick_ns + ticks * period_ns, now_ns + _RETRY_NS), idle_ns)

    def _wait(self, until_ns: int) -> None:
        """Sleep until then, or until the worker or a signal says something."""
        rest_ns = until_ns - time.monotonic_ns()
        woken = dict(self._poller.poll(max(0, rest_ns // 1_000_000)))
        if self._stop.fileno() in woken:
            self._stop.clear()
        if not woken and (rest_ns := until_ns - time.monotonic_ns()) > 0:
            time.sleep(rest_ns / 1e9)  # the part below a millisecond, which poll cannot wait for

    def _waiting_for(self, report: TickReport | None, now_ns: int) -> str:
        """What keeps the policy from being started, in words; empty when nothing does."""
        if self._asker is None:
            return "no policy is configured"
        if report is None:
            return self._ring.text or "control has made no tick yet"
        if now_ns - report.deadline_ns > _OLD_TICK_NS:
            return "control is not ticking"
        if not self._asker.link.ready:
            return self._asker.link.text
        for name, camera in self.cameras.status(now_ns).items():
            if name in self._needed and camera.state != "live":
                return f"camera {name} is {camera.state}: {camera.error or 'no picture yet'}"
        return ""

    def _write_status(self, report: TickReport | None, now_ns: int) -> None:
        waiting_for = self._waiting_for(report, now_ns)
        state: dict[str, Any] = {
            "pid": os.getpid(),
            "time_ns": now_ns,
            "ready": not waiting_for,
            "waiting_for": waiting_for,
            "bundle": None,
            "digest": None,
        }
        if self._asker is not None:
            state |= self._asker.status()
        cameras = self.cameras.status(now_ns)
        state["cameras"] = {name: camera.to_dict() for name, camera in cameras.items()}
        try:
            write_status(self._config.runtime_dir / STATUS_NAME, state)
        except OSError as error:
            log.warning("the status file cannot be written: %s", error.strerror)


def run(path: Path) -> None:
    """Run the observer of a resolved configuration until SIGTERM or SIGINT. Main thread only."""
    cv2.setNumThreads(1)
    sys.setswitchinterval(_SWITCH_S)
    config = load(path)
    with StopSignal() as stop:
        observer = Observer(config, stop)
        gc.freeze()  # what is loaded now stays; the collector need not look at it again
        observer.run()

"""Where the targets of each mode come from: held points, action chunks, the way to park."""

import math
from collections.abc import Sequence

from robotd.config import Config, PolicyConfig
from robotd.control.chunks import ActionChunk, Plan, Sample, unflatten
from robotd.control.limb import Limb
from robotd.control.park import Ramp
from robotd.errors import IpcError
from robotd.ipc.inbox import Chunk
from robotd.ipc.ring import Mode


class Sources:
    """Targets of all joints, for whatever mode the loop is in."""

    def __init__(self, config: Config, limbs: Sequence[Limb]) -> None:
        self._limbs = limbs
        policy = config.policy or PolicyConfig.model_construct()
        ranges = [
            arm.hard_limits(joint).position
            for arm, limb in zip(config.arms, limbs, strict=True)
            for joint in limb.arm.joints
        ]
        self.plan = Plan(ranges, policy.takeover, round(policy.cross_fade_s * 1e9))
        self.sample: Sample | None = None  # what the chunks asked for in this tick
        self.hold = [math.nan] * len(ranges)  # where the joints stay, or come to rest
        self.source = ""
        self._resting_since: int | None = None
        self._ramps: list[Ramp | None] = []
        self._tick = 0

    def enter(self, mode: Mode, now_ns: int, source: str = "") -> None:
        """A mode begins: every joint brakes, unless the mode has targets for it."""
        self.brake()
        self.source = source
        self._resting_since = now_ns
        if mode is Mode.POLICY:
            self.plan.begin(source, self.hold, now_ns)
        elif mode is Mode.PARK:
            self._tick = 0
            self._ramps = [self._ramp(limb) for limb in self._limbs]

    def brake(self) -> None:
        """Hold where the targets come to rest when they brake from now on."""
        for limb in self._limbs:
            self.hold[limb.joints] = limb.stopping_points()

    def _ramp(self, limb: Limb) -> Ramp | None:
        if limb.park is None or not limb.driven:
            return None
        steps = [limb.park_step] * len(limb.names)
        return Ramp(self.hold[limb.joints], limb.park, steps, limb.limits)

    def offer(self, chunk: Chunk, mode: Mode, now_ns: int) -> None:
        """A chunk has arrived; the plan takes it or counts why not."""
        if mode is not Mode.POLICY:
            self.plan.rejected["mode"] += 1
            return
        try:
            steps = unflatten(chunk.values(), chunk.joints)
        except IpcError:
            self.plan.rejected["joints"] += 1
            return
        actions = ActionChunk(chunk.sequence, chunk.observed_ns, chunk.period_ns, steps)
        self.plan.offer(chunk.source, actions, now_ns)

    def wanted(self, mode: Mode, now_ns: int) -> Sequence[float]:
        """The target of every joint at this moment; without torque, where it is."""
        self.sample = None
        if mode is Mode.POLICY:
            return self._followed(now_ns)
        if mode is Mode.PARK:
            return self._parking()
        if mode is Mode.IDLE:
            return [position for limb in self._limbs for position in limb.position]
        return self.hold

    def _followed(self, now_ns: int) -> Sequence[float]:
        self.sample = self.plan.sample(now_ns)
        if self.sample is not None:
            self._resting_since = None
            return self.sample.targets
        if self._resting_since is None:
            self._resting_since = now_ns
            self.brake()
            self.plan.rest(self.hold)
        return self.hold

    def silent_ns(self, now_ns: int) -> int:
        """For how long the policy has given nothing to follow."""
        return 0 if self._resting_since is None else now_ns - self._resting_since

    def _parking(self) -> Sequence[float]:
        self._tick += 1
        for limb, ramp in zip(self._limbs, self._ramps, strict=True):
            if ramp is not None:
                self.hold[limb.joints] = ramp.at(self._tick)
        return self.hold

    @property
    def can_park(self) -> bool:
        """Whether any arm has a park pose."""
        return any(limb.park is not None for limb in self._limbs)

    @property
    def parked(self) -> bool:
        """Whether the way to the park pose is done, as far as targets go."""
        return all(
            ramp is None or (self._tick >= ramp.ticks and limb.reached(ramp.goal))
            for limb, ramp in zip(self._limbs, self._ramps, strict=True)
        )

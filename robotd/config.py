"""The configuration: one TOML file, checked whole before anything moves.

`load` raises ConfigError with one line per problem: file, key, value, and what is allowed. The
daemon writes the checked result as JSON into the runtime directory; its children read that.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from robotd.errors import ConfigError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
GRIPPER = "gripper"
RESOLVED_NAME = "config.json"

ArmModel = Literal["so101", "koch"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ControlConfig(_Strict):
    """The control loop."""

    rate_hz: int = Field(default=200, ge=10, le=1000)
    require_realtime: bool = False  # refuse to run without SCHED_FIFO and locked memory
    priority: int = Field(default=60, ge=1, le=90)  # SCHED_FIFO
    cpu: int | None = Field(default=None, ge=0, le=1023)  # pin the loop to this core
    failed_ticks_hold: int = Field(default=10, ge=1, le=1000)  # failed reads in a row: hold
    failed_ticks_fault: int = Field(default=50, ge=2, le=10_000)  # failed reads in a row: fault
    ring_seconds: int = Field(default=60, ge=5, le=600)

    @property
    def period_ns(self) -> int:
        """Nominal control period, nanoseconds."""
        return round(1e9 / self.rate_hz)

    @model_validator(mode="after")
    def _ordered(self) -> "ControlConfig":
        if self.failed_ticks_fault <= self.failed_ticks_hold:
            raise ValueError("failed_ticks_fault must be above failed_ticks_hold")
        return self


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError(f"lower end {value[0]} is not below upper end {value[1]}")
    return value


Range = Annotated[tuple[Finite, Finite], AfterValidator(_ascending)]


class LimitOverride(_Strict):
    """What a file may change about one joint's limits, or about all body joints ("body")."""

    position: Range | None = None  # soft range, units
    velocity: Annotated[float, Field(gt=0, le=500)] | None = None  # units/s
    acceleration: Annotated[float, Field(gt=0, le=10_000)] | None = None  # units/s^2
    following: Annotated[float, Field(gt=0, le=100)] | None = None  # target to measured, units


class GuardOverride(_Strict):
    """What a file may change about the guard's hard limits of one joint, or of "body"."""

    position: Range | None = None  # hard range, units
    step: Annotated[float, Field(gt=0, le=50)] | None = None  # between two goals, units
    rate: Annotated[float, Field(gt=0, le=800)] | None = None  # over any 250 ms, units/s


class SoftLimits(_Strict):
    """Resolved limits of one joint; the limiter shapes targets to stay inside."""

    position: tuple[float, float]
    velocity: float
    acceleration: float
    following: float


class HardLimits(_Strict):
    """Resolved hard limits of one joint; the guard blocks what would leave them."""

    position: tuple[float, float]
    step: float
    rate: float


# Gentle enough to be stopped by hand, fast enough for desk work. One body unit is about one degree.
_BODY = SoftLimits(position=(-100, 100), velocity=150, acceleration=1200, following=40)
_GRIP = SoftLimits(position=(0, 100), velocity=200, acceleration=2000, following=60)
_BODY_HARD = HardLimits(position=(-105, 105), step=4, rate=200)
_GRIP_HARD = HardLimits(position=(-5, 105), step=6, rate=260)


class ArmConfig(_Strict):
    """One arm on one port."""

    id: Name
    model: ArmModel
    role: Literal["follower"] = "follower"
    port: str = Field(min_length=1)  # path of a serial device, or "sim"
    baud: int = Field(default=1_000_000, ge=9600, le=4_500_000)
    calibration: Path
    gripper_range: Literal["0..100", "-100..100"] = "0..100"
    limits: dict[str, LimitOverride] = {}
    guard: dict[str, GuardOverride] = {}
    park: tuple[Finite, Finite, Finite, Finite, Finite, Finite] | None = None
    park_velocity: float = Field(default=60, gt=0, le=150)  # units/s
    max_temperature_c: float = Field(default=65, gt=20, le=80)

    @field_validator("limits", "guard")
    @classmethod
    def _known_joints(cls, value: dict[str, Any]) -> dict[str, Any]:
        for joint in value:
            if joint != "body" and joint not in JOINTS:
                raise ValueError(f"no joint {joint!r}; allowed: body, {', '.join(JOINTS)}")
        return value

    @model_validator(mode="after")
    def _limits_fit(self) -> "ArmConfig":
        for joint in JOINTS:
            soft, hard = self.soft_limits(joint), self.hard_limits(joint)
            if soft.position[0] < hard.position[0] or soft.position[1] > hard.position[1]:
                raise ValueError(
                    f"limits.{joint}.position {soft.position} is not inside "
                    f"guard.{joint}.position {hard.position}"
                )
            if soft.velocity > hard.rate:
                raise ValueError(
                    f"limits.{joint}.velocity {soft.velocity} is above "
                    f"guard.{joint}.rate {hard.rate}"
                )
            target = None if self.park is None else self.park[JOINTS.index(joint)]
            if target is not None and not soft.position[0] <= target <= soft.position[1]:
                raise ValueError(f"park: {joint} {target} is outside {soft.position}")
        return self

    def soft_limits(self, joint: str) -> SoftLimits:
        """Limits of one joint: the default, changed by "body" and then by the joint's own."""
        base = self._gripper(_GRIP) if joint == GRIPPER else _BODY
        return _override(base, self.limits, joint)

    def hard_limits(self, joint: str) -> HardLimits:
        """Hard limits of one joint, resolved the same way."""
        base = self._gripper(_GRIP_HARD) if joint == GRIPPER else _BODY_HARD
        return _override(base, self.guard, joint)

    def _gripper[T: (SoftLimits, HardLimits)](self, base: T) -> T:
        """Gripper limits in the chosen gripper range: -100..100 doubles every unit."""
        if self.gripper_range == "0..100":
            return base
        doubled = {k: v * 2 for k, v in base if k != "position"}
        low, high = (2 * end - 100 for end in base.position)
        return base.model_copy(update={**doubled, "position": (low, high)})


def _override[T: (SoftLimits, HardLimits)](
    base: T, changes: Mapping[str, LimitOverride | GuardOverride], joint: str
) -> T:
    keys = (joint,) if joint == GRIPPER else ("body", joint)
    for key in keys:
        if key in changes:
            base = base.model_copy(update=changes[key].model_dump(exclude_none=True))
    return base


class PolicyConfig(_Strict):
    """The policy and how its chunks are executed."""

    bundle: Path
    endpoint: str | None = None  # None: the daemon starts a worker; else tcp:// or ipc://
    keys: Path | None = None  # folder of CURVE keys, for tcp beyond this machine
    takeover: Literal["replace", "cross_fade", "ensemble"] = "cross_fade"
    cross_fade_s: float = Field(default=0.1, ge=0.0, le=2.0)
    replan: Literal["horizon", "continuous"] = "horizon"
    execution_horizon: int | None = Field(default=None, ge=1, le=1000)  # None: the bundle's
    max_first_step: Positive = 25.0  # first target to present position, units
    request_timeout_s: float = Field(default=0.5, gt=0, le=30)
    silence_timeout_s: float = Field(default=2.0, gt=0, le=60)  # held without chunk: HOLD
    park_when_silent: bool = False
    max_frame_age_s: float = Field(default=0.25, gt=0, le=10)

    @field_validator("endpoint")
    @classmethod
    def _endpoint(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("tcp://", "ipc://")):
            raise ValueError("must begin with tcp:// or ipc://")
        return value


class CameraConfig(_Strict):
    """One camera."""

    name: Name
    driver: Literal["opencv", "sim", "file"]
    device: str = ""  # opencv: /dev/v4l/by-id/... or an index; file: path of a picture or video
    width: int = Field(default=640, ge=16, le=4096)
    height: int = Field(default=480, ge=16, le=4096)
    fps: float = Field(default=30, gt=0, le=240)
    fourcc: str = Field(default="MJPG", min_length=4, max_length=4)
    reopen_s: float = Field(default=1.0, gt=0, le=60)  # silent this long: close and open again

    @model_validator(mode="after")
    def _device(self) -> "CameraConfig":
        if self.driver != "sim" and not self.device:
            raise ValueError(f"driver {self.driver!r} needs `device`")
        return self


class SimConfig(_Strict):
    """The simulator, for arms whose port is "sim"."""

    task: Literal["lift", "reach"] = "lift"
    seed: int = Field(default=0, ge=0)
    baud_time: bool = True  # bytes take as long as on the wire
    transport: Literal["socketpair", "pty"] = "socketpair"
    renderer: Literal["raycast", "egl"] = "raycast"
    faults: str = ""
    blank_images: bool = False  # cameras deliver grey pictures (evaluation baseline)


class StopConfig(_Strict):
    """What SIGINT, SIGTERM and the end of the service do."""

    action: Literal["park", "hold"] = "park"
    torque_off: bool = True  # afterwards; a held arm falls when torque goes off
    park_timeout_s: float = Field(default=6.0, gt=0, le=60)


class Config(_Strict):
    """Everything."""

    name: Name = "robot"
    runtime_dir: Path = Field(default_factory=lambda: default_runtime_dir())
    control: ControlConfig = ControlConfig()
    arms: list[ArmConfig] = Field(min_length=1, max_length=4)
    policy: PolicyConfig | None = None
    cameras: list[CameraConfig] = Field(default=[], max_length=8)
    sim: SimConfig | None = None
    stop: StopConfig = StopConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        for label, names in (
            ("arms", [arm.id for arm in self.arms]),
            ("arms: port", [arm.port for arm in self.arms if arm.port != "sim"]),
            ("cameras", [camera.name for camera in self.cameras]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{label}: {', '.join(sorted(twice))} is listed twice")
        simulated = [arm.id for arm in self.arms if arm.port == "sim"]
        simulated += [camera.name for camera in self.cameras if camera.driver == "sim"]
        if simulated and self.sim is None:
            raise ValueError(f"{', '.join(simulated)}: simulated, but there is no [sim] section")
        return self

    def save(self, path: Path) -> None:
        """Write the resolved configuration as JSON, in one step."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(self.model_dump_json(indent=1))
        os.replace(fresh, path)


def default_runtime_dir() -> Path:
    """systemd's RuntimeDirectory, else the user's own, else one in /tmp by user id."""
    if given := os.environ.get("ROBOTD_RUNTIME_DIR") or os.environ.get("RUNTIME_DIRECTORY"):
        return Path(given)
    if user := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(user) / "robotd"
    return Path(f"/tmp/robotd-{os.getuid()}")


def _problem(path: Path, error: Mapping[str, Any]) -> str:
    """One line for one problem: file, key, value, what is allowed."""
    key = ".".join(str(part) for part in error["loc"])
    value = error.get("input")
    shown = "" if isinstance(value, dict | list | BaseModel) or value is None else f" = {value!r}"
    if error["type"] == "extra_forbidden":
        return f"{path}: {key}{shown}: no such key; see the examples in the documentation"
    if error["type"] == "missing":
        return f"{path}: {key}: is missing"
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {key}{shown}: {text}" if key else f"{path}: {text}"


def parse(raw: Mapping[str, Any], path: Path) -> Config:
    """Check a parsed file; relative paths in it are relative to its folder."""
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        lines = [_problem(path, item) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    base = path.parent
    arms = [
        arm.model_copy(update={"calibration": base / arm.calibration.expanduser()})
        for arm in config.arms
    ]
    policy = config.policy
    if policy is not None:
        update = {"bundle": base / policy.bundle.expanduser()}
        if policy.keys is not None:
            update["keys"] = base / policy.keys.expanduser()
        policy = policy.model_copy(update=update)
    return config.model_copy(update={"arms": arms, "policy": policy})


def load(path: Path) -> Config:
    """Read and check a TOML file, or the resolved JSON of a running daemon."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text file"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    if path.suffix == ".json":
        try:
            return Config.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError("\n".join(_problem(path, e) for e in error.errors())) from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no valid TOML: {error}") from error
    return parse(raw, path)

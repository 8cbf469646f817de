"""Policy bundles: the manifest `bundle.json` and the files beside it.

A bundle is a folder with `bundle.json`, `policy.onnx`, `detokenizer.onnx` and a `README.md` card.
Everything that differs between policies (normalisation, masks, argmax, token layout) is inside the
two graphs; the manifest says what goes in, what comes out, and what it was made for.
"""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robotd.errors import BundleError

MANIFEST = "bundle.json"
POLICY = "policy.onnx"
DETOKENIZER = "detokenizer.onnx"
GRIPPER = "gripper"
BODY_RANGE = (-100.0, 100.0)
MAX_MANIFEST = 1 << 20  # bytes
MAX_GRAPH = 2 << 30  # bytes; the limit of a self-contained ONNX file

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StateInput(_Strict):
    """The policy's state vector: the listed parts, one value per joint each, in this order.

    `position` is the measured joint state, `applied` the last applied targets, normalised units.
    """

    parts: list[Literal["position", "applied"]] = Field(min_length=1, max_length=2)


class ImageInput(_Strict):
    """One uint8 RGB image `[height, width, 3]`, fed to the graph's input `image_<camera>`."""

    camera: Name
    width: int = Field(ge=8, le=4096)
    height: int = Field(ge=8, le=4096)

    @property
    def input(self) -> str:
        """Name of the graph's input."""
        return f"image_{self.camera}"


class Tokens(_Strict):
    """The action tokens that the policy answers with."""

    scheme: Name
    count: int = Field(ge=1, le=4096)
    vocabulary: int = Field(ge=2, le=1_000_000)
    first_id: int = Field(default=0, ge=0)


class Manifest(_Strict):
    """`bundle.json`. Units are robotd's normalised units unless `joint_units` says degrees."""

    format: Literal[1]
    name: Name
    arm: Literal["so101", "koch"]
    joints: list[Name] = Field(min_length=1, max_length=32)
    joint_units: Literal["normalised"] = "normalised"
    gripper_range: tuple[float, float] = (0.0, 100.0)
    state: StateInput
    images: list[ImageInput] = Field(max_length=8)
    text: None = None
    action_horizon: int = Field(ge=1, le=1000)
    execution_horizon: int = Field(ge=1, le=1000)
    step_period_s: float = Field(gt=0.001, le=1.0)
    tokens: Tokens
    generation: Literal["parallel"]
    files: dict[str, Sha256]
    provenance: dict[str, Any] = Field(default_factory=dict)
    results: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if self.execution_horizon > self.action_horizon:
            raise ValueError(
                f"execution_horizon {self.execution_horizon} is longer than "
                f"action_horizon {self.action_horizon}"
            )
        for name in (POLICY, DETOKENIZER):
            if name not in self.files:
                raise ValueError(f"files: no hash for {name}")
        for name in self.files:
            if Path(name).name != name:
                raise ValueError(f"files: {name!r} is not a plain file name")
        if len({image.camera for image in self.images}) != len(self.images):
            raise ValueError("images: a camera is listed twice")
        return self

    @property
    def state_size(self) -> int:
        """Number of floats in the state vector."""
        return len(self.state.parts) * len(self.joints)

    @property
    def step_period_ns(self) -> int:
        """Time between two steps of a chunk, nanoseconds."""
        return round(self.step_period_s * 1e9)

    @property
    def joint_ranges(self) -> tuple[tuple[float, float], ...]:
        """Lowest and highest target of each joint, normalised units."""
        return tuple(
            self.gripper_range if joint.endswith(GRIPPER) else BODY_RANGE for joint in self.joints
        )


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_manifest(raw: bytes, path: Path) -> Manifest:
    """The manifest in these bytes; BundleError, naming `path` and the key, when it is not valid."""
    if len(raw) > MAX_MANIFEST:
        raise BundleError(f"{path}: {len(raw)} bytes are too many for a manifest")
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path}: {where}: {first['msg']}") from error


class Bundle:
    """A bundle on disk whose manifest is valid and whose files match their hashes.

    Raises BundleError, naming the file, when anything is missing, damaged or unknown.
    """

    def __init__(self, folder: Path, manifest: Manifest, digest: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.digest = digest  # sha256 of bundle.json: travels with every chunk

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read the manifest and check every file's hash."""
        path = folder / MANIFEST
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}); a bundle is a folder with {MANIFEST}"
            ) from error
        bundle = cls(folder, parse_manifest(raw, path), hashlib.sha256(raw).hexdigest())
        for name in bundle.manifest.files:
            bundle.read(name)
        return bundle

    def read(self, name: str) -> bytes:
        """Bytes of one listed file, checked against its hash: what is used is what was hashed."""
        file = self.folder / name
        try:
            if file.stat().st_size > MAX_GRAPH:
                raise BundleError(f"{file}: is larger than {MAX_GRAPH >> 30} GiB")
            data = file.read_bytes()
        except FileNotFoundError as error:
            raise BundleError(f"{file}: is missing; the manifest lists it") from error
        except OSError as error:
            raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name]:
            raise BundleError(f"{file}: does not match its hash in {MANIFEST}; fetch it again")
        return data

    def require_fit(
        self,
        arm: str | None = None,
        joints: Sequence[str] | None = None,
        gripper_range: tuple[float, float] | None = None,
        cameras: Collection[str] | None = None,
    ) -> None:
        """BundleError when the bundle was made for something else than what is configured.

        `joints` are the arm's joint names in order; `cameras` the names of those configured.
        """
        manifest, label = self.manifest, f"{self.folder}: bundle {self.manifest.name}"
        if arm is not None and manifest.arm != arm:
            raise BundleError(
                f"{label} was made for arm {manifest.arm!r}, this arm is {arm!r}; "
                f"choose a bundle made for {arm!r}"
            )
        if joints is not None and list(joints) != manifest.joints:
            raise BundleError(
                f"{label} moves joints {', '.join(manifest.joints)}; "
                f"this arm has {', '.join(joints)}"
            )
        if gripper_range is not None and gripper_range != manifest.gripper_range:
            raise BundleError(
                f"{label} uses gripper range {_range(manifest.gripper_range)}, "
                f"the arm is configured for {_range(gripper_range)}"
            )
        needed = [image.camera for image in manifest.images]
        if cameras is not None and (missing := [n for n in needed if n not in cameras]):
            raise BundleError(
                f"{label} needs camera {', '.join(missing)}; "
                f"configured: {', '.join(sorted(cameras)) or 'none'}"
            )


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g}..{ends[1]:g}"

"""Training samples on disk: what the policy would have seen, and the expert's chunk for it.

One folder per collection run: `image_<camera>.u8` (raw uint8 `[N, size, size, 3]`, read through a
memory map), `rows.npz` (the small arrays) and `about.json` (where they come from).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

ABOUT = "about.json"
ROWS = "rows.npz"


@dataclass(frozen=True)
class Sample:
    """One observation and its label; units are normalised, the pose as in `World.pose`."""

    images: dict[str, npt.NDArray[np.uint8]]  # camera -> [size, size, 3]
    state: npt.NDArray[np.float32]  # [12]: measured positions, last applied targets
    actions: npt.NDArray[np.float32]  # [horizon, 6]: the expert's chunk from here
    pose: npt.NDArray[np.float32]  # [5]: the cube's pose
    episode: int  # the episode's seed


class SampleWriter:
    """Appends samples to a new folder; nothing is readable before `close`."""

    def __init__(self, folder: Path, cameras: tuple[str, ...], size: int) -> None:
        if (folder / ABOUT).exists():
            raise FileExistsError(f"{folder} already holds samples; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._size = size
        self._files: dict[str, BinaryIO] = {
            camera: (folder / f"image_{camera}.u8").open("wb") for camera in cameras
        }
        self._rows: list[Sample] = []

    def add(self, samples: list[Sample]) -> None:
        """Append; the pictures go to disk at once."""
        for sample in samples:
            for camera, file in self._files.items():
                file.write(sample.images[camera].tobytes())
            self._rows.append(Sample({}, sample.state, sample.actions, sample.pose, sample.episode))

    def __len__(self) -> int:
        return len(self._rows)

    def close(self, about: dict[str, Any]) -> None:
        """Write the small arrays and `about.json` (with `count`, `cameras`, `size` added)."""
        for file in self._files.values():
            file.close()
        if not self._rows:
            raise ValueError(f"{self._folder}: no sample was written")
        np.savez(
            self._folder / ROWS,
            state=np.stack([row.state for row in self._rows]),
            actions=np.stack([row.actions for row in self._rows]),
            pose=np.stack([row.pose for row in self._rows]),
            episode=np.asarray([row.episode for row in self._rows], np.int64),
        )
        facts = {"count": len(self), "cameras": list(self._files), "size": self._size}
        (self._folder / ABOUT).write_text(json.dumps({**about, **facts}, indent=1))


class Samples:
    """Several collections, indexed as one."""

    def __init__(self, folders: list[Path]) -> None:
        self.about: list[dict[str, Any]] = []
        self._images: list[dict[str, npt.NDArray[np.uint8]]] = []
        self._starts = [0]
        rows: dict[str, list[npt.NDArray[Any]]] = {}
        for folder in folders:
            self._add(folder, rows)
        merged = {name: np.concatenate(parts) for name, parts in rows.items()}
        self.state: npt.NDArray[np.float32] = merged["state"]
        self.actions: npt.NDArray[np.float32] = merged["actions"]
        self.pose: npt.NDArray[np.float32] = merged["pose"]
        self.episode: npt.NDArray[np.int64] = merged["episode"]

    def _add(self, folder: Path, rows: dict[str, list[npt.NDArray[Any]]]) -> None:
        if not (folder / ABOUT).exists():
            raise FileNotFoundError(f"{folder}: no {ABOUT}; make samples with `demos` first")
        about = json.loads((folder / ABOUT).read_text())
        count, size = about["count"], about["size"]
        self.about.append(about)
        self._images.append(
            {
                camera: np.memmap(
                    folder / f"image_{camera}.u8", np.uint8, "r", shape=(count, size, size, 3)
                )
                for camera in about["cameras"]
            }
        )
        self._starts.append(self._starts[-1] + count)
        with np.load(folder / ROWS) as arrays:
            for name in arrays.files:
                rows.setdefault(name, []).append(arrays[name])

    def __len__(self) -> int:
        return self._starts[-1]

    def images(self, camera: str, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Pictures `[len(index), size, size, 3]`."""
        which = np.searchsorted(self._starts, index, side="right") - 1
        return np.stack(
            [
                self._images[part][camera][at - self._starts[part]]
                for part, at in zip(which, index, strict=True)
            ]
        )

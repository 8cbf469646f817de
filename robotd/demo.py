"""`robotd demo`: the whole stack on a simulated arm, from camera pictures to motor goals."""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from robotd.config import Config
from robotd.episodes import OBSERVER_NAME, EpisodeResult, LiveStage, temporary_runtime
from robotd.errors import ConfigError
from robotd.evaluate import shipped_bundle, stage_config
from robotd.ipc.ring import TickReport
from robotd.ipc.simlink import Answer
from robotd.ipc.status import read_status
from robotd.observer.picture import Viewer, save
from robotd.status import loop_figures

WINDOW = "window"
_REFRESH_S = 0.25
_PICTURES = (".png", ".jpg")
_STRIP = 6  # pictures of one episode in the saved strip


class PictureView:
    """Keeps a picture file up to date, and leaves a strip of the last episode in it."""

    def __init__(self, config: Config, path: Path) -> None:
        """ConfigError for a file that cannot become a picture."""
        if path.suffix.lower() not in _PICTURES:
            raise ConfigError(f"--view {path}: must end in {', '.join(_PICTURES)}, or be `window`")
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"--view {path}: no folder {path.parent} that can be written to")
        self._viewer = Viewer(config.runtime_dir, [camera.name for camera in config.cameras])
        self._path = path
        self._strip: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
        self._next = 0.0

    def show(self, state: Answer) -> None:
        """Called all the time while an episode runs."""
        now = time.monotonic()
        if now < self._next or (sheet := self._viewer.sheet()) is None:
            return
        self._next = now + _REFRESH_S
        if state.elapsed_ns < 2e9 * _REFRESH_S:
            self._strip.clear()
        self._strip.append(sheet)
        save(self._path, sheet)

    def close(self) -> None:
        """Leave evenly spaced moments of the last episode, one below the other."""
        if self._strip:
            chosen = np.linspace(0, len(self._strip) - 1, min(_STRIP, len(self._strip)))
            save(self._path, np.vstack([self._strip[int(index)] for index in chosen]))
        self._viewer.close()


class WindowView:
    """A live window of the cameras; ConfigError where there is no screen."""

    def __init__(self, config: Config) -> None:
        try:
            import tkinter
        except ImportError as error:
            raise ConfigError(
                "--view window needs Python's tkinter; use --view FILE.png"
            ) from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise ConfigError(f"--view window: {error}; use --view FILE.png") from error
        self._root.title("robotd")
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._photo: tkinter.PhotoImage | None = None
        self._make = tkinter.PhotoImage
        self._viewer = Viewer(config.runtime_dir, [camera.name for camera in config.cameras])

    def show(self, state: Answer) -> None:
        """Called all the time while an episode runs."""
        sheet = self._viewer.sheet(384)
        if sheet is not None:
            header = f"P6 {sheet.shape[1]} {sheet.shape[0]} 255 ".encode()
            self._photo = self._make(data=header + sheet.tobytes(), format="PPM")
            self._label.configure(image=self._photo)
        self._root.update()

    def close(self) -> None:
        """Close the window."""
        self._viewer.close()
        self._root.destroy()


def demo(
    model: str, episodes: int, seed: int, view: str | None, console: Console
) -> dict[str, Any]:
    """Run the episodes, show each as it ends, and return the summary. Ends by itself."""
    runtime = temporary_runtime()
    config = stage_config(model, shipped_bundle(model), runtime)
    stage = LiveStage(config)
    picture: PictureView | WindowView | None = None
    try:
        if view is not None:
            picture = WindowView(config) if view == WINDOW else PictureView(config, Path(view))
        with console.status("starting simulator, control loop, cameras and policy worker ..."):
            stage.__enter__()
        try:
            return _run(stage, episodes, seed, picture, console)
        finally:
            if picture is not None:
                picture.close()
            stage.__exit__(None, None, None)
    finally:
        stage.discard()


def _run(
    stage: LiveStage,
    episodes: int,
    seed: int,
    picture: PictureView | WindowView | None,
    console: Console,
) -> dict[str, Any]:
    results: list[EpisodeResult] = []
    reports: list[TickReport] = []
    for number in range(episodes):
        title = f"episode {number + 1} of {episodes}, seed {seed + number}"
        with console.status(title) as shown:
            watch = _watcher(shown.update, title, picture)
            result = stage.episode(seed + number, watch=watch)
        results.append(result)
        after = reports[-1].sequence if reports else 0
        reports += stage.ring.since(after)
        mark = "[green]lifted[/]" if result.success else f"[red]not lifted[/] ({result.note})"
        console.print(f"  {title}: {mark} after {result.seconds:.1f} s")
    observer = read_status(stage.runtime_dir / OBSERVER_NAME)
    return {
        "arm": stage.config.arms[0].model,
        "episodes": len(results),
        "successes": sum(result.success for result in results),
        "loop": loop_figures(reports, stage.config.control.period_ns),
        "bus_errors": reports[-1].bus_errors,
        "chunks": reports[-1].chunks,
        "observer": observer,
    }


def _watcher(
    update: Callable[[str], None], title: str, picture: PictureView | WindowView | None
) -> Callable[[Answer], None]:
    """Refreshes the status line, and the picture if one is wanted."""
    turns = itertools.count()

    def watch(state: Answer) -> None:
        if picture is not None:
            picture.show(state)
        if next(turns) % 5 == 0:
            height = float(state.info.get("cube_z_m", 0.0)) * 100
            update(f"{title}: {state.elapsed_ns / 1e9:4.1f} s, cube at {height:4.1f} cm")

    return watch


def summary_table(summary: dict[str, Any]) -> Table:
    """The summary for people."""
    loop, observer = summary["loop"], summary["observer"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    table.add_row("lifted", f"{summary['successes']} of {summary['episodes']}")
    table.add_row(
        "control loop",
        f"{loop['rate_hz']:.1f} Hz, {loop['missed_ticks']} missed ticks "
        f"({loop['missed_fraction']:.2%}), {summary['bus_errors']} bus errors",
    )
    table.add_row(
        "wake-up late",
        f"p50 {loop['wake_late_us']['p50']:.0f} us, p99 {loop['wake_late_us']['p99']:.0f} us",
    )
    table.add_row(
        "one tick",
        f"read {loop['read_us']['p50']:.0f} us, decide {loop['decide_us']['p50']:.0f} us, "
        f"write {loop['write_us']['p50']:.0f} us (p50)",
    )
    latency = observer.get("latency_ms") or {}
    if latency:
        table.add_row(
            "observation to chunk",
            f"p50 {latency['p50']:.1f} ms, p99 {latency['p99']:.1f} ms over "
            f"{summary['chunks']} chunks",
        )
    for name, camera in observer.get("cameras", {}).items():
        table.add_row(f"camera {name}", f"{camera.get('fps') or 0:.1f} fps")
    return table

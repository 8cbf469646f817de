"""Small JSON files in the runtime directory, replaced whole: slow state for `robotd status`."""

import json
import os
from pathlib import Path
from typing import Any

from robotd.errors import IpcError


def write_status(path: Path, state: dict[str, Any]) -> None:
    """Replace the file in one step; readers see the old or the new one, never half of it."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(state))
    os.replace(fresh, path)


def read_status(path: Path) -> dict[str, Any]:
    """The file's content; IpcError when absent or damaged."""
    try:
        state = json.loads(path.read_text())
    except OSError as error:
        raise IpcError(f"{path}: not there; is that process running?") from error
    except ValueError as error:
        raise IpcError(f"{path}: is damaged: {error}") from error
    if not isinstance(state, dict):
        raise IpcError(f"{path}: is damaged: not an object")
    return state

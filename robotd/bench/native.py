"""The C programs beside this file, compiled on the spot; without a compiler they are skipped."""

import os
import shutil
import subprocess
from pathlib import Path

_COMPILE_S = 60.0


class Native:
    """Builds C programs into one folder. `why_not` says in words why there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.why_not = ""

    def build(self, name: str) -> Path | None:
        """The compiled program `name`.c, or None: see `why_not`."""
        target = self.folder / name
        if target.exists():
            return target
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            self.why_not = "no C compiler (cc) here"
            return None
        source = Path(__file__).with_name(f"{name}.c")
        argv = [compiler, "-O2", "-o", str(target), str(source)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMPILE_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.why_not = f"{compiler} did not work: {error}"
            return None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no message"]
            self.why_not = f"{compiler} could not compile {source.name}: {lines[0]}"
            return None
        return target

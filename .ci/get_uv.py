"""Put a working `uv` at .tools/uv: the one on PATH, else the wheel from the package index.

Needs nothing but Python's standard library, because a fresh machine may lack pip and venv.
"""

import hashlib
import html
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from io import BytesIO
from pathlib import Path
from urllib.parse import urljoin

TARGET = Path(__file__).resolve().parents[1] / ".tools" / "uv"
OLDEST = (0, 6)
LINK = re.compile(r'<a\s[^>]*href="([^"#]+)#sha256=([0-9a-f]{64})"[^>]*>\s*([^<\s]+)\s*</a>')


def works(candidate: str) -> bool:
    """True when the program runs here and is recent enough."""
    try:
        run = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=True)
        version = run.stdout.split()[1].split(".")
        return (int(version[0]), int(version[1])) >= OLDEST
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return False


def fetch(url: str) -> bytes:
    """The body behind a URL."""
    request = urllib.request.Request(url, headers={"Accept": "text/html, */*;q=0.1"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def version_of(name: str) -> tuple[int, ...]:
    """Release number in a wheel's file name; pre-releases sort below everything."""
    part = name.split("-")[1]
    return tuple(int(n) for n in part.split(".")) if re.fullmatch(r"[\d.]+", part) else (-1,)


def download() -> None:
    """Take the newest wheel for this machine, check its hash, keep the program in it."""
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL")
    page = f"{(index or 'https://pypi.org/simple').rstrip('/')}/uv/"
    libc = "manylinux" if platform.libc_ver()[0] == "glibc" else "musllinux"
    links = LINK.findall(fetch(page).decode())
    wheels = [link for link in links if libc in link[2] and f"_{platform.machine()}" in link[2]]
    if not wheels:
        sys.exit(f"{page}: no uv for {platform.machine()} and {libc}; install uv by hand")
    url, digest, name = max(wheels, key=lambda link: version_of(link[2]))
    data = fetch(urljoin(page, html.unescape(url)))
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit(f"{name}: does not match the index's hash; try again")
    with zipfile.ZipFile(BytesIO(data)) as archive:
        program = next(n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
        TARGET.write_bytes(archive.read(program))
    TARGET.chmod(0o755)


def main() -> None:
    """Link or fetch; exit with a line that says what to do when neither works."""
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.unlink(missing_ok=True)
    found = shutil.which("uv")
    if found and works(found):
        TARGET.symlink_to(found)
        return
    print("fetching uv from the package index ...", flush=True)
    download()
    if not works(str(TARGET)):
        sys.exit("the fetched uv does not run here; install uv by hand")


if __name__ == "__main__":
    main()

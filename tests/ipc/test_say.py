"""Lines of the daemon's log."""

import os
import re
import subprocess
import sys

import pytest

from robotd.ipc.say import say

SCRIPT = """
import logging, sys
from robotd.ipc.say import DATE_FORMAT, log_format, say
logging.basicConfig(level=logging.INFO, format=log_format("one"), datefmt=DATE_FORMAT)
logging.info("by logging")
say("two", "by hand")
"""


def test_a_line_has_time_and_process(capsys: pytest.CaptureFixture[str]) -> None:
    say("sim", "hello")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} sim      hello\n", capsys.readouterr().err)


def run(env: dict[str, str] | None = None, stderr: int = subprocess.PIPE) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stderr=stderr,
        env={**os.environ, **(env or {})},
        text=True,
        timeout=60,
        check=True,
    )
    return done.stderr or ""


def test_both_ways_look_alike() -> None:
    first, second = run().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} one      by logging", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} two      by hand", second)


def test_the_journal_adds_its_own_time() -> None:
    read, write = os.pipe()
    there = os.fstat(write)
    run({"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}, write)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.read() == "one      by logging\ntwo      by hand\n"


def test_another_stream_than_the_journals_has_times() -> None:
    assert run({"JOURNAL_STREAM": "1:2"})[2] == ":"


def test_a_log_that_nobody_reads_stops_nobody() -> None:
    read, write = os.pipe()
    os.close(read)
    run(stderr=write)
    os.close(write)

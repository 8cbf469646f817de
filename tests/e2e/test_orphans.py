"""When the daemon is killed its processes end by themselves, whatever they were doing."""

from pathlib import Path

import pytest

from tests.e2e.rig import running, runtime
from tests.e2e.test_kill import config_file
from tests.workers import wait_until

pytest.importorskip("mujoco")
pytestmark = pytest.mark.xdist_group("e2e_kill")


@pytest.mark.parametrize("transport", ["socketpair", "pty"])
def test_killed_while_it_starts(tmp_path: Path, transport: str) -> None:
    with runtime() as folder:
        config = config_file(tmp_path, folder, transport=transport)
        with running(config, folder) as daemon:
            wait_until(lambda: (folder / "sim.sock").exists(), "the simulator")
            daemon.process.kill()
            daemon.wait()
            daemon.all_gone()


def test_killed_under_a_policy(tmp_path: Path) -> None:
    with runtime() as folder, running(config_file(tmp_path, folder), folder) as daemon:
        daemon.ready().call("arm")
        daemon.follow_policy()
        daemon.process.kill()
        daemon.wait()
        daemon.all_gone()

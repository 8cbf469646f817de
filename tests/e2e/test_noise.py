"""A bus that loses and damages replies: retried, counted, never a fault."""

from pathlib import Path

import pytest

from robotd.ipc.ring import Fault, Mode
from tests.e2e.rig import arm_table, running, runtime, write_config
from tests.workers import wait_until

pytest.importorskip("mujoco")
pytestmark = pytest.mark.xdist_group("e2e_faults")


@pytest.mark.parametrize("model", ["so101", "koch"])
def test_lost_and_damaged_replies_are_asked_for_again(tmp_path: Path, model: str) -> None:
    with runtime() as folder:
        config = write_config(
            tmp_path,
            runtime_dir=folder,
            control={"rate_hz": 100, "failed_ticks_hold": 20, "failed_ticks_fault": 60},
            arms=[arm_table(tmp_path, model, "sim", park_velocity=30)],
            sim={"task": "reach", "faults": "drop:p=0.01,corrupt:p=0.005"},
        )
        with running(config, folder) as daemon:
            daemon.ready().call("arm")
            daemon.call("park")

            def disturbed() -> bool:
                assert daemon.status()["fault"] == Fault.NONE.name, daemon.log
                bus, injected = daemon.status()["bus"], daemon.truth()["injected"]
                return bus["retries"] >= 2 and {"drop", "corrupt"} <= injected.keys()

            wait_until(disturbed, lambda: f"{daemon.status()['bus']} {daemon.truth()}")
            daemon.mode(Mode.HOLD)
            assert daemon.status()["message"] == "parked"
            assert daemon.end() == 0

"""An arm on the emulated bus in stepped time: every byte is real, nothing waits."""

from dataclasses import replace

from robotd.bus.arm import Arm, JointReading
from robotd.bus.calibration import Calibration
from robotd.sim.arms import sim_calibration
from robotd.sim.bus import MemoryPort, SimBus

PERIOD_NS = 5_000_000  # 200 Hz
MS = 1_000_000


class Rig:
    """One simulated arm, its port, its clock and the `Arm` under test."""

    def __init__(
        self,
        model: str = "so101",
        role: str = "follower",
        calibration: Calibration | None = None,
        **options: object,
    ) -> None:
        self.now_ns = 1_000_000_000
        self.bus = SimBus(model, role)
        self.port = MemoryPort(self.bus, self.clock)
        self.calibration = calibration or sim_calibration(model, role)
        self.arm = Arm("left", model, role, self.port, self.calibration, self.clock, **options)  # type: ignore[arg-type]

    def clock(self) -> int:
        return self.now_ns

    def ready(self) -> "Rig":
        """Connected and configured."""
        self.arm.connect()
        self.arm.configure()
        return self

    def slow_wire(self) -> None:
        """From now on bytes take their time at 1 Mbaud (set-up does not wait for them here)."""
        self.now_ns += 1_000_000_000
        self.bus.baud_time = True

    def tick(
        self, goals: tuple[float, ...] | None = None, deadline_ns: int = 3 * MS
    ) -> list[JointReading]:
        """One control period; copies of the readings."""
        self.arm.request()
        readings = [replace(one) for one in self.arm.collect(self.now_ns + deadline_ns)]
        if goals is not None:
            self.arm.write(goals)
        self.now_ns += PERIOD_NS
        return readings

    def run(self, ticks: int, goals: tuple[float, ...] | None = None) -> list[JointReading]:
        """Several periods; the readings of the last."""
        for _ in range(ticks):
            readings = self.tick(goals)
        return readings

    def inject(self, faults: str) -> None:
        """Faults from now on; "" ends all."""
        self.bus.inject(faults, self.now_ns)

    def register(self, joint: int, name: str) -> int:
        """A register's value as the servo itself sees it."""
        return self.bus.servos[joint].get(name)

    def kept(self, joint: int, name: str) -> bytes:
        """A register's bytes as kept without power."""
        item = self.bus.servos[joint].item(name)
        return bytes(self.bus.servos[joint].rom[item.address : item.address + item.size])

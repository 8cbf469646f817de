"""How a Dynamixel X servo's control table is read and written: access, ranges, indirect data.

Source: ROBOTIS e-Manual, Protocol 2.0 (error numbers) and "Indirect Address, Indirect Data".
"""

from __future__ import annotations

from abc import abstractmethod

from robotd.sim.arms import Mount
from robotd.sim.control_tables import Item, ServoModel
from robotd.sim.mechanism import Mechanism
from robotd.sim.servos import Servo, Supply

# Error numbers of the status packet (Protocol 2.0).
RESULT_FAIL, INSTRUCTION, CRC, DATA_RANGE, DATA_LENGTH, DATA_LIMIT, ACCESS = range(1, 8)
CURRENT_MODE, VELOCITY_MODE, POSITION_MODE, EXTENDED_MODE, GRIP_MODE, PWM_MODE = 0, 1, 3, 4, 5, 16
GOALS = ("Goal_PWM", "Goal_Current", "Goal_Velocity", "Goal_Position")
_FAR = 1_048_575  # counts; extended position goes so far
_PLAN = tuple[tuple[Item, int], ...]  # registers that a write covers, with their offset in it


class DynamixelTable(Servo):
    """The register side of one X-series servo."""

    def __init__(
        self, model: ServoModel, mount: Mount, joint: int, mechanism: Mechanism, supply: Supply
    ) -> None:
        super().__init__(model, mount, joint, mechanism, supply)
        self.senses_current = "Goal_Current" in self._at
        self.modes = (0, 1, 3, 4, 5, 16) if self.senses_current else (1, 3, 4, 16)
        self._mode = POSITION_MODE
        self._plans: dict[tuple[int, int], _PLAN | int] = {}
        self._indirect = {
            data + k: addresses + 2 * k
            for addresses, data, count in model.indirect
            for k in range(count)
        }

    def read(self, address: int, length: int) -> bytes | int:
        """Bytes of the table (refresh it first), or an error number."""
        end = address + length
        if length == 0 or end > self.model.table_size:
            return ACCESS
        data = self.table[address:end]
        if end > 168:  # indirect data begin beyond their addresses
            for at in range(address, end):
                if at in self._indirect:
                    data[at - address] = self.table[self._pointer(at)]
        return bytes(data)

    def write(self, address: int, data: bytes) -> int:
        """Write whole registers: 0, or an error number and nothing is changed."""
        if address in self._indirect:
            return self._write_indirect(address, data)
        plan = self._plans.get((address, len(data)))
        if plan is None:
            plan = self._plans[address, len(data)] = self._plan(address, len(data))
        if isinstance(plan, int):
            return plan
        values = []
        for item, offset in plan:
            raw = int.from_bytes(data[offset : offset + item.size], "little")
            value = item.decode(raw)
            error = self._refusal(item, value)
            if error:
                return error
            values.append((item, value))
        for item, value in values:
            self._store(item, value)
        return 0

    def _pointer(self, data_address: int) -> int:
        at = self._indirect[data_address]
        target = int.from_bytes(self.table[at : at + 2], "little")
        return min(target, self.model.table_size - 1)

    def _write_indirect(self, address: int, data: bytes) -> int:
        run: list[int] = []
        start = 0
        for k in range(len(data)):
            if address + k not in self._indirect:
                return ACCESS
            target = self._pointer(address + k)
            if run and target == run[-1] + 1:
                run.append(target)
                continue
            if run and (error := self._run(run[0], data[start:k])):
                return error
            run, start = [target], k
        return self._run(run[0], data[start:]) if run else DATA_LENGTH

    def _run(self, address: int, data: bytes) -> int:
        if address in self._indirect:  # not redirected: plain memory
            self.table[address : address + len(data)] = data
            return 0
        return self.write(address, data)

    def _plan(self, address: int, length: int) -> _PLAN | int:
        covered, at, end = [], address, address + length
        while at < end:
            item = self.model.by_address.get(at) or self._pointer_item(at)
            if item is None or not item.writable:
                return ACCESS
            if at + item.size > end:
                return DATA_LENGTH
            covered.append((item, at - address))
            at += item.size
        return tuple(covered) if covered else DATA_LENGTH

    def _pointer_item(self, address: int) -> Item | None:
        if address in self._indirect.values():
            return Item("Indirect_Address", address, 2, True, 0, 64, self.model.table_size - 1)
        return None

    # -- writing

    def _refusal(self, item: Item, value: int) -> int:
        """Why a value is not taken, as an error number; 0 when it is."""
        if self.torque_on and item.address < self.model.eeprom_end:
            return ACCESS
        if item.low is not None and item.high is not None and not item.low <= value <= item.high:
            return DATA_RANGE
        name = item.name
        if name == "Operating_Mode" and value not in self.modes:
            return DATA_RANGE
        if name == "Drive_Mode" and value & 0x02:
            return DATA_RANGE
        if name in GOALS:
            if self.get("Bus_Watchdog") < 0:
                return DATA_RANGE
            low, high = self._allowed(name)
            if not low <= value <= high:
                return DATA_LIMIT
        return 0

    def _allowed(self, name: str) -> tuple[int, int]:
        if name == "Goal_Position":
            if self._mode == POSITION_MODE:
                return self.get("Min_Position_Limit"), self.get("Max_Position_Limit")
            return -_FAR, _FAR
        limit = self.get(name.replace("Goal_", "") + "_Limit")
        return -limit, limit

    @abstractmethod
    def _store(self, item: Item, value: int) -> None:
        """Take a value that was allowed, with what it does."""

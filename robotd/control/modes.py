"""Modes and what leads from one to another: a table, without side effects.

IDLE --ARM--> HOLD --POLICY--> POLICY        FAULTED from anywhere --> FAULT (latched)
 ^             ^ |               |           ESTOP   from anywhere --> FAULT
 |             | +--PARK--> PARK |           CLEARED from FAULT --> IDLE
 +--RELEASED---+---HOLD----------+
"""

from enum import IntEnum

from robotd.ipc.ring import Mode


class Event(IntEnum):
    """What can happen. Those up to CLEAR are commands; the others come from the loop itself."""

    ARM = 1  # torque on, at the present position
    DISARM = 2  # controlled stop, then torque off (category 1)
    HOLD = 3  # controlled stop, torque kept (category 2)
    PARK = 4
    POLICY = 5  # follow the chunks of a source
    ESTOP = 6  # torque off at once (category 0)
    CLEAR = 7  # end a fault whose cause is gone
    RELEASED = 8  # at rest after DISARM, and torque is off
    PARKED = 9  # the park pose is reached
    SILENT = 10  # the policy has said nothing for too long
    BUS_TROUBLE = 11  # several reads in a row failed
    FAULTED = 12


_TABLE: dict[Mode, dict[Event, Mode]] = {
    Mode.IDLE: {
        Event.ARM: Mode.HOLD,
        Event.DISARM: Mode.IDLE,
        Event.RELEASED: Mode.IDLE,
    },
    Mode.HOLD: {
        Event.DISARM: Mode.HOLD,
        Event.HOLD: Mode.HOLD,
        Event.PARK: Mode.PARK,
        Event.POLICY: Mode.POLICY,
        Event.RELEASED: Mode.IDLE,
        Event.BUS_TROUBLE: Mode.HOLD,
    },
    Mode.POLICY: {
        Event.DISARM: Mode.HOLD,
        Event.HOLD: Mode.HOLD,
        Event.PARK: Mode.PARK,
        Event.POLICY: Mode.POLICY,
        Event.SILENT: Mode.HOLD,
        Event.BUS_TROUBLE: Mode.HOLD,
    },
    Mode.PARK: {
        Event.DISARM: Mode.HOLD,
        Event.HOLD: Mode.HOLD,
        Event.PARK: Mode.PARK,
        Event.PARKED: Mode.HOLD,
        Event.BUS_TROUBLE: Mode.HOLD,
    },
    Mode.FAULT: {
        Event.DISARM: Mode.FAULT,
        Event.CLEAR: Mode.IDLE,
    },
}
_ALWAYS = {Event.ESTOP: Mode.FAULT, Event.FAULTED: Mode.FAULT}

_REFUSALS: dict[tuple[Mode, Event], str] = {
    (Mode.IDLE, Event.HOLD): "not armed: `robotd arm` first",
    (Mode.IDLE, Event.PARK): "not armed: `robotd arm` first",
    (Mode.IDLE, Event.POLICY): "not armed: `robotd arm` first",
    (Mode.IDLE, Event.CLEAR): "there is no fault to clear",
    (Mode.HOLD, Event.ARM): "already armed",
    (Mode.HOLD, Event.CLEAR): "there is no fault to clear",
    (Mode.POLICY, Event.ARM): "already armed",
    (Mode.POLICY, Event.CLEAR): "there is no fault to clear",
    (Mode.PARK, Event.ARM): "already armed",
    (Mode.PARK, Event.POLICY): "parking: wait until it holds, or `robotd hold` first",
    (Mode.PARK, Event.CLEAR): "there is no fault to clear",
    (Mode.FAULT, Event.ARM): "in a fault: `robotd clear`, then `robotd arm`",
    (Mode.FAULT, Event.HOLD): "in a fault: `robotd clear`, then `robotd arm`",
    (Mode.FAULT, Event.PARK): "in a fault: `robotd clear`, then `robotd arm`",
    (Mode.FAULT, Event.POLICY): "in a fault: `robotd clear`, then `robotd arm`",
}


def next_mode(mode: Mode, event: Event) -> Mode | None:
    """The mode after an event; None when the event means nothing in this mode."""
    return _ALWAYS.get(event) or _TABLE[mode].get(event)


def refusal(mode: Mode, event: Event) -> str:
    """Why a command is refused in this mode, and what to do; for pairs without a next mode."""
    return _REFUSALS[mode, event]

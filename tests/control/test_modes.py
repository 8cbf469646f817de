"""The whole table: every mode with every event."""

import pytest

from robotd.control.modes import Event, next_mode, refusal
from robotd.ipc.ring import Mode

IDLE, HOLD, POLICY, PARK, FAULT = Mode.IDLE, Mode.HOLD, Mode.POLICY, Mode.PARK, Mode.FAULT
COMMANDS = [event for event in Event if event <= Event.CLEAR]

# Columns: the mode an event leads to from each mode; None: refused, or without meaning.
TABLE = {
    #                   IDLE   HOLD    POLICY  PARK   FAULT
    Event.ARM:         (HOLD,  None,   None,   None,  None),
    Event.DISARM:      (IDLE,  HOLD,   HOLD,   HOLD,  FAULT),
    Event.HOLD:        (None,  HOLD,   HOLD,   HOLD,  None),
    Event.PARK:        (None,  PARK,   PARK,   PARK,  None),
    Event.POLICY:      (None,  POLICY, POLICY, None,  None),
    Event.ESTOP:       (FAULT, FAULT,  FAULT,  FAULT, FAULT),
    Event.CLEAR:       (None,  None,   None,   None,  IDLE),
    Event.RELEASED:    (IDLE,  IDLE,   None,   None,  None),
    Event.PARKED:      (None,  None,   None,   HOLD,  None),
    Event.SILENT:      (None,  None,   HOLD,   None,  None),
    Event.BUS_TROUBLE: (None,  HOLD,   HOLD,   HOLD,  None),
    Event.FAULTED:     (FAULT, FAULT,  FAULT,  FAULT, FAULT),
}  # fmt: skip
CASES = [
    (mode, event, after)
    for event, row in TABLE.items()
    for mode, after in zip((IDLE, HOLD, POLICY, PARK, FAULT), row, strict=True)
]


def test_the_table_here_is_whole() -> None:
    assert set(TABLE) == set(Event)
    assert {mode for mode, _, _ in CASES} == set(Mode)


@pytest.mark.parametrize(("mode", "event", "after"), CASES)
def test_every_mode_with_every_event(mode: Mode, event: Event, after: Mode | None) -> None:
    assert next_mode(mode, event) is after


@pytest.mark.parametrize(
    ("mode", "event"), [(m, e) for m, e, after in CASES if after is None and e in COMMANDS]
)
def test_every_refused_command_says_why(mode: Mode, event: Event) -> None:
    assert len(refusal(mode, event)) > 10


def test_only_arming_leads_out_of_idle_except_faults() -> None:
    leaving = {e for m, e, after in CASES if m is IDLE and after not in (None, IDLE, FAULT)}
    assert leaving == {Event.ARM}


def test_only_clearing_leads_out_of_a_fault() -> None:
    leaving = {e for m, e, after in CASES if m is FAULT and after not in (None, FAULT)}
    assert leaving == {Event.CLEAR}

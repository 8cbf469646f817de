"""Every error robotd raises, in one tree.

    RobotdError
    |-- ConfigError           the configuration: file, key, value, what is allowed
    |-- CalibrationError      a calibration file, or a servo that disagrees with it
    |-- BusError
    |   |-- PortError         the port: absent, busy, not permitted, unplugged
    |   |-- PacketError       bytes that are no valid packet
    |   `-- ServoError        one servo: silent, wrong model, refused an instruction
    |-- CameraError           a camera that cannot be opened, or gives no usable picture
    |-- BundleError           a policy bundle that cannot be used
    |-- WireError             a message between observer and worker that breaks the protocol
    |-- ChunkError            action tokens or a chunk that must not move the arm (carries a reason)
    |-- IpcError              shared memory or sockets in the runtime directory
    |-- SimError              the simulator: task, scene, fault description
    `-- ProcessError          a child process that did not start, or ended

A message says what was wrong, with which value, on which servo or file, and what to do next.
The command line prints it as one line and ends with exit code 2.
"""


class RobotdError(Exception):
    """Base of all errors that robotd raises on purpose."""


class ConfigError(RobotdError):
    """The configuration cannot be used."""


class CalibrationError(RobotdError):
    """A calibration file is invalid, or a servo disagrees with it."""


class BusError(RobotdError):
    """Communication with servos failed."""


class PortError(BusError):
    """A serial port cannot be opened or has gone away."""


class PacketError(BusError):
    """Bytes that are not a valid packet."""


class ServoError(BusError):
    """One servo is silent, of the wrong kind, or refused an instruction."""


class CameraError(RobotdError):
    """A camera cannot be opened, or what it gives is no picture."""


class BundleError(RobotdError):
    """A policy bundle is incomplete, corrupt, or does not fit the arm."""


class WireError(RobotdError):
    """A message on the policy link breaks the protocol."""


class ChunkError(RobotdError):
    """Action tokens or a chunk that must not reach the arm.

    `reason` is a short stable word used as the counter's name (see observer/detokenize.py).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class IpcError(RobotdError):
    """A file or socket in the runtime directory is missing, stale or damaged."""


class SimError(RobotdError):
    """The simulator cannot do what was asked."""


class ProcessError(RobotdError):
    """A child process did not start or ended unexpectedly."""

"""Opening a serial device for one process alone, and saying why when that fails.

Raw 8N1, exclusive by flock and TIOCEXCL, low latency where the driver knows it (an FTDI adapter
then waits 1 ms in place of 16 before it hands bytes on).
"""

import errno
import fcntl
import grp
import os
import stat
import struct
import termios
from pathlib import Path

from robotd.errors import PortError

_PTY_MAJORS = range(136, 144)  # Linux, Documentation/admin-guide/devices.txt: Unix98 PTY slaves
_ASYNC_LOW_LATENCY = 1 << 13  # linux/tty_flags.h
_SERIAL_STRUCT_SIZE = 72  # struct serial_struct of linux/serial.h, with `flags` at 16
_FLAGS_AT = 16


def open_tty(path: str, baud: int, explain: bool = True) -> int:
    """Open and set up the serial device; returns its descriptor (non-blocking).

    Raises PortError. With `explain` it looks up who holds a busy port, which takes a while.
    """
    if speed_constant(baud) is None:
        raise PortError(f"{path}: {baud} baud is not supported; known: {known_rates()}")
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PortError(_why_not_open(path, error, explain)) from None
    try:
        if not os.isatty(fd):
            raise PortError(f"{path}: not a serial device")
        _claim(fd, path, explain)
        make_raw(fd, path, baud)
        _low_latency(fd)
    except PortError:
        os.close(fd)
        raise
    return fd


def speed_constant(baud: int) -> int | None:
    """The termios constant of a rate, None where there is none."""
    value: int | None = getattr(termios, f"B{baud}", None)
    return value if baud > 0 else None


def known_rates() -> str:
    """The rates termios knows from 9600 up, for messages."""
    names = (name[1:] for name in dir(termios) if name[0] == "B" and name[1:].isdigit())
    return ", ".join(str(rate) for rate in sorted(map(int, names)) if rate >= 9600)


def make_raw(fd: int, name: str, baud: int | None = None) -> None:
    """8 data bits, no parity, one stop bit, no translation; the rate only where one is given.

    Raises PortError when the device does not take the rate.
    """
    speed = speed_constant(baud) if baud else None
    try:
        _, _, cflag, _, ispeed, ospeed, cc = termios.tcgetattr(fd)
        cflag &= ~(termios.CSIZE | termios.PARENB | termios.CSTOPB | termios.CRTSCTS)
        cflag |= termios.CS8 | termios.CREAD | termios.CLOCAL
        cc[termios.VMIN], cc[termios.VTIME] = 1, 0
        if speed is not None:
            ispeed = ospeed = speed
        termios.tcsetattr(fd, termios.TCSANOW, [0, 0, cflag, 0, ispeed, ospeed, cc])
        if speed is not None and termios.tcgetattr(fd)[5] != speed:
            raise PortError(f"{name}: the device does not run at {baud} baud")
        termios.tcflush(fd, termios.TCIOFLUSH)
    except termios.error as error:
        raise PortError(f"{name}: cannot be set up: {error.args[-1]}") from None


def _claim(fd: int, path: str, explain: bool) -> None:
    """Keep others out. A pty keeps TIOCEXCL beyond its last close: there the lock must do."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise PortError(_busy(path, explain)) from None
    if os.major(os.fstat(fd).st_rdev) not in _PTY_MAJORS:
        fcntl.ioctl(fd, termios.TIOCEXCL)


def _low_latency(fd: int) -> None:
    """Ask for low latency; drivers that have no such thing refuse, which is fine."""
    data = bytearray(_SERIAL_STRUCT_SIZE)
    try:
        fcntl.ioctl(fd, termios.TIOCGSERIAL, data)
        (flags,) = struct.unpack_from("i", data, _FLAGS_AT)
        struct.pack_into("i", data, _FLAGS_AT, flags | _ASYNC_LOW_LATENCY)
        fcntl.ioctl(fd, termios.TIOCSSERIAL, data)
    except OSError:
        return


def _why_not_open(path: str, error: OSError, explain: bool) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"{path}: there is no such port; is the arm plugged in?"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path}: no permission{_group_hint(path)}"
    if error.errno == errno.EBUSY:
        return _busy(path, explain)
    if error.errno in (errno.EISDIR, errno.ENXIO, errno.ENODEV):
        return f"{path}: not a serial device, or it is unplugged"
    return f"{path}: cannot be opened: {error.strerror}"


def _group_hint(path: str) -> str:
    try:
        info = os.stat(path)
    except OSError:
        return ""
    try:
        group = grp.getgrgid(info.st_gid).gr_name
    except KeyError:
        group = str(info.st_gid)
    if stat.S_IMODE(info.st_mode) & 0o060 == 0o060:
        return f"; it belongs to group {group}: add your user to it and log in again"
    return f"; its group {group} may not use it either (mode {stat.S_IMODE(info.st_mode):04o})"


def _busy(path: str, explain: bool) -> str:
    holders = _holders(path) if explain else ()
    who = f" by {', '.join(holders)}" if holders else " by another process"
    return f"{path}: in use{who}"


def _holders(path: str) -> list[str]:
    """Processes that have the device open, as far as /proc lets us see."""
    try:
        device = os.stat(path).st_rdev
    except OSError:
        return []
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            open_here = any(
                stat.S_ISCHR(info.st_mode) and info.st_rdev == device
                for info in (os.stat(link) for link in (process / "fd").iterdir())
            )
            if open_here:
                name = (process / "comm").read_text().strip()
                found.append(f"{name} (process {process.name})")
        except OSError:
            continue
    return found

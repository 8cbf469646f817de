"""Where a policy worker listens, who may connect, and the keys for links beyond this machine.

Between processes of one machine the link is a Unix socket (mode 0660: its group is the authority)
or loopback TCP. Any other TCP address needs CURVE keys: both sides prove who they are, and what
passes is encrypted.
"""

import contextlib
import fcntl
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from robotd.errors import ConfigError

IPC = "ipc://"
TCP = "tcp://"
SOCKET_NAME = "policy.sock"
_MAX_SOCKET_PATH = 107  # bytes; sun_path of a Unix socket address
_KEY_LENGTH = 40  # Z85 of 32 bytes


def default_endpoint(runtime_dir: Path) -> str:
    """Where the daemon's own worker listens."""
    return f"{IPC}{runtime_dir / SOCKET_NAME}"


def check_endpoint(endpoint: str, keys: Path | None) -> None:
    """ConfigError for an endpoint that is malformed, or not safe without keys."""
    if endpoint.startswith(IPC):
        path = endpoint.removeprefix(IPC)
        if not path or path.startswith("@"):
            raise ConfigError(f"{endpoint}: needs the path of a socket file")
        if len(path.encode()) > _MAX_SOCKET_PATH:
            raise ConfigError(f"{endpoint}: the path is longer than {_MAX_SOCKET_PATH} bytes")
        return
    host, separator, port = endpoint.removeprefix(TCP).rpartition(":")
    if not endpoint.startswith(TCP) or not separator or not port.isdecimal() or not host:
        raise ConfigError(f"{endpoint}: is neither ipc://PATH nor tcp://HOST:PORT")
    if keys is None and not is_loopback(host):
        raise ConfigError(
            f"{endpoint}: {host} reaches beyond this machine and needs keys; "
            "make them with `robotd policy keys DIR`, or use tcp://127.0.0.1 or ipc://"
        )


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1 (also in brackets) and localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_remote(endpoint: str) -> bool:
    """True when the endpoint reaches beyond this machine."""
    host = endpoint.removeprefix(TCP).rpartition(":")[0]
    return endpoint.startswith(TCP) and not is_loopback(host)


def generate_keys(folder: Path) -> list[Path]:
    """Make a key pair for the worker and one for the observer; ConfigError when some exist.

    The worker's machine needs worker.secret, worker.public and client.public; the robot's machine
    client.secret, client.public and worker.public.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths = []
        for owner in ("worker", "client"):
            public, secret = zmq.curve_keypair()
            for path, key, mode in (
                (folder / f"{owner}.public", public, 0o644),
                (folder / f"{owner}.secret", secret, 0o600),
            ):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(key + b"\n")
                paths.append(path)
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename}: is there already; choose another folder, or remove its keys"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write keys: {error.strerror}") from error
    return paths


def _key(path: Path) -> bytes:
    try:
        if path.suffix == ".secret" and path.stat().st_mode & 0o077:
            raise ConfigError(f"{path}: others may read this secret key; chmod 600 {path}")
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); `robotd policy keys DIR` makes keys"
        ) from error
    if len(key) != _KEY_LENGTH:
        raise ConfigError(f"{path}: is no key")
    return key


class _OneClient:
    """Lets exactly one public key in."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        """Called by the authenticator for every connection."""
        return key == self._key


@contextlib.contextmanager
def authenticated(context: zmq.Context[zmq.Socket[bytes]], keys: Path | None) -> Iterator[None]:
    """While inside, sockets of this context with `secure_server` let only the known client in."""
    if keys is None:
        yield
        return
    guard = ThreadAuthenticator(context)
    guard.configure_curve_callback("*", _OneClient(_key(keys / "client.public")))
    guard.start()
    try:
        yield
    finally:
        guard.stop()


def secure_server(socket: zmq.Socket[bytes], keys: Path | None) -> None:
    """Give the worker's socket its keys; ConfigError when they are missing or no keys."""
    if keys is not None:
        socket.curve_secretkey = _key(keys / "worker.secret")
        socket.curve_publickey = _key(keys / "worker.public")
        socket.curve_server = True


def secure_client(socket: zmq.Socket[bytes], keys: Path | None) -> None:
    """Give the observer's socket its keys and the worker's; ConfigError as above."""
    if keys is not None:
        socket.curve_secretkey = _key(keys / "client.secret")
        socket.curve_publickey = _key(keys / "client.public")
        socket.curve_serverkey = _key(keys / "worker.public")


@contextlib.contextmanager
def sole_owner(endpoint: str) -> Iterator[None]:
    """Hold an ipc endpoint's lock, so that a living worker's socket is never taken over.

    The socket file of a dead worker is replaced when binding: its lock went with it.
    """
    if not endpoint.startswith(IPC):
        yield
        return
    path = Path(endpoint.removeprefix(IPC))
    try:
        lock = open(f"{path}.lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ConfigError(f"{endpoint}: cannot listen there: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{endpoint}: another worker listens there") from error
        yield
        path.unlink(missing_ok=True)


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Bind, with mode 0660 for a socket file; ConfigError when the address cannot be had."""
    before = os.umask(0o117)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise ConfigError(f"{endpoint}: cannot listen there: {error.strerror}") from error
    finally:
        os.umask(before)

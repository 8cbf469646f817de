"""What can be refused before any process starts: by `robotd run`, and by `robotd run --check`."""

from importlib.util import find_spec
from pathlib import Path

from robotd.bus.calibration import Calibration
from robotd.config import JOINTS, Config
from robotd.control.limb import soft_limits
from robotd.errors import BundleError, CalibrationError, ConfigError


def check(config: Config, path: Path) -> None:
    """Simulator, calibrations, limits, bundle and its cameras.

    `path` is the configuration file, for messages. Raises ConfigError naming file and key.
    """
    if config.sim is not None and find_spec("mujoco") is None:
        raise ConfigError(f"{path}: sim: the simulator is not installed: pip install 'robotd[sim]'")
    for arm in config.arms:
        try:
            Calibration.load(arm.calibration, arm.model)
        except CalibrationError as error:
            raise ConfigError(f"{path}: arms.{arm.id}.calibration: {error}") from None
        for joint in JOINTS:
            try:
                soft_limits(arm, joint, config.control.period_ns * 1e-9)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
    if config.policy is not None:
        _check_policy(config, path, config.policy.bundle)


def _check_policy(config: Config, path: Path, folder: Path) -> None:
    """Manifest, file hashes, and whether the bundle fits arm and cameras; graphs are not loaded."""
    from robotd.policy.bundle import Bundle
    from robotd.policy.fit import expected

    try:
        bundle = Bundle.load(folder)
        bundle.require_fit(*expected(config), cameras=[camera.name for camera in config.cameras])
    except (BundleError, ConfigError) as error:
        raise ConfigError(f"{path}: policy: {error}") from None

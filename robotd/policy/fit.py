"""What a configuration expects of a bundle: arm model, joint names, gripper range."""

from robotd.config import JOINTS, Config
from robotd.errors import ConfigError

_GRIPPER_RANGES = {"0..100": (0.0, 100.0), "-100..100": (-100.0, 100.0)}


def policy_joints(config: Config) -> tuple[str, ...]:
    """Names of all joints that a policy moves, in the state ring's order.

    One arm: the joints' own names. Several: "<arm id>_<joint>".
    """
    if len(config.arms) == 1:
        return JOINTS
    return tuple(f"{arm.id}_{joint}" for arm in config.arms for joint in JOINTS)


def expected(config: Config) -> tuple[str, tuple[str, ...], tuple[float, float]]:
    """Arm model, joint names and gripper range that a bundle must have been made for.

    ConfigError when the arms differ among themselves: one policy cannot be made for both.
    """
    models = sorted({arm.model for arm in config.arms})
    ranges = sorted({arm.gripper_range for arm in config.arms})
    if len(models) > 1:
        raise ConfigError(f"arms of model {' and '.join(models)} cannot share one policy")
    if len(ranges) > 1:
        raise ConfigError("arms with different gripper_range cannot share one policy")
    return models[0], policy_joints(config), _GRIPPER_RANGES[ranges[0]]

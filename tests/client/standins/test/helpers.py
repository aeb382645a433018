"""What tinygrad's tests import from `test.helpers`."""

from tinygrad import Device
from tinygrad.engine.jit import GraphRunner


def _real_device():
    """The device behind REMOTE, or the default device itself."""
    if Device.DEFAULT == "REMOTE":
        return Device["REMOTE"].properties.real_device.split(":")[0]
    return Device.DEFAULT


REAL_DEV = _real_device()


def not_support_multi_device():
    """Whether this device cannot be opened several times. All that this harness runs on can."""
    return False


def assert_jit_cache_len(function, expected):
    """Asserts how many items a jitted function captured, counting inside graphs."""
    count = 0
    for item in function.jit_cache or ():
        count += len(item.prg.jit_cache) if isinstance(item.prg, GraphRunner) else 1
    assert count == expected, f"{count} captured items, expected {expected}"

"""Settings of this process that libraries read once, when they are loaded."""

import os

# A little: what waiting threads spin through within a step. Libgomp's own default, 300 times as
# long, keeps a core that another program could use, and the thread waited for then gets none.
_SPINS = "1000"


def keep_to_this_machine() -> None:
    """Keep ONNX Runtime from sending usage data, and from writing an id of this device.

    It must not be loaded yet: what it notes while loading, it sends some ten seconds later,
    whatever it is told in between.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def let_waiting_threads_sleep() -> None:
    """Have OpenMP's threads sleep while they wait, so that sharing a core costs no more than that.

    A choice that the caller has made in the environment stands. It must run before torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def keep_caches_temporary() -> None:
    """Give matplotlib a folder for its font cache that lasts as long as this process."""
    import atexit
    import shutil
    import tempfile

    if "MPLCONFIGDIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="boneage-")
        os.environ["MPLCONFIGDIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)

"""Skeletal age from left-hand radiographs. Research software, not a medical device.

The public names stand in `__init__.pyi` and are loaded when they are first used, so importing the
package costs nothing. It sets two things for libraries that are loaded after it: ONNX Runtime
sends nothing, and OpenMP's waiting threads sleep; see `boneage.environment`.
"""

import lazy_loader

from boneage.environment import keep_to_this_machine, let_waiting_threads_sleep

keep_to_this_machine()
let_waiting_threads_sleep()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

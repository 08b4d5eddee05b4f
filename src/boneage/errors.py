"""The errors a user can cause, and nothing else.

Every message is one line: what is wrong, the value and where it stands, what was
expected, and what to do. The command line prints it and exits with status 1.
"""


class BoneAgeError(Exception):
    """Anything the user can put right; the message says how."""


class LabelError(BoneAgeError):
    """A label table cannot be read, or holds a value that cannot be true."""


class ImageError(BoneAgeError):
    """A radiograph cannot be read."""


class CheckpointError(BoneAgeError):
    """A checkpoint is missing, unreadable, or does not fit the run."""


class ConfigError(BoneAgeError):
    """A setting has an unknown name or an impossible value."""

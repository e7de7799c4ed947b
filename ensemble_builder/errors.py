"""One tree for what can go wrong between a bundle and a served ensemble.

    BuilderError
    ├── BundleError            the bundle can't be read, or can't be served; names the key
    ├── RepositoryError        the model repository can't be written
    ├── ServerNotFound         no tritonserver on this machine
    ├── ServerFailed           tritonserver doesn't start, or keeps dying
    └── ParityError            what is served differs from what MONAI computes

Every message is one sentence that says what to do next.
"""

from __future__ import annotations


class BuilderError(Exception):
    """Something went wrong that the builder has a name for."""

    code = "builder_error"


class BundleError(BuilderError):
    """The bundle can't be read or can't be served; the message names the key and the reason."""

    code = "bundle_error"


class RepositoryError(BuilderError):
    """The model repository can't be written where it should go."""

    code = "repository_error"


class ServerNotFound(BuilderError):
    """There is no tritonserver on this machine; the message says how to get one."""

    code = "server_not_found"


class ServerFailed(BuilderError):
    """tritonserver ended, or didn't get ready; the message ends with its last words."""

    code = "server_failed"


class ParityError(BuilderError):
    """What is served differs from what MONAI computes in one process."""

    code = "parity_error"

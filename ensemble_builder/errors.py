"""One tree for what can go wrong between a bundle and a served ensemble.

    BuilderError
    ├── BundleError            the bundle can't be read, or can't be served; names the key
    ├── PipelineError          a pipeline's YAML is wrong; says file, line and what to do
    ├── ConversionError        a runtime can't take a network, or computes something else
    ├── ModelFailed            a Triton model that another one called gave an error
    ├── Cancelled              nobody waits for this result any more
    ├── RepositoryError        the model repository can't be written
    ├── ServerNotFound         no tritonserver on this machine
    ├── ServerFailed           tritonserver doesn't start, or keeps dying
    └── ParityError            what is served differs from what MONAI computes

Every message is one sentence that says what to do next.
"""

from __future__ import annotations

import errno


class BuilderError(Exception):
    """Something went wrong that the builder has a name for."""

    code = "builder_error"


class BundleError(BuilderError):
    """The bundle can't be read or can't be served; the message names the key and the reason."""

    code = "bundle_error"


class PipelineError(BuilderError):
    """A pipeline's YAML says what no pipeline can be; the message names file and line."""

    code = "pipeline_error"


class ConversionError(BuilderError):
    """A runtime can't take a network, or computes something else with it; eager torch can."""

    code = "conversion_failed"


class ModelFailed(BuilderError):
    """A Triton model that another one called gave an error.

    Attributes:
        triton_code: Triton's code of that error, as `pb_utils.TritonError` counts them.
    """

    code = "model_failed"

    def __init__(self, sentence: str, triton_code: int) -> None:
        super().__init__(sentence)
        self.triton_code = triton_code


class Cancelled(BuilderError):
    """Nobody waits for this result any more; the rest of it wasn't computed."""

    code = "cancelled"


class RepositoryError(BuilderError):
    """The model repository can't be written where it should go."""

    code = "repository_error"


class ServerNotFound(BuilderError):
    """There is no tritonserver on this machine; the message says how to get one."""

    code = "server_not_found"


class ServerFailed(BuilderError):
    """tritonserver ended, or didn't get ready; the message ends with its last words."""

    code = "server_failed"


class PortTaken(ServerFailed):
    """Somebody else listens where tritonserver was to listen."""

    code = "port_taken"


class ParityError(BuilderError):
    """What is served differs from what MONAI computes in one process."""

    code = "parity_error"


_OF_A_CPU = ("can't allocate memory",)
_OF_A_GPU = ("CUDA out of memory", "CUDA error: out of memory", "_ALLOC_FAILED")
"""Words of torch, and of the libraries that it calls, whose errors are plain RuntimeErrors."""


def memory_used_up(error: BaseException) -> str | None:
    """Whose memory is used up ("this machine", "the GPU"); None where it is another error.

    Python raises a MemoryError, `mmap` an OSError, and torch a RuntimeError. MONAI's Compose
    says which transform failed, and has that error as its cause.
    """
    one: BaseException | None = error
    while one is not None:
        words = str(one)
        if any(told in words for told in _OF_A_GPU):
            return "the GPU"
        if (
            isinstance(one, MemoryError)
            or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
            or any(told in words for told in _OF_A_CPU)
        ):
            return "this machine"
        one = one.__cause__
    return None

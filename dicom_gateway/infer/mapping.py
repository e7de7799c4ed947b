"""What Triton answered, in the words of `errors.py`.

In: an `InferenceServerException` (a gRPC status and Triton's text). Out: the error of our
tree that says whether trying again helps. The text is cleaned of ensemble prefixes, of
tracebacks and of paths, so that a person reads the one sentence that matters.
"""

from __future__ import annotations

import re

import grpc
from tritonclient.utils import InferenceServerException

from dicom_gateway.errors import (
    GatewayError,
    InferenceRejected,
    TooLittleMemory,
    TritonUnavailable,
)

TRY_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,  # no connection, loading, unloading, queue full
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.NOT_FOUND,  # model not loaded (yet), region of an earlier server life
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.UNKNOWN,  # gRPC's word for a stream that broke
    }
)
"""Statuses that pass by themselves."""

SENTENCES = {
    grpc.StatusCode.INVALID_ARGUMENT: "Triton refused the input: {text}",
    grpc.StatusCode.UNIMPLEMENTED: "this Triton can't do what the gateway asked: {text}",
    grpc.StatusCode.PERMISSION_DENIED: "Triton does not let this gateway in: {text}",
    grpc.StatusCode.UNAUTHENTICATED: "Triton does not let this gateway in: {text}",
}
"""What to say where the status alone says whose fault it is."""

_PASSES = re.compile(
    r"is not healthy"  # a killed stub; Triton or its supervisor brings it back
    r"|shared memory region"  # lost with a server life: the next try registers it again
    r"|unable to find system shared memory|no space left|failed to increase the shared memory"
    r"|no available versions|unknown model|is not ready|unloading|RST_STREAM|GOAWAY",
    re.IGNORECASE,
)

_DEAD_PART = re.compile(r"is not healthy", re.IGNORECASE)
_NO_SPACE = re.compile(r"no space left|failed to increase the shared memory", re.IGNORECASE)
_TOO_LITTLE = re.compile(r"too little free memory", re.IGNORECASE)  # as our models say it
_NOT_REACHED = re.compile(r"failed to connect|name resolution|DNS", re.IGNORECASE)
_BROKEN_OFF = re.compile(
    r"socket closed|connection (was )?(reset|closed|aborted)|broken pipe|stream removed",
    re.IGNORECASE,
)

_PREFIXES = re.compile(
    r"^(?:\[StatusCode\.\w+\]\s*"
    r"|in ensemble '[^']*',\s*"
    r"|Failed to process the request\(s\) for model (?:instance )?'[^']*',\s*message:\s*"
    r"|TritonModelException:\s*)+"
)
_PATHS = re.compile(r"(?<![\w/])/(?:[\w.+-]+/)+[\w.+-]+")


def as_gateway_error(error: InferenceServerException) -> GatewayError:
    """The error to raise in place of one of tritonclient's.

    INVALID_ARGUMENT is the input's fault; what passes by itself is `TritonUnavailable`;
    everything else is a mistake in the served model that a person must look at.
    """
    text = clean_text(str(error.message() or "no reason given"))
    status = status_of(error)
    if status in TRY_AGAIN or _PASSES.search(text):
        kind = TooLittleMemory if _TOO_LITTLE.search(text) else TritonUnavailable
        return kind(f"Triton can't do it now: {text}")
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        return InferenceRejected(SENTENCES[status].format(text=text))
    sentence = SENTENCES.get(
        status or grpc.StatusCode.INTERNAL,
        "the served pipeline broke: {text}. Triton's log has more; retry the job when it is mended",
    )
    return InferenceRejected(sentence.format(text=text), code="inference_failed")


def part_is_dead(error: InferenceServerException) -> bool:
    """Whether a model's process is dead; this request or an earlier one may have killed it."""
    return _DEAD_PART.search(str(error.message() or "")) is not None


def broke_under_it(error: InferenceServerException) -> bool:
    """Whether the server had the request, and then died, ran out of room or never answered.

    A server that can't be reached, is loading or has a full queue is not meant: there the
    request had no part in it.
    """
    text = str(error.message() or "")
    if status_of(error) is grpc.StatusCode.DEADLINE_EXCEEDED or _NO_SPACE.search(text):
        return True
    return _BROKEN_OFF.search(text) is not None and _NOT_REACHED.search(text) is None


def status_of(error: InferenceServerException) -> grpc.StatusCode | None:
    """The gRPC status, or None for an error that tritonclient raised by itself."""
    name = str(error.status() or "").removeprefix("StatusCode.")
    return grpc.StatusCode.__members__.get(name)


def clean_text(text: str) -> str:
    """Triton's text without prefixes of ensembles, tracebacks and paths, in one line."""
    text = _PREFIXES.sub("", text.strip())
    text = re.split(r"\n\s*At:|Traceback \(most recent call last\)", text)[0]
    text = _PATHS.sub("<path>", text)
    return " ".join(text.split()).rstrip(".")[:500]

"""Everything that Triton and gRPC can say has a name in our tree."""

from __future__ import annotations

import grpc
import pytest
from tritonclient.utils import InferenceServerException

from dicom_gateway.errors import InferenceRejected, TooLittleMemory, TritonUnavailable
from dicom_gateway.infer.mapping import as_gateway_error, broke_under_it, clean_text

CODES = grpc.StatusCode
EXPECTED = {
    CODES.OK: (InferenceRejected, "inference_failed"),  # an error with OK is a broken server
    CODES.CANCELLED: (TritonUnavailable, "triton_unavailable"),
    CODES.UNKNOWN: (TritonUnavailable, "triton_unavailable"),
    CODES.INVALID_ARGUMENT: (InferenceRejected, "inference_rejected"),
    CODES.DEADLINE_EXCEEDED: (TritonUnavailable, "triton_unavailable"),
    CODES.NOT_FOUND: (TritonUnavailable, "triton_unavailable"),
    CODES.ALREADY_EXISTS: (InferenceRejected, "inference_failed"),
    CODES.PERMISSION_DENIED: (InferenceRejected, "inference_failed"),
    CODES.UNAUTHENTICATED: (InferenceRejected, "inference_failed"),
    CODES.RESOURCE_EXHAUSTED: (TritonUnavailable, "triton_unavailable"),
    CODES.FAILED_PRECONDITION: (InferenceRejected, "inference_failed"),
    CODES.ABORTED: (TritonUnavailable, "triton_unavailable"),
    CODES.OUT_OF_RANGE: (InferenceRejected, "inference_failed"),
    CODES.UNIMPLEMENTED: (InferenceRejected, "inference_failed"),
    CODES.INTERNAL: (InferenceRejected, "inference_failed"),
    CODES.UNAVAILABLE: (TritonUnavailable, "triton_unavailable"),
    CODES.DATA_LOSS: (InferenceRejected, "inference_failed"),
}


def an_error(status: grpc.StatusCode | None, text: str) -> InferenceServerException:
    """As tritonclient makes it of a gRPC error, or by itself without a status."""
    return InferenceServerException(msg=text, status=None if status is None else str(status))


@pytest.mark.parametrize("status", list(grpc.StatusCode), ids=lambda status: status.name)
def test_every_grpc_status_has_its_place_in_the_tree(status: grpc.StatusCode):
    """A status that gRPC adds one day fails here until somebody decides."""
    error = as_gateway_error(an_error(status, "some reason"))

    assert (type(error), error.code) == EXPECTED[status]
    assert "some reason" in str(error)


def test_an_error_without_a_status_is_mapped_too():
    """Tritonclient raises some by itself."""
    assert as_gateway_error(an_error(None, "odd")).code == "inference_failed"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (CODES.INTERNAL, "Stub process 'lung_ct_inferer_0_0' is not healthy."),
        (CODES.INTERNAL, "in ensemble 'lung_ct', Stub process 'x_0_0' is not healthy."),
        (CODES.NOT_FOUND, "Unable to find shared memory region: 'tritome_arena_1'"),
        (CODES.INVALID_ARGUMENT, "Unable to find shared memory region: 'tritome_arena_1'"),
        (CODES.INTERNAL, "Failed to increase the shared memory pool size for key 'triton_python'"),
        (CODES.UNAVAILABLE, "Request for unknown model: 'lung_ct' has no available versions"),
        (CODES.NOT_FOUND, "Request for unknown model: 'lung_ct' is not found"),
        (CODES.UNAVAILABLE, "failed to connect to all addresses"),
        (CODES.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_what_passes_by_itself_is_tried_again(status: grpc.StatusCode, text: str):
    """A dead stub, a lost region, a model that is loading: the job waits."""
    assert isinstance(as_gateway_error(an_error(status, text)), TritonUnavailable)


@pytest.mark.parametrize("what", ["the GPU", "this machine"])
def test_a_shortage_of_memory_has_a_name_of_its_own(what: str):
    """As our models say it; it may pass, and it may be for ever."""
    said = f"in ensemble 'lung_ct', {what} has too little free memory for this volume"

    error = as_gateway_error(an_error(CODES.UNAVAILABLE, said))

    assert type(error) is TooLittleMemory
    assert error.code == TritonUnavailable.code


@pytest.mark.parametrize(
    ("status", "text", "lost"),
    [
        (CODES.DEADLINE_EXCEEDED, "Deadline Exceeded", True),
        (CODES.UNAVAILABLE, "Socket closed", True),
        (CODES.UNAVAILABLE, "recvmsg:Connection reset by peer", True),
        (CODES.INTERNAL, "Failed to increase the shared memory pool size for key 'x'", True),
        (CODES.INTERNAL, "bad_alloc: No space left on device", True),
        (
            CODES.UNAVAILABLE,
            "failed to connect to all addresses; last error: recvmsg:Connection reset by peer",
            False,
        ),
        (CODES.UNAVAILABLE, "Exceeds maximum queue size", False),
        (CODES.UNAVAILABLE, "Request for unknown model: 'x' has no available versions", False),
        (CODES.NOT_FOUND, "Unable to find shared memory region: 'tritome_arena_1'", False),
        (CODES.CANCELLED, "Locally cancelled by application!", False),
    ],
)
def test_only_what_broke_under_a_request_counts_against_its_job(
    status: grpc.StatusCode, text: str, lost: bool
):
    """A Triton that can't be reached, is loading or busy had no chance to break."""
    assert broke_under_it(an_error(status, text)) is lost


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (
            "[StatusCode.INVALID_ARGUMENT] in ensemble 'lung_ct', Failed to process the "
            "request(s) for model 'lung_ct_preprocess_0_0', message: too_thin: 1 slice.",
            "too_thin: 1 slice",
        ),
        ("in ensemble 'outer', in ensemble 'lung_ct', no lungs", "no lungs"),
        (
            "Failed to process the request(s) for model 'x_0_1', message: RuntimeError: oh\n\n"
            "At:\n  /srv/models/x/1/model.py(35): _one\n",
            "RuntimeError: oh",
        ),
        ("can't read /srv/models/x/1/weights.pt here", "can't read <path> here"),
        ("8 and/or 9 slices", "8 and/or 9 slices"),
    ],
)
def test_tritons_text_is_cleaned_for_people(raw: str, clean: str):
    """No ensemble prefixes, no tracebacks, no paths."""
    assert clean_text(raw) == clean

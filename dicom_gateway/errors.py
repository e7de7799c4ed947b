"""One tree for everything that can go wrong between the door and the PACS.

    GatewayError
    ├── Refused      the sender's fault; carries the DICOM status it is answered with
    │   ├── NotADataSet, BadIdentifier, IdentifierMismatch
    │   ├── BadRequest, RequestTooLarge, UnsupportedMedia   (of HTTP, where there is no status)
    │   └── OutOfResources   (0xA700: the sender should try again later)
    ├── Retryable    nobody's fault; the same job will be tried again
    │   ├── TritonUnavailable
    │   │   ├── RequestLost
    │   │   └── TooLittleMemory
    │   ├── ArenaFull
    │   ├── DatabaseUnavailable
    │   ├── PeerUnavailable
    │   └── DestinationUnavailable
    │       ├── DestinationUnreachable
    │       └── NotUnderstood
    └── Permanent    trying again gives the same; a person must look
        ├── ConfigurationError
        ├── UnusableSeries       missing_slices, several_orientations, ...
        ├── BrokenPixelData
        ├── VolumeTooLarge
        ├── ContractMismatch
        ├── InferenceRejected
        ├── EncodingFailed
        ├── GaveUp
        ├── LeaseLost
        ├── PeerRefused
        ├── DestinationRefused
        └── DestinationLost

Each carries a `code` (stable, snake_case, for machines) and a sentence that says what to
do next (for people). Neither ever holds a patient attribute: UIDs, numbers and tag names
only. A room catches the errors of the library it wraps at its edge and raises one of these.
"""

from __future__ import annotations


class GatewayError(Exception):
    """Something went wrong that the gateway has a name for."""

    code = "gateway_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class Refused(GatewayError):
    """The object can't be taken; the sender is told so with `status`.

    Source: PS3.4 B.2.3 (C-STORE response status).
    """

    code = "refused"
    status = 0xC000


class NotADataSet(Refused):
    """The bytes don't parse as a data set in the negotiated transfer syntax."""

    code = "not_a_data_set"
    status = 0xC000


class BadIdentifier(Refused):
    """A UID is missing, longer than 64 characters, or has characters a UID can't have."""

    code = "bad_identifier"
    status = 0xC000


class IdentifierMismatch(Refused):
    """The data set's SOP Class or Instance UID is not the one in the request."""

    code = "identifier_mismatch"
    status = 0xA900


class OutOfResources(Refused):
    """The disk is full or past its watermark; the sender should try again later."""

    code = "out_of_resources"
    status = 0xA700


class BadRequest(Refused):
    """An HTTP request that can't be understood."""

    code = "bad_request"


class RequestTooLarge(Refused):
    """An HTTP request beyond the limits of the settings."""

    code = "request_too_large"


class UnsupportedMedia(Refused):
    """An HTTP request in a media type that isn't taken here."""

    code = "unsupported_media"


class Retryable(GatewayError):
    """A passing state of the world; the job waits and is tried again."""

    code = "retryable"


class TritonUnavailable(Retryable):
    """Triton does not answer, or a part of it died."""

    code = "triton_unavailable"


class RequestLost(TritonUnavailable):
    """Triton had the request and broke, or never answered: the job itself may be to blame.

    Tried again like any other, but not for ever.
    """


class TooLittleMemory(TritonUnavailable):
    """Triton's machine or GPU has too little memory for the volume: just now, or ever.

    Nobody can tell which of the two, so it is tried again, but not for ever.
    """


class ArenaFull(Retryable):
    """Other volumes fill the shared-memory arena just now."""

    code = "arena_full"


class DatabaseUnavailable(Retryable):
    """The index does not answer or is locked."""

    code = "database_unavailable"


class CatalogueBehind(Retryable):
    """The headers of kept objects are still being read, so a search would not find all."""

    code = "catalogue_behind"


class PeerUnavailable(Retryable):
    """A PACS to fetch from can't be reached or is busy."""

    code = "peer_unavailable"


class DestinationUnavailable(Retryable):
    """The destination can't be reached or says it is out of resources."""

    code = "destination_unavailable"


class DestinationUnreachable(DestinationUnavailable):
    """No connection or no association: nothing at all can be sent there now.

    Args:
        message: As ever.
        is_lasting: It won't pass by itself (an AE title or a certificate isn't known there),
            so asking again quickly is of no use.
    """

    def __init__(self, message: str, *, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class NotUnderstood(DestinationUnavailable):
    """The destination says that it can't understand the object; believed after a few tries."""


class Permanent(GatewayError):
    """Trying again gives the same; the job goes to the failed list."""

    code = "permanent"


class ConfigurationError(Permanent):
    """gateway.yaml is wrong; the message names the file, the key and the remedy."""

    code = "configuration_error"


class UnusableSeries(Permanent):
    """The series is no regular volume; `code` says in what way.

    Codes: mixed_identity, missing_slices, several_orientations, duplicate_positions,
    irregular_spacing, gantry_tilt, mixed_geometry, no_geometry, no_pixel_data,
    too_few_slices, different_grids, incomplete_roles, unsupported_object.
    """

    code = "unusable_series"


class BrokenPixelData(Permanent):
    """Pixel data that can't be decoded, or whose length is not what the header claims."""

    code = "broken_pixel_data"


class VolumeTooLarge(Permanent):
    """The volume doesn't fit into the arena even when that is empty."""

    code = "volume_too_large"


class ContractMismatch(Permanent):
    """The pipeline served by Triton and this gateway don't speak the same contract."""

    code = "contract_mismatch"


class InferenceRejected(Permanent):
    """Triton answered INVALID_ARG: the input's fault."""

    code = "inference_rejected"


class EncodingFailed(Permanent):
    """A result object could not be made from the mask."""

    code = "encoding_failed"


class GaveUp(Permanent):
    """The job broke what it ran on again and again; the message has the last reason."""

    code = "gave_up"


class LeaseLost(Permanent):
    """Another worker has taken the job over; whatever this one made is dropped."""

    code = "lease_lost"


class PeerRefused(Permanent):
    """A PACS to fetch from refuses what is asked, or answers what nobody can read."""

    code = "peer_refused"


class DestinationRefused(Permanent):
    """The destination answered with a failure that a repetition won't change."""

    code = "destination_refused"


class DestinationLost(Permanent):
    """The destination accepted the object and doesn't have it, or never proves that it does."""

    code = "destination_lost"

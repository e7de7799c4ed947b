"""The DICOM files under files and folders, and what must be proposed to send each.

In: paths. Out: `Found` instances in the order of their names, and what was skipped. Only the
first elements of each file are read, and no patient attribute is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clients.errors import ClientError

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_PREAMBLE_BYTES = 128
_SOP_CLASS_UID, _SOP_INSTANCE_UID = 0x00080016, 0x00080018


@dataclass(frozen=True, slots=True)
class Found:
    """One DICOM file (PS3.10) and what must be proposed to send it.

    The UIDs are the data set's own, also where the file meta information has others: these
    are what the peer compares (PS3.4 B.2.3).
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int

    @property
    def context(self) -> tuple[str, str]:
        """(SOP class, transfer syntax): what one presentation context must offer."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True, slots=True)
class Search:
    """What lay under the given paths."""

    instances: tuple[Found, ...]
    skipped: tuple[Path, ...]
    """Files that are no DICOM files, and DICOMDIRs."""

    @property
    def size_bytes(self) -> int:
        """Of all instances together."""
        return sum(found.size_bytes for found in self.instances)


def find_instances(paths: Iterable[Path]) -> Search:
    """Finds the DICOM files under files and folders, in the order of their names.

    Only the first elements are read. Files without file meta information can't be sent as
    they are, since their transfer syntax is unknown; they count as skipped.

    Raises:
        ClientError: a path doesn't exist.
    """
    from pydicom.errors import InvalidDicomError  # noqa: PLC0415 - --help stays quick
    from pydicom.filereader import read_file_meta_info  # noqa: PLC0415

    instances: list[Found] = []
    skipped: list[Path] = []
    for path in _files(paths):
        try:
            if not _has_preamble(path):
                skipped.append(path)
                continue
            meta = read_file_meta_info(path)
            sop_class_uid, sop_instance_uid = _own_uids(path)
            found = Found(
                path=path,
                sop_class_uid=sop_class_uid or str(meta.MediaStorageSOPClassUID),
                sop_instance_uid=sop_instance_uid or str(meta.MediaStorageSOPInstanceUID),
                transfer_syntax_uid=str(meta.TransferSyntaxUID),
                size_bytes=path.stat().st_size,
            )
        except (InvalidDicomError, AttributeError, EOFError, ValueError):
            skipped.append(path)
            continue
        except OSError as error:
            msg = f"{path} can't be read ({error.strerror})"
            raise ClientError(msg) from error
        if found.sop_class_uid == _MEDIA_DIRECTORY:
            skipped.append(path)
        else:
            instances.append(found)
    return Search(tuple(instances), tuple(skipped))


def _own_uids(path: Path) -> tuple[str, str]:
    """SOP Class and Instance UID of the data set; empty where it can't be read."""
    from pydicom.filereader import read_partial  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            ds = read_partial(
                file,
                stop_when=lambda tag, _vr, _length: tag > _SOP_INSTANCE_UID,
                specific_tags=[_SOP_CLASS_UID, _SOP_INSTANCE_UID],
            )
        return str(ds.get("SOPClassUID", "")), str(ds.get("SOPInstanceUID", ""))
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - whatever odd bytes make pydicom do; the peer will judge
        return "", ""


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(child for child in path.rglob("*") if child.is_file())
        elif path.is_file():
            yield path
        else:
            msg = f"{path} doesn't exist"
            raise ClientError(msg)


def _has_preamble(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(_PREAMBLE_BYTES)
        return file.read(4) == b"DICM"

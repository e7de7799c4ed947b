"""A PACS reports at our door on what we have sent: taken from those who were asked, nobody else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, build_role
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_gateway.config import ScpSettings
from dicom_gateway.receive import Receiver
from dicom_gateway.receive.reports import Reports

WELL_KNOWN = "1.2.840.10008.1.20.1.1"


@contextmanager
def a_door(
    take: Reports,
    refused: list[tuple[str, ...]],
    *,
    titles: Sequence[str] = ("LUNG",),
    sources: Sequence[dict[str, str]] = ({"ae-title": "CT_1"},),
) -> Iterator[int]:
    """Listens for LUNG, and for reports to TRITOME."""
    settings = ScpSettings.model_validate(
        {
            "host": "127.0.0.1",
            "port": 0,
            "ae-titles": [{"ae-title": one, "pipelines": ["lung_ct"]} for one in titles],
            "sources": list(sources),
        }
    )

    def nobody_stores(_arrival: object) -> object:
        raise AssertionError("nothing is to be stored here")

    receiver = Receiver(
        settings,
        nobody_stores,  # type: ignore[arg-type]
        lambda _association_id, _in_order: None,
        reports=take,
        rejected=lambda *who: refused.append(who),
    )
    receiver.start()
    try:
        yield receiver.port
    finally:
        receiver.stop()


def a_call(port: int, calling: str, called: str) -> Association:
    """An association of a PACS that wants to report, and would like to store."""
    entity = AE(calling)
    entity.add_requested_context(StorageCommitmentPushModel)
    entity.add_requested_context(CTImageStorage)
    role = build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)
    return entity.associate("127.0.0.1", port, ae_title=called, ext_neg=[role])


def report(association: Association, event_type: int = 1) -> int:
    """Reports one object as kept; gives the status of the answer."""
    told = Dataset()
    told.TransactionUID = "2.25.7"
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, "1.2.3"
    told.ReferencedSOPSequence = [item]
    status, _ = association.send_n_event_report(
        told, event_type, StorageCommitmentPushModel, WELL_KNOWN
    )
    return int(status.Status)


def test_who_was_asked_may_report_and_nothing_else() -> None:
    """To the title that had asked; it may not store there."""
    taken: list[Dataset] = []
    refused: list[tuple[str, ...]] = []

    def take(information: Dataset) -> bool:
        taken.append(information)
        return True

    with a_door(Reports("TRITOME", frozenset(["PACS"]), take), refused) as port:
        association = a_call(port, "PACS", "TRITOME")
        assert association.is_established
        assert [c.abstract_syntax for c in association.accepted_contexts] == [
            StorageCommitmentPushModel
        ]
        assert report(association) == 0x0000
        assert report(association, event_type=9) == 0x0113
        association.release()
        stranger = a_call(port, "STRANGER", "TRITOME")
        assert stranger.is_rejected
        elsewhere = a_call(port, "PACS", "LUNG")
        assert elsewhere.is_rejected

    assert [one.TransactionUID for one in taken] == ["2.25.7"]
    assert [who[:2] for who in refused] == [("STRANGER", "TRITOME"), ("PACS", "LUNG")]


@pytest.mark.parametrize(
    ("sources", "offered"),
    [
        ([{"ae-title": "CT_1"}], [StorageCommitmentPushModel]),
        ([{"ae-title": "PACS", "host-ip": "192.0.2.7"}], [StorageCommitmentPushModel]),
        ([{"ae-title": "PACS"}], [StorageCommitmentPushModel, CTImageStorage]),
    ],
)
def test_who_only_says_that_he_is_the_pacs_may_report_and_not_store(
    sources: list[dict[str, str]], offered: list[str]
) -> None:
    """Also where the title that we send by is one that takes studies."""
    reports = Reports("TRITOME", frozenset(["PACS"]), lambda _information: True)
    with a_door(reports, [], titles=["TRITOME"], sources=sources) as port:
        association = a_call(port, "PACS", "TRITOME")
        assert [c.abstract_syntax for c in association.accepted_contexts] == offered
        assert report(association) == 0x0000
        association.release()


@pytest.mark.parametrize(("answer", "status"), [(False, 0x0110), (ValueError("odd"), 0x0115)])
def test_what_cannot_be_noted_is_not_acknowledged(answer: bool | ValueError, status: int) -> None:
    """The PACS then reports again."""

    def take(_information: Dataset) -> bool:
        if isinstance(answer, ValueError):
            raise answer
        return answer

    with a_door(Reports("TRITOME", frozenset(["PACS"]), take), []) as port:
        association = a_call(port, "PACS", "TRITOME")
        assert report(association) == status
        association.release()

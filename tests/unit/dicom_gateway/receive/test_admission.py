"""The guest list: titles, addresses and how many at once."""

from __future__ import annotations

from typing import Any

import pytest

from dicom_gateway.config import ScpSettings
from dicom_gateway.receive.admission import (
    CALLED_NOT_RECOGNISED,
    CALLING_NOT_RECOGNISED,
    LOCAL_LIMIT_EXCEEDED,
    GuestList,
    Rejection,
)


def a_guest_list(**settings: Any) -> GuestList:
    """For LUNG, which anybody may call unless the settings say otherwise."""
    settings.setdefault("reject-unknown-sources", False)
    titles = [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}]
    return GuestList(ScpSettings.model_validate({"ae-titles": titles, **settings}))


def ask(
    guests: GuestList,
    association_id: str = "a1",
    *,
    called: str = "LUNG",
    calling: str = "CT1",
    host_ip: str = "10.0.0.5",
) -> Rejection | None:
    """Asks to be let in."""
    return guests.admit(
        association_id, called_ae_title=called, calling_ae_title=calling, host_ip=host_ip
    )


def test_the_called_ae_title_is_looked_at_first() -> None:
    """Whoever calls a title that we don't have hears that, known or not; case counts."""
    guests = a_guest_list(**{"reject-unknown-sources": True, "sources": [{"ae-title": "CT1"}]})

    assert ask(guests, called="lung", calling="STRANGER") == CALLED_NOT_RECOGNISED
    assert ask(guests, calling="STRANGER") == CALLING_NOT_RECOGNISED
    assert ask(guests) is None


@pytest.mark.parametrize(
    ("listed", "actual"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("10.0.0.5", "::ffff:10.0.0.5"),
        ("fe80::5", "fe80::5%eth0"),
        ("2001:DB8::0005", "2001:db8::5"),
    ],
)
def test_one_address_in_another_spelling_is_the_same(listed: str, actual: str) -> None:
    """A dual-stack socket shows IPv4 peers in IPv6's spelling."""
    guests = a_guest_list(sources=[{"ae-title": "CT1", "host-ip": listed}])

    assert ask(guests, host_ip=actual) is None
    assert ask(guests, host_ip="10.0.0.6") == CALLING_NOT_RECOGNISED


def test_a_title_may_have_several_addresses() -> None:
    """A cluster that shares an AE title."""
    addresses = ["10.0.0.5", "10.0.0.6"]
    guests = a_guest_list(sources=[{"ae-title": "CT1", "host-ip": one} for one in addresses])

    assert [ask(guests, one, host_ip=one) for one in addresses] == [None, None]


def test_a_place_is_free_again_once_its_guest_has_left() -> None:
    """And leaving twice frees one place only."""
    guests = a_guest_list(**{"max-associations": 1})

    assert ask(guests, "a1") is None
    assert ask(guests, "a2") == LOCAL_LIMIT_EXCEEDED
    assert not guests.leave("a2")
    assert guests.leave("a1")
    assert not guests.leave("a1")
    assert ask(guests, "a3") is None

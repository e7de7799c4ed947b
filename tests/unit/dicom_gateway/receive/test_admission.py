"""The guest list: titles, addresses and how many at once."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from dicom_gateway.config import ScpSettings
from dicom_gateway.receive.admission import (
    CALLED_NOT_RECOGNISED,
    CALLING_NOT_RECOGNISED,
    LOCAL_LIMIT_EXCEEDED,
    GuestList,
    Rejection,
    WaitingRoom,
)
from dicom_gateway.tls import PeerCertificate


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
    certificate: PeerCertificate | None = None,
) -> Rejection | None:
    """Asks to be let in."""
    return guests.admit(
        association_id,
        called_ae_title=called,
        calling_ae_title=calling,
        host_ip=host_ip,
        certificate=certificate,
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
    assert guests.count == 1
    assert guests.leave("a1")
    assert guests.count == 0
    assert not guests.leave("a1")
    assert ask(guests, "a3") is None


def test_one_title_and_one_address_may_have_limits_of_their_own() -> None:
    """Others come in all the same; the same address in two spellings is one."""
    guests = a_guest_list(**{"max-associations-per-ae-title": 1, "max-associations-per-address": 2})

    assert ask(guests, "a1", calling="CT1") is None
    assert ask(guests, "a2", calling="CT1") == LOCAL_LIMIT_EXCEEDED
    assert ask(guests, "a3", calling="CT2", host_ip="::ffff:10.0.0.5") is None
    assert ask(guests, "a4", calling="CT3") == LOCAL_LIMIT_EXCEEDED
    assert ask(guests, "a5", calling="CT3", host_ip="10.0.0.6") is None
    assert guests.leave("a1")
    assert ask(guests, "a6", calling="CT1") is None


def test_a_title_bound_to_certificates_needs_one_of_them() -> None:
    """By fingerprint or by name, whatever the case; and from its address, where that is given."""
    digest = "AB" * 32
    tls = {"certificate-file": "c.pem", "key-file": "k.pem", "client-ca-file": "ca.pem"}
    guests = a_guest_list(
        tls=tls,
        sources=[
            {"ae-title": "CT1", "certificates": [digest], "host-ip": "10.0.0.5"},
            {"ae-title": "CT2", "certificates": ["ct2.radiology"]},
        ],
    )
    first = PeerCertificate("ab" * 32, frozenset(("scanner",)))
    second = PeerCertificate("cd" * 32, frozenset(("ct2.radiology",)))

    assert ask(guests, "a1", calling="CT1") == CALLING_NOT_RECOGNISED
    assert ask(guests, "a1", calling="CT1", certificate=second) == CALLING_NOT_RECOGNISED
    assert (
        ask(guests, "a1", calling="CT1", certificate=first, host_ip="10.0.0.6")
        == CALLING_NOT_RECOGNISED
    )
    assert ask(guests, "a1", calling="CT1", certificate=first) is None
    assert ask(guests, "a2", calling="CT2", certificate=second) is None
    assert ask(guests, "a3", calling="CT3") is None


def test_the_one_that_waits_longest_gives_way_to_the_newest() -> None:
    """Of the address that is full; where all together are too many, of the fullest one."""
    waiting = WaitingRoom(limit=4, limit_per_address=2)
    ends = [socket.socketpair() for _ in range(6)]
    try:
        hosts = ["10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]
        leavers = [
            waiting.enter(f"a{number}", host, ends[number][0]) for number, host in enumerate(hosts)
        ]
        assert [one[0] if one else None for one in leavers] == [None, None, "a0", None, None, "a1"]
        assert waiting.undecided == 4
        waiting.leave("a2")
        waiting.leave("a2")
        assert waiting.undecided == 3
        assert ends[2][0].fileno() == -1  # it holds the connection no longer
    finally:
        for pair in ends:
            for end in pair:
                end.close()

"""HTTP towards a destination that speaks DICOMweb: one session, its proof of who we are.

In: a `Destination` with `dicomweb`. Out: answers; what keeps one from coming is an error that
says what to do. Nothing is kept here, and nothing of a header or a body is logged.

Source: PS3.18 8.5 (status codes).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from requests.auth import HTTPBasicAuth

from dicom_gateway.config_delivery import Destination
from dicom_gateway.errors import (
    ConfigurationError,
    DestinationRefused,
    DestinationUnavailable,
    DestinationUnreachable,
    GatewayError,
)

_TIMEOUT_S = 300.0
"""For the connection, each piece of a body, and the answer: a PACS that is busy reads slowly. One
figure, since what requests calls the connection's holds for the pieces, too."""
_WHAT_TO_DO = {
    400: "it can't make sense of the request; look into its log",
    406: "it can't answer in DICOM JSON; ask its vendor",
    411: "it wants a length; ask its vendor",
    413: "the object is too large for it; raise its limit (often that of a proxy before it)",
    415: "it takes no application/dicom; ask its vendor",
}
_NOT_THERE = {
    404: "there is no such address",
    405: "it takes no STOW-RS at that address",
    410: "the address is gone",
}


class Web:
    """One HTTP session with one destination; one thread at a time.

    Raises:
        ConfigurationError: its token, password or certificates can't be read.
    """

    def __init__(self, destination: Destination) -> None:
        assert destination.dicomweb is not None
        where = self._where = destination.dicomweb
        self.destination = destination
        self._place = f"destination '{destination.name}'"
        self._url = where.url.rstrip("/")
        self._session = requests.Session()
        # Neither a proxy nor a password file of this machine is meant for a PACS.
        self._session.trust_env = False
        self._say_who_we_are()
        for file in (where.ca_file, where.certificate_file, where.key_file):
            if file is not None:
                _line(file, self._place)
        if where.ca_file is not None:
            self._session.verify = str(where.ca_file)
        if where.certificate_file is not None:
            own, key = str(where.certificate_file), where.key_file
            self._session.cert = own if key is None else (own, str(key))

    def _say_who_we_are(self) -> None:
        """Reads token or password, as it is now: some are changed every hour."""
        where = self._where
        if where.password_file is not None:
            user, colon, password = _line(where.password_file, self._place).partition(":")
            if not colon:
                msg = f"{self._place}: {where.password_file} must hold one line 'user:password'"
                raise ConfigurationError(msg)
            self._session.auth = HTTPBasicAuth(user.encode(), password.encode())
        elif where.token_file is not None:
            token = _line(where.token_file, self._place)
            self._bear(token, str(where.token_file))
        elif where.token_environment is not None:
            name = where.token_environment
            self._bear(os.environ.get(name, "").strip(), f"environment variable {name}")

    def _bear(self, token: str, whence: str) -> None:
        if not re.fullmatch(r"[!-~]+", token):
            msg = f"{self._place}: {whence} must hold one line, the token, without spaces"
            raise ConfigurationError(msg)
        self._session.headers["Authorization"] = f"Bearer {token}"

    def ask(
        self, method: str, path: str, *, headers: Mapping[str, str], **more: Any
    ) -> requests.Response:
        """One request; the answer is whole, whatever its status.

        Raises:
            DestinationUnreachable: no connection, no TLS, or the connection broke; or the token
                or password can't be read any more.
        """
        try:
            self._say_who_we_are()
            return self._session.request(
                method,
                self._url + path,
                headers=dict(headers),
                timeout=_TIMEOUT_S,
                allow_redirects=False,
                **more,
            )
        except ConfigurationError as error:
            raise DestinationUnreachable(str(error), is_lasting=True) from error
        except requests.exceptions.SSLError as error:
            msg = (
                f"{self.destination}: its certificate isn't accepted (see ca-file), or it "
                "refuses ours"
            )
            raise DestinationUnreachable(msg, is_lasting=True) from error
        except (requests.ConnectTimeout, requests.exceptions.ConnectionError) as error:
            msg = f"{self.destination} can't be reached or broke the connection off"
            raise DestinationUnreachable(msg) from error
        except (requests.RequestException, OSError) as error:
            msg = f"{self.destination} gave no whole answer"
            raise DestinationUnavailable(msg) from error

    def close(self) -> None:
        """Closes the connections; a later request opens new ones."""
        self._session.close()


def trouble_of_http(status: int, destination: Destination) -> GatewayError:
    """The error that an HTTP status without a reason for the object stands for."""
    if status in (401, 403):
        return DestinationUnreachable(
            f"{destination} doesn't let us in (HTTP {status}); check its token or password, and "
            "our rights there",
            is_lasting=True,
        )
    if status in (408, 425, 429) or (status >= 500 and status not in (501, 505)):
        return DestinationUnavailable(
            f"{destination} couldn't take the object just now (HTTP {status})"
        )
    if 300 <= status < 400 or status in _NOT_THERE:
        # Of the address, not of the object: a proxy says it too while the PACS restarts.
        what = _NOT_THERE.get(status, "it sends us elsewhere")
        return DestinationUnreachable(
            f"{destination} isn't there (HTTP {status}): {what}. Check dicomweb.url in "
            "gateway.yaml; it is tried again",
            is_lasting=True,
        )
    advice = _WHAT_TO_DO.get(status, "look into its log")
    return DestinationRefused(
        f"{destination} refused the object (HTTP {status}): {advice}. Then send again with "
        "'tritome jobs retry'"
    )


def _line(file: Path, place: str) -> str:
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        msg = f"{place}: {file} can't be read ({reason})"
        raise ConfigurationError(msg) from error

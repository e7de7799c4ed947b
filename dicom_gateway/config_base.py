"""What all sections of gateway.yaml are made of.

In: values as a person wrote them. Out: checked ones, or a sentence that says what to write.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _ae_title(value: str) -> str:
    # PS3.5 6.2: at most 16 characters of the default repertoire without backslash and
    # control characters, leading and trailing spaces not significant, never all spaces.
    if not re.fullmatch(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?", value):
        msg = "an AE title has 1 to 16 printable ASCII characters, no backslash, no outer spaces"
        raise ValueError(msg)
    return value


def _ip_address(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError as error:
        msg = "write an IP address such as 10.0.0.5, not a host name"
        raise ValueError(msg) from error


def _host(value: str) -> str:
    # RFC 1123 2.1; names with underscores are in use all the same.
    label = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    try:
        return str(ip_address(value))
    except ValueError as error:
        if len(value) <= 253 and re.fullmatch(rf"{label}(?:\.{label})*\.?", value):
            return value
        msg = "write an IP address or a host name and nothing else: no port, no https://"
        raise ValueError(msg) from error


def _host_and_port(value: str) -> str:
    host, _, port = value.rpartition(":")
    msg = "write host and port, such as 127.0.0.1:8001, and nothing else: no http://"
    try:
        _host(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError as error:
        raise ValueError(msg) from error
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(msg)
    return value


def _certificate(value: str) -> str:
    digest = value.removeprefix("sha256:").replace(":", "").lower()
    if re.fullmatch(r"[0-9a-f]{64}", digest):
        return digest
    if not re.fullmatch(r"[^\s=,/]{1,253}", value):
        msg = (
            "name a certificate by its SHA-256 fingerprint (openssl x509 -fingerprint -sha256) or "
            "by its common name or a DNS name in it, without spaces"
        )
        raise ValueError(msg)
    return value


AETitle = Annotated[str, AfterValidator(_ae_title)]
IPAddress = Annotated[str, AfterValidator(_ip_address)]
Host = Annotated[str, AfterValidator(_host)]
HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
CertificateName = Annotated[str, AfterValidator(_certificate)]
Port = Annotated[int, Field(ge=1, le=65535)]
UID = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)+$", max_length=64)]


class Section(BaseModel):
    """A part of gateway.yaml: frozen, kebab-case, nothing extra."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

"""What a command says when it can't go on.

    ClientError          one sentence of what is wrong and what to do; exit code 1
    ├── MissingExtra     a package of an optional extra is not installed
    └── NotAccepted      some objects were not taken by the peer

The gateway's and the builder's own trees pass through to `clients.cli`, which prints them
the same way. No text here ever holds a patient attribute.
"""

from __future__ import annotations


class ClientError(Exception):
    """A command can't do what was asked; the message says what to do next."""


class MissingExtra(ClientError):
    """A command needs packages that this installation was made without."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this command needs '{module}', which is not installed. "
            f"Install it with: pip install 'tritome[{extra}]'"
        )


class NotAccepted(ClientError):
    """The peer rejected the association, or did not take every object."""

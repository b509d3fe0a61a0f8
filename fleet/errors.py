"""The one error type that users see."""

from __future__ import annotations


class FleetError(Exception):
    """Something the user can mend.

    :param message: what is wrong, naming the variable, file or program.
    :param mend: what to do about it, as a sentence or a command.
    """

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message}\n  mend: {self.mend}" if self.mend else self.message

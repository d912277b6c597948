"""The error of a sample that cannot be used."""

from __future__ import annotations


class BadSample(Exception):
    """A sample that cannot be used. `reason` is a short word to count by, the message says more."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        return BadSample, (self.reason, str(self).partition(": ")[2])

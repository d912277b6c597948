"""How commands speak to their user about mistakes: one line on stderr, exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises ValueError with one line where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def one_line(error: Exception) -> str:
    """What went wrong, and the mend where it is known."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: this command needs the training extra: pip install 'mmtok[train]'"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__

"""Keeps the terminal for Polyshot: whatever libraries and their processes print goes to a log file.

Redirecting the file descriptors themselves also catches what C++ code and child processes write.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO


@contextmanager
def quiet(log: Path) -> Iterator[tuple[TextIO, TextIO]]:
    """Within the context standard output and error go to `log`; yields the real ones as text streams."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    real = [os.dup(1), os.dup(2)]
    streams = (os.fdopen(real[0], "w", buffering=1), os.fdopen(real[1], "w", buffering=1))
    with log.open("a", encoding="utf-8", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            # Python's own streams too: they need not write to these descriptors (in a notebook, under a test runner).
            with redirect_stdout(file), redirect_stderr(file):
                yield streams
        finally:
            for descriptor, stream in zip((1, 2), streams, strict=True):
                stream.flush()
                os.dup2(stream.fileno(), descriptor)
                stream.close()

"""Tables in object stores and other file systems, by an address that fsspec knows (s3://, gs://, az://, hdfs://).

Called when a source is an address. Its files are copied to a temporary folder, and are read there like any others.
Credentials come from where the store's own library takes them, the environment or an instance's role.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyshot.errors import DataError


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """A folder with the file at `address`, or with all that is in the folder or matches the glob there.

    Raises:
        DataError: when nothing is there, or it cannot be fetched.
    """
    import fsspec

    scheme = address.partition("://")[0]
    if scheme in ("http", "https"):
        raise DataError(f"{address}: web addresses are not read; download the file and give its path")
    with tempfile.TemporaryDirectory(prefix="polyshot-table-") as scratch:
        try:
            system, path = fsspec.url_to_fs(address)
            if glob.has_magic(path):
                found = system.glob(path)
            elif system.isdir(path):
                found = [entry["name"] for entry in system.ls(path, detail=True) if entry["type"] == "file"]
            else:
                found = [path] if system.exists(path) else []
            for number, file in enumerate(sorted(found)):
                # Files of one name may be in different folders; their order is kept.
                name = Path(file).name if len(found) == 1 else f"{number:06d}-{Path(file).name}"
                system.get_file(file, str(Path(scratch, name)))
        except ImportError as error:
            raise DataError(f"{address}: {scheme}:// needs another package ({error}); install it") from None
        except Exception as error:  # every store has errors of its own
            words = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DataError(f"{address}: cannot be fetched ({words}); see that it is there and may be read") from error
        if not found:
            raise DataError(f"{address}: no such file or folder there; correct the address")
        yield Path(scratch)

"""Reads the table that a study or a command names: CSV or Parquet (a file, a folder, a glob) or a function's result.

Called by `prepare`, and by the verbs that take a path of rows. It checks that the table is whole (columns named once,
rows there), and never looks at what the columns mean.
"""

from __future__ import annotations

import glob
import inspect
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from polyshot.data.columns import with_text_names
from polyshot.data.images import class_folders
from polyshot.data.remote import fetched
from polyshot.errors import DataError, PolyshotError, did_you_mean
from polyshot.plugins import load_object
from polyshot.study.data import Source

SUFFIXES = {".csv": "csv", ".csv.gz": "csv", ".tsv": "csv", ".tsv.gz": "csv", ".parquet": "parquet"}
FORMATS = ", ".join(SUFFIXES)


def read_table(source: Source, folder: Path, place: str = "data") -> pd.DataFrame:
    """The table of a study's section `place`, rows numbered from 0.

    Args:
        folder: what relative paths start from, and where a user's modules are.

    Raises:
        DataError: when it cannot be read, is empty, or two columns have one name.
        RunError: when the source function cannot be imported.
    """
    assert source.source is not None
    if source.is_function:
        return _call(source.source, folder, source.arguments, place)
    return read_path(source.source, folder)


def read_path(source: str, folder: Path) -> pd.DataFrame:
    """The rows of a CSV or Parquet file, of all of them in a folder, or of all that match a glob; or the images of a
    folder that has a folder for each class.

    `source` is relative to `folder` unless absolute, or an address (see `data.remote`). Files are read in the order of
    their names; their rows are numbered from 0.

    Raises:
        DataError: when a file cannot be read, none is there, or their columns differ.
    """
    if "://" in source:
        with fetched(source) as copies:
            return read_path(str(copies), copies)
    whole = folder / Path(source).expanduser()
    if whole.is_dir() and not _tables_in(whole.iterdir()) and (images := class_folders(whole)) is not None:
        return images
    paths = _table_files(source, folder)
    tables = [_read_file(path) for path in paths]
    for path, table in zip(paths[1:], tables[1:], strict=True):
        _require_same_columns(paths[0], tables[0], path, table)
    filled = [table for table in tables if len(table)]
    if not filled:
        raise DataError(f"{folder / source}: has a header but no rows; give a table with rows")
    # An empty table has no types, and would turn the other files' numbers into objects.
    return pd.concat(filled, ignore_index=True) if len(filled) > 1 else filled[0]


# --- which files -----------------------------------------------------------------------------------------------------


def _table_files(source: str, folder: Path) -> list[Path]:
    path = folder / Path(source).expanduser()
    if path.is_file():
        if _format(path) is None:
            raise DataError(f"{path}: not a kind of table that is read ({FORMATS}); convert it or rename it")
        return [path]
    if path.is_dir():
        files = _tables_in(sorted(path.iterdir()))
        mend = "put the tables there or give a glob such as 'folder/**/*.csv'"
    elif glob.has_magic(source):
        # Path.glob takes no absolute pattern; root_dir, so that brackets in the folder's own name are no pattern.
        matches = glob.glob(str(Path(source).expanduser()), root_dir=folder, recursive=True)  # noqa: PTH207
        files = _tables_in(folder / match for match in sorted(matches))
        mend = "correct the pattern"
    else:
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file or folder; correct the path.{did_you_mean(path.name, siblings)}")
    if not files:
        raise DataError(f"{path}: no table there ({FORMATS}); {mend}")
    if len({_format(file) for file in files}) > 1:
        raise DataError(f"{path}: holds both CSV and Parquet files; give a glob that matches one format")
    return files


def _tables_in(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file() and _format(path) and not path.name.startswith((".", "_"))]


def _format(path: Path) -> str | None:
    return next((kind for suffix, kind in SUFFIXES.items() if path.name.lower().endswith(suffix)), None)


def _require_same_columns(first: Path, expected: pd.DataFrame, path: Path, table: pd.DataFrame) -> None:
    extra = [name for name in table.columns if name not in expected.columns]
    missing = [name for name in expected.columns if name not in table.columns]
    if extra or missing:
        words = [f"it lacks '{missing[0]}'"] if missing else []
        words += [f"only it has '{extra[0]}'"] if extra else []
        raise DataError(f"{path}: its columns are not those of {first.name}: {' and '.join(words)}; make them alike")


# --- reading one file ------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> pd.DataFrame:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; give a table with a header and rows")
        return _read_csv(path) if _format(path) == "csv" else _read_parquet(path)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: the file is empty; give a table with a header and rows") from None
    except pd.errors.ParserError as error:
        what = str(error).removeprefix("Error tokenizing data. ").removeprefix("C error: ").strip()
        raise DataError(f"{path}: is not a well-formed CSV file ({what}); correct that line") from None
    except pa.ArrowException as error:
        what = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path}: cannot be read as Parquet ({what}); write the file anew") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the file and its permissions") from None


def _read_csv(path: Path) -> pd.DataFrame:
    options: dict[str, Any] = {
        "compression": "gzip" if path.name.lower().endswith(".gz") else None,
        "encoding": "utf-8-sig",
        "low_memory": False,  # types of whole columns, not of chunks
    }

    def header(separator: str, lines: int) -> list[str]:
        first = pd.read_csv(path, sep=separator, header=None, nrows=lines, dtype=str, keep_default_na=False, **options)
        return list(first.iloc[0])

    separator = "\t" if ".tsv" in path.name.lower() else ","
    names = header(separator, lines=1)
    if len(names) == 1:  # a single column, or another separator (semicolons where the comma is a decimal point)
        separator = next((other for other in ";\t|," if other in names[0]), separator)
    # With the second line: where that has more fields than the header, pandas would take the first for an index.
    names = header(separator, lines=2)
    # pandas would rename the second 'x' to 'x.1' without a word. Nameless columns it numbers, which is no fault.
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"{path}: the column '{name}' appears more than once in the header; rename or remove one")
    table: pd.DataFrame = pd.read_csv(path, sep=separator, **options)
    return table


def _read_parquet(path: Path) -> pd.DataFrame:
    file = pq.ParquetFile(path)
    return with_text_names(_numbered(file.read().to_pandas()), str(path))


def _numbered(table: pd.DataFrame) -> pd.DataFrame:
    """The table with rows numbered from 0; an index that has a name is a column that pandas set apart."""
    return table.reset_index(drop=all(name is None for name in table.index.names), allow_duplicates=True)


# --- functions -------------------------------------------------------------------------------------------------------


def _call(source: str, folder: Path, arguments: dict[str, Any], place: str) -> pd.DataFrame:
    function = load_object(source, folder, f"{place}.source")
    if not callable(function):
        raise DataError(f"{place}.source: '{source}' is no function; name one that returns a pandas DataFrame")
    _require_fitting(function, source, arguments, place)
    try:
        table = function(**arguments)
    except PolyshotError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise DataError(
            f"{place}.source: '{source}' failed with {type(error).__name__}: {error}; correct it or {place}.arguments"
        ) from error
    if not isinstance(table, pd.DataFrame):
        what = "None" if table is None else type(table).__name__
        raise DataError(
            f"{place}.source: '{source}' returned {what}; make it return a pandas DataFrame, or correct "
            f"{place}.arguments"
        )
    if table.empty:
        raise DataError(f"{place}.source: '{source}' returned a table without rows; correct it or {place}.arguments")
    return with_text_names(_numbered(table), f"{place}.source: '{source}'")


def _require_fitting(function: Callable[..., Any], source: str, arguments: dict[str, Any], place: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C do not tell
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        unknown = [name for name in arguments if name not in signature.parameters]
        hint = did_you_mean(unknown[0], signature.parameters) if unknown else ""
        raise DataError(f"{place}.arguments: '{source}' takes {signature}: {error}.{hint}") from None

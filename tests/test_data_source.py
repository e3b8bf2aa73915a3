"""A table is read whole from files, folders, globs and functions, or refused in one sentence."""

import gzip
import sys
from pathlib import Path

import pandas as pd
import pytest

from polyshot.data.source import read_path, read_table
from polyshot.errors import DataError, RunError
from polyshot.study.data import Source


def write(folder: Path, **files: str | bytes) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def source_of(folder: Path, source: str, **arguments: object) -> tuple[Source, Path]:
    return Source(source=source, arguments=arguments), folder


TEXT = "a,b\n1,x\n2,\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", TEXT),
        ("t.csv", "\ufeff" + TEXT),
        ("T.CSV", TEXT),
        ("t.csv", TEXT.replace(",", ";")),
        ("t.tsv", TEXT.replace(",", "\t")),
        ("t.csv.gz", gzip.compress(TEXT.encode(), mtime=0)),
    ],
)
def test_every_spelling_of_a_csv_file_gives_the_same_table(tmp_path, name, content):
    write(tmp_path, **{name: content})
    table = read_path(name, tmp_path)
    assert table.columns.tolist() == ["a", "b"]
    assert table["a"].tolist() == [1, 2]
    assert table["b"][0] == "x"
    assert table["b"].isna().tolist() == [False, True]


def test_a_parquet_file_keeps_the_column_that_pandas_set_apart_as_index(tmp_path):
    pd.DataFrame({"school": ["p", "q"], "x": [1.5, None]}).set_index("school").to_parquet(tmp_path / "t.parquet")
    table = read_path("t.parquet", tmp_path)
    assert table.columns.tolist() == ["school", "x"]
    assert table.index.tolist() == [0, 1]


@pytest.mark.parametrize("source", ["parts", "parts/*.csv", "**/*.csv", "{folder}/parts/?.csv"])
def test_files_of_a_folder_or_glob_are_joined_by_column_name_in_the_order_of_file_names(tmp_path, source):
    folder = tmp_path / "[odd] name"
    folder.mkdir()
    files = {"parts__b.csv": "b,a\n3,\n", "parts__a.csv": "a,b\n1,2\n", "parts__c.csv": "a,b\n", "parts___OK": ""}
    write(folder, **files)
    table = read_path(source.format(folder="../[[]odd] name"), folder)
    assert table["b"].tolist() == [2, 3]
    assert table["a"].dtype == float  # the file without rows does not make objects of numbers
    assert table.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("files", "source", "words"),
    [
        ({"dates.csv": TEXT}, "data.csv", ["data.csv: no such file or folder", "Did you mean 'dates.csv'?"]),
        ({"t.csv": ""}, "t.csv", ["t.csv: the file is empty", "header and rows"]),
        ({"t.csv": "\n\n"}, "t.csv", ["t.csv: the file is empty"]),
        ({"t.csv": "a,b\n"}, "t.csv", ["t.csv: has a header but no rows"]),
        ({"t.csv": "a,b,a\n1,2,3\n"}, "t.csv", ["t.csv: the column 'a' appears more than once in the header"]),
        ({"t.csv": "a\né\n".encode("latin1")}, "t.csv", ["t.csv: is not UTF-8 text; save it as UTF-8"]),
        ({"t.csv": "a,b\n1,2\n1,2,3\n"}, "t.csv", ["well-formed CSV", "line 3, saw 3"]),
        ({"t.csv": "a,b\n1,2,3\n4,5,6\n"}, "t.csv", ["well-formed CSV", "line 2, saw 3"]),
        ({"t.csv.gz": b"no"}, "t.csv.gz", ["t.csv.gz: cannot be read", "gzip"]),
        ({"t.parquet": b"PAR1xxxx"}, "t.parquet", ["t.parquet: cannot be read as Parquet", "anew"]),
        ({"t.xlsx": b"x"}, "t.xlsx", ["not a kind of table that is read", ".parquet", "convert"]),
        ({"d__x.txt": ""}, "d", ["d: no table there", ".csv"]),
        ({"d__x.csv": TEXT}, "d/*.parquet", ["d/*.parquet: no table there", "correct the pattern"]),
        ({"d__x.csv": TEXT, "d__y.parquet": b""}, "d", ["both CSV and Parquet"]),
        ({"d__x.csv": TEXT, "d__y.csv": "a,c\n1,2\n"}, "d", ["d/y.csv", "of x.csv", "lacks 'b'", "only it has 'c'"]),
        ({}, "https://host/t.csv", ["web addresses are not read; download"]),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_file_and_the_mend(tmp_path, files, source, words):
    write(tmp_path, **files)
    with pytest.raises(DataError) as caught:
        read_path(source, tmp_path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


MODULE = """
import pandas as pd
table = pd.DataFrame({1: [1, 2], "b": [3, 4]}, index=[7, 8])
def read(rows=2): return table.head(rows)
def nothing(): return None
def fail(): raise OSError("no disk")
def twice(): return pd.DataFrame([[1, 2]], columns=["a", "a"])
def empty(): return table.head(0)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rows.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_rows", None)


def test_a_function_is_called_with_the_study_arguments_and_its_columns_get_text_names(module):
    table = read_table(*source_of(module, "my_rows:read", rows=1))
    assert table.to_dict("list") == {"1": [1], "b": [3]}
    assert table.index.tolist() == [0]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("table", {}, ["'my_rows:table' is no function"]),
        ("nothing", {}, ["returned None", "pandas DataFrame", "data.arguments"]),
        ("fail", {}, ["failed with OSError: no disk"]),
        ("twice", {}, ["the column 'a' appears more than once"]),
        ("empty", {}, ["without rows"]),
        ("read", {"row": 1}, ["data.arguments", "takes (rows=2)", "Did you mean 'rows'?"]),
        ("read", {"rows": "x"}, ["failed with", "data.arguments"]),
    ],
)
def test_a_function_that_gives_no_table_is_refused_in_words(module, name, arguments, words):
    with pytest.raises(DataError) as caught:
        read_table(*source_of(module, f"my_rows:{name}", **arguments))
    assert all(word in str(caught.value) for word in ["my_rows", *words]), str(caught.value)


def test_a_function_that_is_not_there_is_a_run_error(module):
    with pytest.raises(RunError, match="'my_rows' has no 'rea'"):
        read_table(*source_of(module, "my_rows:rea"))

"""Tables at addresses: read as local ones are, and every failure in one sentence."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from conftest import STUDY, learnable_table

from polyshot.data.source import read_path
from polyshot.errors import DataError

HERE = Path("/nowhere")


@pytest.fixture
def bucket():
    """A file system that is no local one, with a table in two parts."""
    system = fsspec.filesystem("memory")
    table = learnable_table(40)
    for number, part in enumerate((table[:20], table[20:])):
        with system.open(f"/bucket/parts/{number}.csv", "w") as file:
            part.to_csv(file, index=False)
    with system.open("/bucket/whole.parquet", "wb") as file:
        table.to_parquet(file)
    yield table
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "source", ["memory://bucket/parts", "memory://bucket/parts/*.csv", "memory://bucket/whole.parquet"]
)
def test_a_file_a_folder_and_a_glob_are_read_from_an_address(bucket, source):
    read = read_path(source, HERE)
    assert list(read["size"]) == list(bucket["size"])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("memory://bucket/none.csv", "no such file or folder there"),
        ("memory://bucket/*.xlsx", "no such file or folder there"),
        ("nosuch://bucket/t.csv", "cannot be fetched (Protocol not known: nosuch)"),
        ("https://host/t.csv", "web addresses are not read"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_what_cannot_be_fetched_is_said_with_its_address(source, words):
    with pytest.raises(DataError) as fault:
        read_path(source, HERE)
    assert str(fault.value).startswith(f"{source}: ") and words in str(fault.value)


@pytest.mark.usefixtures("bucket")
def test_a_study_trains_on_an_address(polyshot, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY.replace("houses.csv", "memory://bucket/parts"))
    outcome = polyshot("check", "study.yaml", "--data")
    assert outcome.code == 0, outcome.err
    assert "# rows: 28 train, 6 validation, 6 test" in outcome.err

"""What a job takes along to the cluster: the study file, studies and modules that it names, and Polyshot's own code.

Called by `submit`, before anything is sent. Tables stay where they are, unless they are asked for: an upload is kept in
the memory of the cluster's head. Polyshot's code is what a wheel of it holds. It stands in the job's folder and is
imported from there: the nodes need what it depends on, and need not have Polyshot itself.
"""

from __future__ import annotations

import ast
import glob
import importlib.util
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from polyshot.errors import DataError, Problem, RunError, StudyError
from polyshot.study import Study
from polyshot.study.meta import EPISODES

LIMIT_MIB = 64.0
# Those that stand apart from the package in a checkout; in an installation they are inside it.
PACKAGES = ("polyshot", "polyshot.meta", "polyshot.search_spaces")


def collect(
    study: Study, file: Path, *, named: Mapping[Path, Study] | None = None, with_data: bool = False
) -> dict[Path, Path]:
    """The files of a job by their places in its folder.

    Args:
        file: the study's.
        named: what `named_studies` found, if the job transfers from it.
        with_data: take tables along that stand beside the study file; else it is an error that the study names one.

    Raises:
        DataError: when the nodes could not see a table.
        RunError: when it is more than `LIMIT_MIB`.
    """
    files = {Path(file.name): file} | _needed(study, with_data)
    for path, origin in (named or {}).items():
        place = path.parent.relative_to(study.folder)
        files |= {place / path.name: path}
        files |= {place / name: needed for name, needed in _needed(origin, with_data).items()}
    files |= _own_code()
    if (size := _mib(files.values())) > LIMIT_MIB:
        largest = max(files, key=lambda place: files[place].stat().st_size)
        raise RunError(
            f"the upload would be {size:.0f} MiB, and {LIMIT_MIB:.0f} MiB is the most (its largest file is {largest}); "
            "put data on storage that the nodes share, and name its absolute path"
        )
    return files


def named_studies(study: Study) -> dict[Path, Study]:
    """The studies, by their files, that transfer starts from and that go along; runs and absolute paths are shared.

    Raises:
        StudyError: for a path that would not be there in the job's folder, or a study that cannot be read.
    """
    found = {}
    for key, name in study.transfer.runs.items():
        path = (study.folder / name).resolve()
        is_file = name.endswith((".yaml", ".yml"))
        if Path(name).expanduser().is_absolute():
            continue
        if not is_file:
            if len(Path(name).parts) == 1 or not Path(name).exists():
                continue  # it is found in the storage
            message = f"'{name}' is a relative path, which the job does not have; give the study's name, or a path"
            raise StudyError([Problem(key, f"{message} that the nodes share")])
        if not path.is_relative_to(study.folder):
            message = f"'{name}' is not below the study file's folder, and would not go along; move it there"
            raise StudyError([Problem(key, f"{message}, or give an absolute path that the nodes share")])
        found[path] = Study.load(path)
    return found


def _needed(study: Study, with_data: bool) -> dict[Path, Path]:
    """The modules and, when asked for, the tables of a study, by their places in its folder."""
    files = _modules(study)
    for key, source in _tables(study).items():
        found = _relative(study.folder, source)
        if not with_data:
            raise DataError(
                f"{key}: '{source}' is relative to the study file, where the nodes cannot see it; give an absolute "
                f"path that they share or an address such as s3://…, or add --with-data to upload {_mib(found):.1f} MiB"
            )
        if not found:
            raise DataError(
                f"{key}: nothing is at '{source}' within {study.folder}; correct the path, or give an absolute one"
            )
        files |= {path.relative_to(study.folder): path for path in found}
    return files


def write(files: Mapping[Path, Path], folder: Path) -> None:
    """Copy what `collect` found to its places in a folder."""
    for place, source in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / place)


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(study: Study) -> dict[str, str]:
    """The relative paths of tables, by the key that names each."""
    named = {}
    for source, tasks in study.tables:
        path = str(source.source)
        if source.is_function or path == EPISODES or "://" in path or Path(path).expanduser().is_absolute():
            continue
        named["data.source" if source is study.data else f"tasks.{tasks[0]}.source"] = path
    return named


def _relative(folder: Path, source: str) -> list[Path]:
    """The files that a relative path, a folder's or a glob's, leads to, as far as they are inside `folder`."""
    path = folder / source
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file()]
    else:
        matches = glob.glob(source, root_dir=folder, recursive=True)  # noqa: PTH207 - as the table is read
        found = [folder / match for match in matches if (folder / match).is_file()]
    return sorted(file for file in found if file.resolve().is_relative_to(folder))


def _mib(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 2**20


# --- the user's modules ----------------------------------------------------------------------------------------------


def _modules(study: Study) -> dict[Path, Path]:
    """Modules and packages beside the study file that it names, and those beside it that these import."""
    files: dict[Path, Path] = {}
    waiting = [path.partition(":")[0].partition(".")[0] for path in study.objects.values()]
    seen = {"polyshot", *sys.stdlib_module_names}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for path in _of_module(study.folder, name):
            files[path.relative_to(study.folder)] = path
            if path.suffix == ".py":
                waiting += _imports(path)
    return files


def _of_module(folder: Path, name: str) -> list[Path]:
    module, package = folder / f"{name}.py", folder / name
    if module.is_file():
        return [module]
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return files if any(path.suffix == ".py" for path in files) else []  # else it is one that the nodes have


def _imports(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is not a Python module ({error}); correct it") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _own_code() -> dict[Path, Path]:
    files = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in root.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files[Path(*name.split(".")) / path.relative_to(root)] = path
    return files

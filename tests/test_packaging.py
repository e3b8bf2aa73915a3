"""The wheel holds the packages and nothing else, runs outside the repository, and importing it stays cheap."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
HEAVY = {"torch", "ray", "mlflow", "pandas", "sklearn"}

STUDY = """\
name: outside
data: {source: table.csv}
tasks:
  y: {kind: regression}
  z: {kind: binary}
training: {epochs: 2, batch_size: 16}
"""


def run(command: list[str | Path], folder: Path, environment: dict[str, str] | None = None) -> str:
    """What a command that must succeed prints (standard output, then standard error)."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | (environment or {})
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


# --- the declaration -------------------------------------------------------------------------------------------------


def packages_on_disk() -> dict[str, Path]:
    """Every package by the name that it is imported by, with its folder."""
    places = {"polyshot": ROOT / "platform" / "polyshot"}
    places |= {f"polyshot.{name}": ROOT / name for name in ("meta", "search_spaces")}
    return {
        ".".join([name, *file.parent.relative_to(place).parts]): file.parent
        for name, place in places.items()
        for file in place.rglob("__init__.py")
    }


def test_every_package_on_disk_is_declared_and_no_other() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages_on_disk())


def test_the_mapping_leads_every_package_to_its_folder() -> None:
    mapping = SETUPTOOLS["package-dir"]
    for name, folder in packages_on_disk().items():
        nearest = max((key for key in mapping if f"{name}.".startswith(f"{key}.")), key=len)
        below = name.removeprefix(nearest).strip(".").replace(".", "/")
        assert ROOT / mapping[nearest] / below == folder


def test_every_folder_with_code_is_a_package() -> None:
    for place in (ROOT / "platform" / "polyshot", ROOT / "meta", ROOT / "search_spaces"):
        for file in place.rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


def test_platform_stays_the_standard_librarys_in_the_root() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    printed = run([sys.executable, "-c", "import platform; print(platform.__file__, platform.system())"], ROOT)
    file, system = printed.split()
    assert Path(file).parent == Path(sysconfig.get_path("stdlib"))
    assert system == "Linux"


# TorchJD is what balancers are compared with, in tests and benchmarks; of plotly, the script is read as a file.
NOT_IMPORTED_BY_NAME = {"torchjd", "plotly"}
# What comes with a requirement: its own core, or a library whose errors it passes on.
PARTS = {"pydantic-core": "pydantic", "requests": "mlflow", "sqlalchemy": "mlflow", "aiohttp": "ray"}


def imported_distributions() -> set[str]:
    providers = importlib.metadata.packages_distributions()
    names: set[str] = set()
    for folder in packages_on_disk().values():
        for file in folder.glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    modules = [node.module or ""]
                else:
                    continue
                top = {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"polyshot"}
                names |= {normalised(min(providers.get(module, [module]), key=len)) for module in top}
    return {PARTS.get(name, name) for name in names}


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normalised(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in requirements}


def test_what_is_imported_is_required_and_what_is_required_is_imported() -> None:
    required = declared(PYPROJECT["project"]["dependencies"])
    optional = {name for extra in PYPROJECT["project"]["optional-dependencies"].values() for name in declared(extra)}
    imported = imported_distributions()
    assert imported <= required | optional
    assert required - NOT_IMPORTED_BY_NAME <= imported


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy of the repository: what git tracks or would, and no build/ of an earlier time."""
    copy, output = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output, copy], copy)
    (built,) = output.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, beside what this one has, but not this one's editable Polyshot.

    A path file makes the other environment's packages importable; the path files among those, the editable
    installation's too, are not read.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = home / "lib" / version / "site-packages"
    run([home / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], home)
    (site_packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{name.replace('.', '/')}/{file.relative_to(folder)}"
        for name, folder in packages_on_disk().items()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert inside == expected
    assert {"polyshot/meta/__init__.py", "polyshot/search_spaces/__init__.py", "polyshot/py.typed"} <= inside


def test_the_wheel_names_its_licence_and_its_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
    assert "Apache License" in archive.read(licence).decode()
    (entry_points,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert "polyshot = polyshot.cli:main" in archive.read(entry_points).decode()


def test_the_installed_wheel_is_what_is_imported(installed: Path, tmp_path: Path) -> None:
    code = "import polyshot, polyshot.meta, polyshot.search_spaces as s; print(polyshot.__file__); print(s.__file__)"
    for file in run([installed / "python", "-c", code], tmp_path).splitlines():
        assert Path(file).is_relative_to(installed.parent)


def test_the_installed_command_tells_its_version_and_verbs(installed: Path, tmp_path: Path) -> None:
    version = PYPROJECT["project"]["version"]
    assert version in run([installed / "polyshot", "version"], tmp_path)
    assert version in run([installed / "python", "-m", "polyshot", "version"], tmp_path)
    verbs = run([installed / "polyshot", "--help"], tmp_path)
    assert [
        verb for verb in ("init", "check", "train", "search", "predict", "compare", "ui") if verb not in verbs
    ] == []


@pytest.mark.slow
def test_the_installed_command_trains_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    rows = [f"{i % 7},{i % 5},{i % 7 - i % 5},{int(i % 7 > 3)}" for i in range(80)]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,y,z", *rows]) + "\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    printed = run([installed / "polyshot", "train", "study.yaml"], tmp_path, {"CUDA_VISIBLE_DEVICES": ""})
    assert "roc_auc" in printed
    assert "rmse" in printed
    assert any((tmp_path / "polyshot-runs" / "outside").iterdir())


# --- what importing costs --------------------------------------------------------------------------------------------


def imported_by(*arguments: str) -> Iterator[str]:
    """The modules that `python <arguments>` imports, from the interpreter's own account of them."""
    account = run([sys.executable, "-X", "importtime", *arguments], ROOT)
    for line in account.splitlines():
        if line.startswith("import time:"):
            yield line.rpartition("|")[2].strip()


@pytest.mark.parametrize(
    "arguments", [("-c", "import polyshot"), ("-m", "polyshot", "--help"), ("-m", "polyshot", "version")], ids=" ".join
)
def test_starting_is_cheap(arguments: tuple[str, ...]) -> None:
    modules = set(imported_by(*arguments))
    assert "polyshot" in modules
    assert {module for module in modules if module.partition(".")[0] in HEAVY} == set()

"""Imports flow one way. The tables here are the ones of docs/architecture.md."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom to the top: a module imports from its own part and from the lines above it, never from those below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("study_file", "plugins", "seeds", "progress", "quiet", "completion", "shown", "working_copy"),
    ("study",),
    ("run_folder", "data", "balancing", "search_spaces", "cluster", "tracking"),
    ("models",),
    ("training",),
    ("saved_model", "results", "outcomes"),
    ("training.distributed", "report", "serving", "estimators"),
    ("searching", "meta", "affinities", "transfer"),
    ("verbs", "display", "demo"),
    ("cli", "__init__"),
    ("__main__",),
)

# Where a library may be imported at all; everything else reaches it through these.
HOMES = {
    "ray": ("cluster", "searching", "training.distributed"),
    "mlflow": ("tracking",),
    "optuna": ("searching", "search_spaces"),
    "learn2learn": ("meta",),
    "torchjd": ("balancing",),
    "typer": ("cli",),
    "peft": ("transfer",),
    "transformers": ("data",),
    "starlette": ("serving",),
    "uvicorn": ("serving",),
}

HEAVY = {
    "torch",
    "ray",
    "mlflow",
    "optuna",
    "pandas",
    "sklearn",
    "matplotlib",
    "learn2learn",
    "torchmetrics",
    "torchjd",
}
# Imported before it is known whether anything heavy is needed.
LIGHT = (
    "errors",
    "study_file",
    "plugins",
    "seeds",
    "progress",
    "quiet",
    "completion",
    "shown",
    "working_copy",
    "study",
    "display",
    "cli",
    "__init__",
    "__main__",
)


@dataclass(frozen=True)
class Import:
    module: str  # what is imported: polyshot.data.targets, torch.nn
    line: int
    late: bool  # inside a function, or for the type checker only

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]


def modules() -> dict[str, Path]:
    """The file of every module by its name below `polyshot`: data.targets, meta, search_spaces.task_weights."""
    found = {}
    for place, prefix in ((ROOT / "platform" / "polyshot", ()), (ROOT / "meta", ("meta",))):
        found |= {_name(file, place, prefix): file for file in place.rglob("*.py")}
    place = ROOT / "search_spaces"
    return found | {_name(file, place, ("search_spaces",)): file for file in place.rglob("*.py")}


def _name(file: Path, place: Path, prefix: tuple[str, ...]) -> str:
    parts = [*prefix, *file.relative_to(place).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = modules()


@cache
def imports(file: Path) -> tuple[Import, ...]:
    def walk(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    yield from (Import(alias.name, child.lineno, late) for alias in names)
                case ast.ImportFrom(module=str(module), names=names):
                    yield from (Import(_imported(module, alias.name), child.lineno, late) for alias in names)
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    yield from walk(child, True)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, True)
                case _:
                    yield from walk(child, late)

    return tuple(walk(ast.parse(file.read_text()), False))


def _imported(module: str, name: str) -> str:
    """`from polyshot.data import targets` imports the module polyshot.data.targets."""
    inner = f"{module}.{name}".removeprefix("polyshot.")
    return f"polyshot.{inner}" if inner in MODULES and module.startswith("polyshot") else module


def part_of(module: str) -> str:
    """The entry of LAYERS that a module belongs to: the longest that fits."""
    parts = [part for layer in LAYERS for part in layer if f"{module}.".startswith(f"{part}.")]
    assert parts, f"{module} has no place in LAYERS: give it one, and write it down in docs/architecture.md"
    return max(parts, key=len)


def height(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_only(name: str) -> None:
    part = part_of(name)
    upwards = [
        f"{name}:{found.line} imports {found.module}"
        for found in imports(MODULES[name])
        if found.library == "polyshot"
        and (target := part_of(found.module.removeprefix("polyshot").strip(".") or "__init__")) != part
        and height(target) >= height(part)
    ]
    assert upwards == []


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_in_its_home_only(library: str) -> None:
    strangers = [
        f"{name}:{found.line}"
        for name, file in sorted(MODULES.items())
        for found in imports(file)
        if found.library == library and not {name, part_of(name)} & set(HOMES[library])
    ]
    assert strangers == []


@pytest.mark.parametrize("name", sorted(name for name in MODULES if part_of(name) in LIGHT))
def test_light_modules_import_heavy_ones_where_they_are_used(name: str) -> None:
    early = [found for found in imports(MODULES[name]) if not found.late]
    assert [found.module for found in early if found.library in HEAVY] == []
    inner = {part_of(found.module.removeprefix("polyshot.")) for found in early if found.module.startswith("polyshot.")}
    assert inner <= set(LIGHT)


def test_the_page_on_architecture_names_every_layer_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = [tuple(cell.strip(" `") for cell in row.split("|")[1].split(",")) for row in rows]
    layers = [{part for part in layer if not part.startswith("__")} for layer in reversed(LAYERS)]
    assert [set(row) for row in named] == [layer for layer in layers if layer]

"""Writes docs/study-file.md from the schema: `python docs/generate_study_file.py`. A test holds the two together."""

from __future__ import annotations

import inspect
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from polyshot.study import Study

HEAD = """\
# The study file

Everything Polyshot does starts from one YAML file. Only `name`, `data` and `tasks` must be there (and only `name` and
`meta` for meta-learning from episodes that are made of no table); the rest has defaults. Unknown keys are errors.
`polyshot check study.yaml` reports every mistake at once and prints the study with all defaults; `polyshot check
--schema` prints the JSON schema for editors; `polyshot init table.csv` writes a first file for a table.

```yaml
name: star
data:
  source: star.csv
tasks:
  read: {kind: regression}
  math: {kind: regression}
```

Any key can be set on the command line (`--set training.epochs=5`) and searched (`search.space`), by its dotted name.
Relative paths in `data` start from the study file's folder; `storage` starts from the current one, or
is the address of an object store ([cluster](cluster.md)).

This page is made from the schema by `python docs/generate_study_file.py`.
"""


def page() -> str:
    return HEAD + "".join(_section("", Study, level=2))


def _section(path: str, model: type[BaseModel], level: int) -> typing.Iterator[str]:
    """A section's sentence, its table of keys, and its sub-sections."""
    nested: list[tuple[str, type[BaseModel]]] = []
    rows = []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        models = list(_models(field.annotation))
        if models:
            is_mapping = get_origin(field.annotation) is dict
            nested += [
                (f"{key}.<{'task' if name == 'tasks' else 'key'}>" if is_mapping else key, inner) for inner in models
            ]
            continue
        rows.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description or ''} |\n")
    if path:
        yield f"\n{'#' * level} `{path}`{_variant(model)}\n"
    own_words = model.__doc__ if model.__dict__.get("__doc__") else None
    if own_words and model is not Study:
        yield f"\n{inspect.cleandoc(own_words)}\n"
    if rows:
        yield "\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n"
        yield from rows
    for key, inner in nested:
        yield from _section(key, inner, level)


def _variant(model: type[BaseModel]) -> str:
    """Which `kind` of its section a variant is."""
    kind = model.model_fields.get("kind")
    names = get_args(kind.annotation) if kind and get_origin(kind.annotation) is Literal else ()
    return f", kind `{names[0]}`" if len(names) == 1 else ""


def _models(annotation: Any) -> typing.Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models(argument)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        types.NoneType: "`null`",
        Any: "any",
    }
    return names.get(annotation, str(annotation))


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return "`null`" if field.default is None else f"`{field.default}`".replace("True", "true").replace("False", "false")


if __name__ == "__main__":
    Path(__file__).with_name("study-file.md").write_text(page(), encoding="utf-8")

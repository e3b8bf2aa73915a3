"""The study file as text: strict YAML with line numbers, and validation errors put into words.

Called by `study` only; knows pydantic and YAML, and no section of the study.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from polyshot.errors import Problem, StudyError, did_you_mean

Key = tuple[str | int, ...]


# --- YAML ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars, as people expect them: `1e-3` is a number, `no` and `on` are words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.rsplit(":", 1)[1] not in ("bool", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF|nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, file: str) -> tuple[object, dict[Key, int]]:
    """The document's values, and the line on which each key path stands.

    Raises:
        StudyError: for an empty document, invalid YAML, or keys that are given twice.
    """
    lines: dict[Key, int] = {(): 1}
    repeated: list[Problem] = []

    def walk(node: yaml.Node, key: Key) -> None:
        if isinstance(node, yaml.MappingNode):
            for key_node, value_node in node.value:
                path = (*key, key_node.value)
                line = key_node.start_mark.line + 1
                if path in lines:
                    repeated.append(Problem(f"{file}:{line} {dotted(path)}", "the key is given twice; remove one"))
                lines[path] = line
                walk(value_node, path)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                lines[(*key, index)] = item.start_mark.line + 1
                walk(item, (*key, index))

    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise StudyError([Problem(file, "the file is empty; a study needs name, data and tasks")])
        walk(root, ())
        values = loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        what = getattr(error, "problem", None) or str(error)
        raise StudyError([Problem(place, f"is not valid YAML: {what}; check the indentation and quotes")]) from None
    finally:
        loader.dispose()
    if repeated:
        raise StudyError(repeated)
    return values, lines


def nearest_line(lines: Mapping[Key, int], key: Key) -> int:
    """The line of `key`, or of the closest section around it that the file has."""
    while key not in lines:
        key = key[:-1]
    return lines[key]


def dotted(key: Key) -> str:
    return ".".join(map(str, key))


# --- mistakes in words -----------------------------------------------------------------------------------------------


def key_path(loc: tuple[int | str, ...], values: object) -> Key:
    """Pydantic's location of an error, without the names of union members, which stand in no file."""
    key: list[int | str] = []
    node: Any = values
    for position, part in enumerate(loc):
        in_list = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if in_list or (isinstance(node, Mapping) and part in node):
            node = node[part]
        elif position < len(loc) - 1 or not isinstance(node, Mapping):
            continue  # the name of a union's member
        key.append(part)
    return tuple(key)


def section_fields(root: type[BaseModel], key: Key) -> list[str]:
    """The keys that may stand in the section at `key`, over all its variants."""
    annotations: list[Any] = [root]
    for part in key:
        annotations = [child for annotation in annotations for child in _inside(annotation, str(part))]
    return sorted({name for annotation in annotations for model in _models(annotation) for name in model.model_fields})


def _inside(annotation: Any, part: str) -> Iterator[Any]:
    """What stands under the key `part` of a value annotated so: a field's annotation, or a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if part in annotation.model_fields:
            yield annotation.model_fields[part].annotation
    elif getattr(annotation, "__origin__", None) is dict:
        yield get_args(annotation)[1]
    else:
        for argument in get_args(annotation):
            yield from _inside(argument, part)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif getattr(annotation, "__origin__", None) is not dict:
        for argument in get_args(annotation):
            yield from _models(argument)


def sentence(detail: ErrorDetails, key: Key, known_keys: list[str]) -> str:
    """One sentence for one of pydantic's errors: the rule, and what was given."""
    context, given = detail.get("ctx", {}), detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            hint = did_you_mean(key[-1], known_keys) or (
                f" Known keys here: {', '.join(known_keys)}." if known_keys else ""
            )
            return f"unknown key '{key[-1]}'.{hint}"
        case "missing" | "union_tag_not_found":
            name = "kind" if detail["type"] == "union_tag_not_found" else detail["loc"][-1]
            return f"the key '{name}' is missing; add it"
        case "literal_error":
            return _one_of(context["expected"].replace(" or ", ", "), given)
        case "union_tag_invalid":
            return "kind " + _one_of(context["expected_tags"], context["tag"])
        case "value_error":
            return str(context["error"])
        case "string_pattern_mismatch" if ":" in context["pattern"]:
            return f"must be of the form package.module:name, got {given!r}"
        case "string_pattern_mismatch":
            return f"must be letters, digits, '_' and '-' and start with a letter or a digit, got {given!r}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a section with keys of its own, got {_short(given)}"
        case "too_short" if context["min_length"] > 1:
            return f"must hold at least {context['min_length']}, got {_short(given)}"
        case "too_short" | "string_too_short":
            return "must not be empty"
        case _:
            rule = detail["msg"].removeprefix("Input should be ")
            return f"must be {rule}, got {_short(given)}"


def _one_of(expected: str, given: object) -> str:
    words = [word.strip().strip("'") for word in expected.split(",")]
    return f"must be one of {', '.join(words)}, got {given!r}.{did_you_mean(given, words)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

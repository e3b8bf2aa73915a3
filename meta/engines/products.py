"""Products of matrices in a recorded meta-gradient, in the forms that processors are fastest at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from polyshot.meta.convolutions import SHORT

_aten, _polyshot = torch.ops.aten, torch.ops.polyshot


def rewrite_products(recorded: fx.GraphModule) -> None:
    """Give products their faster form, where they have one. Nodes must tell their values' shapes (`meta["val"]`)."""
    _replace(recorded.graph, _aten.sum.dim_IntList, _summed)
    _replace(recorded.graph, _aten.bmm.default, _turned)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()


def _replace(graph: fx.Graph, target: Callable[..., Any], form: Callable[[fx.Node], fx.Node | None]) -> None:
    for node in list(graph.find_nodes(op="call_function", target=target)):
        with graph.inserting_before(node):
            if (other := form(node)) is None:
                continue
            # What comes after may rely on where its numbers lie.
            same = _call(_aten.clone.default, other, memory_format=torch.contiguous_format)
        node.replace_all_uses_with(same)
        graph.erase_node(node)


def _call(function: Callable[..., Any], first: fx.Node, *others: Any, **options: Any) -> fx.Node:
    arguments = first, *others
    node = first.graph.call_function(function, arguments, options)
    values = (part.meta["val"] if isinstance(part, fx.Node) else part for part in arguments)
    node.meta["val"] = function(*values, **options)
    return node


def _turned(product: fx.Node) -> fx.Node | None:
    """As the transpose of a transpose, if its rows are short and many."""
    _, rows, columns = _shape(product)
    if rows < SHORT or columns >= SHORT:
        return None
    factors: tuple[Any, ...] = product.args
    left, right = (_call(_aten.transpose.int, factor, 1, 2) for factor in factors)
    return _call(_aten.transpose.int, _call(_aten.bmm.default, right, left), 1, 2)


def _summed(total: fx.Node) -> fx.Node | None:
    """A sum over tasks, a meta-weight's gradient, with the products in it as one each of all tasks' rows."""
    is_over_tasks = total.args[1:] == ([0], True) and not total.kwargs
    return _over_tasks(total.args[0]) if is_over_tasks else None


def _over_tasks(node: Any) -> fx.Node:
    """[T, ...] → [1, ...]."""
    if len(node.users) == 1 and not node.kwargs:
        match node.target, node.args:
            case _aten.add.Tensor, (fx.Node() as left, fx.Node() as right) if _shape(left) == _shape(right):
                return _call(_aten.add.Tensor, _over_tasks(left), _over_tasks(right))
            case _aten.permute.default, (rows, [0, *_] as axes):
                return _call(_aten.permute.default, _over_tasks(rows), axes)
            case _aten.view.default, (rows, [tasks, *shape]) if tasks == _shape(rows)[0]:
                return _call(_aten.reshape.default, _over_tasks(rows), [1, *shape])
            case _polyshot.products.default, (left, right):
                return _call(_polyshot.products.default, _side_by_side(left), _side_by_side(right))
    return _call(_aten.sum.dim_IntList, node, [0], True)


def _side_by_side(factor: fx.Node) -> fx.Node:
    """[T, R, K] → [1, R, T·K], without a copy of what is the transpose of rows."""
    rows = _call(_aten.reshape.default, _call(_aten.transpose.int, factor, 1, 2), [1, -1, _shape(factor)[1]])
    return _call(_aten.transpose.int, rows, 1, 2)


def _shape(node: fx.Node) -> torch.Size:
    return node.meta["val"].shape

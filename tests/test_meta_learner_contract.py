"""What every meta-learner promises; a new one is tested by its line in LEARNERS, an option by one in OPTIONS."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers_meta import convolutions, mlp, pictures, start, waves
from helpers_meta import learner as learner_of_kind
from torch import Tensor, nn
from torch.func import functional_call

from polyshot.errors import StudyError
from polyshot.meta.engines.vectorised import VectorisedEngine
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners import LEARNERS, Learner, build_learner
from polyshot.meta.learners.base import by_autograd
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import CrossEntropy, SquaredError
from polyshot.study.meta import Meta


def batch_mlp() -> FewShotNetwork:
    return mlp("batch")


OPTIONS = {
    "maml with lora": ("maml", {"adapts": "lora", "rank": 2}),
    "maml with adapters": ("maml", {"adapts": "adapters", "rank": 2}),
    "maml with a norm per step": ("maml", {"per_step_norm": True}),
    "maml with a zero head": ("maml", {"zero_head": True, "per_step_rates": True}),
    "anil with a zero head": ("anil", {"zero_head": True, "rate": 1.0}),
}
REGRESSION = [kind for kind in (*LEARNERS, *OPTIONS) if kind != "protonet"]
CASES = [(kind, batch_mlp if "norm" in kind else mlp, waves) for kind in REGRESSION]
CASES += [(kind, convolutions, pictures) for kind in (*LEARNERS, *OPTIONS)]
NAMES = [f"{kind}-{make.__name__}" for kind, make, _ in CASES]
cases = pytest.mark.parametrize(("kind", "make", "episodes_of"), CASES, ids=NAMES)


def learner(kind: str, *arguments: Any, **options: Any) -> Learner:
    kind, own = OPTIONS.get(kind, (kind, {}))
    return learner_of_kind(kind, *arguments, **own, **options)


def gradient(made: Learner, episodes: Episodes, flat: Tensor | None = None) -> tuple[Tensor, Tensor]:
    layout, around = start(made)
    engine = VectorisedEngine(made, layout, compile="never", note=pytest.fail)
    return engine.gradient(around if flat is None else flat, episodes, 0.3, 1)


def some(episodes: Episodes, tasks: list[int]) -> Episodes:
    return Episodes(*(None if part is None else part[tasks] for part in episodes.parts()))


@cases
def test_the_meta_gradient_is_the_derivative_of_the_meta_loss(kind, make, episodes_of) -> None:
    made, episodes = learner(kind, make()), episodes_of()
    if getattr(made, "first_order", False):  # leaves derivatives out, as its paper does, until there is no step
        made.steps = 0
    _, flat = start(made)
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(5), dtype=flat.dtype)
    slope = gradient(made, episodes, flat)[1] @ direction
    small = 1e-6
    ahead, behind = (gradient(made, episodes, flat + sign * small * direction)[0] for sign in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * small), rtol=1e-4, atol=1e-7)


@cases
def test_tasks_do_not_touch_each_other(kind, make, episodes_of) -> None:
    made, episodes = learner(kind, make()), episodes_of()
    loss, together = gradient(made, episodes)
    apart = [gradient(made, some(episodes, [task])) for task in range(len(episodes))]
    torch.testing.assert_close(torch.stack([one for _, one in apart]).mean(0), together, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(torch.stack([one for one, _ in apart]).mean(), loss)


@cases
def test_the_order_of_support_rows_is_of_no_account(kind, make, episodes_of) -> None:
    made, episodes = learner(kind, make()), episodes_of()
    order = torch.randperm(episodes.support.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = replace(episodes, support=episodes.support[:, order], support_labels=episodes.support_labels[:, order])
    torch.testing.assert_close(gradient(made, shuffled)[1], gradient(made, episodes)[1], rtol=1e-8, atol=1e-10)


@cases
def test_meta_training_serves_the_query_rows(kind, make, episodes_of) -> None:
    made, episodes = learner(kind, make()), episodes_of()
    layout, flat = start(made)
    differentiate = by_autograd(create_graph=False)

    def query_loss(flat: Tensor) -> float:
        weights = layout.split(flat)
        adapted = made.adapt(weights, episodes.support, episodes.support_labels, 2, differentiate)[-1]
        outputs = made.outputs(weights, adapted, episodes.query)
        return made.objective.losses(outputs, episodes.query_labels).mean().item()

    before = query_loss(flat)
    optimiser = torch.optim.Adam([moving := flat.clone().requires_grad_()], lr=0.01)
    for _ in range(25):
        moving.grad = gradient(made, episodes, moving)[1]
        optimiser.step()
    assert query_loss(moving.detach()) < 0.9 * before


@cases
def test_the_head_of_an_adapted_state_is_linear_in_its_features(kind, make, episodes_of) -> None:
    made, episodes = learner(kind, make()), episodes_of()
    layout, flat = start(made)
    weights = layout.split(flat)
    adapted = made.adapt(weights, episodes.support, episodes.support_labels, 2, by_autograd(create_graph=False))[-1]
    body = {f"body.{name}": value for name, value in made.body(weights, adapted).items()}
    weight, bias = made.linear(weights, adapted)
    features = made.forward_pass(body, episodes.query)
    linear = features @ weight.transpose(1, 2) + bias.unsqueeze(1)
    outputs = made.outputs(weights, adapted, episodes.query)
    if made.objective.higher_is_better:  # logits, up to what all classes have in common
        linear, outputs = linear.log_softmax(2), outputs.log_softmax(2)
    torch.testing.assert_close(linear, outputs, rtol=1e-8, atol=1e-8)


# --- each one's own ---------------------------------------------------------------------------------------------------


def test_prototypes_of_numbers_are_refused() -> None:
    with pytest.raises(StudyError, match="ridge"):
        learner("protonet", mlp(), SquaredError())


def test_the_ridge_solution_is_that_of_the_normal_equations() -> None:
    made, episodes = learner("ridge", mlp(), penalty=0.5), waves()
    weights = made.weights()
    solution = made.adapt(weights, episodes.support, episodes.support_labels, 0, by_autograd(create_graph=False))[0]
    features = made.forward_pass(weights, episodes.support)
    features = torch.cat([features, torch.ones_like(features[..., :1])], 2)
    normal = features.mT @ features + 0.5 * torch.eye(7, dtype=torch.float64)
    expected = torch.linalg.solve(normal, features.mT @ episodes.support_labels.unsqueeze(2))
    torch.testing.assert_close(solution["solution"], expected)


def test_step_sizes_of_their_own_change_nothing_at_the_start() -> None:
    plain, own = (learner("maml", mlp(), per_step_rates=rates) for rates in (False, True))
    theirs = gradient(plain, waves(), start(plain)[0].join(plain.weights()))[1]
    layout = start(own)[0]
    ours = layout.split(gradient(own, waves(), layout.join(own.weights()))[1])
    torch.testing.assert_close(torch.cat([ours[name].flatten() for name in plain.weights()]), theirs)
    assert all(value.shape == (2,) for name, value in ours.items() if name.startswith("rates."))


def test_the_losses_of_early_steps_lose_their_weight_or_keep_it() -> None:
    made, plain, kept = (learner("maml", mlp(), multi_step_loss=option) for option in (True, False, "equal"))
    layout, flat = start(made)
    engine = VectorisedEngine(made, layout, compile="never", note=pytest.fail)
    weights = layout.split(flat)
    differentiate = by_autograd(create_graph=False)
    trajectory = made.adapt(weights, waves().support, waves().support_labels, 2, differentiate)
    first, last = (made.query_losses(weights, trajectory[step], waves()).mean() for step in (1, 2))
    torch.testing.assert_close(engine.gradient(flat, waves(), 0.0, 1)[0], (first + last) / 2)
    torch.testing.assert_close(engine.gradient(flat, waves(), 0.25, 1)[0], 0.25 * first + 0.75 * last)
    torch.testing.assert_close(engine.gradient(flat, waves(), 0.5, 1)[1], gradient(plain, waves(), flat)[1])
    engine = VectorisedEngine(kept, layout, compile="never", note=pytest.fail)
    torch.testing.assert_close(engine.gradient(flat, waves(), 0.5, 1)[0], (first + last) / 2)


@pytest.mark.parametrize("kind", ["lora", "adapters"])
def test_inserts_change_nothing_at_first_and_are_all_of_the_body_that_a_task_changes(kind: str) -> None:
    network = mlp()
    made = learner("maml", network, adapts=kind, rank=2)
    torch.testing.assert_close(made.network(waves().query), network(waves().query))
    layout, flat = start(made)
    weights, differentiate = layout.split(flat), by_autograd(create_graph=False)
    adapted = made.adapt(weights, waves().support, waves().support_labels, 2, differentiate)[-1]
    assert set(adapted) == {"head.weight", "head.bias"} | {
        f"body.{layer}.{factor}" for layer in (0, 3) for factor in ("down", "up")
    }
    assert all((value[0] != value[1]).any() for value in adapted.values())


def test_a_head_of_zeros_cannot_tell_classes_apart_and_does_not_mind_their_order() -> None:
    made, episodes = learner("maml", convolutions(), zero_head=True), pictures()
    layout, flat = start(made)
    weights, differentiate = layout.split(flat), by_autograd(create_graph=False)
    assert not any(name.startswith("head.") for name in weights)
    before, *_, after = made.adapt(weights, episodes.support, episodes.support_labels, 2, differentiate)
    assert not made.outputs(weights, before, episodes.query).any()
    others = (episodes.support_labels + 1) % 3
    turned = made.adapt(weights, episodes.support, others, 2, differentiate)[-1]
    expected = made.outputs(weights, after, episodes.query).roll(1, 2)
    torch.testing.assert_close(made.outputs(weights, turned, episodes.query), expected)


def test_a_first_step_from_zeros_is_as_large_for_any_number_of_classes() -> None:
    """By hand: each class's weights are those of its rows' features less what the mean of all asks for."""
    ways, episodes = 6, pictures(ways=6)
    section = Meta.model_validate({"learner": {"kind": "anil", "zero_head": True, "rate": 0.1, "steps": 1}}).learner
    made = build_learner(section, convolutions(ways=ways), CrossEntropy(), ways=3)
    weights = made.weights()
    stepped = made.adapt(weights, episodes.support, episodes.support_labels, 1, by_autograd(create_graph=False))[-1]
    features = made.forward_pass(weights, episodes.support)
    own = nn.functional.one_hot(episodes.support_labels).double()
    asked = (own - 1 / ways).mT @ features / episodes.support.shape[1]
    torch.testing.assert_close(stepped["head.weight"], 0.1 * ways / 3 * asked)


# --- a norm per step -------------------------------------------------------------------------------------------------


def per_step_norm(steps: int = 2) -> tuple[Learner, dict[str, Tensor]]:
    """A learner, and weights whose norms differ from step to step."""
    made = learner("maml", convolutions(), per_step_norm=True, steps=steps)
    layout, flat = start(made)
    return made, layout.split(flat + 0.1 * torch.rand(flat.shape, generator=torch.Generator().manual_seed(7)))


def test_every_step_is_normalised_by_its_own_scale_and_shift() -> None:
    made, weights = per_step_norm()
    weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
    names = [name for name, _ in made.network.named_parameters()]
    norms = [name for name in names if f"norms.{name}" in weights]
    assert len(norms) == 4  # a scale and a shift of two layers
    losses, episodes = [], pictures()
    for support, labels, query, query_labels in zip(*episodes.parts()[:4], strict=True):
        fast = {name: weights[name] for name in names if name not in norms}

        def loss(fast: dict[str, Tensor], step: int, rows: Tensor, of_rows: Tensor) -> Tensor:
            own = {name: weights[f"norms.{name}"][step] for name in norms}
            return nn.functional.cross_entropy(functional_call(made.network, fast | own, (rows,)), of_rows)

        for step in range(2):
            gradients = torch.autograd.grad(loss(fast, step, support, labels), list(fast.values()), create_graph=True)
            fast = {name: value - 0.1 * each for (name, value), each in zip(fast.items(), gradients, strict=True)}
        losses.append(loss(fast, 1, query, query_labels))
    torch.stack(losses).mean().backward()
    layout, _ = start(made)
    value, ours = gradient(made, episodes, layout.join(weights).detach())
    torch.testing.assert_close(value, torch.stack(losses).mean().detach())
    theirs = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in weights.items()}
    torch.testing.assert_close(ours, layout.join(theirs), rtol=1e-8, atol=1e-10)


def test_statistics_of_training_tasks_are_those_that_torch_collects() -> None:
    made, weights = per_step_norm()
    calibrated = made.calibrated(weights, pictures())
    network = copy.deepcopy(made.network)
    names = [name for name, _ in network.named_parameters()]
    plain = {name: weights[f"norms.{name}"][0] if f"norms.{name}" in weights else weights[name] for name in names}
    network.load_state_dict(plain)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, module in norms.items():
        collecting = nn.BatchNorm2d(module.num_features, momentum=None).double()  # a plain mean over batches
        collecting.load_state_dict(dict(module.named_parameters()), strict=False)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, collecting)
    for query in pictures().query:
        network.train()(query)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            assert calibrated[f"norms.{name}"].shape == (3, *value.shape)  # after 0, 1 and 2 steps
            torch.testing.assert_close(calibrated[f"norms.{name}"][0], value)


def test_with_the_statistics_of_training_tasks_a_row_is_judged_by_itself() -> None:
    made, weights = per_step_norm()
    for known, agrees in ((made.calibrated(weights, pictures()), True), (weights, False)):
        support, labels = pictures().support, pictures().support_labels
        for adapted in made.adapt(known, support, labels, 4, by_autograd(create_graph=False)):
            together = made.outputs(known, adapted, pictures().query)
            alone = made.outputs(known, adapted, pictures().query[:, :2])
            assert torch.allclose(together[:, :2], alone) is agrees


def test_a_norm_per_step_needs_a_network_that_has_one() -> None:
    with pytest.raises(StudyError, match="per_step_norm"):
        learner("maml", mlp(), per_step_norm=True)

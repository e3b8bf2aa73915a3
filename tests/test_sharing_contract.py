"""Every sharing scheme, with every mix of kinds: shapes, gradients, isolation, state, seeds, the paper's equation."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers_training import make_prepared, make_study
from torch import nn

from polyshot.data.targets import Target
from polyshot.errors import StudyError
from polyshot.models.encoders.factory import EncoderFactory
from polyshot.models.multitask import MultiTaskModel, build_model
from polyshot.models.sharing import build_sharing
from polyshot.models.stacking import Rows, StackedLinear
from polyshot.study import Study
from polyshot.training.loop import TrainingRun

INPUTS, WIDTH, ROWS = 5, 8, 7

# One entry per scheme: its settings, with more than one of everything.
SCHEMES: dict[str, dict[str, object]] = {
    "hard": {},
    "soft": {"strength": 0.1},
    "cross_stitch": {"own_share": 0.7},
    "hierarchical": {},  # depths name the tasks of the mix
    "grouped": {},  # groups name them too
    "attention": {},
    "mmoe": {"experts": 3},
    "cgc": {"shared_experts": 2, "task_experts": 2},
    "ple": {"levels": 3, "shared_experts": 2, "task_experts": 2},
}
MIXES = {  # number of classes; 1 is regression
    "regression": [1, 1, 1],
    "binary": [2, 2],
    "multiclass": [4, 3, 4],
    "all": [1, 3, 2, 1, 4, 3, 2],
}
LAYERED = ["cross_stitch", "hierarchical", "attention", "ple"]
PLAIN_WHEN_ALONE = ["hard", "soft", "cross_stitch", "hierarchical", "grouped"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors here are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
every_pair = pytest.mark.parametrize(("scheme", "mix"), list(itertools.product(SCHEMES, MIXES)))


def make(scheme: str, classes: list[int], seed: int = 0, **encoder: object) -> tuple[Study, MultiTaskModel]:
    kinds = {1: "regression", 2: "binary"}
    tasks = {f"t{place}": {"kind": kinds.get(count, "multiclass")} for place, count in enumerate(classes)}
    settings = {"kind": scheme, **SCHEMES[scheme]}
    if scheme == "hierarchical":
        settings["depths"] = {"t0": 1} if len(classes) == 1 else {f"t{i}": 1 + i % 2 for i in range(len(classes) - 1)}
    if scheme == "grouped":  # the first task alone, the others in turn in two groups
        names = list(tasks)
        settings["groups"] = [group for group in ([names[0]], names[1::2], names[2::2]) if group]
    values = {
        "name": "test",
        "seed": seed,
        "data": {"source": "rows.csv"},
        "tasks": tasks,
        "model": {"encoder": {"width": WIDTH, "depth": 3} | encoder, "sharing": settings},
    }
    targets = [
        Target(name, tasks[name]["kind"], name, None if count == 1 else [f"c{i}" for i in range(count)])
        for name, count in zip(tasks, classes, strict=True)
    ]
    study = Study.from_dict(values)
    return study, build_model(study, INPUTS, targets).double()


def features(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# --- the model's side of the contract --------------------------------------------------------------------------------


@every_pair
def test_outputs_have_a_column_per_output_and_a_representation_per_task(scheme, mix):
    _, model = make(scheme, MIXES[mix])
    outputs, representation = model(features()), model.representation(features())
    assert outputs.shape == (ROWS, sum(1 if count == 2 else count for count in MIXES[mix]))
    assert representation.shape in {(ROWS, WIDTH), (len(MIXES[mix]), ROWS, WIDTH)}
    torch.testing.assert_close(model.heads(representation), outputs)


@every_pair
def test_outputs_are_those_of_the_papers_equation_written_as_a_loop(scheme, mix):
    study, model = make(scheme, MIXES[mix])
    outputs = model(features())
    for task, representation in enumerate(REFERENCES[scheme](model.sharing, features(), study)):
        rows = model.layout.columns[task]
        expected = F.linear(representation, model.heads.linear.weight[rows], model.heads.linear.bias[rows])
        torch.testing.assert_close(outputs[:, rows], expected, rtol=0, atol=1e-12)


@every_pair
def test_every_parameter_gets_a_gradient_from_the_tasks_together(scheme, mix):
    _, model = make(scheme, MIXES[mix], activation="tanh")
    model(features()).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@every_pair
def test_a_tasks_loss_reaches_the_shared_parameters_and_its_own_and_no_others(scheme, mix):
    _, model = make(scheme, MIXES[mix], activation="tanh")
    tasks = range(len(MIXES[mix]))
    shared = model.shared_parameters()
    reached = [0] * len(shared)
    for task in tasks:
        model.zero_grad(set_to_none=True)
        model(features())[:, model.layout.columns[task]].square().sum().backward()
        for other in tasks:
            touched = [_gradient(part) for part in model.task_parameters(other)]
            if other == task:
                assert all(gradient is not None and gradient.any() for gradient in touched)
            else:
                assert not any(gradient is not None and gradient.any() for gradient in touched)
        reached = [count + bool(p.grad is not None and p.grad.any()) for count, p in zip(reached, shared, strict=True)]
    assert all(count > 1 for count in reached), "a parameter that is said to be shared is one task's own"


def _gradient(part: Rows) -> torch.Tensor | None:
    return None if part.parameter.grad is None else part.parameter.grad[part.rows]


@every_scheme
def test_every_parameter_is_either_shared_or_divided_among_tasks(scheme):
    _, model = make(scheme, MIXES["all"])
    counts = {id(p): torch.zeros_like(p) for p in model.parameters()}
    for part in itertools.chain(*(model.task_parameters(task) for task in range(len(MIXES["all"])))):
        counts[id(part.parameter)][part.rows] += 1
    for p in model.shared_parameters():
        counts[id(p)] += 1
    assert all((count == 1).all() for count in counts.values())


@every_scheme
def test_saved_weights_make_another_model_the_same(scheme):
    encoder = {"normalisation": "batch", "dropout": 0.5}
    (_, model), (_, other) = make(scheme, [1, 3, 2], **encoder), make(scheme, [1, 3, 2], seed=1, **encoder)
    model(features(50))  # batch normalisation learns its statistics
    model.eval(), other.eval()
    assert not torch.allclose(model(features()), other(features()))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(features()), other(features()))


@every_scheme
def test_a_model_predicts_the_same_each_time_and_a_row_alone_as_among_others(scheme):
    _, model = make(scheme, [1, 3, 2], normalisation="batch", dropout=0.5)
    model(features(50))
    model.eval()
    assert torch.equal(model(features()), model(features()))
    torch.testing.assert_close(model(features()[2:3]), model(features())[2:3])


@every_scheme
def test_the_seed_decides_the_weights_and_the_callers_random_state_is_left_alone(scheme):
    before = torch.get_rng_state()
    (_, model), (_, same), (_, other) = make(scheme, [1, 2]), make(scheme, [1, 2]), make(scheme, [1, 2], seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(features()), same(features()))
    assert not torch.allclose(model(features()), other(features()))


@pytest.mark.parametrize("scheme", PLAIN_WHEN_ALONE)
def test_one_task_alone_is_a_plain_network(scheme):
    depth = 1 if scheme == "hierarchical" else 3
    (_, model), (_, plain) = make(scheme, [3], depth=depth), make("hard", [3], depth=depth)
    torch.testing.assert_close(model(features()), plain(features()), rtol=0, atol=1e-12)
    assert model.penalty() == 0


@every_scheme
def test_weights_start_as_those_of_linear_layers_alone(scheme):
    """Uniform within ±1/√inputs: the layers of one task, expert or gate do not know how many stand beside them."""
    _, model = make(scheme, [1] * 6, width=64)
    layers = [m for m in model.modules() if isinstance(m, StackedLinear | nn.Linear)]
    for layer in layers:
        bound = layer.weight.shape[-1] ** -0.5
        weight = layer.weight.detach()
        assert 0.8 * bound < weight.abs().max() < 1.0001 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


@every_scheme
def test_a_real_run_brings_the_loss_down_and_resumes_exactly(scheme):
    values = {"model.sharing.kind": scheme, "training.epochs": 3, "training.optimiser.learning_rate": 0.02}
    if scheme == "hierarchical":
        values["model.sharing.depths.price"] = 1
    if scheme == "grouped":
        values["model.sharing.groups"] = [["sold"], ["region", "price"]]
    study = make_study(values)
    prepared = make_prepared(study)
    run = TrainingRun(study, prepared)
    losses = [epoch.metrics["train/loss"] for epoch in run.epochs()]
    assert losses[-1] < 0.8 * losses[0]

    first_half = TrainingRun(study, prepared)
    steps = first_half.epochs()
    next(steps)
    resumed = TrainingRun(study, prepared)
    resumed.load_state_dict(first_half.state_dict())
    assert [epoch.metrics["train/loss"] for epoch in resumed.epochs()] == losses[1:]


# --- reference implementations: the papers' equations, one task, one expert, one layer at a time ----------------------


def linear(module: nn.Module, copy: int, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, module.weight[copy], None if module.bias is None else module.bias[copy])


def layers(stacked: nn.Module) -> list[StackedLinear]:
    return [module for module in stacked.modules() if isinstance(module, StackedLinear)]


def expert(stacked: nn.Module, copy: int, x: torch.Tensor) -> torch.Tensor:
    for layer in layers(stacked):
        x = F.relu(linear(layer, copy, x))
    return x


def gated(gate: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
    return sum(gate[:, place, None] * output for place, output in enumerate(experts))


def reference_hard(sharing, x, study):
    for block in sharing.encoder.blocks:
        x = F.relu(F.linear(x, block[0].weight, block[0].bias))
    return [x for _ in study.tasks]


def reference_soft(sharing, x, study):
    return [expert(sharing.encoders, task, x) for task, _ in enumerate(study.tasks)]


def reference_cross_stitch(sharing, x, study):
    tasks = range(len(study.tasks))
    values = [x for _ in tasks]
    for number, layer in enumerate(sharing.layers):
        own = [expert(layer, task, values[task]) for task in tasks]
        values = [sum(sharing.stitches[number, task, other] * own[other] for other in tasks) for task in tasks]
    return values


def reference_hierarchical(sharing, x, study):
    read = [x := F.relu(F.linear(x, block[0].weight, block[0].bias)) for block in sharing.layers]
    return [read[study.model.sharing.depths.get(task, 3) - 1] for task in study.tasks]


def reference_grouped(sharing, x, study):
    """In the order of the model: groups of several tasks, then of one."""
    groups = sorted(study.model.sharing.groups, key=lambda group: len(group) == 1)
    copies = [(stacked, copy) for stacked in sharing.encoders for copy in range(stacked.copies)]
    read = {task: expert(*copies[place], x) for place, group in enumerate(groups) for task in group}
    return [read[task] for task in study.tasks]


def reference_attention(sharing, x, study):
    representations = []
    for task, _ in enumerate(study.tasks):
        shared, masked = x, None
        for block, mask in zip(sharing.layers, sharing.masks, strict=True):
            read = shared
            shared = F.relu(F.linear(shared, block[0].weight, block[0].bias))
            if masked is not None:
                read = torch.cat([read, F.relu(linear(mask["f"], task, masked))], 1)
            masked = torch.sigmoid(linear(mask["h"], task, F.relu(linear(mask["g"], task, read)))) * shared
        representations.append(masked)
    return representations


def reference_mmoe(sharing, x, study):
    experts = [expert(sharing.experts, number, x) for number in range(study.model.sharing.experts)]
    return [gated(linear(sharing.gates, task, x).softmax(1), experts) for task, _ in enumerate(study.tasks)]


def extraction(level, for_tasks, for_shared, settings):
    """The own experts of every task, the shared experts, and every task's mixture of its own and the shared."""
    shared = [expert(level.shared_experts, number, for_shared) for number in range(settings.shared_experts)]
    own = [
        [expert(level.own_experts, task * settings.task_experts + number, x) for number in range(settings.task_experts)]
        for task, x in enumerate(for_tasks)
    ]
    mixtures = [
        gated(linear(level.gates, task, x).softmax(1), [*own[task], *shared]) for task, x in enumerate(for_tasks)
    ]
    return own, shared, mixtures


def reference_cgc(sharing, x, study):
    return extraction(sharing.extraction, [x for _ in study.tasks], x, study.model.sharing)[2]


def reference_ple(sharing, x, study):
    for_tasks, for_shared = [x for _ in study.tasks], x
    for number, level in enumerate(sharing.levels):
        own, shared, for_tasks = extraction(level, for_tasks, for_shared, study.model.sharing)
        if number < len(sharing.shared_gates):
            gate = F.linear(for_shared, sharing.shared_gates[number].weight).softmax(1)
            for_shared = gated(gate, [*itertools.chain(*own), *shared])
    return for_tasks


REFERENCES = {
    "hard": reference_hard,
    "soft": reference_soft,
    "cross_stitch": reference_cross_stitch,
    "hierarchical": reference_hierarchical,
    "grouped": reference_grouped,
    "attention": reference_attention,
    "mmoe": reference_mmoe,
    "cgc": reference_cgc,
    "ple": reference_ple,
}


# --- encoders of other kinds -----------------------------------------------------------------------------------------


class Tapered(nn.Module):
    """Layers of three widths, one with a part that cannot be batched."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs = 4
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(INPUTS, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True)),
                nn.Sequential(nn.Linear(6, 6), nn.PReLU()),
                nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)),
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Residual(Tapered):
    """Has `blocks`, and is more than their chain."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks[0](x)
        return self.blocks[2](x + self.blocks[1](x))


class NoisyInTraining(Tapered):
    """Is the chain of its blocks after training only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.randn_like(x) if self.training else x)


def scheme_of(scheme: str, encoder: type[nn.Module]) -> nn.Module:
    study, _ = make(scheme, [1, 3, 2])
    torch.manual_seed(0)
    factory = EncoderFactory(encoder, INPUTS, "nets:Mine")
    return build_sharing(study.model.sharing, list(study.tasks), factory).double()


@every_scheme
def test_a_layered_encoder_of_the_users_works_with_every_scheme(scheme):
    if scheme == "hierarchical":  # tasks at layers of width 6 and 4
        with pytest.raises(StudyError, match=r"model.sharing.depths: .* one width .*6 at layer 1, .*4 at layer 3"):
            scheme_of(scheme, Tapered)
        return
    sharing = scheme_of(scheme, Tapered)
    representation = sharing(features())
    representation = representation if isinstance(representation, torch.Tensor) else representation.mixed()
    representation.square().sum().backward()
    assert sharing.outputs == representation.shape[-1] == 4
    assert all(p.grad is not None for p in sharing.parameters())


@every_scheme
@pytest.mark.parametrize("encoder", [Residual, NoisyInTraining])
def test_an_encoder_without_layers_works_or_is_told_how_to_say_them(scheme, encoder):
    if scheme in LAYERED:
        with pytest.raises(StudyError, match=rf"model.sharing.kind: '{scheme}'.*'nets:Mine'.*'blocks'.*or choose hard"):
            scheme_of(scheme, encoder)
    else:
        representation = scheme_of(scheme, encoder).eval()(features())
        tensor = representation if isinstance(representation, torch.Tensor) else representation.mixed()
        assert tensor.shape[-1] == 4


@pytest.mark.parametrize(("scheme", "place"), [("ple", "levels"), ("hierarchical", "depths")])
def test_more_layers_than_the_users_encoder_has_are_refused(scheme, place):
    study, _ = make(scheme, [1, 3, 2], depth=9)
    asked = {"model.sharing.levels": 7} if scheme == "ple" else {"model.sharing.depths.t0": 7}
    changed = study.with_values(asked)
    with pytest.raises(StudyError, match=rf"model.sharing.{place}: .*7.* 3"):
        build_sharing(changed.model.sharing, list(changed.tasks), EncoderFactory(Tapered, INPUTS, "nets:Mine"))

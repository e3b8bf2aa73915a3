"""The vectorised engine computes learn2learn's meta-gradient, whatever the network, the order and the steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_meta import convolutions, learner, mlp, pictures, start, waves
from torch import Tensor, fx, nn

from polyshot.errors import StudyError
from polyshot.meta.engines import Engine, build_engine
from polyshot.meta.engines.learn2learn import Learn2LearnEngine
from polyshot.meta.engines.vectorised import VectorisedEngine
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners import Learner
from polyshot.meta.learners.base import Differentiate
from polyshot.meta.learners.maml import MAML
from polyshot.meta.networks import FewShotNetwork
from polyshot.meta.objectives import SquaredError
from polyshot.meta.stacked import Weights


def engine(made: Learner, kind: str, compiled: str = "never", notes: list[str] | None = None) -> Engine:
    said = notes if notes is not None else []
    return build_engine(made, start(made)[0], engine=kind, compile=compiled, note=said.append)


def both(made: Learner, episodes: Episodes) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    flat = start(made)[1]
    return tuple(engine(made, kind).gradient(flat, episodes, 0.0, 1) for kind in ("vectorised", "learn2learn"))


def assert_same_gradient(made: Learner, episodes: Episodes) -> None:
    (loss, gradient), (their_loss, theirs) = both(made, episodes)
    assert theirs.abs().max() > 1e-4
    torch.testing.assert_close(gradient, theirs, rtol=1e-8, atol=1e-8 * theirs.abs().max().item())
    torch.testing.assert_close(loss, their_loss, rtol=1e-10, atol=0)


NETWORKS = {
    "mlp": (mlp, waves),
    "mlp with batch norm": (lambda: mlp("batch"), waves),
    "mlp with layer norm": (lambda: mlp("layer"), waves),
    "cnn with strides": (lambda: convolutions("stride"), pictures),
    "cnn with pooling": (lambda: convolutions("max_pool"), pictures),
}


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", ["maml", "first_order_maml"])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_meta_gradient_is_that_of_learn2learn(network: str, kind: str, steps: int) -> None:
    make, episodes = NETWORKS[network]
    assert_same_gradient(learner(kind, make(), steps=steps), episodes())


@pytest.mark.parametrize("steps", [1, 2])
def test_wide_convolutions_in_single_precision_have_the_meta_gradient_of_learn2learn(steps: int) -> None:
    """Wide enough for the products that are only used in single precision; the reference is in double."""
    episodes = pictures(ways=5, shots=3, size=16)
    reference = learner("maml", convolutions(size=16, width=48, ways=5), steps=steps)
    flat = start(reference)[1]
    loss, theirs = engine(reference, "learn2learn").gradient(flat, episodes, 0.0, 1)
    assert theirs.abs().max() > 1e-2

    made = learner("maml", convolutions(size=16, width=48, ways=5).float(), steps=steps)
    single = Episodes(
        *(part.float() if part is not None and part.is_floating_point() else part for part in episodes.parts())
    )
    own_loss, gradient = engine(made, "vectorised").gradient(flat.float(), single, 0.0, 1)
    torch.testing.assert_close(own_loss.double(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("kind", ["anil", "meta_sgd", "meta_curvature", "reptile"])
@pytest.mark.parametrize("network", ["mlp with batch norm", "cnn with strides"])
def test_relatives_of_maml_have_the_meta_gradient_of_learn2learn(network: str, kind: str) -> None:
    make, episodes = NETWORKS[network]
    assert_same_gradient(learner(kind, make()), episodes())


@pytest.mark.parametrize("adapts", ["head", "adapters", "lora"])
@pytest.mark.parametrize("kind", ["maml", "first_order_maml", "meta_sgd", "meta_curvature"])
@pytest.mark.parametrize("network", ["mlp with batch norm", "cnn with strides"])
def test_what_adapts_a_part_of_the_network_has_the_meta_gradient_of_learn2learn(
    network: str, kind: str, adapts: str
) -> None:
    make, episodes = NETWORKS[network]
    assert_same_gradient(learner(kind, make(), adapts=adapts, rank=2), episodes())


@pytest.mark.parametrize("kind", ["maml", "first_order_maml", "anil"])
@pytest.mark.parametrize("network", ["mlp with batch norm", "cnn with strides"])
def test_what_begins_with_a_head_of_zeros_has_the_meta_gradient_of_learn2learn(network: str, kind: str) -> None:
    make, episodes = NETWORKS[network]
    assert_same_gradient(learner(kind, make(), zero_head=True), episodes())


@pytest.mark.parametrize("adapts", ["adapters", "lora"])
def test_inserts_work_in_networks_that_are_no_chain_of_known_layers(adapts: str) -> None:
    torch.manual_seed(0)
    network = FewShotNetwork(Residual(normalise=False), nn.Linear(6, 1)).double()
    assert_same_gradient(learner("maml", network, adapts=adapts, rank=2), waves())


def test_protonets_have_the_meta_gradient_of_learn2learn() -> None:
    assert_same_gradient(learner("protonet", convolutions()), pictures())


def test_rows_that_fill_up_an_episode_do_not_count() -> None:
    episodes = waves()
    mask = torch.ones_like(episodes.query_labels, dtype=torch.bool)
    mask[0, 2:] = mask[2, 3:] = False
    masked = replace(episodes, query_mask=mask)
    assert_same_gradient(learner("maml", mlp()), masked)
    gradients = []
    for value in (0.0, 100.0):
        labels = torch.where(mask, episodes.query_labels, value)
        gradients.append(both(learner("maml", mlp()), replace(masked, query_labels=labels))[0][1])
    assert torch.equal(*gradients)


class Residual(nn.Module):
    """A network of a user's that is no chain of layers."""

    def __init__(self, normalise: bool):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 6), nn.Linear(6, 6)
        self.normalise = nn.BatchNorm1d(6) if normalise else nn.Identity()

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(rows))
        return hidden + torch.tanh(self.normalise(self.outer(hidden)))


@pytest.mark.parametrize(("normalise", "way"), [(False, "vmap"), (True, "loop")])
@pytest.mark.parametrize("kind", ["maml", "anil"])
def test_networks_that_are_no_chain_of_known_layers_have_the_same_gradient(
    kind: str, normalise: bool, way: str
) -> None:
    torch.manual_seed(0)
    made = learner(kind, FewShotNetwork(Residual(normalise), nn.Linear(6, 1)).double())
    assert made.forward_pass.way == way
    assert_same_gradient(made, waves())


class Viewed(nn.Module):
    """A network of a user's that relies on where the numbers of its layers lie."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.tanh(self.outer(torch.tanh(self.inner(rows)))).view(len(rows), -1)


def test_convolutions_of_networks_of_a_users_lie_as_torch_has_them() -> None:
    torch.manual_seed(0)
    made = learner("maml", FewShotNetwork(Viewed(), nn.Linear(4 * 8 * 8, 3)).double())
    assert made.forward_pass.way == "vmap"
    assert_same_gradient(made, pictures())


def test_auto_leaves_what_it_cannot_vectorise_to_learn2learn_and_says_so() -> None:
    notes: list[str] = []
    network = FewShotNetwork(Residual(normalise=True), nn.Linear(6, 1)).double()
    assert isinstance(engine(learner("maml", network), "auto", notes=notes), Learn2LearnEngine)
    assert len(notes) == 1 and "learn2learn" in notes[0]
    # learn2learn has no ridge head: the loop over tasks is then the engine's own.
    assert isinstance(engine(learner("ridge", network), "auto", notes=notes), VectorisedEngine)
    assert isinstance(engine(learner("maml", mlp()), "auto", notes=notes), VectorisedEngine)
    assert len(notes) == 1


@pytest.mark.parametrize("options", [{"kind": "ridge"}, {"kind": "maml", "per_step_rates": True}])
def test_learn2learn_is_refused_where_it_has_no_such_learner(options: dict) -> None:
    with pytest.raises(StudyError, match="meta.engine"):
        engine(learner(network=mlp(), **options), "learn2learn")


RECORDED = [
    ("maml", {"steps": 1}),
    ("maml", {"steps": 5}),
    ("maml", {"per_step_rates": True, "multi_step_loss": True, "per_step_norm": True}),
    ("maml", {"zero_head": True}),
    ("first_order_maml", {"steps": 5}),
    ("meta_curvature", {}),
    ("ridge", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp with batch norm", "cnn with strides", "cnn with pooling"])
@pytest.mark.parametrize(("kind", "options"), RECORDED)
def test_what_is_recorded_for_the_compiler_holds_for_other_weights_and_rows(
    kind: str, options: dict, network: str
) -> None:
    make, episodes = NETWORKS[network]
    made, rows = learner(kind, make(), **options), episodes()
    flat, vectorised = start(made)[1], engine(made, "vectorised")
    recorded = vectorised.recorded(flat, torch.tensor(0.0, dtype=torch.float64), *rows.parts())
    others = replace(rows, support=1.1 * rows.support + 0.1, query=0.9 * rows.query - 0.1)
    found = recorded(1.1 * flat, torch.tensor(0.3, dtype=torch.float64), *others.parts())
    for one, same in zip(found, vectorised.gradient(1.1 * flat, others, 0.3, 1), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-12)


def recorded_shapes(made: Learner, episodes: Episodes, operation: Callable[..., Tensor]) -> list[tuple[int, ...]]:
    """Of the results of an operation in what is recorded, which is held to what autograd gives."""
    flat, vectorised, shapes = start(made)[1], engine(made, "vectorised"), []

    class Shapes(fx.Interpreter):
        def call_function(self, target, args, kwargs):
            found = super().call_function(target, args, kwargs)
            if target is operation:
                shapes.append(tuple(found.shape))
            return found

    arguments = flat, torch.tensor(0.0, dtype=torch.float64), *episodes.parts()
    found = Shapes(vectorised.recorded(*arguments)).run(*arguments)
    for one, same in zip(found, vectorised.gradient(flat, episodes, 0.0, 1), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-10, atol=1e-12)
    return shapes


def test_no_product_with_many_short_rows_is_recorded() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh())
    made = learner("maml", FewShotNetwork(body, nn.Linear(20, 1)).double())
    shapes = recorded_shapes(made, waves(), torch.ops.aten.bmm.default)
    assert {(3, 5, 20), (3, 20, 20)} < set(shapes) and (3, 20, 5) not in shapes and (3, 20, 2) not in shapes


@pytest.mark.parametrize(("kind", "merged"), [("first_order_maml", 1), ("maml", 2)])
def test_what_is_only_added_up_over_tasks_is_recorded_as_one_product(kind: str, merged: int) -> None:
    shapes = recorded_shapes(learner(kind, convolutions("stride")), pictures(), torch.ops.polyshot.products.default)
    assert shapes.count((1, 4, 36)) == merged and shapes.count((3, 4, 36)) > 0


class LooksAtValues(MAML):
    """A learner of a user's."""

    def loss(self, weights: Weights, episodes: Episodes, progress: Tensor, differentiate: Differentiate) -> Tensor:
        return super().loss(weights, episodes, progress, differentiate) * (1 if float(progress) < 1 else 2)


def test_what_cannot_be_recorded_is_trained_uncompiled_and_says_so() -> None:
    notes: list[str] = []
    made = LooksAtValues(mlp(), SquaredError(), rate=0.1, steps=1)
    flat, episodes = start(made)[1], waves()
    gradient = engine(made, "vectorised", "always", notes).gradient(flat, episodes, 0.0, 1)[1]
    assert torch.equal(gradient, engine(made, "vectorised").gradient(flat, episodes, 0.0, 1)[1])
    assert len(notes) == 1 and "not compiled" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["maml", "first_order_maml"])
def test_a_compiled_meta_gradient_is_the_same(kind: str) -> None:
    made = learner(kind, convolutions("stride"))
    flat, episodes, notes = start(made)[1], pictures(), []
    loss, gradient = engine(made, "vectorised").gradient(flat, episodes, 0.0, 1)
    compiled = engine(made, "vectorised", "always", notes).gradient(flat, episodes, 0.0, 1)
    assert notes == []
    torch.testing.assert_close(compiled[1], gradient, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(compiled[0], loss)


def uncompiled() -> None:
    """What the next test has a process of its own do, since torch remembers what it knows of compilers."""
    made, notes = learner("maml", mlp()), []
    flat, episodes = start(made)[1], waves()
    compiled = engine(made, "vectorised", "always", notes)
    gradients = [compiled.gradient(flat, episodes, 0.0, 1)[1] for _ in range(2)]
    assert torch.equal(gradients[0], engine(made, "vectorised").gradient(flat, episodes, 0.0, 1)[1])
    print("\n".join(notes))


def test_without_a_compiler_training_goes_on_and_says_so(tmp_path) -> None:
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import test_meta_engines; test_meta_engines.uncompiled()"],
        cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (note,) = done.stdout.strip().splitlines()
    assert "not compiled" in note


def test_compilation_waits_until_the_iterations_repay_it(monkeypatch) -> None:
    made = learner("maml", mlp())
    made_engine = engine(made, "vectorised", "auto")
    begun = []
    monkeypatch.setattr(made_engine, "_compile", lambda *_: begun.append(True) or (lambda flat, *_: (flat.sum(), flat)))
    flat, episodes = start(made)[1], waves()
    for _ in range(12):
        made_engine.gradient(flat, episodes, 0.0, 1000)  # some seconds
    assert not begun
    made_engine.gradient(flat, episodes, 0.0, 10**7)
    assert begun


def test_learn2learn_is_imported_without_its_banner() -> None:
    code = "from polyshot.meta.engines.learn2learn import library; library().algorithms.MAML"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""

"""Methods on the Gramian: one list of members with what their papers promise, held to it, to TorchJD and to hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torchjd import aggregation

from polyshot.balancing.aligned_mtl import AlignedMTL
from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.cagrad import CAGrad
from polyshot.balancing.config import ConFIG
from polyshot.balancing.dualproj import DualProj
from polyshot.balancing.fairgrad import FairGrad
from polyshot.balancing.gradnorm import GradNorm
from polyshot.balancing.gradvac import GradVac
from polyshot.balancing.imtl_g import IMTLG
from polyshot.balancing.mgda import MGDA
from polyshot.balancing.nash_mtl import NashMTL
from polyshot.balancing.pcgrad import PCGrad
from polyshot.balancing.upgrad import UPGrad


def equal(tasks: int) -> list[float]:
    return [1 / tasks] * tasks


@dataclass(frozen=True)
class Claims:
    """How a method for T tasks is made, and what its paper promises."""

    make: Callable[[int], GramianBalancer]
    is_random: bool = False
    non_conflicting: bool = False  # no task's loss rises to first order
    linear_under_scaling: bool = False  # each gradient times c_t > 0 changes Jᵀw linearly (Quinton & Rey, definition 3)
    peer: Callable[[int], aggregation.Aggregator] | None = field(default=None)


METHODS = {
    "mgda": Claims(lambda _: MGDA(), non_conflicting=True),
    "pcgrad": Claims(lambda _: PCGrad(0), is_random=True),
    "gradvac": Claims(lambda tasks: GradVac(tasks, 0), is_random=True),
    "cagrad": Claims(lambda _: CAGrad(0.5)),
    "imtl_g": Claims(lambda _: IMTLG(), peer=lambda _: aggregation.IMTLG()),
    "nash_mtl": Claims(NashMTL, non_conflicting=True),
    "aligned_mtl": Claims(lambda tasks: AlignedMTL(equal(tasks)), peer=lambda _: aggregation.AlignedMTL()),
    "aligned_mtl rmse": Claims(
        lambda tasks: AlignedMTL(equal(tasks), "rmse"), peer=lambda _: aggregation.AlignedMTL(scale_mode="rmse")
    ),
    "upgrad": Claims(lambda tasks: UPGrad(equal(tasks)), non_conflicting=True, linear_under_scaling=True),
    "fairgrad": Claims(lambda _: FairGrad(2.0), non_conflicting=True, peer=lambda _: aggregation.FairGrad(2.0)),
    "dualproj": Claims(lambda tasks: DualProj(equal(tasks)), non_conflicting=True),
    "config": Claims(lambda tasks: ConFIG([1.0] * tasks), non_conflicting=True, peer=lambda _: aggregation.ConFIG()),
}


def jacobians(tasks: int, count: int = 5) -> list[np.ndarray]:
    """[T, 40] each, of tasks at odds with one another, with gradients of different length."""
    rng = np.random.default_rng(tasks)
    found = []
    for _ in range(count):
        jacobian = rng.normal(size=(tasks, 40)) * rng.lognormal(size=(tasks, 1))
        jacobian[0] = 0.4 * jacobian[0] - 0.6 * jacobian[-1]
        found.append(jacobian)
    return found


def direction(balancer: GramianBalancer, jacobian: np.ndarray) -> np.ndarray:
    return balancer.weights(jacobian @ jacobian.T, np.ones(len(jacobian))) @ jacobian


@pytest.fixture(params=METHODS.values(), ids=METHODS.keys())
def claims(request) -> Claims:
    return request.param


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_the_order_of_tasks_changes_nothing(claims, tasks):
    if claims.is_random and tasks > 2:
        pytest.skip("depends on the order that is drawn")
    for jacobian in jacobians(tasks):
        turned = np.random.default_rng(1).permutation(tasks)
        np.testing.assert_allclose(
            direction(claims.make(tasks), jacobian[turned]), direction(claims.make(tasks), jacobian), atol=1e-7
        )


@pytest.mark.parametrize("tasks", [2, 3, 8, 30])
def test_a_non_conflicting_one_harms_no_task(claims, tasks):
    if not claims.non_conflicting:
        pytest.skip("not promised")
    for jacobian in jacobians(tasks):
        update = direction(claims.make(tasks), jacobian)
        scale = np.linalg.norm(jacobian, axis=1) * np.linalg.norm(update)
        assert (jacobian @ update >= -1e-6 * scale).all()


def test_a_linear_one_is_linear_in_the_length_of_each_gradient(claims):
    if not claims.linear_under_scaling:
        pytest.skip("not promised")
    for jacobian in jacobians(4):
        first, second = np.random.default_rng(2).uniform(0.1, 5, (2, 4, 1))
        together = direction(claims.make(4), (2 * first + 3 * second) * jacobian)
        apart = 2 * direction(claims.make(4), first * jacobian) + 3 * direction(claims.make(4), second * jacobian)
        np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_it_is_what_torchjd_computes(claims, tasks):
    if claims.peer is None:
        pytest.skip("TorchJD's is random, approximate or needs a solver")
    for jacobian in jacobians(tasks):
        theirs = claims.peer(tasks)(torch.from_numpy(jacobian)).numpy()
        np.testing.assert_allclose(direction(claims.make(tasks), jacobian), theirs, rtol=1e-6, atol=1e-8)


def test_one_task_keeps_its_direction(claims):
    jacobian = np.array([[3.0, 4.0]])
    update = direction(claims.make(1), jacobian)
    assert update[0] > 0
    assert update[1] / update[0] == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "jacobian",
    {
        "opposite": np.array([[1.0, 2.0], [-1.0, -2.0]]),
        "twice the same": np.array([[1.0, 2.0], [1.0, 2.0], [3.0, -1.0]]),
        "rank one": np.outer([1.0, -2.0, 3.0, 0.5], np.arange(1.0, 6.0)),
        "sixteen decades": np.random.default_rng(3).normal(size=(5, 9)) * np.logspace(-8, 8, 5)[:, None],
        "more tasks than parameters": np.random.default_rng(4).normal(size=(12, 3)),
    }.values(),
    ids=lambda jacobian: str(jacobian.shape),
)
def test_degenerate_gradients_give_a_finite_update(claims, jacobian):
    update = direction(claims.make(len(jacobian)), jacobian)
    assert np.isfinite(update).all()
    float32 = jacobian.astype(np.float32)  # whose Gramian need not be positive semi-definite
    weights = claims.make(len(jacobian)).weights(np.float64(float32 @ float32.T), np.ones(len(jacobian)))
    assert np.isfinite(weights).all()


def test_a_task_without_a_gradient_takes_no_part(claims):
    for jacobian in jacobians(3):
        with_it = np.insert(jacobian, 1, 0.0, axis=0)
        if claims.make(4).weights(with_it @ with_it.T, np.ones(4))[1] != 0:
            pytest.fail("a task without a gradient has a weight")
        if not claims.is_random:
            ours, expected = direction(claims.make(4), with_it), direction(claims.make(3), jacobian)
            np.testing.assert_allclose(ours / np.linalg.norm(ours), expected / np.linalg.norm(expected), atol=1e-7)
    assert (claims.make(3).weights(np.zeros((3, 3)), np.ones(3)) == 0).all()


def test_what_is_not_a_number_stays_so_and_leaves_the_state_alone(claims):
    balancer, untouched = claims.make(3), claims.make(3)
    broken = np.eye(3)
    broken[0, 1] = np.nan
    assert np.isnan(balancer.weights(broken, np.ones(3))).all()
    jacobian = jacobians(3)[0]
    np.testing.assert_array_equal(direction(balancer, jacobian), direction(untouched, jacobian))


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradVac(4, 0),
        lambda: PCGrad(0),
        lambda: NashMTL(4, every=3),
        lambda: GradNorm(4),
    ],
    ids=["gradvac", "pcgrad", "nash_mtl", "gradnorm"],
)
def test_its_state_makes_another_one_go_on_as_it_does(make, tmp_path):
    balancer, other = make(), make()
    first, *rest = jacobians(4)
    losses = iter(np.random.default_rng(5).uniform(0.5, 2, (20, 4)))
    for _ in range(2):
        balancer.weights(first @ first.T, next(losses))
    torch.save(balancer.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for jacobian in rest:
        now = next(losses)
        expected = balancer.weights(jacobian @ jacobian.T, now)
        np.testing.assert_array_equal(other.weights(jacobian @ jacobian.T, now), expected)
    fresh = make()
    assert not np.array_equal(fresh.weights(first @ first.T, np.ones(4)), expected)


# --- one by one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 3, 6])
def test_mgda_is_the_shortest_of_all_faces(tasks):
    for jacobian in jacobians(tasks):
        gramian = jacobian @ jacobian.T
        lengths = []
        for size in range(1, tasks + 1):
            for face in map(list, itertools.combinations(range(tasks), size)):
                weights = np.linalg.solve(gramian[np.ix_(face, face)], np.ones(size))
                if (weights >= 0).all():
                    lengths.append(1 / weights.sum())  # ‖Jᵀw‖² at the face's nearest point
        update = direction(MGDA(), jacobian)
        assert update @ update == pytest.approx(min(lengths), rel=1e-9)
        theirs = aggregation.MGDA(epsilon=1e-6, max_iters=1000)(torch.from_numpy(jacobian)).numpy()
        assert update @ update <= theirs @ theirs * (1 + 1e-12)


def test_mgda_of_two_tasks_is_the_closed_form():
    jacobian = np.array([[2.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(MGDA().weights(jacobian @ jacobian.T, np.ones(2)), [0.2, 0.8])
    np.testing.assert_allclose(direction(MGDA("norm"), jacobian), [0.5, 0.5])
    losses = np.array([4.0, 1.0])
    np.testing.assert_allclose(MGDA("loss").weights(jacobian @ jacobian.T, losses) @ jacobian, [0.4, 0.2])


@pytest.mark.parametrize("tasks", [2, 5, 12])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_fairgrad_solves_its_equation(tasks, alpha):
    for jacobian in jacobians(tasks):
        weights = FairGrad(alpha).weights(jacobian @ jacobian.T, np.ones(tasks))
        np.testing.assert_allclose(jacobian @ jacobian.T @ weights, weights ** (-1 / alpha), rtol=1e-8)


def test_nash_solves_its_equation_and_bounds_the_update():
    for jacobian in jacobians(8):
        gramian = jacobian @ jacobian.T / np.linalg.norm(jacobian @ jacobian.T)
        weights = NashMTL(8, max_norm=None).weights(jacobian @ jacobian.T, np.ones(8))
        np.testing.assert_allclose(weights * (gramian @ weights), 1, rtol=1e-10)
        assert np.linalg.norm(direction(NashMTL(8), jacobian)) == pytest.approx(1)


def test_nash_is_felt_the_same_by_every_scale_of_a_loss():
    jacobian = jacobians(4)[0]
    scaled = np.array([[1e-6], [1.0], [1e3], [20.0]]) * jacobian
    np.testing.assert_allclose(direction(NashMTL(4), scaled), direction(NashMTL(4), jacobian), rtol=1e-8)


@pytest.mark.parametrize(("tasks", "c"), [(2, 0.5), (3, 0.9), (8, 0.4), (30, 0.5)])
def test_cagrad_meets_its_optimality_conditions(tasks, c):
    for jacobian in jacobians(tasks):
        average, update = jacobian.mean(0), direction(CAGrad(c), jacobian)
        radius = c * np.linalg.norm(average)
        assert np.linalg.norm(update - average) == pytest.approx(radius, rel=1e-8)
        # The dual objective at the weights found is the primal value: neither can be bettered.
        move = CAGrad(c).weights(jacobian @ jacobian.T, np.ones(tasks)) - 1 / tasks
        assert (move >= -1e-12).all()
        simplex = move / move.sum() @ jacobian
        dual = simplex @ average + radius * np.linalg.norm(simplex)
        assert (jacobian @ update).min() == pytest.approx(dual, rel=1e-7, abs=1e-9)


def test_cagrad_without_a_radius_is_the_average():
    jacobian = jacobians(3)[0]
    np.testing.assert_allclose(direction(CAGrad(0.0), jacobian), jacobian.mean(0))


@pytest.mark.parametrize("tasks", [2, 4, 12])
def test_upgrad_and_dualproj_project_on_the_dual_cone(tasks):
    for jacobian in jacobians(tasks):
        gramian = jacobian @ jacobian.T
        preference = np.random.default_rng(6).dirichlet(np.ones(tasks))
        extra = DualProj(preference).weights(gramian, np.ones(tasks)) - preference
        gained = gramian @ (preference + extra)
        # The projection's conditions: in the cone, moved by its faces only, and by active ones only.
        assert (extra >= -1e-12).all()
        assert (gained >= -1e-9 * gramian.max()).all()
        np.testing.assert_allclose(extra * gained, 0, atol=1e-9 * gramian.max())
        apart = [DualProj(row).weights(gramian, np.ones(tasks)) for row in np.diag(preference)]
        np.testing.assert_allclose(UPGrad(preference).weights(gramian, np.ones(tasks)), np.sum(apart, 0), rtol=1e-9)


@pytest.mark.parametrize("tasks", [3, 8])
def test_upgrad_and_dualproj_are_torchjds(tasks):
    pytest.importorskip("quadprog")
    from torchjd._linalg._dual_cone import QuadprogProjector

    exact = QuadprogProjector(norm_eps=0, reg_eps=1e-13)
    for jacobian in jacobians(tasks):
        given = torch.from_numpy(jacobian)
        for ours, theirs in ((UPGrad, aggregation.UPGrad), (DualProj, aggregation.DualProj)):
            expected = theirs(projector=exact)(given).numpy()
            np.testing.assert_allclose(direction(ours(equal(tasks)), jacobian), expected, rtol=1e-6, atol=1e-9)


def test_gradients_without_conflict_are_averaged_by_projections_and_summed_by_surgery():
    jacobian = np.array([[1.0, 0.2], [0.3, 1.0]])
    for make in (UPGrad, DualProj):
        np.testing.assert_allclose(direction(make(equal(2)), jacobian), jacobian.mean(0))
    np.testing.assert_allclose(direction(PCGrad(0), jacobian), jacobian.sum(0))


def test_pcgrad_of_two_tasks_takes_away_the_conflicting_parts():
    first, second = np.array([1.0, 0.0]), np.array([-1.0, 1.0])
    expected = (first - (first @ second) / 2 * second) + (second - (first @ second) * first)
    np.testing.assert_allclose(direction(PCGrad(0), np.stack([first, second])), expected)


@pytest.mark.parametrize("ours", [lambda: PCGrad(0), lambda: GradVac(4, 0, 0.3)], ids=["pcgrad", "gradvac"])
def test_surgery_in_gramian_space_is_that_on_gradients(ours):
    """Over all orders that are drawn: the mean of many updates is the peer's."""
    jacobian = jacobians(4)[0]
    theirs = aggregation.PCGrad() if isinstance(ours(), PCGrad) else aggregation.GradVac(beta=0.3)
    given, draws = torch.from_numpy(jacobian), 400
    torch.manual_seed(0)
    expected = np.mean([theirs(given).numpy() for _ in range(draws)], 0)
    balancer = ours()
    mean = np.mean([direction(balancer, jacobian) for _ in range(draws)], 0)
    assert np.linalg.norm(mean - expected) < 0.05 * np.linalg.norm(expected)


def test_imtl_g_has_equal_projections():
    for jacobian in jacobians(5):
        projections = jacobian @ direction(IMTLG(), jacobian) / np.linalg.norm(jacobian, axis=1)
        np.testing.assert_allclose(projections, projections[0], rtol=1e-8)


def test_config_follows_its_preference():
    jacobian, preference = jacobians(3)[0], np.array([0.5, 0.3, 0.2])
    update = direction(ConFIG(preference), jacobian)
    cosines = jacobian @ update / np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose(cosines / cosines.sum(), preference, rtol=1e-8)


def test_gradnorm_raises_the_weight_of_the_task_that_trains_slowly():
    balancer = GradNorm(2, alpha=1.0, learning_rate=0.1)
    gramian = np.eye(2)
    np.testing.assert_array_equal(balancer.weights(gramian, np.array([1.0, 1.0])), [1, 1])
    for _ in range(5):
        balancer.weights(gramian, np.array([0.1, 0.9]))
    slow = balancer.weights(gramian, np.array([0.1, 0.9]))
    assert slow[1] > 1.2 > slow[0]
    assert slow.sum() == pytest.approx(2)

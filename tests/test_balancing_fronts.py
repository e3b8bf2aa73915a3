"""Where the methods end: Pareto sets that are known in closed form, and the toy problem that papers compare on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from polyshot.balancing.aligned_mtl import AlignedMTL
from polyshot.balancing.base import GramianBalancer
from polyshot.balancing.cagrad import CAGrad
from polyshot.balancing.config import ConFIG
from polyshot.balancing.dualproj import DualProj
from polyshot.balancing.fairgrad import FairGrad
from polyshot.balancing.fixed import FixedWeights
from polyshot.balancing.gradvac import GradVac
from polyshot.balancing.imtl_g import IMTLG
from polyshot.balancing.mgda import MGDA
from polyshot.balancing.nash_mtl import NashMTL
from polyshot.balancing.pcgrad import PCGrad
from polyshot.balancing.stch import SmoothTchebycheff
from polyshot.balancing.upgrad import UPGrad

EQUAL = [0.5, 0.5]
METHODS: dict[str, Callable[[], GramianBalancer]] = {
    "mgda": MGDA,
    "pcgrad": lambda: PCGrad(0),
    "gradvac": lambda: GradVac(2, 0),
    "cagrad": CAGrad,
    "imtl_g": IMTLG,
    "nash_mtl": lambda: NashMTL(2),
    "aligned_mtl": lambda: AlignedMTL(EQUAL),
    "upgrad": lambda: UPGrad(EQUAL),
    "fairgrad": lambda: FairGrad(2.0),
    "dualproj": lambda: DualProj(EQUAL),
    "config": lambda: ConFIG(EQUAL),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())
def test_two_quadratics_end_on_the_segment_between_their_minima(make):
    """f_t = s_t/2 ‖x − a_t‖² has the Pareto set {(1−u) a_1 + u a_2, 0 ≤ u ≤ 1}, whatever the scales s_t > 0."""
    minima, scales = np.array([[1.0, 0.0, 0.0], [-1.0, 0.5, 0.0]]), np.array([[1.0], [4.0]])
    balancer, x = make(), np.array([2.0, 3.0, -4.0])
    for step in range(400):
        jacobian = scales * (x - minima)
        update = balancer.weights(jacobian @ jacobian.T, np.ones(2)) @ jacobian
        # Nash's and FairGrad's updates do not vanish on the front: bounded and at a falling rate, all come to rest.
        x = x - 0.3 / (1 + 0.05 * step) * update / max(1, np.linalg.norm(update))
    along = np.clip((x - minima[0]) @ (minima[1] - minima[0]) / np.sum((minima[1] - minima[0]) ** 2), 0, 1)
    assert np.linalg.norm(x - (minima[0] + along * (minima[1] - minima[0]))) < 0.02


# --- VLMOP2: a front that is not convex ------------------------------------------------------------------------------


def vlmop2(x: torch.Tensor) -> torch.Tensor:
    """[N, 2] → losses [2, N]; the Pareto set is {x_1 = x_2, |x_1| ≤ 1/√2}."""
    shift = 1 / math.sqrt(2)
    return torch.stack([1 - torch.exp(-(x - shift).square().sum(1)), 1 - torch.exp(-(x + shift).square().sum(1))])


def hypervolume(points: torch.Tensor) -> float:
    """The area between `points` [2, N] and the reference (1, 1)."""
    area, lowest = 0.0, 1.0
    for first, second in sorted(points.T.tolist()):
        if second < lowest:
            area += (1 - first) * (lowest - second)
            lowest = second
    return area


def test_the_front_of_vlmop2_has_its_known_hypervolume():
    line = torch.linspace(-1, 1, 20_001, dtype=torch.float64) / math.sqrt(2)
    assert hypervolume(vlmop2(torch.stack([line, line], 1))) == pytest.approx(0.342116, abs=3e-5)


def test_tchebycheff_covers_the_front_that_weighted_sums_cannot():
    preferences = [(share, 1 - share) for share in np.linspace(0.03, 0.97, 40).tolist()]
    volumes = {}
    for name, make in {"stch": lambda w: SmoothTchebycheff(w, 0.01), "fixed": FixedWeights}.items():
        balancers = [make(preference) for preference in preferences]
        x = torch.linspace(-0.3, 0.3, 40).unsqueeze(1) * torch.tensor([1.0, 0.6]) + 0.05
        x.requires_grad_()
        optimiser = torch.optim.Adam([x], lr=0.02)
        for _ in range(300):
            losses = vlmop2(x)
            optimiser.zero_grad()
            sum(balancer(losses[:, n]) for n, balancer in enumerate(balancers)).backward()
            optimiser.step()
        volumes[name] = hypervolume(vlmop2(x.detach()))
    assert 0.325 < volumes["stch"] <= 0.342116
    assert volumes["fixed"] < 0.9 * volumes["stch"]  # the ends of the front only


def test_mgda_stops_on_the_pareto_set_of_vlmop2():
    x = np.random.default_rng(0).uniform(-1, 1, (8, 2))
    for point in x:
        for _ in range(300):
            given = torch.tensor(point[None], requires_grad=True)
            losses = vlmop2(given)
            jacobian = np.stack([torch.autograd.grad(loss.sum(), given, retain_graph=True)[0][0] for loss in losses])
            point -= 0.3 * MGDA().weights(jacobian @ jacobian.T, np.ones(2)) @ jacobian
    assert np.abs(x[:, 0] - x[:, 1]).max() < 5e-3
    assert np.abs(x).max() < 1 / math.sqrt(2) + 5e-3


# --- the toy problem of CAGrad ---------------------------------------------------------------------------------------

STARTS = [(-8.5, 7.5), (9.0, 9.0), (9.0, -1.0)]
RAVINE = STARTS[1]  # the start from which plain Adam falls into the ravine


def toy_gradients(x: float, y: float) -> np.ndarray:
    """∇f of Liu et al. (NeurIPS 2021), appendix B: [2, 2]. The front lies at y ≈ −8.4, |x| ≤ 7."""
    bend = math.tanh(y)
    half = math.tanh(y / 2)
    slope = (1 - half * half) / 2
    upper, upper_slope = (half, slope) if y >= 0 else (0.0, 0.0)
    lower, lower_slope = (-half, -slope) if y <= 0 else (0.0, 0.0)
    rows = []
    for value, dy, centre in ((-(x + 7) / 2 + bend, 1 - bend**2, 7), ((3 - x) / 2 - bend + 2, bend**2 - 1, -7)):
        logarithm, ravine = math.log(max(abs(value), 5e-6)) + 6, 1 / value if abs(value) >= 5e-6 else 0.0
        bowl = ((x - centre) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
        rows.append(
            [
                upper * -0.5 * ravine + lower * (x - centre) / 5,
                upper_slope * logarithm + upper * dy * ravine + lower_slope * bowl + lower * 0.02 * (y + 8),
            ]
        )
    return np.array(rows)


def steps_to_the_front(balancer: GramianBalancer | None, start: tuple[float, float], most: int) -> int | None:
    """Of Adam on balanced gradients (None: on their mean), at five times the published rate; None where `most` is few.

    Adam's steps do not know whether gradients are summed or, as in the codes of the papers, averaged.
    """
    point, mean, square = np.array(start), np.zeros(2), np.zeros(2)
    for step in range(1, most + 1):
        jacobian = toy_gradients(*point.tolist())
        weights = np.array(EQUAL) if balancer is None else balancer.weights(jacobian @ jacobian.T, np.ones(2))
        gradient = weights @ jacobian
        mean += 0.1 * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        point -= 5e-3 * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        if abs(point[0]) <= 7.1 and -8.5 <= point[1] <= -8.1:
            return step
    return None


@pytest.mark.slow
def test_plain_adam_is_held_up_in_the_ravine_that_one_start_of_the_toy_leads_to():
    assert [start for start in STARTS if steps_to_the_front(None, start, 20_000) is None] == [RAVINE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("nash_mtl", 3_000),
        ("mgda", 9_000),
        ("imtl_g", 9_000),
        ("upgrad", 11_000),
        ("pcgrad", 14_000),
        ("cagrad", 22_000),
    ],
)
def test_balanced_gradients_reach_the_front_of_the_toy_where_plain_adam_is_held_up(name, most):
    """In the order of their speed; the papers' 100,000 steps are 20,000 of these, which CAGrad (c = 0.5) needs."""
    assert steps_to_the_front(METHODS[name](), RAVINE, most) is not None

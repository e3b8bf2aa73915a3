"""What every encoder promises to the sharing schemes and the loop. A new encoder joins by one line in ENCODERS."""

from __future__ import annotations

import pytest
import torch
from helpers_training import make_study
from torch import nn

from polyshot.errors import RunError
from polyshot.models.encoders import build_encoder

ENCODERS: dict[str, dict] = {
    "mlp": {"kind": "mlp", "width": 12, "depth": 2},
    "mlp, one layer": {"kind": "mlp", "width": 1, "depth": 1},
    "mlp, dropout": {"kind": "mlp", "width": 12, "depth": 2, "dropout": 0.5},
    "mlp, batch norm": {"kind": "mlp", "width": 12, "depth": 3, "normalisation": "batch", "activation": "gelu"},
    "mlp, layer norm": {"kind": "mlp", "width": 12, "depth": 2, "normalisation": "layer", "activation": "silu"},
    "mlp, tanh": {"kind": "mlp", "width": 12, "depth": 2, "activation": "tanh"},
    "custom": {"kind": "helpers_training:LinearEncoder", "options": {"outputs": 5}},
}
INPUTS = 7


def _encoder(settings: dict, seed: int = 0) -> nn.Module:
    study = make_study({f"model.encoder.{key}": value for key, value in settings.items()})
    torch.manual_seed(seed)
    return build_encoder(study, INPUTS)


@pytest.fixture(params=ENCODERS.values(), ids=ENCODERS.keys())
def settings(request) -> dict:
    return request.param


@pytest.mark.parametrize("rows", [2, 33])
def test_it_gives_as_many_numbers_for_each_row_as_it_says(settings, rows):
    encoder = _encoder(settings)
    assert encoder(torch.randn(rows, INPUTS)).shape == (rows, encoder.outputs)


def test_every_parameter_gets_a_gradient(settings):
    encoder = _encoder(settings | ({"width": 12} if "width" in settings else {}))
    (encoder(torch.randn(64, INPUTS)) * torch.randn(64, encoder.outputs)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_seed_decides_the_weights(settings):
    first, same, other = (_encoder(settings, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_evaluation_is_deterministic_and_row_by_row(settings):
    encoder = _encoder(settings)
    encoder(torch.randn(64, INPUTS))  # gives batch norm something to remember
    encoder.eval()
    rows = torch.randn(16, INPUTS)
    together = encoder(rows)
    assert torch.equal(together, encoder(rows))
    torch.testing.assert_close(torch.cat([encoder(row) for row in rows.split(1)]), together)


def test_dropout_changes_what_is_trained_on():
    encoder = _encoder(ENCODERS["mlp, dropout"])
    rows = torch.randn(16, INPUTS)
    assert not torch.equal(encoder(rows), encoder(rows))


def test_its_state_makes_another_one_like_it(settings):
    encoder, other = _encoder(settings, 1), _encoder(settings, 2)
    encoder(torch.randn(64, INPUTS))
    other.load_state_dict(encoder.state_dict())
    rows = torch.randn(8, INPUTS)
    assert torch.equal(encoder.eval()(rows), other.eval()(rows))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("no_such_module:Encoder", {}, "no module 'no_such_module'"),
        ("helpers_training:LinearEncode", {}, "Did you mean 'LinearEncoder'?"),
        ("helpers_training:LinearEncoder", {"sizes": 3}, "does not take"),
        ("helpers_training:make_study", {}, "model.encoder.kind"),
    ],
)
def test_an_encoder_of_the_users_that_cannot_be_built_is_said(kind, options, words):
    with pytest.raises(RunError) as caught:
        _encoder({"kind": kind, "options": options})
    assert words in str(caught.value)
    assert "model.encoder" in str(caught.value)

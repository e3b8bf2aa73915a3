"""What a competent user writes by hand instead of a study: one shared MLP, a numeric and a binary target, AdamW.

    python train_small_torch.py table.csv --epochs 50 --batch-size 64

The other peers import `load` and `train` from here, so that all train alike.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score, root_mean_squared_error
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

Split = tuple[Tensor, Tensor, Tensor]  # features [N, F], scores [N], passed [N]


def load(path: str) -> tuple[Split, Split, Split, StandardScaler]:
    """Training, validation and test tensors (70, 15 and 15 %), and the scaler of the score."""
    table = pd.read_csv(path)
    rest, test = train_test_split(table, test_size=0.15, random_state=0, stratify=table["passed"])
    train, validation = train_test_split(rest, test_size=0.15 / 0.85, random_state=0, stratify=rest["passed"])
    inputs, scores = StandardScaler(), StandardScaler()
    inputs.fit(train.drop(columns=["score", "passed"]))
    scores.fit(train[["score"]])

    def tensors(part: pd.DataFrame) -> Split:
        features = inputs.transform(part.drop(columns=["score", "passed"]))
        values = scores.transform(part[["score"]])[:, 0]
        return (
            torch.tensor(features, dtype=torch.float32),
            torch.tensor(values, dtype=torch.float32),
            torch.tensor(part["passed"].to_numpy(), dtype=torch.float32),
        )

    return tensors(train), tensors(validation), tensors(test), scores


def loss_of(model: nn.Module, features: Tensor, score: Tensor, passed: Tensor) -> Tensor:
    outputs = model(features)
    numeric = functional.mse_loss(outputs[:, 0], score)
    return 0.5 * numeric + 0.5 * functional.binary_cross_entropy_with_logits(outputs[:, 1], passed)


def train(
    data: Split,
    validation: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
) -> nn.Module:
    """The model of the epoch with the smallest validation loss."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(data[0].shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best_loss, best = float("inf"), copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(data[0])).split(batch_size):
            optimiser.zero_grad()
            loss_of(model, *(part[rows] for part in data)).backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            loss = loss_of(model, *validation).item()
        if loss < best_loss:
            best_loss, best = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best)
    return model.eval()


@torch.no_grad()
def evaluate(model: nn.Module, data: Split, scores: StandardScaler) -> dict[str, float]:
    """The error in the score's own units, and how well those who passed are ranked."""
    outputs = model(data[0]).numpy()
    predicted, true = (scores.inverse_transform(np.reshape(values, (-1, 1))) for values in (outputs[:, 0], data[1]))
    return {
        "rmse": float(root_mean_squared_error(true, predicted)),
        "roc_auc": float(roc_auc_score(data[2], outputs[:, 1])),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    training, validation_data, test_data, scaler = load(options.table)
    fitted = train(training, validation_data, epochs=options.epochs, batch_size=options.batch_size)
    for name, part in {"validation": validation_data, "test": test_data}.items():
        metrics = evaluate(fitted, part, scaler)
        print(f"{name}: RMSE {metrics['rmse']:.4f}, ROC-AUC {metrics['roc_auc']:.4f}")

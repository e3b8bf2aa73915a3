"""A search by hand with Optuna in one process.

python search_optuna.py table.csv --trials 60 --epochs 10 --batch-size 128
"""

from __future__ import annotations

import argparse

import optuna
import torch
from train_small_torch import evaluate, load, train

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("table")
parser.add_argument("--trials", type=int, required=True)
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--batch-size", type=int, required=True)
options = parser.parse_args()

torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)
data, validation, test, scores = load(options.table)


def objective(trial: optuna.Trial) -> float:
    model = train(
        data,
        validation,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
    )
    return evaluate(model, validation, scores)["rmse"]


study = optuna.create_study(direction="minimize", sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=options.trials)
print(f"best validation RMSE {study.best_value:.4f} with {study.best_params}")

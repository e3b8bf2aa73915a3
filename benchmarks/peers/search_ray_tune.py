"""A search by hand with Ray Tune and OptunaSearch, where each trial is a call of a function.

python search_ray_tune.py table.csv --trials 20 --epochs 10 --batch-size 128
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import ray
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch


def trainable(config: dict[str, Any], tensors: Any, epochs: int, batch_size: int) -> None:
    import torch
    from train_small_torch import evaluate, train

    torch.set_num_threads(1)
    data, validation, scores = tensors
    model = train(
        data,
        validation,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=config["learning_rate"],
        weight_decay=config["weight_decay"],
    )
    tune.report(evaluate(model, validation, scores))


def main() -> None:
    from train_small_torch import load

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    options = parser.parse_args()

    data, validation, _, scores = load(options.table)
    ray.init(include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                trainable,
                tensors=(data, validation, scores),
                epochs=options.epochs,
                batch_size=options.batch_size,
            ),
            {"cpu": 1},
        ),
        param_space={
            "learning_rate": tune.loguniform(1e-4, 1e-1),
            "weight_decay": tune.loguniform(1e-6, 1e-2),
        },
        tune_config=tune.TuneConfig(
            metric="rmse",
            mode="min",
            search_alg=ConcurrencyLimiter(OptunaSearch(seed=0), max_concurrent=int(ray.cluster_resources()["CPU"])),
            num_samples=options.trials,
        ),
        run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
    )
    best = tuner.fit().get_best_result()
    assert best.metrics is not None
    print(f"best validation RMSE {best.metrics['rmse']:.4f} with {best.config}")


if __name__ == "__main__":
    main()

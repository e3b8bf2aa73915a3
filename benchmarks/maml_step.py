"""Meta-updates per second: Polyshot's engine beside learn2learn's loop, higher and TorchOpt, Adam included.

    uv run python benchmarks/maml_step.py
    uv run --with higher --with torchopt python benchmarks/maml_step.py --cases mlp-1 mlp-5

Sinusoids: MLP 40–40, 25 tasks of 10 + 10 points. Omniglot: four convolutions of 64 channels, 5-way 1-shot, 16 tasks.
They take turns, a few updates each, so that all see the same machine; what counts is the processor time of the process,
as the median over turns of the ratio to learn2learn's in the same turn. What is not installed is left out, with a word.
The process keeps freed memory as all that train under Polyshot do, which the others gain from as well.
Compilations (the first takes minutes) are outside of what is measured, and are reported.

Aims: MLP 30 times learn2learn's rate with one step and 45 with five once compiled, 12 before; CNN 2.4 times in second
and 2 in first order; never below 1 with one task.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timing import machine
from torch import Tensor, nn

from polyshot.meta.convolutions import products
from polyshot.meta.engines.flat import FlatLayout
from polyshot.meta.engines.learn2learn import library
from polyshot.meta.engines.vectorised import VectorisedEngine
from polyshot.meta.episodes.base import Episodes
from polyshot.meta.learners.first_order_maml import FirstOrderMAML
from polyshot.meta.learners.maml import MAML
from polyshot.meta.networks import FewShotNetwork, cnn4
from polyshot.meta.objectives import CrossEntropy, Objective, SquaredError
from polyshot.study import training as sections
from polyshot.training.optimisers import AdamW
from polyshot.training.processor import keep_freed_memory

CASES = ["mlp-1", "mlp-5", "mlp-1-one", "cnn-1", "cnn-5", "cnn-1-fo", "cnn-1-one"]
LEARNING_RATE = 1e-5  # small: the weights stay where they were, and so does the work
Update = Callable[[], object]


@dataclass(frozen=True)
class Case:
    network: FewShotNetwork
    objective: Objective
    episodes: Episodes
    steps: int
    rate: float
    first_order: bool

    @classmethod
    def named(cls, name: str) -> Case:
        kind, steps, *options = name.split("-")
        torch.manual_seed(0)
        if kind == "mlp":
            tasks = 1 if "one" in options else 25
            body = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
            inputs = torch.rand(tasks, 20, 1) * 10 - 5
            labels = torch.sin(inputs)[..., 0]
            episodes = Episodes(
                *(
                    part.contiguous()
                    for rows in zip(inputs.split(10, 1), labels.split(10, 1), strict=True)
                    for part in rows
                )
            )
            return cls(FewShotNetwork(body, nn.Linear(40, 1)), SquaredError(), episodes, int(steps), 0.01, False)
        tasks = 1 if "one" in options else 16
        body, features = cnn4((1, 28, 28))
        support, query = torch.rand(2, tasks, 5, 1, 28, 28)
        labels = torch.arange(5).expand(tasks, 5).contiguous()
        network = FewShotNetwork(body, nn.Linear(features, 5))
        return cls(network, CrossEntropy(), Episodes(support, labels, query, labels), int(steps), 0.4, "fo" in options)

    def task_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if isinstance(self.objective, SquaredError):
            return F.mse_loss(outputs[:, 0], labels)
        return F.cross_entropy(outputs, labels)


def ours(case: Case, compiled: bool) -> Update:
    """What `MetaRun` does with a meta-batch."""
    make = FirstOrderMAML if case.first_order else MAML
    learner = make(case.network, case.objective, rate=case.rate, steps=case.steps)
    layout = FlatLayout.of(learner.weights())
    flat = nn.Parameter(layout.join(learner.weights()))
    engine = VectorisedEngine(learner, layout, compile="always" if compiled else "never", note=sys.exit)
    optimiser = AdamW(sections.AdamW(learning_rate=LEARNING_RATE, weight_decay=0.0), [flat])

    def update() -> None:
        flat.grad = engine.gradient(flat, case.episodes, 0.0, 1)[1]
        optimiser.step()

    return update


def learn2learn(case: Case) -> Update:
    """The loop of learn2learn's examples."""
    algorithm = library().algorithms.MAML(case.network, lr=case.rate, first_order=case.first_order)
    optimiser = torch.optim.Adam(algorithm.parameters(), LEARNING_RATE)
    support, labels, query, query_labels, _ = case.episodes.parts()

    def update() -> None:
        optimiser.zero_grad()
        for task in range(len(support)):
            clone = algorithm.clone()
            for _ in range(case.steps):
                clone.adapt(case.task_loss(clone(support[task]), labels[task]))
            case.task_loss(clone(query[task]), query_labels[task]).backward()
        for parameter in algorithm.parameters():
            parameter.grad.mul_(1 / len(support))
        optimiser.step()

    return update


def higher(case: Case) -> Update | str:
    """`higher.innerloop_ctx`, task by task."""
    try:
        import higher
    except ImportError:
        return "higher is not installed"
    if case.first_order:
        return "higher is measured in second order"
    inner = torch.optim.SGD(case.network.parameters(), lr=case.rate)
    optimiser = torch.optim.Adam(case.network.parameters(), LEARNING_RATE)
    support, labels, query, query_labels, _ = case.episodes.parts()

    def update() -> None:
        optimiser.zero_grad()
        for task in range(len(support)):
            with higher.innerloop_ctx(case.network, inner, copy_initial_weights=False) as (model, steps):
                for _ in range(case.steps):
                    steps.step(case.task_loss(model(support[task]), labels[task]))
                (case.task_loss(model(query[task]), query_labels[task]) / len(support)).backward()
        optimiser.step()

    return update


def torchopt(case: Case) -> Update | str:
    """`torchopt.MetaSGD`, task by task."""
    try:
        import torchopt
    except ImportError:
        return "TorchOpt is not installed"
    if case.first_order:
        return "TorchOpt is measured in second order"
    inner = torchopt.MetaSGD(case.network, lr=case.rate)
    optimiser = torch.optim.Adam(case.network.parameters(), LEARNING_RATE)
    support, labels, query, query_labels, _ = case.episodes.parts()

    def update() -> None:
        optimiser.zero_grad()
        model = torchopt.extract_state_dict(case.network, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(inner)
        for task in range(len(support)):
            for _ in range(case.steps):
                inner.step(case.task_loss(case.network(support[task]), labels[task]))
            (case.task_loss(case.network(query[task]), query_labels[task]) / len(support)).backward()
            torchopt.recover_state_dict(case.network, model)
            torchopt.recover_state_dict(inner, state)
        optimiser.step()

    return update


def contenders(name: str, compiled: bool) -> tuple[dict[str, Update], float]:
    """The updates by name, each with a network of its own, and the seconds that compiling ours took."""
    made: dict[str, Update | str] = {
        "learn2learn": learn2learn(Case.named(name)),
        "eager": ours(Case.named(name), compiled=False),
        "higher": higher(Case.named(name)),
        "TorchOpt": torchopt(Case.named(name)),
    }
    seconds = 0.0
    if compiled:
        made["compiled"] = ours(Case.named(name), compiled=True)
        started = time.perf_counter()
        made["compiled"]()
        seconds = time.perf_counter() - started
    for update in made.values():
        if isinstance(update, str):
            print(f"left out: {name}: {update}", file=sys.stderr)
    return {who: update for who, update in made.items() if not isinstance(update, str)}, seconds


def measure(updates: dict[str, Update], rounds: int, turn_seconds: float) -> dict[str, list[float]]:
    """Processor seconds of one update: in each round the fastest of each contender's turn."""
    counts: dict[str, int] = {}
    seconds: dict[str, list[float]] = {who: [] for who in updates}
    for round_number in range(-1, rounds):
        for who, update in updates.items():
            update()
            taken = []
            for _ in range(counts.get(who, 2)):
                started = time.process_time()
                update()
                taken.append(time.process_time() - started)
            if round_number >= 0:
                seconds[who].append(statistics.median(taken))
            counts.setdefault(who, max(2, int(turn_seconds / max(min(taken), 1e-5))))
    return seconds


def profile(update: Update, turns: int = 3) -> str:
    """The operators that the processor's time of an update goes to, by their shares, and the rate of products."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], with_flops=True) as profiler:
        for _ in range(turns):
            update()
    averages = profiler.key_averages()
    total = sum(operator.self_cpu_time_total for operator in averages)
    largest = sorted(averages, key=lambda operator: operator.self_cpu_time_total, reverse=True)[:6]
    shares = [f"{operator.key} {100 * operator.self_cpu_time_total / total:.0f} %" for operator in largest]
    for operator in averages:
        if operator.key != "aten::bmm":
            continue
        per_second = operator.flops / (operator.self_cpu_time_total * 1e-6)
        shares.append(f"aten::bmm does {operator.flops / turns / 1e9:.1f} GFLOP at {per_second / 1e9:.0f} a second")
    return ", ".join(shares)


def rates_of_products() -> str:
    """Of those that the CNN's second convolution is, in single precision."""
    columns, factors = torch.rand(16, 245, 576), torch.rand(16, 64, 576)
    ways = {"MKL": lambda: torch.bmm(columns, factors.mT), "oneDNN": lambda: products(columns, factors)}
    rates = {}
    for who, product in ways.items():
        seconds = []
        for _ in range(60):
            started = time.process_time()
            product()
            seconds.append(time.process_time() - started)
        rates[who] = 2 * columns.numel() * factors.shape[1] / statistics.median(seconds) / 1e9
    return ", ".join(f"{who} {rate:.0f} GFLOP a second" for who, rate in rates.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=CASES, choices=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--turn-seconds", type=float, default=0.3, help="Of each contender in each round.")
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--profile", action="store_true", help="Say where the time of the fastest of ours goes.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.profile:
        print(f"products of a convolution: {rates_of_products()}", file=sys.stderr)
    print(f"\nProcessor time of one meta-update, medians of {options.rounds} turns; {machine()}\n")
    print("| case | learn2learn | eager, times as fast | compiled, times as fast | higher | TorchOpt | compilation |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.cases:
        updates, compilation = contenders(name, options.compiled)
        seconds = measure(updates, options.rounds, options.turn_seconds)
        theirs = seconds["learn2learn"]

        def ratio(who: str, seconds: dict[str, list[float]] = seconds, theirs: list[float] = theirs) -> str:
            if who not in seconds:
                return ""
            return f"{statistics.median(a / b for a, b in zip(theirs, seconds[who], strict=True)):.2f}"

        cells = [ratio(who) for who in ("eager", "compiled", "higher", "TorchOpt")]
        base = f"{1000 * statistics.median(theirs):.1f} ms"
        print(f"| {name} | {base} | " + " | ".join(cells) + f" | {compilation:.0f} s |", flush=True)
        if options.profile:
            print(f"{name}: {profile(updates.get('compiled', updates['eager']))}", file=sys.stderr)


if __name__ == "__main__":
    main()

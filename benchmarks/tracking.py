"""What tracking costs, and how fast a store takes what is tracked: SQLite, a server, PostgreSQL; and servers that fail.

    uv run python benchmarks/tracking.py                                   # SQLite and an MLflow server over it
    uv run python benchmarks/tracking.py --postgresql postgresql://me@127.0.0.1/mlflow

Of each store: what a training process pays for an epoch's point, and points a second from the first emitted to the last
that MLflow has. Then what a training pays when the server hangs or answers 500, beside a store that is well. Aims: at
most 1 % of a trial's time, and at most 2 % more when the server is away.
"""

from __future__ import annotations

import argparse
import http.server
import math
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from timing import machine

from polyshot.study import Study
from polyshot.tracking.tracker import Run, Tracker

METRICS = {f"val/task_{number}/rmse": 1.0 / (number + 1) for number in range(10)}
PATIENCE = 240.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2_000, help="points of ten metrics each")
    parser.add_argument("--runs", type=int, default=4, help="runs that are written by turns, as trials are")
    parser.add_argument("--rounds", type=int, default=160, help="of the training whose server fails")
    parser.add_argument("--block", type=int, default=5, help="epochs of that training in a row")
    parser.add_argument("--postgresql", help="the address of an empty database")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        throughput(Path(scratch), options)
        faults(Path(scratch), options)


def study_in(folder: Path, uri: str | None) -> Study:
    tracking = {"uri": uri} if uri else {}
    return Study.from_dict(
        {
            "name": "tracking",
            "storage": str(folder),
            "data": {"source": "none.csv"},
            "tasks": {"a": {"kind": "regression"}},
            "tracking": tracking,
        }
    )


# --- how fast --------------------------------------------------------------------------------------------------------


def throughput(scratch: Path, options: argparse.Namespace) -> None:
    stores = {"SQLite": None} | ({"PostgreSQL": options.postgresql} if options.postgresql else {})
    print("| store | runs | metric values | µs per epoch in the training process | values per second into MLflow |")
    print("|---|---|---|---|---|")
    for name, uri in stores.items():
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        with Tracker.open(study_in(scratch / name, uri)) as tracker:
            runs = [tracker.start_run(f"trial-{number}", f"trial-{number}") for number in range(options.runs)]
            wait_for(tracker, runs[-1])  # MLflow is loaded and the store is made
            started = time.perf_counter()
            for step in range(1, options.epochs + 1):
                runs[step % options.runs].log_metrics(METRICS, step=step)
            emitting = time.perf_counter() - started
            outcome = tracker.close(PATIENCE)
            seconds = time.perf_counter() - started
            assert outcome is None, outcome
        values = options.epochs * len(METRICS)
        each = 1e6 * emitting / options.epochs
        print(f"| {name} | {options.runs} | {values} | {each:.0f} | {values / seconds:.0f} |")


def wait_for(tracker: Tracker, run: Run) -> None:
    deadline = time.monotonic() + PATIENCE
    while tracker.mlflow_id(run) is None:
        assert time.monotonic() < deadline, "the store did not take the runs in time"
        time.sleep(0.05)


# --- while the server fails ------------------------------------------------------------------------------------------


def faults(scratch: Path, options: argparse.Namespace) -> None:
    """What an epoch costs the thread that trains, by how what it logs to behaves.

    One process, one model, short blocks of epochs in turns; a block is compared with that of the same round whose store
    is well, and what is compared is the thread's own time on a processor, so that the rest of the machine counts for
    little. That it waits for nobody is seen in the share of all time that calls to the tracker take.
    """
    with _server(_Hanging) as hanging, _server(_Failing) as failing:
        stores = {WELL: None, "a server that hangs": hanging, "a server that answers 500": failing}
        runs: dict[str, Run | None] = {"nothing is tracked": None}
        trackers = {name: Tracker.open(study_in(scratch / name, uri)) for name, uri in stores.items()}
        runs |= {name: tracker.start_run("train", "train") for name, tracker in trackers.items()}
        wait_for(trackers[WELL], runs[WELL])
        loop, blocks = Loop(), {name: [] for name in runs}
        loop.block(None, options.block)  # the first steps of all are slow
        before, started = _writers(trackers), time.perf_counter()
        for number in range(options.rounds):
            for name in random.Random(number).sample(list(runs), len(runs)):
                blocks[name].append(loop.block(runs[name], options.block))
        seconds, after = time.perf_counter() - started, _writers(trackers)
        for tracker in trackers.values():
            tracker.close(0)
    print(
        f"\n{options.rounds} rounds of {options.block} epochs of {STEPS} steps; in brackets, 95 % intervals of medians"
    )
    print("| | ms per epoch | slower than with a store that is well | in calls | a core, by the writer |")
    print("|---|---|---|---|---|")
    for name, each in blocks.items():
        cost = statistics.median(block.seconds for block in each) / options.block
        ratios = sorted(block.seconds / well.seconds - 1 for block, well in zip(each, blocks[WELL], strict=True))
        low, middle, high = (f"{100 * value:+.2f}" for value in _median_with_interval(ratios))
        calls = statistics.median(block.in_calls for block in each)
        writer = f"{100 * (after[name] - before[name]) / seconds:.1f} %" if name in trackers else "–"
        print(f"| {name} | {1e3 * cost:.2f} | {middle} % ({low} to {high}) | {100 * calls:.2f} % | {writer} |")


WELL = "a store that is well"
STEPS = 20  # of an epoch


@dataclass(frozen=True)
class Block:
    """Some epochs.

    Attributes:
        seconds: of a processor, that the training thread had.
        in_calls: of the time that went by, the share inside of calls to the tracker, waiting included.
    """

    seconds: float
    in_calls: float


class Loop:
    """A training that goes on and on."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._model = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 1))
        self._optimiser = torch.optim.Adam(self._model.parameters())
        self._features, self._target = torch.randn(256, 32), torch.randn(256, 1)
        self._epochs = 0

    def block(self, run: Run | None, epochs: int) -> Block:
        in_calls, started, processor = 0.0, time.perf_counter(), time.thread_time()
        for _ in range(epochs):
            for _ in range(STEPS):
                loss = torch.nn.functional.mse_loss(self._model(self._features), self._target)
                self._optimiser.zero_grad()
                loss.backward()
                self._optimiser.step()
            self._epochs += 1
            if run is not None:
                called = time.perf_counter()
                run.log_metrics(METRICS | {"loss": loss.item()}, step=self._epochs)
                in_calls += time.perf_counter() - called
        return Block(time.thread_time() - processor, in_calls / (time.perf_counter() - started))


def _median_with_interval(values: list[float]) -> tuple[float, float, float]:
    """The lower end, the median and the upper end of sorted values; the ends are order statistics."""
    middle, reach = (len(values) - 1) / 2, 0.98 * math.sqrt(len(values))
    low, high = max(0, math.floor(middle - reach)), min(len(values) - 1, math.ceil(middle + reach))
    return values[low], statistics.median(values), values[high]


def _writers(trackers: dict[str, Tracker]) -> dict[str, float]:
    """Processor seconds of each tracker's writer process."""
    used = {}
    for name, tracker in trackers.items():
        assert not tracker._writer.has_ended
        times = psutil.Process(tracker._writer._process).cpu_times()
        used[name] = times.user + times.system
    return used


class _Failing(http.server.BaseHTTPRequestHandler):
    """Says that it is well, and then answers 500 to whatever it is asked."""

    def answer(self) -> None:
        is_health = self.path.startswith("/health")
        if not is_health:
            self.wait()
        content = b"OK" if is_health else b"Internal Server Error"
        self.send_response(200 if is_health else 500)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def wait(self) -> None:
        pass

    do_GET = do_POST = answer  # noqa: N815 - the names that the library looks for

    def log_message(self, *_: object) -> None:
        pass


class _Hanging(_Failing):
    """The same, and answers nothing."""

    def wait(self) -> None:
        time.sleep(PATIENCE)


@contextmanager
def _server(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server in a process of its own, which takes nothing from the one that is measured."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    server.socket.close()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        process.kill()


if __name__ == "__main__":
    main()

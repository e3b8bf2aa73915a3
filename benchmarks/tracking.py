"""What tracking costs, and how fast a store takes what is tracked: SQLite, a server, PostgreSQL; and servers that fail.

    uv run python benchmarks/tracking.py                                   # SQLite and an MLflow server over it
    uv run python benchmarks/tracking.py --postgresql postgresql://me@127.0.0.1/mlflow

Of each store: what a training process pays for an epoch's point, and points a second from the first emitted to the last
that MLflow has. Then what a training pays when the server hangs or answers 500: the same training, with its store
well and not. Aims: at most 1 % of a trial's time, and at most 2 % more when the server is away.
"""

from __future__ import annotations

import argparse
import http.server
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    parser.add_argument("--rounds", type=int, default=5, help="of the training whose server fails")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of that training")
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
    """Steps a second of a training loop that logs every tenth step, by how what it logs to behaves, in turns."""
    behaviours = ("nothing is tracked", "a store that is well", "a server that hangs", "a server that answers 500")
    rates: dict[str, list[float]] = {name: [] for name in behaviours}
    for number in range(options.rounds):
        for name in behaviours:
            with tempfile.TemporaryDirectory(dir=scratch) as folder, _server(name) as address:
                tracker = Tracker.open(study_in(Path(folder), address))
                run = None if name == behaviours[0] else tracker.start_run(f"train-{number}", "train")
                time.sleep(2)  # the writer has begun
                rates[name].append(train(run, options.seconds))
                tracker.close(0)
    base = statistics.median(rates[behaviours[0]])
    print("\n| | steps per second (range) | of those without tracking |\n|---|---|---|")
    for name, each in rates.items():
        median = statistics.median(each)
        print(f"| {name} | {median:.0f} ({min(each):.0f}–{max(each):.0f}) | {100 * median / base:.1f} % |")


def train(run: Run | None, seconds: float) -> float:
    """Steps a second, by processor time: what other processes of the machine do does not count."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    optimiser = torch.optim.Adam(model.parameters())
    features, target = torch.randn(128, 32), torch.randn(128, 1)
    steps, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        loss = torch.nn.functional.mse_loss(model(features), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
        if run is not None and steps % 10 == 0:
            run.log_metrics({"loss": loss.item()}, step=steps)
    return steps / (time.process_time() - started)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Says that it is well, and then answers nothing, or 500, to whatever it is asked."""

    hangs = False

    def answer(self) -> None:
        is_health = self.path.startswith("/health")
        if self.hangs and not is_health:
            time.sleep(PATIENCE)
        content = b"OK" if is_health else b"Internal Server Error"
        self.send_response(200 if is_health else 500)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer  # noqa: N815 - the names that the library looks for

    def log_message(self, *_: object) -> None:
        pass


class _Hanging(_Handler):
    hangs = True


@contextmanager
def _server(behaviour: str) -> Iterator[str | None]:
    """The address of a server that behaves so; None where none is needed."""
    if "server" not in behaviour:
        yield None
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hanging if "hangs" in behaviour else _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.socket.close()


if __name__ == "__main__":
    main()

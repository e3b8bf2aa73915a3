"""What OpenMP's way of waiting costs a small network when other processes have the cores: spinning, or not.

    uv run python benchmarks/threads.py

Polyshot sets OMP_WAIT_POLICY=PASSIVE when it is imported. Each line is a process of its own that trains a network of
three layers of 128 units with two threads, beside as many processes as there are cores that only count.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from timing import machine

SCRIPT = """\
import time, torch
torch.set_num_threads(2)
layers = [torch.nn.Linear(128, 128) for _ in range(3)]
model = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))
features = torch.randn(256, 128)
for count in (5, 50):
    started = time.perf_counter()
    for _ in range(count):
        model(features).square().mean().backward()
print((time.perf_counter() - started) / 50)
"""
ROUNDS = 3


def step_seconds(policy: str) -> float:
    environment = os.environ | {"OMP_WAIT_POLICY": policy}
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return float(printed.stdout)


def main() -> None:
    for others in (0, os.cpu_count() or 1):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            seconds: dict[str, list[float]] = {"ACTIVE": [], "PASSIVE": []}
            for _ in range(ROUNDS):
                for policy, found in seconds.items():
                    found.append(step_seconds(policy))
        finally:
            for process in busy:
                process.kill()
        words = ", ".join(f"{policy} {1000 * statistics.median(found):.2f} ms" for policy, found in seconds.items())
        print(f"{others} other processes: {words} a step", flush=True)
    print(machine())


if __name__ == "__main__":
    main()

"""Whole processes measured side by side: seconds, processor seconds and peak memory, interleaved, as medians.

Used by every benchmark in this folder; knows nothing of what is measured.
"""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLING_SECONDS = 0.2
POLYSHOT = [sys.executable, "-m", "polyshot"]


@dataclass(frozen=True)
class Measurement:
    """One run of a command.

    Attributes:
        seconds: wall clock, from the start of the process to its end.
        processor_seconds: of the process and the children that it waited for.
        peak_mib: the largest memory of the whole tree of processes (proportional set size, sampled five times a second;
            at least the largest resident size of any one of them).
        output: standard output.
    """

    seconds: float
    processor_seconds: float
    peak_mib: float
    output: str


def measure(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> Measurement:
    """Run a command to its end, on the CPU.

    Raises:
        RuntimeError: when it fails, with the end of what it printed.
    """
    surroundings = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | dict(environment or {})
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=surroundings, stdout=output, stderr=errors)
        tree_peak = _PeakMemory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = max(tree_peak.stop(), usage.ru_maxrss / 1024)
        output.seek(0)
        errors.seek(0)
        printed = output.read()
        if process.returncode:
            raise RuntimeError(
                f"{command} ended with {process.returncode}:\n{printed[-2000:]}\n{errors.read()[-4000:]}"
            )
    return Measurement(seconds, usage.ru_utime + usage.ru_stime, peak, printed)


def interleave(
    contenders: Mapping[str, Callable[[], Measurement]], rounds: int, warm_up: bool = True
) -> dict[str, list[Measurement]]:
    """Each contender once per round, in turns, so that all see the same machine; a first round that is not counted."""
    results: dict[str, list[Measurement]] = {name: [] for name in contenders}
    for round_number in range(-1 if warm_up else 0, rounds):
        for name, run in contenders.items():
            result = run()
            print(f"round {round_number + 1}, {name}: {result.seconds:.2f} s", file=sys.stderr)
            if round_number >= 0:
                results[name].append(result)
    return results


def table(results: Mapping[str, Sequence[Measurement]], reference: str) -> str:
    """Markdown: median seconds with the range, processor seconds, peak memory, and the time relative to `reference`."""
    base = median_seconds(results[reference])
    lines = [
        f"| | seconds (range of {len(results[reference])}) | CPU seconds | peak MiB | time / {reference} |",
        "|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        seconds = [run.seconds for run in runs]
        processor = statistics.median(run.processor_seconds for run in runs)
        memory = statistics.median(run.peak_mib for run in runs)
        lines.append(
            f"| {name} | {statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f}) "
            f"| {processor:.2f} | {memory:.0f} | {statistics.median(seconds) / base:.2f} |"
        )
    return "\n".join(lines)


def median_seconds(runs: Sequence[Measurement]) -> float:
    return statistics.median(run.seconds for run in runs)


def machine() -> str:
    """The date and what was measured on, for the head of a table."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{today}, {len(os.sched_getaffinity(0))} cores ({model}), Python {platform.python_version()}"


# --- memory of a tree of processes -----------------------------------------------------------------------------------


class _PeakMemory:
    """Samples the summed proportional set size of a process and its descendants until it is stopped."""

    def __init__(self, root: int):
        self._root, self._peak, self._ended = root, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLING_SECONDS):
            self._peak = max(self._peak, sum(map(_proportional_mib, _tree(self._root))))


def _tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found, pending = [], [root]
    while pending:
        found.append(pending.pop())
        pending += children.get(found[-1], [])
    return found


def _proportional_mib(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0  # ended meanwhile
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)

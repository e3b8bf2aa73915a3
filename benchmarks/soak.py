"""Two hundred tiny trials in one search: memory, files and processes must stay flat, and nothing may be left behind.

    uv run python benchmarks/soak.py

Trials of ASHA, two at a time, many of which are stopped early. Looked at after every tenth trial; ends with exit code 1
when the last quarter needs more than the second one, or a worker, a placement group or a processor has not come back.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from timing import machine
from workload import study_text, write_table

from polyshot.progress import Progress
from polyshot.study import Study

SEARCH = """\
search:
  spaces: []
  space: {training.optimiser.learning_rate: {low: 1.0e-7, high: 1.0e-1, log: true}}
  objective: score/rmse
  scheduler: asha
  grace_epochs: 1
  sampler: random
"""
GROWTH = {"memory MiB": 1.10, "open files": 1.05, "processes": 1.0}


class Watch(Progress):
    """Looks at this process and all below it, every so many trials."""

    def __init__(self, every: int):
        self._every = every
        self._next = every
        self.seen: list[dict[str, float]] = []

    def advance(self, activity: str, completed: int, words: str = "") -> None:
        if activity != "search" or completed < self._next:
            return
        self._next = completed + self._every
        self.seen.append({"trials": completed} | usage())
        print("  ".join(f"{name} {value:.0f}" for name, value in self.seen[-1].items()), words, file=sys.stderr)


def usage() -> dict[str, float]:
    import psutil

    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    memory = files = 0.0
    for process in tree:
        try:
            memory += process.memory_full_info().pss / 2**20
            files += process.num_fds()
        except psutil.NoSuchProcess:
            continue
    return {"memory MiB": memory, "open files": files, "processes": len(tree)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    import ray

    from polyshot.cluster.ray import ray_session
    from polyshot.verbs.search import search

    with tempfile.TemporaryDirectory() as scratch:
        write_table(Path(scratch, "table.csv"), 1_000)
        text = study_text("soak", epochs=8, batch_size=128, search=SEARCH)
        Path(scratch, "study.yaml").write_text(text)
        study = Study.load(Path(scratch, "study.yaml")).with_values(
            {"storage": f"{scratch}/runs", "search.trials": options.trials, "search.concurrency": 2}
        )
        watch = Watch(every=max(1, options.trials // 20))
        with ray_session(study):
            processors = ray.cluster_resources()["CPU"]
            started = time.perf_counter()
            result = search(study, progress=watch)
            seconds = time.perf_counter() - started
            left = left_behind(processors)
    quarter = len(watch.seen) // 4
    second, last = watch.seen[quarter : 2 * quarter], watch.seen[-quarter:]
    states = result.trials["state"].value_counts().to_dict()
    print(f"{options.trials} trials in {seconds:.0f} s, {states}; {machine()}\n")
    print("| | second quarter | last quarter |\n|---|---|---|")
    grown = []
    for name, limit in GROWTH.items():
        before, after = (statistics.median(look[name] for look in part) for part in (second, last))
        print(f"| {name} | {before:.0f} | {after:.0f} |")
        grown += [name] * (after > limit * before + 1)
    print(f"\nleft behind: {', '.join(left) or 'nothing'}; grown: {', '.join(grown) or 'nothing'}")
    return 1 if left or grown else 0


def left_behind(processors: float) -> list[str]:
    """What the search has not given back a minute after its end."""
    import ray
    from ray.util import placement_group_table

    deadline, left = time.monotonic() + 60, ["?"]
    while time.monotonic() < deadline:
        left = [f"{group['name']} {group['state']}" for group in placement_group_table().values()]
        left = [group for group in left if not group.endswith("REMOVED")]
        if ray.available_resources().get("CPU") != processors:
            left.append("processors")
        if not left:
            break
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    sys.exit(main())

"""A small sweep on the embedded task, the same budget for each of the four scripts.

    python -m benchmarks.sweep                                8 settings each, two runs at a time

Each script's two or three settings that matter most are tried in all combinations, with the seeds
100 and 101, which no other experiment here uses. The best has the highest mean of the success
before fine-tuning and in it (1 - regret); among equals it is the one that obtains the most. Runs
lie in runs/experiment/ and may be interrupted; sweep.csv and sweep.md go to --results.
"""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.experiment import ROOT, Job, run_all, write_results

CONSERVATIVE = {
    "cql-weight": ("5", "1"),
    "target-entropy": ("0.125", "-1"),
    "n-actions": ("4", "10 --max-target-backup"),
}
GRIDS = {
    "iql": {"expectile": ("0.7", "0.9"), "beta": ("0.5", "1", "3", "10")},
    "awac": {"batch-size": ("64", "256"), "awac-lambda": ("0.3", "1", "3", "10")},
    "cql": CONSERVATIVE,
    "cal_ql": CONSERVATIVE,
}
SEEDS = (100, 101)


@dataclass
class Args:
    jobs: int = 2  # runs at a time
    results: Path = Path("benchmarks", "results")  # folder for the tables


def merit(rows: list[dict]) -> tuple[float, float]:
    """Of one setting's runs: by which settings are compared, and by which equals are."""
    success = [(row["success_before"] + 1 - row["regret"]) / 2 for row in rows]
    obtained = [row["discounted_return_before"] + row["discounted_return_after"] for row in rows]
    return round(float(np.mean(success)), 6), float(np.mean(obtained))


def ranked(rows: list[dict]) -> list[dict]:
    """Script after script, the best setting of each first."""
    settings = {}
    for row in rows:
        settings.setdefault((row["script"], row["condition"]), []).append(row)
    best_first = sorted(settings.values(), key=merit, reverse=True)
    best_first.sort(key=lambda group: list(GRIDS).index(group[0]["script"]))
    return [row for group in best_first for row in group]


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    os.chdir(ROOT)
    jobs = []
    for script, grid in GRIDS.items():
        for values in itertools.product(*grid.values()):
            setting = " ".join(f"--{name} {value}" for name, value in zip(grid, values))
            jobs += [Job(setting, script, "d0", seed, setting.split(), 0) for seed in SEEDS]
    rows = ranked(run_all(jobs, args.jobs))
    write_results(rows, args.results / "sweep.csv", args.results / "sweep.md")


if __name__ == "__main__":
    main()

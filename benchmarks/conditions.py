"""What each experiment runs, as data: conditions, scripts, tasks and seeds.

    EXPERIMENTS["name"] = Experiment({"condition": Condition("--flag value")}, seeds=range(10))

is all that `python -m benchmarks.experiment name` and `python -m benchmarks.report` need.
"""

import itertools
from typing import NamedTuple

SCRIPTS = ("iql", "awac", "cql", "cal_ql")
PAIR = ("cql", "cal_ql")
# Datasets that are made here, by these flags of collect_pointmaze.py; the first is embedded. Any
# other task is the name of a dataset, or its file.
COLLECTED = {"d0": "", "d1": "--seed 1", "d0-safe": "--no-traps"}


class Condition(NamedTuple):
    """Where no scripts, tasks or seeds are given they are those of the experiment."""

    flags: str = ""  # of the script
    online: str | None = None  # flags that matter online alone, among them --online-steps
    warmup: int = 0  # online steps with batches from the dataset alone, see warmup.py
    scripts: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    seeds: range | None = None


class Experiment(NamedTuple):
    """Conditions that give `online` flags share the pre-training of a script, task and seed, as
    long as their other flags are the same; runs of all others are whole ones."""

    conditions: dict[str, Condition]
    scripts: tuple[str, ...] = SCRIPTS
    tasks: tuple[str, ...] = ("d0",)
    seeds: range = range(4)
    memory: float = 0.6  # GiB that a run takes
    ranked: bool = False  # a search: its table has each script's best setting first
    by_task: bool = False  # its table has a row for each task
    figures: tuple[str, ...] = ()  # conditions whose curves are drawn


def grid(scripts: tuple[str, ...], **values: tuple[str, ...]) -> dict[str, Condition]:
    """All combinations of values of flags; each condition has its flags as its name."""
    names = [f"--{name.replace('_', '-')}" for name in values]
    lines = [
        " ".join(f"{name} {value}" for name, value in zip(names, chosen))
        for chosen in itertools.product(*values.values())
    ]
    return {line: Condition(line, scripts=scripts) for line in lines}


POINTMAZE = {
    "default": Condition(tasks=("d0", "d1"), seeds=range(8)),
    "default, 8 more seeds": Condition(
        scripts=("iql", "awac"), tasks=("d0", "d1"), seeds=range(8, 16)
    ),
    # Two of these lose all or half of their success at one evaluation, as none above does.
    "default, seeds 2025 to 2033": Condition(scripts=("awac",), seeds=range(2025, 2034)),
    "warm-up of 1000 steps": Condition(warmup=1000, scripts=PAIR, seeds=range(8)),
    "pre-training half as long": Condition("--offline-steps 3000"),
    "pre-training twice as long": Condition("--offline-steps 12000"),
    "no traps": Condition(tasks=("d0-safe",)),
    "target entropy of the authors": Condition("--target-entropy -1", scripts=PAIR),
    "weight 1 and target entropy of the authors": Condition(
        "--cql-weight 1 --target-entropy -1", scripts=PAIR
    ),
    "10 actions and max backup of the authors": Condition(
        "--n-actions 10 --max-target-backup", scripts=PAIR
    ),
}
WIDE = "--critic-hidden 512 512"  # --bf16 is faster with them
EXPERIMENTS = {
    "pointmaze": Experiment(POINTMAZE, figures=("default",)),
    "bf16": Experiment(
        {
            "critics 512 wide": Condition(WIDE),
            "critics 512 wide, bf16": Condition(f"{WIDE} --bf16", seeds=range(12)),
        },
        scripts=("cal_ql",),
        seeds=range(8),
    ),
    # The same small budget for each script: 8 settings of the two or three flags that matter most,
    # with seeds that no other experiment has.
    "sweep": Experiment(
        grid(("iql",), expectile=("0.7", "0.9"), beta=("0.5", "1", "3", "10"))
        | grid(("awac",), batch_size=("64", "256"), awac_lambda=("0.3", "1", "3", "10"))
        | grid(
            PAIR,
            cql_weight=("5", "1"),
            target_entropy=("0.125", "-1"),
            n_actions=("4", "10 --max-target-backup"),
        ),
        seeds=range(100, 102),
        ranked=True,
    ),
}

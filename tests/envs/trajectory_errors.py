"""How far the tasks go from the old engine: the table in benchmarks/envs/FIDELITY.md, on stdout.

    python tests/envs/trajectory_errors.py

Not a test: test_antmaze.py, test_adroit.py, test_kitchen.py and test_locomotion.py are.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # where benchmarks/ is

import physics
import test_adroit

from benchmarks.envs import antmaze, kitchen, locomotion

STEPS = (1, 10, 50, 100, 150, 200)
KITCHENS = {
    "kitchen, the arm touches nothing": 0,
    "kitchen, it touches kettle and stove": 3,
    "kitchen, itself too": 1,
}
HANDS, BODIES = test_adroit.TASKS, ("Hopper", "HalfCheetah", "Walker2d")


def largest(task, names, prepare=lambda env, name: None, **kwargs) -> list[str]:
    """The largest error of any position up to each of STEPS, as cells; the worst of the names."""
    # The old engine at hand, 2.3.7, has today's capsules.
    env = task(legacy_capsules=False, **kwargs)
    found = np.max([physics.errors(env, name, prepare) for name in names], 0)
    return [f"{found[:n].max():.0e}" if len(found) >= n else "" for n in STEPS]


def main() -> None:
    tasks = {"ant, the worst of 8": (antmaze.AntMaze, [f"ant{seed}" for seed in range(8)], {})}
    tasks |= {
        name: (task, [name], dict(prepare=test_adroit.prepare)) for name, task in HANDS.items()
    }
    for title, seed in KITCHENS.items():
        tasks[title] = kitchen.Kitchen, [f"kitchen{seed}"], dict(noise=0.0)
    for body in BODIES:
        tasks[body.lower()] = getattr(locomotion, body), [body.lower()], {}
    print("| trajectory | contacts |", " | ".join(map(str, STEPS)), "|")
    print("|---|---|" + "---|" * len(STEPS))
    for title, (task, names, kwargs) in tasks.items():
        for contacts, told in ((True, "legacy"), (False, "today's")):
            cells = largest(task, names, legacy_contacts=contacts, **kwargs)
            print(f"| {title if contacts else ''} | {told} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()

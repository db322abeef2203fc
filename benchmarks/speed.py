"""Updates per second of each script with the settings of the paper's tasks, on random transitions.

    python -m benchmarks.speed                     all scripts and rows of settings, as a table
    python -m benchmarks.speed --n 5 --scripts iql

Drawing the batch and its noise is included, evaluations and the environment are not.
"""

import importlib
import time
from dataclasses import dataclass
from typing import Literal

import torch
import tyro

TASKS = {"antmaze": (29, 8), "door-binary": (39, 28), "kitchen": (60, 9)}  # observation, action
N_ROWS = 10_000


@dataclass
class Settings:
    scripts: tuple[Literal["iql", "awac", "cql", "cal_ql"], ...] = ("iql", "awac", "cql", "cal_ql")
    n: int = 50  # updates that are timed, after three that are not
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"


def speed(script: str, row: str, settings: Settings) -> float:
    """Updates per second."""
    module, (obs, act) = importlib.import_module(script), TASKS[row]
    args, generator = module.Args(**module.SETTINGS[row]), torch.Generator(settings.device)
    transitions = torch.rand(N_ROWS, 2 * obs + act + 3) - 0.5
    transitions[:, -2] = 0  # no terminations
    agent = module.Agent(args, obs, act, settings.device)
    buffer = module.ReplayBuffer(args, transitions, obs, act, settings.device)
    for k in range(-3, max(settings.n, 1)):
        if k == 0:
            began = time.perf_counter()
        batch = buffer.sample(generator.manual_seed(k + 3))
        metrics = agent.update(batch, agent.draw(args.batch_size, generator, False))
    next(iter(metrics.values())).item()  # a GPU is to be done, too
    return max(settings.n, 1) / (time.perf_counter() - began)


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(settings.threads)
    print("| script |", " | ".join(TASKS), "|")
    print("|---|" + "---|" * len(TASKS))
    for script in settings.scripts:
        cells = [f"{speed(script, row, settings):.3g}" for row in TASKS]
        print(f"| `{script}` |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()

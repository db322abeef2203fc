"""What the tests of whole runs share: a toy task, datasets, and ways to start a script.

In a process of its own, as a user does, where that is the point (`run_script`); else by calling
`main` of the imported script (`run_here`), which saves the seconds of importing torch.
"""

import os
import random
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

# One thread: on a busy machine small networks are far slower with several. Before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy
from scripts import SCRIPTS, load_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

# Event files of the same second are read in the order of their names, which end in a count of the
# process: 10 would come before 9, the beginning of a run after its continuation.
event_file_writer._global_uid = event_file_writer.AtomicCounter(100_000)

# A run of a fraction of a second in which everything happens: evaluations between and at the ends
# of both phases, several rows of training metrics, several online episodes.
QUICK = dict(
    env_id="toy:Toy-v0",
    offline_steps=120,
    online_steps=60,
    eval_every_offline=50,
    eval_every_online=20,
    eval_episodes=2,
    batch_size=8,
    actor_hidden=(8,),
    critic_hidden=(8,),
    value_hidden=(8,),
    n_actions=2,
    threads=1,
    device="cpu",
)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the same tests with more repetitions")
    parser.addoption("--chance", default="0", help="seed of the moments that tests draw at random")


@pytest.fixture(scope="session")
def long(request) -> bool:
    """Whether there is time for many repetitions, with other seeds and moments."""
    return request.config.getoption("--long")


@pytest.fixture
def chance(request) -> random.Random:
    """What a test draws at random; a failed one shows the seed."""
    seed = request.config.getoption("--chance")
    print(f"drawn with --chance {seed}")
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture(params=SCRIPTS)
def script(request) -> str:
    """The name of each script in turn."""
    return request.param


def words(**settings) -> list[str]:
    """Settings as the words of a command line; None leaves a flag away."""
    line = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            line.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            line += [flag, *map(str, value)]
        elif value is not None:
            line.append(f"{flag}={value}")
    return line


def quick(script: str, **settings) -> list[str]:
    """The command line of a quick run: what a script has of QUICK, and the given settings."""
    known = {field.name for field in fields(load_script(script).Args)}
    return words(**{name: value for name, value in QUICK.items() if name in known} | settings)


def run_script(path: Path, *line: str, cwd: Path, timeout: float = 120, **environment: str):
    """`python path *line` in the folder cwd, the toy task within reach: status, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, str(path), *line],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(toy.__file__).parent)} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return SimpleNamespace(status=done.returncode, stdout=done.stdout, stderr=done.stderr)


@pytest.fixture
def run_here(monkeypatch, tmp_path):
    """Runs a script in this process and in the folder tmp_path; returns its module."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *line: str) -> ModuleType:
        module = load_script(script)
        # Drawing takes longer than such a run.
        monkeypatch.setattr(module, "draw_curves", lambda folder: None)
        module.main([*map(str, line)])
        return module

    return run


def read_events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each key in the order of the log, as TensorBoard shows them: without what a
    resumed run has declared void."""
    log = EventAccumulator(str(run_dir), {"scalars": 0})
    log.Reload()
    return {key: [(e.step, e.value) for e in log.Scalars(key)] for key in log.Tags()["scalars"]}


def read_checkpoint(run_dir: Path, name="checkpoint.pt") -> dict:
    return torch.load(run_dir / name, map_location="cpu", weights_only=True)


def same_bits(a, b) -> bool:
    """Equality of nested states, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b or (a != a and b != b)


def online_rows(module: ModuleType, run_dir: Path, obs_dim: int = 2, action_dim: int = 1):
    """The online transitions of a run's checkpoint as a Batch."""
    widths = [obs_dim, action_dim, 1, obs_dim, 1, 1]
    return module.Batch(*read_checkpoint(run_dir)["buffer"]["online"].split(widths, 1))


@pytest.fixture(scope="session")
def toy_data() -> dict[str, np.ndarray]:
    """Arrays of a dataset for Toy-v0; to be copied before they are changed."""
    return toy.play(gym.make("toy:Toy-v0"))


@pytest.fixture(scope="session")
def toy_file(toy_data, tmp_path_factory) -> Path:
    return toy.save(tmp_path_factory.mktemp("data") / "toy-random.hdf5", toy_data)


N_SMALL = 41  # transitions of a dataset that is smaller than what a quick run adds to it


@pytest.fixture(scope="session")
def small_file(tmp_path_factory) -> Path:
    data = toy.play(gym.make("toy:Toy-v0"), episodes=6)
    return toy.save(tmp_path_factory.mktemp("data") / "toy-small.hdf5", data)

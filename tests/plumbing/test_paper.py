"""The commands of the paper's experiments: each has its settings and its task, builds its agent and
trains on data that look like D4RL's."""

import importlib.util
import json
import shlex
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import read_checkpoint, words
from scripts import ROOT, SCRIPTS, load_script
from toy import play, save

sys.path.append(str(ROOT))  # where a script lies, and so on its path too

from benchmarks import envs

LINES = (ROOT / "benchmarks" / "paper.sh").read_text().splitlines()
COMMANDS = [line for line in LINES if line and not line.startswith("#")]
PAPER = [
    "antmaze-medium-play-v2",
    "antmaze-medium-diverse-v2",
    "antmaze-large-play-v2",
    "antmaze-large-diverse-v2",
    "pen-binary-v0",
    "door-binary-v0",
    "relocate-binary-v0",
    "kitchen-complete-v0",
    "kitchen-partial-v0",
    "kitchen-mixed-v0",
]
SHORT = 4  # steps of an episode here
FEW = dict(offline_steps=2, online_steps=2, eval_episodes=1, batch_size=8, n_actions=2)


def test_every_task_with_every_algorithm():
    wanted = {f"python {script}.py --dataset {name}" for script in SCRIPTS for name in PAPER}
    assert set(COMMANDS) == wanted and len(COMMANDS) == len(wanted)
    assert set(PAPER) <= set(envs.NAMES)


@pytest.fixture
def imitated(tmp_path, monkeypatch):
    """Makes a dataset of a name: a few short episodes, with D4RL's keys for that task."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))

    def make(name):
        if name.startswith("antmaze") and importlib.util.find_spec("d4rl") is None:
            pytest.skip("pip install --no-deps -r requirements-d4rl.txt")
        monkeypatch.setattr(gym.registry[name], "max_episode_steps", SHORT)
        data = play(gym.make(f"benchmarks.envs:{name}"), episodes=5)
        if name.startswith("kitchen"):  # the last step of each demonstration is a terminal
            data["terminals"] = np.maximum(data["terminals"], data.pop("timeouts"))
        if not name.endswith("-binary-v0"):
            del data["next_observations"]
        save(tmp_path / f"{name}.hdf5", data)

    return make


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_trains(run_here, imitated, tmp_path, command):
    python, file, *line = shlex.split(command)
    script, name = file.removesuffix(".py"), line[line.index("--dataset") + 1]
    assert python == "python" and script in SCRIPTS and name in envs.NAMES
    module = load_script(script)
    args = module.parse_args(line)
    assert module.row_of(name) != "defaults" and not args.env_id, "which follows from the name"
    assert (args.offline_steps, args.online_steps) >= (20_000, 200_000)

    imitated(name)
    few = {key: value for key, value in FEW.items() if hasattr(args, key)}
    run_here(script, *line, *words(**few, run_dir="run"))
    record, summary = (
        json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("args", "summary")
    )
    assert record["row"] == module.row_of(name) and "success" in summary["after"]
    state = read_checkpoint(tmp_path / "run")
    done = state["run"]
    assert done["offline_steps"] == 2 and done["updates"] >= 4
    assert len(state["buffer"]["online"]) == done["online_steps"] >= 2
    # The networks are as wide as the paper's settings say.
    [width] = {
        w.shape[0] for key, w in state["agent"].items() if key.endswith("actor.net.0.weight")
    }
    assert width == args.actor_hidden[0] >= 256
    assert all(torch.isfinite(w).all() for w in state["agent"].values())

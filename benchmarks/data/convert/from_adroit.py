"""Demonstrations for the hands' binary tasks: AWAC's, DAPG's, and D4RL's with dense rewards."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from tyro.conf import Positional

from benchmarks.data.convert.layout import (
    DAMAGED,
    Arrays,
    Common,
    arrays_of,
    in_a_row,
    load,
    reading,
    require,
)
from benchmarks.data.convert.pickles import Array, numbers, trajectories_of
from benchmarks.data.names import BINARY, folder

HANDS = dict(pen=(45, 24), door=(39, 28), relocate=(39, 30))  # numbers of observation and action


def successful(name: str, trajectory: dict) -> Arrays | None:
    """The rows of a trajectory up to its last success, reward 0; None if it has none. Every success
    is a terminal, whatever the file says (as in the authors' replay_buffer.py)."""
    keys = ("observations", "actions", "rewards", "next_observations")
    with reading(name, f"needed are {', '.join(keys)}"):
        data = {key: numbers(trajectory[key]) for key in keys}
        first, n = trajectory["observations"], len(data["observations"])
        first = first.value if isinstance(first, Array) else first
        if isinstance(first[0], dict):  # an expert's, whose rewards may go on
            data["rewards"] = data["rewards"][:n]
        rows = {key: len(array) for key, array in data.items()}
        require({*rows.values()} == {n}, f"{name}: rows differ, {rows}; {DAMAGED}")
        sparse = data["rewards"].size == n and np.isin(data["rewards"], (-1, 0)).all()
        require(sparse, f"{name}: rewards must be -1 or 0, one a row; take the sparse task's")
        data["terminals"] = data["rewards"].reshape(n) == 0
    if not data["terminals"].any():
        return None
    end = np.flatnonzero(data["terminals"])[-1] + 1
    return {key: array[:end] for key, array in data.items()}


def rewarded(name: str, trajectory: dict, task: str) -> dict:
    """A trajectory of observations and actions, T of each, with the binary task's rewards.

    The success after a step shows in the next row's observation, so that the last row, which has no
    next one, is left out.
    """
    from benchmarks.envs import adroit  # takes a second, which others need not wait

    with reading(name, "needed are observations and actions"):
        obs, actions = (numbers(trajectory[key]) for key in ("observations", "actions"))
        found = f"observations {obs.shape} and actions {actions.shape}"
        good = obs.ndim == actions.ndim == 2 and (obs.shape[1], actions.shape[1]) == HANDS[task]
        require(good, f"{name}: {found} are not those of --task {task}, {HANDS[task]} a row")
        problem = f"{name}: {found}, where there should be as many of each"
        require(len(obs) == len(actions), f"{problem}; {DAMAGED}")
        success = getattr(adroit, task.capitalize()).achieved(obs[1:])
    data = dict(observations=obs[:-1], actions=actions[:-1], next_observations=obs[1:])
    return data | dict(rewards=success - 1.0)


def episodes_of(path: Path) -> list[dict]:
    """Observations and actions of the episodes in a file of D4RL's layout; one of a single row has
    no next one and is left out."""
    with reading(path), h5py.File(path) as file:
        arrays = arrays_of(file)
        keys = ("observations", "actions", "terminals", "timeouts")
        data = {key: load(path, arrays, key) for key in keys}
        rows = {key: len(array) for key, array in data.items()}
        require(len({*rows.values()}) == 1, f"{path}: rows differ, {rows}; {DAMAGED}")
        over = (data["terminals"].ravel() != 0) | (data["timeouts"].ravel() != 0)
        cuts = np.flatnonzero(over)[:-1] + 1 if over[-1] else np.flatnonzero(over) + 1
        parts = zip(np.split(data["observations"], cuts), np.split(data["actions"], cuts))
        return [dict(observations=o, actions=a) for o, a in parts if len(o) > 1]


def adroit_rows(trajectories: Iterable[dict]) -> Arrays:
    """The rows of all trajectories with a success, up to the last one.

    Args:
        trajectories: dicts of observations (T, obs), next_observations (T, obs), actions (T, act)
            and rewards (T,) or (T, 1), -1 or 0; observations may be dicts with state_observation.
    """
    named = ((f"trajectory {i}", successful(f"{i}", x)) for i, x in enumerate(trajectories))
    return in_a_row("demonstrations", ((name, data) for name, data in named if data))


@dataclass(kw_only=True)
class Adroit(Common):
    """Demonstrations for the hand, for the tasks with binary rewards.

    AWAC's offpolicy_hand_data (*2_sparse.npy, *_bc_sparse4.npy); DAPG's (pen-v0_demos.pickle) and
    D4RL's (pen-human-v1 and the like, HDF5), whose dense rewards are replaced."""

    files: Positional[tuple[Path, ...]]  # the experts' first, as the authors have them
    task: Literal["pen", "door", "relocate"]

    @property
    def target(self) -> Path:
        """AWAC's are the paper's; others are not to be taken for them, but to have their row of
        settings."""
        others = [path.stem for path in self.files if path.suffix != ".npy"]
        name = f"-binary-{others[0].removeprefix(f'{self.task}-')}" if others else BINARY
        return folder() / f"{self.task}{name}.hdf5"

    def convert(self) -> tuple[Arrays, dict, list[str]]:
        names = " ".join(map(str, self.files)) or "no file"
        kept, n, changes = [], 0, []

        def trajectories() -> Iterator[tuple[str, dict]]:
            for path in self.files:
                hdf5 = path.is_file() and h5py.is_hdf5(path)
                found = episodes_of(path) if hdf5 else trajectories_of(path)
                dense = hdf5 or "next_observations" not in found[0]
                if dense:
                    how = "success in the next observation - 1; last rows, without one, left out"
                    changes.append(f"rewards of {path} are {how}")
                for i, trajectory in enumerate(found):
                    name = f"{path}, trajectory {i}"
                    yield name, rewarded(name, trajectory, self.task) if dense else trajectory

        for name, trajectory in trajectories():
            n += 1
            if data := successful(name, trajectory):
                kept.append((name, data))
        require(kept, f"{names}: no trajectory with a success (reward 0); name other files")
        data = in_a_row("adroit", kept)
        sizes = data["observations"].shape[1], data["actions"].shape[1]
        problem = f"{names}: observations and actions of {sizes} numbers are not those of --task"
        require(sizes == HANDS[self.task], f"{problem} {self.task}, {HANDS[self.task]}")
        env_id = f"benchmarks.envs:{self.task}{BINARY}"
        return (
            data,
            dict(env_id=env_id, env_kwargs="{}"),
            [
                *changes,
                f"{len(kept)} of {n} trajectories have a success, and are cut after the last one",
                "terminals are the rows with a success",
                f"environment: {env_id}",
            ],
        )

"""Several files of D4RL's layout as one."""

import json
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
from tyro.conf import Positional

from benchmarks.data.convert.layout import (
    AXES,
    NEEDED,
    Arrays,
    Common,
    Unusable,
    arrays_of,
    checked,
    load,
    reading,
    require,
)
from benchmarks.data.names import attributes_of

ENVIRONMENT = ("env_id", "env_kwargs")


@dataclass(kw_only=True)
class Join(Common):
    """Files of D4RL's layout, one after the other; a file's end is the end of an episode."""

    files: Positional[tuple[Path, ...]]  # two or more
    out: Path | None = None  # file to write; has to be given
    # Steps after which an episode of a file without timeouts is cut; by default the environment's.
    limit: int | None = None

    @property
    def target(self) -> Path:
        raise Unusable("join: give --out, the file to write")

    def convert(self) -> tuple[Arrays, dict, list[str]]:
        require(len(self.files) > 1, f"join: give two files or more, not {len(self.files)}")
        parts, attributes, extras, changes = [], [], [], []
        for path in self.files:
            with reading(path), h5py.File(path) as file:
                arrays, about = arrays_of(file), attributes_of(file)
                keys = [key for key in AXES if key in NEEDED or key in arrays]
                data = checked(path, {key: load(path, arrays, key) for key in keys})
                rows = {key: array for key, array in arrays.items() if key not in AXES}
                extras.append({key: array[()] for key, array in rows.items() if array.shape})
            parts.append(data)
            attributes.append(about)
        shared = self.shared(attributes, changes)
        for path, data in zip(self.files, parts):
            self.close(path, data, shared)
        if any("next_observations" in data for data in parts):
            for path, data in zip(self.files, parts):
                if "next_observations" not in data:
                    obs = data["observations"]
                    data["next_observations"] = np.concatenate([obs[1:], obs[-1:]])
                    changes.append(f"next_observations of {path} are the next rows'")
        for data, extra in zip(parts, extras):  # what every file has, row by row
            every = (key for key in extra if all(key in other for other in extras))
            data |= {key: extra[key] for key in every if len(extra[key]) == len(data["rewards"])}
        whole = [key for key in parts[0] if all(key in data for data in parts)]
        for path, data in zip(self.files, parts):
            for key in whole:
                found, first = data[key].shape[1:], parts[0][key].shape[1:]
                problem = f"{path}: a row of {key} has the shape {found}, in {self.files[0]}"
                require(found == first, f"{problem} {first}; join files of one task")
        left = sorted({key for extra in extras for key in extra} - {*whole})
        changes += [f"left out, since not all files have them: {', '.join(left)}"] * bool(left)
        data = {key: np.concatenate([part[key] for part in parts]) for key in whole}
        counts = ", ".join(
            f"{path} ({len(part['rewards'])})" for path, part in zip(self.files, parts)
        )
        told = "the last row of each is a timeout where it is no terminal"
        return data, shared, [f"rows of {counts}", told, *changes]

    def shared(self, attributes: list[dict], changes: list[str]) -> dict:
        """The attributes that all files have alike; those of the environment may be in some only.
        What is left out goes to `changes`. Raises: Unusable where environments differ."""
        result = {}
        for key in dict.fromkeys(key for about in attributes for key in about):
            values = [about[key] for about in attributes if key in about]
            alike = all(np.array_equal(value, values[0]) for value in values)
            if key in ENVIRONMENT:
                told = ", ".join(
                    f"{path}: {about.get(key)}" for path, about in zip(self.files, attributes)
                )
                require(alike, f"the files have different {key} ({told}); join files of one task")
            if alike and (len(values) == len(attributes) or key in ENVIRONMENT):
                result[key] = values[0]
            elif key != "converted":
                changes.append(f"left out, since not the same in all files: attribute {key}")
        result.pop("converted", None)
        if "env_id" in result:
            missing = [str(p) for p, about in zip(self.files, attributes) if "env_id" not in about]
            changes += [f"environment: {result['env_id']}, not named in {name}" for name in missing]
        return result

    def close(self, path: Path, data: Arrays, attributes: dict) -> None:
        """Marks where the episodes of a file end; without timeouts they end at the environment's
        limit, counted from the last terminal, as the scripts have it."""
        terminals = data["terminals"]
        if "timeouts" not in data:
            limit, n = self.limit or limit_of(attributes), np.arange(len(terminals))
            problem = (
                f"{path}: has no timeouts, and no env_id tells after how many steps an episode"
            )
            require(limit, f"{problem} is cut; give --limit")
            since = n - np.maximum.accumulate(np.where(np.append(True, terminals[:-1]), n, 0))
            data["timeouts"] = (since % limit == limit - 1) & ~terminals
        data["timeouts"][-1] |= not terminals[-1]


def limit_of(attributes: dict) -> float | None:
    """Steps after which the environment cuts an episode, inf if it never does; None: not known."""
    kwargs = json.loads(attributes.get("env_kwargs", "{}"))
    if "env_id" not in attributes or "max_episode_steps" in kwargs:
        return kwargs.get("max_episode_steps")
    with reading(attributes["env_id"], "install what it needs, or give --limit"):
        return gym.make(attributes["env_id"], **kwargs).spec.max_episode_steps or np.inf

"""Files of D4RL's layout whose timeouts are not where their episodes end."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from tyro.conf import Positional

from benchmarks import envs
from benchmarks.data.convert.layout import (
    AXES,
    NEEDED,
    Arrays,
    Common,
    arrays_of,
    checked,
    load,
    reading,
    require,
)
from benchmarks.data.names import attributes_of, d4rl_tables, folder


@dataclass(kw_only=True)
class Ends(Common):
    """A file of D4RL whose timeouts are not the ends of its episodes, as in antmaze-*-v0.

    There, rows 20 m apart follow each other in an episode: D4RL's issues 77 and 146."""

    file: Positional[Path]  # such as antmaze-umaze-v0.hdf5, or by D4RL's own name of that file
    jump: float = 1.0  # a position that moves on by more is another episode's
    columns: tuple[int, ...] = (0, 1)  # of the observations, with the position: x and y in metres

    @property
    def name(self) -> str:
        """D4RL's name of the file, else that of the file."""
        names = {}
        with contextlib.suppress(ModuleNotFoundError):
            names = {url.split("/")[-1]: x for x, url in d4rl_tables()["DATASET_URLS"].items()}
        return names.get(self.file.name, self.file.stem)

    @property
    def target(self) -> Path:
        return folder() / f"{self.name}-ends.hdf5"

    def convert(self) -> tuple[Arrays, dict, list[str]]:
        with reading(self.file), h5py.File(self.file) as file:
            arrays, attributes = arrays_of(file), attributes_of(file)
            keys = [key for key in AXES if key in NEEDED or key in arrays]
            data = checked(self.file, {key: load(self.file, arrays, key) for key in keys})
            for key, array in arrays.items():
                if key not in data and array.dtype.kind in "fiub" and array.shape and array.size:
                    data[key] = load(self.file, arrays, key)  # infos and the like, as they are
        obs, terminals = data["observations"], data["terminals"]
        old = data.get("timeouts", np.zeros_like(terminals))
        if "next_observations" in data:  # compared up to float32's rounding
            following, eps = data["next_observations"][:-1], np.finfo(np.float32).eps
            same = np.isclose(obs[1:], following, rtol=2 * eps, atol=1e-6)
            apart, how = ~same.all(1), "the next observation is not the next row's"
        else:
            good = self.jump > 0 and self.columns and {*self.columns} <= {*range(obs.shape[1])}
            problem = f"--columns {self.columns}: needed are some of {obs.shape[1]}"
            require(good, f"{problem}, and --jump {self.jump} above 0")
            steps = np.diff(obs[:, list(self.columns)], axis=0)
            apart = np.linalg.norm(steps, axis=1) > self.jump
            how = f"columns {self.columns} jump by more than {self.jump:g}"
        problem = f"{self.file}: after most rows {how}"
        require(apart.sum() <= len(apart) / 2, f"{problem}; give other --columns or --jump")
        # The file's end is one, too: else the scripts would leave the last episode out.
        data["timeouts"] = timeouts = np.append(apart, True) & ~terminals
        new, gone = (timeouts & ~old).sum(), (old & ~timeouts).sum()
        moved = min(new, gone)
        counts = f"{moved} moved, {new - moved} added, {gone - moved} removed"
        task, told = re.sub("-v[01]$", "-v2", self.name), "no env_id is known; give --env-id"
        if "env_id" in attributes or task in envs.NAMES:
            attributes.setdefault("env_id", f"{envs.__name__}:{task}")
            told = f"environment: {attributes['env_id']}"
        kept = (old & timeouts).sum()
        changes = [
            f"timeouts are where {how}, and at the end: {counts}, {kept} kept",
            "a row that is a terminal is no timeout; terminals are as they were",
            told,
        ]
        return data, attributes, changes

"""robomimic: an HDF5 group for each demonstration, observations in parts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from tyro.conf import Positional

from benchmarks.data.convert.layout import (
    Arrays,
    Common,
    arrays_of,
    in_a_row,
    load,
    ordered,
    reading,
    require,
)
from benchmarks.data.names import folder


@dataclass(kw_only=True)
class Robomimic(Common):
    """Demonstrations of robomimic, low-dimensional."""

    file: Positional[Path]
    # Parts of an observation, in the order in which they are put together.
    obs_keys: tuple[str, ...] = (
        "robot0_eef_pos",
        "robot0_eef_quat",
        "robot0_gripper_qpos",
        "object",
    )

    @property
    def target(self) -> Path:
        return folder() / f"robomimic-{self.file.stem}.hdf5"

    def convert(self) -> tuple[Arrays, dict, list[str]]:
        sizes, derived = {}, []
        with reading(self.file), h5py.File(self.file) as file:
            arrays = arrays_of(file)
            found = {
                int(m[1]) for m in (re.match(r"data/demo_(\d+)/", path) for path in arrays) if m
            }

            def observed(group: str) -> np.ndarray:
                parts = [load(self.file, arrays, f"{group}/{key}") for key in self.obs_keys]
                for key, part in zip(self.obs_keys, parts):
                    problem = f"{self.file}: {group}/{key} has the shape {part.shape}, not rows"
                    require(part.ndim == 2 and len(part) == len(parts[0]), f"{problem}; --obs-keys")
                    sizes[key] = part.shape[1]
                return np.concatenate(parts, 1)

            def demonstrations() -> Iterator[tuple[str, Arrays]]:
                for demo in (f"data/demo_{number}" for number in sorted(found)):
                    columns = dict(actions="actions", rewards="rewards", terminals="dones")
                    data = {k: load(self.file, arrays, f"{demo}/{v}") for k, v in columns.items()}
                    data["observations"] = obs = observed(f"{demo}/obs")
                    if any(path.startswith(f"{demo}/next_obs/") for path in arrays):
                        data["next_observations"] = observed(f"{demo}/next_obs")
                    else:  # the last row has none: nobody asks for a terminal's or a timeout's
                        data["next_observations"] = np.concatenate([obs[1:], obs[-1:]])
                        derived.append(demo)
                    yield demo, data

            data = in_a_row(self.file, demonstrations())
            env_args = file["data"].attrs.get("env_args", "")
        order, parts = ordered(sizes)
        changes = [parts, "terminals are the dones, timeouts last rows without one"]
        if derived:
            changes.append(f"next_observations of {len(derived)} demonstrations are the next rows'")
        changes.append("no env_id, since the environment (env_args) is robosuite's; give --env-id")
        return data, order | {"env_args": env_args}, changes

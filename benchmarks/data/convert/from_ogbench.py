"""OGBench: an archive of arrays without rewards, which ogbench makes for one of its tasks."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from benchmarks.data.convert.layout import Arrays, Common, checked, optional, reading, require
from benchmarks.data.names import folder


@dataclass(kw_only=True)
class Ogbench(Common):
    """A dataset of OGBench, for one of its single tasks."""

    file: Positional[str]  # name, with the task, of a dataset in ~/.ogbench/data; or a file X.npz
    name: str | None = None  # that name, for a file which is not called so

    @property
    def target(self) -> Path:  # not "antmaze-...": these settings are for D4RL's rewards
        return folder() / f"ogbench-{self.name or Path(self.file).stem}.hdf5"

    def convert(self) -> tuple[Arrays, dict, list[str]]:
        ogbench, task = optional("ogbench"), self.name or Path(self.file).stem
        words, is_file = task.split("-"), self.file.endswith(".npz")
        wanted = "--name " * is_file + "-".join([*words[:-1], "singletask", words[-1]])
        reason = "its episodes have different goals, and without a goal there is no reward"
        require("singletask" in words, f"{task}: {reason}; give {wanted}")
        stem = "-".join([*words[: words.index("singletask")], words[-1]])
        path = Path(self.file if is_file else f"~/.ogbench/data/{stem}.npz").expanduser()
        get = f"python -c \"import ogbench; ogbench.download_datasets(['{stem}'])\""
        require(path.is_file(), f"{path}: no such file; {get}")
        with reading(task, "give a name such as antmaze-medium-navigate-singletask-v0"):
            with contextlib.redirect_stderr(io.StringIO()):  # notices about there being no screen
                env = ogbench.make_env_and_datasets(task, env_only=True)
        with reading(path):
            # Compact: with each episode's last row, which has no successor, as a timeout's has not;
            # it is none of ogbench's transitions, and no terminal even at the goal.
            raw = ogbench.load_dataset(str(path), compact_dataset=True, add_info=True)
            optional("ogbench.relabel_utils").relabel_dataset(env.spec.id, env, raw)
            data = {key: raw[key] for key in ("observations", "actions", "rewards")}
            data |= dict(terminals=1 - raw["masks"], timeouts=1 - raw["valids"])
            data = checked(path, data)
        data["timeouts"][-1] = True
        data["terminals"] &= ~data["timeouts"]
        for key, space in zip(data, (env.observation_space, env.action_space)):
            problem = f"{path}: a row of {key} has the shape {data[key].shape[1:]}, in {task}"
            require(data[key].shape[1:] == space.shape, f"{problem} {space.shape}; give its --name")
        attributes = dict(env_id=f"ogbench:{env.spec.id}", env_kwargs="{}")
        n_goals = data["terminals"].sum()
        changes = [
            f"rewards of {task} by ogbench, which finds {n_goals} rows at the goal",
            "terminals are these rows; the ends of episodes, which they were, are timeouts",
            f"environment: {attributes['env_id']}",
        ]
        return data, attributes, changes

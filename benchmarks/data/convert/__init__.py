"""Turns datasets of other layouts into what the scripts read: an HDF5 file as D4RL has them.

    python -m benchmarks.data.convert minari D4RL/door/human-v2
    python -m benchmarks.data.convert ogbench antmaze-medium-navigate-singletask-v0
    python -m benchmarks.data.convert adroit pen2_sparse.npy pen_bc_sparse4.npy --task pen
    python -m benchmarks.data.convert robomimic low_dim_v141.hdf5 --out lift.hdf5
    python -m benchmarks.data.convert ends Ant_maze_u-maze_noisy_multistart_False_multigoal_False.hdf5

A row is a transition. `terminals` marks those at which the task ended, after which nothing is to be
had; `timeouts` marks an episode's last row where it was cut, which the scripts leave out. Files go
to D4RL's cache, where `--dataset NAME` finds them, and name their environment. What was changed is
printed and kept in the attribute `converted`. Exit status 2: an input that cannot be used.
"""

import contextlib
import importlib
import io
import json
import os
import pickle
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import gymnasium as gym
import h5py
import numpy as np
import tyro
from numpy.lib import format as npy
from tyro.conf import Positional

from benchmarks import tasks
from benchmarks.data.names import attributes_of, d4rl_tables, folder

Arrays = dict[str, np.ndarray]
AXES = dict(observations=2, actions=2, rewards=1, terminals=1, timeouts=1, next_observations=2)
DAMAGED = "get or make the file again"
HANDS = dict(pen=(45, 24), door=(39, 28), relocate=(39, 30))  # numbers of observation and action


class Unusable(Exception):
    """An input that cannot be converted; the text names it, says why and what to do."""


def require(good, problem: str) -> None:
    if not good:
        raise Unusable(problem)


@contextlib.contextmanager
def reading(source, remedy: str = DAMAGED) -> Iterator[None]:
    """Whatever a damaged file makes a library raise becomes one line about the source."""
    try:
        yield
    except Unusable:
        raise
    except Exception as error:
        raise Unusable(f"{source}: {type(error).__name__}: {error}; {remedy}") from error


def optional(module: str):
    with reading(f"{module} is missing", "pip install -r requirements.txt"):
        return importlib.import_module(module)


# --- What all layouts have in common --------------------------------------------------------------


def checked(where, data: Arrays) -> Arrays:
    """The arrays as float32 and bool, with as many rows as observations and axes as in AXES; one
    axis may be a column. Raises: Unusable where they are not so, or not finite."""
    result, n = {}, len(data["observations"])
    for key, array in data.items():
        array = array[:, 0] if AXES[key] == 1 and array.shape[1:] == (1,) else array
        good = array.ndim == AXES[key] and array.dtype.kind in "fiub" and array.size
        found, wanted = f"{key} ({array.dtype}, {array.shape})", f"numbers on {AXES[key]} axes"
        require(good, f"{where}: {found} must be {wanted}, not none; convert states, not images")
        same = array.shape == data["observations"].shape or "observations" not in key
        problem = f"{where}: {found} does not go with observations {data['observations'].shape}"
        require(len(array) == n and same, f"{problem}; {DAMAGED}")
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf
            result[key] = array.astype(np.float32)
        bad = ~np.isfinite(result[key].reshape(n, -1)).all(1)
        require(not bad.any(), f"{where}: row {bad.argmax()} of {key} is not finite; remove it")
    return result | {key: result[key] != 0 for key in ("terminals", "timeouts") if key in result}


def join(where, episodes: Iterable[tuple[str, Arrays]]) -> tuple[Arrays, list[str]]:
    """Named episodes one after the other, their ends marked, and a sentence if a row was added.

    A row that ended the task is no timeout, even if time was up too. Behind a last row that is none
    comes a copy which is: the scripts, as the authors' code, leave out a file's last row.
    """
    parts = []
    for name, episode in episodes:
        part = checked(f"{where}, {name}", episode)
        over = part["terminals"]
        part["timeouts"] = part.get("timeouts", np.zeros_like(over)) & ~over
        part["timeouts"][-1] = not over[-1]
        parts.append(part)
        for key, array in part.items():
            shape, before = array.shape[1:], parts[0][key].shape[1:]
            problem = f"{where}, {name}: a row of {key} has the shape {shape}, before {before}"
            require(shape == before, f"{problem}; {DAMAGED}")
    require(parts, f"{where}: not one episode to convert; {DAMAGED}")
    data = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if data["timeouts"][-1]:
        return data, []
    data = {key: np.concatenate([array, array[-1:]]) for key, array in data.items()}
    data["terminals"][-1], data["timeouts"][-1] = False, True
    return data, ["a copy of the last row, marked as a timeout, closes the file"]


def write(out: Path, data: Arrays, attributes: dict) -> None:
    """All or nothing: into another file, which takes the name when it is whole."""
    unfinished = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # With checksums of everything: of the format's own parts ("latest"), and of the numbers.
        with h5py.File(unfinished, "x", libver="latest", track_order=True) as file:
            for key, array in data.items():
                options = dict(compression="gzip", shuffle=True, fletcher32=True)
                file.create_dataset(key, data=array, **options)
            for key, value in attributes.items():  # a text of any length would have no checksum
                file.attrs[key] = np.bytes_(value.encode()) if isinstance(value, str) else value
        os.replace(unfinished, out)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def arrays_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All arrays that are stored in this very file, by path: visititems follows no links."""
    found = {}
    file.visititems(lambda path, item: found.update({path: item}))
    return {path: item for path, item in found.items() if isinstance(item, h5py.Dataset)}


def load(where, arrays: dict[str, h5py.Dataset], key: str) -> np.ndarray:
    some = ", ".join([*arrays][:8]) or "nothing"
    require(key in arrays, f"{where}: holds no {key}, but {some}; is it of this layout?")
    array = arrays[key]
    inside = not array.external and not array.is_virtual
    require(inside, f"{where}: {key} is kept in other files, which are not opened; copy it in")
    problem = f"{where}: {key} has the type {array.dtype}; needed are numbers"
    require(array.dtype.kind in "fiub" and array.shape is not None, problem)
    return array[()]


def ordered(sizes: dict[str, int]) -> tuple[dict, str]:
    """Attribute and sentence about the parts that observations are put together of."""
    told = ", ".join(f"{path} ({size})" for path, size in sizes.items())
    return {"observation_order": json.dumps([*sizes.items()])}, f"observations are {told}"


@dataclass(kw_only=True)
class Common:
    """Every kind has a default file `target` and `convert`: arrays, attributes, what was changed.
    Raises: Unusable."""

    out: Path | None = None  # file to write; by default in D4RL's cache
    overwrite: bool = False  # replace that file where it exists


# --- Minari ---------------------------------------------------------------------------------------


def flattened(space: dict, values, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """gymnasium.spaces.flatten for many at once: path and array (T, size) of each part, in order.

    The space is serialised, as Minari keeps it: as an object it has its keys sorted, but
    FlattenObservation takes them in the environment's order.
    """
    if space["type"] in ("Dict", "Tuple"):
        inner = space["subspaces"]
        for key in inner if space["type"] == "Dict" else range(len(inner)):
            yield from flattened(inner[key], values[key], f"{path}/{key}".lstrip("/"))
    else:
        if space["type"] != "Box":
            leaf = optional("minari.serialization").deserialize_space(space)
            values = np.stack([gym.spaces.flatten(leaf, value) for value in values])
        yield path or "observation", np.reshape(values, (len(values), -1))


def environment(spec) -> tuple[dict, str]:
    """The attributes by which the scripts make a dataset's environment, and a sentence on it."""
    if spec is None:
        return {}, "no env_id, since the dataset names none; give --env-id"
    wrappers = [w.name for w in spec.additional_wrappers if w.name != "FlattenObservation"]
    if wrappers:
        return {}, f"no env_id, since {spec.id} is wrapped in {', '.join(wrappers)}; give --env-id"
    module = re.split("[.:]", spec.entry_point)[0]  # its import registers the id
    env_id = spec.id if module == "gymnasium" else f"{module}:{spec.id}"
    kwargs = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    if spec.max_episode_steps is not None:
        kwargs["max_episode_steps"] = spec.max_episode_steps
    return dict(env_id=env_id, env_kwargs=json.dumps(kwargs)), f"environment: {env_id}"


@dataclass(kw_only=True)
class Minari(Common):
    """A dataset of Minari, from its local folder or else downloaded."""

    id: Positional[str]  # such as D4RL/door/human-v2

    @property
    def target(self) -> Path:
        return folder() / f"minari-{self.id.replace('/', '-')}.hdf5"

    def convert(self) -> tuple[Arrays, dict, list[str]]:
        minari, sizes = optional("minari"), {}
        root = os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")
        place = Path(root).expanduser() / self.id
        remedy = f"it is not in {place} and could not be downloaded; check id and connection"
        if here := (place / "data").exists():
            remedy = f"delete {place} to have it downloaded again"
        with reading(self.id, remedy):
            dataset = minari.load_dataset(self.id, download=not here)
            about = dataset.storage.read_raw_metadata(dataset.storage.data_path)
            space, actions = json.loads(about["observation_space"]), dataset.action_space
            continuous = isinstance(actions, gym.spaces.Box)
            require(continuous, f"{self.id}: its actions are {actions}; needed is a bounded box")

            def episodes() -> Iterator[tuple[str, Arrays]]:
                for episode in dataset.iterate_episodes():
                    parts, n = dict(flattened(space, episode.observations)), len(episode.actions)
                    sizes.update({path: part.shape[1] for path, part in parts.items()})
                    problem = f"{self.id}, episode {episode.id}: has not {n + 1} observations"
                    good = all(len(part) == n + 1 for part in parts.values())
                    require(good, f"{problem} for {n} actions; {DAMAGED}")
                    obs = np.concatenate([*parts.values()], 1)
                    data = dict(observations=obs[:-1], actions=episode.actions)
                    data |= dict(rewards=episode.rewards, next_observations=obs[1:])
                    data |= dict(terminals=episode.terminations, timeouts=episode.truncations)
                    yield f"episode {episode.id}", data

            data, changes = join(self.id, episodes())
        # Some datasets name another environment for evaluation: that is the task to be learned.
        attributes, told = environment(dataset._eval_env_spec or dataset.env_spec)
        order, parts = ordered(sizes)
        changes.append("timeouts are truncations, and last rows without any end")
        return data, attributes | order, [parts, *changes, told]


# --- OGBench --------------------------------------------------------------------------------------


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
            # Compact: with each episode's last row, which has no successor, as a timeout's has not.
            raw = ogbench.load_dataset(str(path), compact_dataset=True, add_info=True)
            optional("ogbench.relabel_utils").relabel_dataset(env.spec.id, env, raw)
            data = {key: raw[key] for key in ("observations", "actions", "rewards")}
            data |= dict(terminals=1 - raw["masks"], timeouts=1 - raw["valids"])
            data = checked(path, data)
        data["timeouts"][-1] = True
        for key, space in zip(data, (env.observation_space, env.action_space)):
            problem = f"{path}: a row of {key} has the shape {data[key].shape[1:]}, in {task}"
            require(data[key].shape[1:] == space.shape, f"{problem} {space.shape}; give its --name")
        attributes = dict(env_id=f"ogbench:{env.spec.id}", env_kwargs="{}")
        return data, attributes, [
            f"rewards of {task} by ogbench, which finds {data['terminals'].sum()} rows at the goal",
            "terminals are these rows; the ends of episodes, which they were, are timeouts",
            f"environment: {attributes['env_id']}",
        ]  # fmt: skip


# --- Adroit: AWAC's demonstrations, which are pickles ---------------------------------------------


class Dtype:
    """Stands for a pickled numpy.dtype. numpy's own takes over whatever it is told: a forged one
    would have it take numbers for pointers."""

    def __init__(self, code: str, *_):
        require(re.fullmatch(r"O8?|[biuf]\d{1,2}|[US]\d+", code), f"holds arrays of type {code}")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple):
        self.value = self.value.newbyteorder(state[1])


class Array:
    """Stands for a pickled numpy.ndarray. `value`: an array, or a list of objects."""

    def __setstate__(self, state: tuple):
        _, shape, dtype, fortran, content = state
        if dtype.value.hasobject:
            self.value = list(content)
        else:
            flat = np.frombuffer(content, dtype.value)
            self.value = flat.reshape(shape, order="F" if fortran else "C")


class Unpickler(pickle.Unpickler):
    """Knows arrays, numbers, texts, lists and dicts. Nothing that a pickle names is imported."""

    known = {
        "numpy.ndarray": Array,
        "numpy.dtype": Dtype,
        "collections.OrderedDict": dict,
        "_codecs.encode": lambda text, _: text.encode("latin1"),  # how old pickles have bytes
        "__builtin__.bytes": lambda: b"",
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[f"{core}._reconstruct"] = lambda *_: Array()
        known[f"{core}.scalar"] = lambda dtype, raw: np.frombuffer(raw, dtype.value)[0]

    def find_class(self, module: str, name: str):
        found = self.known.get(f"{module}.{name}")
        require(found, f"names {module}.{name}, which is no data and is not run; do not trust it")
        return found


def trajectories_of(path: Path) -> list[dict]:
    """The elements of an .npy file of Python objects. Raises: Unusable, above all where the pickle
    in it asks for anything but data."""
    with reading(path, "is it an .npy file of trajectories, and whole?"), open(path, "rb") as file:
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        _, _, dtype = header[npy.read_magic(file)](file)
        found = []
        if dtype.hasobject:
            try:
                found = Unpickler(file).load().value
            except Unusable as problem:
                raise Unusable(f"{path}: {problem}") from problem
        good = isinstance(found, list) and found and all(isinstance(x, dict) for x in found)
        require(good, f"{path}: must hold dicts, one a trajectory, and not none; {DAMAGED}")
    return found


def numbers(value) -> np.ndarray:
    """An array from arrays, lists and single numbers; of an observation that is a dict, its
    state."""
    value = value.value if isinstance(value, Array) else value
    if isinstance(value, dict):
        return numbers(value["state_observation"])
    if isinstance(value, list) or getattr(value, "dtype", None) == np.dtype(object):
        return np.array([numbers(inner) for inner in value])
    return np.asarray(value)


def successes(where, trajectories: Iterable[dict]) -> Iterator[tuple[str, Arrays]]:
    """Of each trajectory with a success, reward 0, the rows up to the last one; every success is a
    terminal, whatever the file says (as in the authors' replay_buffer.py)."""
    keys = ("observations", "actions", "rewards", "next_observations")
    for i, trajectory in enumerate(trajectories):
        name = f"{where}, trajectory {i}"
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
        if data["terminals"].any():
            end = np.flatnonzero(data["terminals"])[-1] + 1
            yield name, {key: array[:end] for key, array in data.items()}


def adroit_rows(trajectories: Iterable[dict]) -> Arrays:
    """The rows of all trajectories with a success, and a closing one: see successes and join.

    Args:
        trajectories: dicts of observations (T, obs), next_observations (T, obs), actions (T, act)
            and rewards (T,) or (T, 1), -1 or 0; observations may be dicts with state_observation.
    """
    return join("adroit", successes("demonstrations", trajectories))[0]


@dataclass(kw_only=True)
class Adroit(Common):
    """AWAC's demonstrations for the hand, offpolicy_hand_data: *2_sparse.npy, *_bc_sparse4.npy."""

    files: Positional[tuple[Path, ...]]  # the experts' first, as the authors have them
    task: Literal["pen", "door", "relocate"]

    @property
    def target(self) -> Path:
        return folder() / f"{self.task}-binary-v0.hdf5"

    def convert(self) -> tuple[Arrays, dict, list[str]]:
        kept, n = [], 0
        for path in self.files:
            trajectories = trajectories_of(path)
            kept += successes(path, trajectories)
            n += len(trajectories)
        names = " ".join(map(str, self.files)) or "no file"
        require(kept, f"{names}: no trajectory with a success (reward 0); name other files")
        data, changes = join("adroit", kept)
        sizes = data["observations"].shape[1], data["actions"].shape[1]
        problem = f"{names}: observations and actions of {sizes} numbers are not those of --task"
        require(sizes == HANDS[self.task], f"{problem} {self.task}, {HANDS[self.task]}")
        env_id = f"benchmarks.envs:{self.task}-binary-v0"
        return data, dict(env_id=env_id, env_kwargs="{}"), [
            f"{len(kept)} of {n} trajectories have a success, and are cut after the last one",
            "terminals are the rows with a success",
            *changes,
            f"environment: {env_id}",
        ]  # fmt: skip


# --- robomimic ------------------------------------------------------------------------------------


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

            data, changes = join(self.file, demonstrations())
            env_args = file["data"].attrs.get("env_args", "")
        order, parts = ordered(sizes)
        if derived:
            changes.append(f"next_observations of {len(derived)} demonstrations are the next rows'")
        return data, order | {"env_args": env_args}, [
            parts,
            "terminals are the dones, timeouts last rows without one",
            *changes,
            "no env_id, since the environment (env_args) is robosuite's; give --env-id",
        ]  # fmt: skip


# --- Old versions of D4RL's AntMaze ---------------------------------------------------------------


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
            keys = [key for i, key in enumerate(AXES) if i < 4 or key in arrays]
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
        # The file's end is one too: else the scripts would leave the last episode out.
        data["timeouts"] = timeouts = np.append(apart, True) & ~terminals
        new, gone = (timeouts & ~old).sum(), (old & ~timeouts).sum()
        moved = min(new, gone)
        counts = f"{moved} moved, {new - moved} added, {gone - moved} removed"
        task, told = re.sub("-v[01]$", "-v2", self.name), "no env_id is known; give --env-id"
        if "env_id" in attributes or task in tasks.NAMES:
            attributes.setdefault("env_id", f"{tasks.__name__}:{task}")
            told = f"environment: {attributes['env_id']}"
        return data, attributes, [
            f"timeouts are where {how}, and at the end: {counts}, {(old & timeouts).sum()} kept",
            "a row that is a terminal is no timeout; terminals are as they were",
            told,
        ]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Minari | Ogbench | Adroit | Robomimic | Ends, args=argv, description=__doc__)
    kind, out = type(args).__name__.lower(), args.out or args.target
    try:
        free = args.overwrite or not os.path.lexists(out)
        require(free, f"--out {out}: exists; take another name, or --overwrite")
        data, attributes, changes = args.convert()
        packages = ["gymnasium", "h5py", "numpy"] + [kind] * (kind in ("minari", "ogbench"))
        versions = {name: version(name) for name in packages} | {
            "python": platform.python_version()
        }
        settings = {k: v for k, v in asdict(args).items() if k not in ("out", "overwrite")}
        record = dict(program="benchmarks/convert.py", kind=kind, source=settings)
        record = json.dumps(record | dict(versions=versions, changes=changes), default=str)
        with reading(f"--out {out}", "name a place that can be written"):
            write(out, data, attributes | {"converted": record})
    except Unusable as problem:
        print("convert.py:", *str(problem).split(), file=sys.stderr)
        sys.exit(2)
    counts = ", ".join(f"{data[key].sum()} {key}" for key in ("terminals", "timeouts"))
    print(f"{out}: {len(data['rewards'])} transitions, {counts}", *changes, sep="\n  ")
    print(f"python cal_ql.py --dataset {out.stem if out.parent == folder() else out}")


if __name__ == "__main__":
    main()

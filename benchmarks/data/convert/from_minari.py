"""Minari: a folder for each dataset, episodes of observations that may be dicts."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from tyro.conf import Positional

from benchmarks.data.convert.layout import (
    DAMAGED,
    Arrays,
    Common,
    in_a_row,
    optional,
    ordered,
    reading,
    require,
)
from benchmarks.data.names import folder

# Wrappers that change nothing which the scripts do not see to themselves.
HARMLESS = ("FlattenObservation", "RecordEpisodeStatistics")


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


# --- The environment ------------------------------------------------------------------------------


def made(spec) -> gym.Env | None:
    """The environment of a specification, with its wrappers; None where that cannot be made here.
    What it prints is no news."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception):
        return gym.make(spec, **({"render_mode": None} if "render_mode" in spec.kwargs else {}))


def chain(env: gym.Env | None) -> Iterator[gym.Wrapper]:
    """The wrappers of an environment, the outermost first."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def environment(spec) -> tuple[dict, str]:
    """The attributes by which the scripts make a dataset's environment, and a sentence on it.

    It is made without its wrappers: what they do to actions is done to the dataset (`acted`).
    """
    if spec is None:
        return {}, "no env_id, since the dataset names no environment; give --env-id"
    env = made(spec)
    if env is None:
        return {}, f"no env_id, since {spec.id} cannot be made here; install it, or give --env-id"
    known = {type(w).__name__ for w in chain(env) if isinstance(w, gym.ActionWrapper)} | {*HARMLESS}
    wrappers = [w.name for w in spec.additional_wrappers if w.name not in known]
    if wrappers:
        return {}, f"no env_id, since {spec.id} is wrapped in {', '.join(wrappers)}; give --env-id"
    kwargs = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    if spec.max_episode_steps is not None:
        kwargs["max_episode_steps"] = spec.max_episode_steps
    module = spec.entry_point.split(":")[0]
    package = module.split(".")[0]
    # An id is registered by the import of its package, or else of its own module.
    ids = [f"{package}:{spec.id}", f"{module}:{spec.id}"]
    for env_id in [spec.id] if package == "gymnasium" else ids:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception):
            gym.make(env_id, **kwargs)
            return dict(env_id=env_id, env_kwargs=json.dumps(kwargs)), f"environment: {env_id}"
    return {}, f"no env_id, since importing {module} does not register {spec.id}; give --env-id"


def acted(where, actions: np.ndarray, box: gym.spaces.Box, spec, task) -> tuple[np.ndarray, list]:
    """Actions (T, act) of a dataset as they reached the environment itself, and what was changed.

    Data are often collected behind RescaleAction or ClipAction. The scripts make the environment
    without them, and take actions to be in its own box.

    Args:
        box: the dataset's action space.
        spec, task: of the environment that was played, and of the one that is to be learned.
    """
    if spec is None:
        return actions, [f"actions lie in {shown(box)}; that of --env-id must be the same"]
    env, learned, told = made(spec), made(task), []
    if env is None:
        changing = [w.name for w in spec.additional_wrappers if "Action" in w.name]
        problem = f"{where}: {spec.id} cannot be made here, and its {', '.join(changing)}"
        require(not changing, f"{problem} changed the actions; install it")
    for wrapper in chain(env):
        if isinstance(wrapper, gym.ActionWrapper):
            actions = np.array([wrapper.action(action) for action in actions])
            box = wrapper.env.action_space
            told.append(f"actions are what {type(wrapper).__name__} made of them")
    own = learned.unwrapped.action_space if learned else box
    if not same(box, own):
        good = box.shape == own.shape and box.is_bounded() and own.is_bounded()
        problem = f"{where}: its actions lie in {shown(box)}, those of {task.id} in {shown(own)}"
        require(good, f"{problem}; only from one bounded box to another can they be moved")
        actions = own.low + (actions - box.low) / (box.high - box.low) * (own.high - own.low)
        told.append(f"actions are moved from {shown(box)} to {shown(own)}, the environment's box")
    return actions, told


def same(one: gym.spaces.Box, other: gym.spaces.Box) -> bool:
    """But for rounding and the type of the numbers."""
    pairs = ((one.low, other.low), (one.high, other.high))
    return one.shape == other.shape and all(np.allclose(*pair) for pair in pairs)


def shown(box: gym.spaces.Box) -> str:
    """Such as [-1, 1]^8."""
    low, high = (f"{x.flat[0]:g}" if (x == x.flat[0]).all() else x for x in (box.low, box.high))
    return f"[{low}, {high}]^{box.shape[0]}"


# --- The data -------------------------------------------------------------------------------------


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
            space, box = json.loads(about["observation_space"]), dataset.action_space
            continuous = isinstance(box, gym.spaces.Box)
            require(continuous, f"{self.id}: its actions are {box}; needed is a bounded box")

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

            data = in_a_row(self.id, episodes())
            # Some datasets name another environment for evaluation: that is the task to be learned.
            spec = dataset.env_spec
            task = dataset._eval_env_spec or spec
        attributes, told = environment(task)
        actions, moves = acted(self.id, data["actions"], box, spec or task, task)
        data["actions"] = np.float32(actions)
        order, parts = ordered(sizes)
        changes = [parts, *moves, "timeouts are truncations, and last rows without any end", told]
        return data, attributes | order, changes

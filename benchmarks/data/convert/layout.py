"""What all conversions have in common: the layout that they write, and how they refuse."""

import contextlib
import importlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

Arrays = dict[str, np.ndarray]
AXES = dict(observations=2, actions=2, rewards=1, terminals=1, timeouts=1, next_observations=2)
NEEDED = ("observations", "actions", "rewards", "terminals")
DAMAGED = "get or make the file again"


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
    """A module of a package that only this kind of conversion needs."""
    remedy = "pip install -r requirements-convert.txt"
    if module.startswith("ogbench"):
        remedy += ", with a Python before 3.13"
    with reading(f"{module} is missing", remedy):
        return importlib.import_module(module)


@dataclass(kw_only=True)
class Common:
    """Every kind has a default file `target` and `convert`: arrays, attributes, what was changed.
    Raises: Unusable."""

    out: Path | None = None  # file to write; by default in D4RL's cache
    overwrite: bool = False  # replace that file where it exists


# --- Rows -----------------------------------------------------------------------------------------


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


def in_a_row(where, episodes: Iterable[tuple[str, Arrays]]) -> Arrays:
    """Named episodes one after the other, their ends marked: a last row that did not end the task
    is a timeout. A row that did is none, even if time was up, too."""
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
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


# --- Files ----------------------------------------------------------------------------------------


def arrays_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All arrays of a file, by path."""
    found = {}
    file.visititems(lambda path, item: found.update({path: item}))
    return {path: item for path, item in found.items() if isinstance(item, h5py.Dataset)}


def load(where, arrays: dict[str, h5py.Dataset], key: str) -> np.ndarray:
    some = ", ".join([*arrays][:8]) or "nothing"
    require(key in arrays, f"{where}: holds no {key}, but {some}; is it of this layout?")
    problem = f"{where}: {key} has the type {arrays[key].dtype}; needed are numbers"
    require(arrays[key].dtype.kind in "fiub" and arrays[key].shape is not None, problem)
    return arrays[key][()]


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


def ordered(sizes: dict[str, int]) -> tuple[dict, str]:
    """Attribute and sentence about the parts that observations are put together of."""
    told = ", ".join(f"{path} ({size})" for path, size in sizes.items())
    return {"observation_order": json.dumps([*sizes.items()])}, f"observations are {told}"

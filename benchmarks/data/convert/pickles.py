"""Trajectories out of pickles, without running anything that a pickle asks for."""

import pickle
import re
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from benchmarks.data.convert.layout import DAMAGED, Unusable, reading, require


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
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content, dtype: Dtype, shape: tuple, order: str) -> "Array":
        if dtype.value.hasobject:
            self.value = list(content)
        else:
            self.value = np.frombuffer(raw(content), dtype.value).reshape(shape, order=order)
        return self


def raw(content: str | bytes) -> bytes:
    """Python 2 has bytes as texts, which arrive as latin1."""
    return content.encode("latin1") if isinstance(content, str) else content


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
        known[f"{core}.scalar"] = lambda dtype, one: np.frombuffer(raw(one), dtype.value)[0]
    for core in ("numpy.core.numeric", "numpy._core.numeric"):  # protocol 5
        known[f"{core}._frombuffer"] = lambda *state: Array().fill(*state)

    def find_class(self, module: str, name: str):
        found = self.known.get(f"{module}.{name}")
        require(found, f"names {module}.{name}, which is no data and is not run; do not trust it")
        return found


def trajectories_of(path: Path) -> list[dict]:
    """The elements of a pickled list, or of an .npy file of Python objects. Raises: Unusable, above
    all where the pickle asks for anything but data."""
    remedy = "is it a pickle or an .npy file of trajectories, and whole?"
    with reading(path, remedy), open(path, "rb") as file:
        holds_objects = True
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            file.seek(0)
            header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            holds_objects = header[npy.read_magic(file)](file)[2].hasobject
        else:
            file.seek(0)
        found = []
        if holds_objects:
            try:
                found = Unpickler(file, encoding="latin1").load()
            except Unusable as problem:
                raise Unusable(f"{path}: {problem}") from problem
        found = found.value if isinstance(found, Array) else found
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

"""Loading is safe: whatever is done to a dataset, a fixture or a checkpoint, it gives the same data
or one clear line, runs nothing, comes to an end, and takes no more memory than the file justifies.

By chance (tests/fuzz.py) and, where chance would take long, made by hand. --long does ten times as
much, and every byte of an own file.
"""

import io
import json
import os
import pickle
import re
import signal
import struct
import sys
import time
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

import fuzz
import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
import toy
from h5py import h5d, h5p, h5s, h5t
from scripts import OWN_FIXTURES, load_script

ROWS = 997  # of hostile datasets: a number that is easily found in a file
LONGEST = 30  # seconds for a hostile file; all take some hundredths, but for those that never end


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_damaged_files(name, long, tmp_path):
    """A failure tells the words behind `python tests/fuzz.py` that repeat it."""
    seed, n = (1, 1000) if long else (0, 100)
    results = [*fuzz.fuzz(fuzz.KINDS[name], range(n), seed, tmp_path)]
    bad = [result for result in results if result.bad]
    assert not bad, "\n".join(f"--seed {seed} --kind {name} --only {x.number}: {x}" for x in bad)
    found = [result.outcome for result in results]
    assert found.count("refused") > n / 4 and "same" in found, "it does too much, or too little"


@pytest.mark.parametrize("kind", fuzz.KINDS.values(), ids=fuzz.KINDS)
def test_a_number_stands_for_one_change(kind):
    """Else a failure could not be repeated."""
    content = next(OWN_FIXTURES.glob("return*.npz")).read_bytes()
    samples = [fuzz.Sample(name, content, (32,), previous=content) for name in "abc"]
    one, again = ([kind.change(samples, 3, n) for n in range(20)] for _ in range(2))
    assert one == again
    assert len({change.told for change in one}) == 20
    assert kind.change(samples, 4, 0) != one[0]


# --- The watcher itself ---------------------------------------------------------------------------


class Evil(fuzz.Kind):
    """Does by turns all that a load must not do, and in the end what it may."""

    path = Path("evil")
    turns = "raise exit print whisper swell die hang other refuse fine".split()

    @staticmethod
    def samples(folder: Path) -> list[fuzz.Sample]:
        return [fuzz.Sample("evil", b"")]

    @classmethod
    def change(cls, samples, seed, number) -> fuzz.Change:
        return fuzz.Change(samples[0], [cls.turns[number].encode()], True, cls.turns[number])

    def load(self, sample: fuzz.Sample):
        turn = self.path.read_text()
        if turn == "raise":
            raise KeyError("evil")
        if turn == "exit":
            sys.exit(1)
        if turn == "print":
            print("evil\nevil", file=sys.stderr)
            sys.exit(2)
        if turn == "whisper":
            sys.exit(2)
        if turn == "swell":
            np.ones(fuzz.SLACK + (20 << 20), np.uint8)
        if turn == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if turn == "hang":
            time.sleep(60)
        if turn == "refuse":
            print("evil is damaged", file=sys.stderr)
            sys.exit(2)
        return {"other": turn == "other"}


def test_the_watcher_sees_what_is_bad(tmp_path):
    results = [*fuzz.fuzz(Evil, range(len(Evil.turns)), 0, tmp_path, patience=2)]
    found = {result.change: result.outcome for result in results}
    told = {
        "raise": "traceback: KeyError",
        "exit": "status 1",
        "print": "refused with the lines ['evil', 'evil']",
        "whisper": "refused with the lines []",
        "swell": "8. MB of memory",
        "die": "died with status -11",
        "hang": "no end within 2 s",
        "other": "other data, and nothing said",
        "refuse": "refused$",
        "fine": "same$",
    }
    for turn, words in told.items():
        assert re.match(words.replace("[", r"\["), found[turn]), found[turn]
    assert [result.bad for result in results] == [*8 * [True], False, False]


def test_the_program_tells_how_to_repeat_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(fuzz, "KINDS", {"hdf5": Evil})
    for line, status in (("--n 2 --seed 7", 1), ("--only 9", 0)):
        monkeypatch.setattr(sys, "argv", ["fuzz.py", *line.split()])
        assert fuzz.main() == status
        out = capsys.readouterr().out
        assert ("--seed 7 --kind hdf5 --only 1: exit: status 1" in out) == bool(status)


# --- Files made by hand: what they share ----------------------------------------------------------


class Hostile(fuzz.Kind):
    """Each sample is a file that must be refused. `files` makes them, by their names."""

    @classmethod
    def files(cls, folder: Path) -> dict[str, bytes]:
        raise NotImplementedError

    @classmethod
    def samples(cls, folder: Path) -> list[fuzz.Sample]:
        return [fuzz.Sample(name, content) for name, content in cls.files(folder).items()]

    @classmethod
    def change(cls, samples, seed, number) -> fuzz.Change:
        sample = samples[number]
        return fuzz.Change(sample, [sample.content], True, sample.name)

    def expected(self, sample: fuzz.Sample) -> dict:
        return {}


class Run:
    """Unpickled, it makes a file."""

    def __init__(self, folder: Path):
        self.command = f"touch {folder / 'ran'}"

    def __reduce__(self):
        return os.system, (self.command,)


# --- Hostile datasets -----------------------------------------------------------------------------


def low_level(shape, chunks, n_gzip=0, chunk=b"", kind=h5t.IEEE_F32LE, fill=None):
    """Rewards with a layout that h5py's own create_dataset does not offer; the chunk, if there is
    one, is written as it is."""

    def make(file: h5py.File, folder: Path) -> None:
        settings = h5p.create(h5p.DATASET_CREATE)
        settings.set_chunk(chunks)
        if fill is not None:
            settings.set_fill_value(np.array(fill, "f4"))
        for _ in range(n_gzip):
            settings.set_deflate(9)
        space = h5s.create_simple(shape, len(shape) * (h5s.UNLIMITED,))
        rewards = h5d.create(file.id, b"rewards", kind, space, settings)
        if chunk:
            rewards.write_direct_chunk(len(shape) * (0,), chunk)

    return make


def given(*args, **kwargs):
    """Rewards by h5py's create_dataset."""
    return lambda file, folder: file.create_dataset("rewards", *args, **kwargs) and None


def link(name: str, target: str, where="rewards"):
    """A link to another file in the folder."""

    def make(file: h5py.File, folder: Path) -> None:
        file[where] = h5py.ExternalLink(str(folder / name), target)

    return make


def soft_link(file: h5py.File, folder: Path) -> None:
    file["far"] = h5py.ExternalLink(str(folder / "other.hdf5"), "rewards")
    file["rewards"] = h5py.SoftLink("/far")


def linked_group(file: h5py.File, folder: Path) -> None:
    file["far"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/")
    file["rewards"] = h5py.SoftLink("/far/rewards")


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((ROWS,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "rewards", (ROWS,))
    file.create_virtual_dataset("rewards", layout)


def partly_filled(file: h5py.File, folder: Path) -> None:
    file.create_dataset("rewards", (2**36,), "f4", chunks=(ROWS,), fillvalue=7)[:ROWS] = 1


ZEROS = zlib.compress(bytes(2**28), 9)  # 256 MB in 255 kB
DATASETS = {
    "an external link": link("other.hdf5", "rewards"),
    "an external link to a file without end": link("fifo", "rewards"),
    "an external link to an optional array": link("fifo", "timeouts", "timeouts"),
    "a soft link to an external link": soft_link,
    "a soft link through an external group": linked_group,
    "external storage": given((ROWS,), "f4", external=[("/etc/passwd", 0, 4 * ROWS)]),
    "a virtual dataset": virtual,
    "huge": given((2**40,), "f4"),
    "huge and wide": given((2**20, 2**20), "f8"),
    "so huge that its size is 0 in 64 bits": low_level((2**33, 2**31), (1, 1), 1),
    "huge, in chunks": given((2**40,), "f4", chunks=(2**20,)),
    "huge, in chunks, filled": low_level((2**40,), (2**20,), fill=7.0),
    "huge, with one chunk": partly_filled,
    "huge, in compressed chunks": given((2**40,), "f4", chunks=(2**20,), compression="gzip"),
    "zeros, compressed": low_level((2**28,), (2**28,), 1, ZEROS, h5t.STD_U8LE),
    "a chunk larger than the array": low_level((ROWS,), (2**26,), 1, ZEROS),
    "zeros, compressed twice": low_level((ROWS,), (ROWS,), 2, zlib.compress(ZEROS)),
    "empty": given(data=h5py.Empty("f4")),
    "a group": lambda file, folder: file.create_group("rewards"),
    "a type": lambda file, folder: file.__setitem__("rewards", np.dtype("f4")),
    "text": given(data=ROWS * ["1.0"]),
    "text of one length": given(data=np.array(ROWS * [b"1.0"])),
    "arrays of any length": given(data=np.array([np.ones(3, "f4")] * ROWS + [0], object)[:-1],
        dtype=h5py.vlen_dtype("f4")),
    "references": given(data=np.array(ROWS * [h5py.Reference()], object), dtype=h5py.ref_dtype),
    "complex numbers": given(data=np.ones(ROWS, "c8")),
    "records": given(data=np.ones(ROWS, [("a", "f4"), ("b", "f4")])),
    "arrays as elements": given((ROWS,), np.dtype(("f4", (1000, 1000)))),
    "bytes without a meaning": given(data=np.ones(ROWS, "V4")),
}  # fmt: skip


def text_at(content: bytes, offset: int, bit: int) -> bytes:
    """With a bit flipped in what stands before the first text of any length."""
    changed = bytearray(content)
    changed[content.index(b"GCOL") + offset] ^= 1 << bit
    return bytes(changed)


def type_at(content: bytes, offset: int, bit: int) -> bytes:
    """With a bit flipped in the type of the attribute env_id, or what follows it."""
    changed = bytearray(content)
    changed[content.index(b"\x19\x01", content.index(b"env_id\0")) + offset] ^= 1 << bit
    return bytes(changed)


def larger(content: bytes) -> bytes:
    """The rewards, and what they take in the file, are declared to be 2^33 numbers."""
    sizes = struct.pack("<Q", ROWS), struct.pack("<Q", 4 * ROWS)
    at = content.index(b"rewards\0")
    assert content.count(sizes[0], at) and content.count(sizes[1], at)
    for old, new in zip(sizes, (2**33, 2**35)):
        content = content.replace(old, struct.pack("<Q", new))
    return content


# What libhdf5 takes on trust: a collection of texts, and where an attribute says that its text is.
BYTES = {
    "declared as huge as the file is to be": larger,
    "a text's length": lambda content: text_at(content, 24, 7),
    "another text's length": lambda content: text_at(content, 25, 0),
    "a text's type": lambda content: type_at(content, 1, 1),
    "a text's type once more": lambda content: type_at(content, 1, 3),
    "a text of 2 GB": lambda content: type_at(content, 35, 7),
}

ODD = {
    "an array": np.array([1.0, 2.0]),
    "an array of one": np.array([1.5]),
    "an array of texts": np.array(["a", "b"], object),
    "empty": h5py.Empty("f4"),
    "nan": np.nan,
    "inf": np.inf,
    "complex": 1 + 2j,
    "huge": 1e300,
    "a text": "no number and no module",
    "a long text": "x" * 200_000,
    "a text of two lines": "one\ntwo\r\x0b\x0c\x1c\x85\u2028three",
    "bytes": np.bytes_(b"\xff\xfe"),
    "a reference": h5py.Reference(),
    "a record": np.array((1, 2.0), "i4,f4")[()],
    "brackets": 50_000 * "[",
}
ATTRIBUTES = {
    f"{key}: {name}": {"env_id": "toy:Toy-v0", key: value}
    for key in ("env_id", "env_kwargs", "ref_min_score", "ref_max_score")
    for name, value in ODD.items()
} | {
    "scores: equal": {"ref_min_score": 1.0, "ref_max_score": 1.0},
    "scores: nearly equal": {"ref_min_score": 0.0, "ref_max_score": 5e-324},
    "scores: in the wrong order": {"ref_min_score": 2.0, "ref_max_score": 1.0},
    "env_id: a number": {"env_id": 5},
    "env_kwargs: a number": {"env_id": "toy:Toy-v0", "env_kwargs": 5},
    "env_kwargs: a list": {"env_id": "toy:Toy-v0", "env_kwargs": "[1]"},
}


class Datasets(Hostile):
    path = Path("hostile.hdf5")
    names = [*DATASETS, *BYTES, *ATTRIBUTES]

    @classmethod
    def files(cls, folder: Path) -> dict[str, bytes]:
        data = toy.play(gym.make("toy:Toy-v0"), episodes=150)
        data = {key: data[key][:ROWS] for key in toy.ARRAYS[:4]}
        toy.save(folder / "other.hdf5", data)
        os.mkfifo(folder / "fifo")
        found = {}
        for name, make in DATASETS.items():
            kept = {k: x for k, x in data.items() if k != "rewards" or "optional" in name}
            path = toy.save(folder / "hostile.hdf5", kept)
            with h5py.File(path, "r+") as file:
                make(file, folder)
            found[name] = path.read_bytes()
        path = toy.save(folder / "text.hdf5", data, env_id="toy:Toy-v0")
        found |= {name: change(path.read_bytes()) for name, change in BYTES.items()}
        for name, attributes in ATTRIBUTES.items():
            found[name] = toy.save(folder / "odd.hdf5", data, **attributes).read_bytes()
        return found

    def load(self, sample: fuzz.Sample) -> dict:
        module = load_script(fuzz.ONE)
        args = module.Args(dataset=str(self.path))
        data, attributes = module.read_dataset(args.dataset)
        args.env_id = "" if "env_id" in attributes else "toy:Toy-v0"
        return module.load_episodes(args, data, module.make_env(args, attributes))

    def named(self, line: str) -> bool:
        return super().named(line) or "--env-id" in line  # it may be the environment's own error


# --- Hostile fixtures -----------------------------------------------------------------------------


def with_numbers(**arrays):
    return lambda meta, found, folder: found.update(arrays)


def with_meta(**settings):
    return lambda meta, found, folder: meta.update(settings)


def wide_batch(meta, found, folder):
    """Small arrays, the product of whose sizes is large."""
    n = 20_000
    for name in [name for name in found if name.startswith("w0/")]:
        del found[name]
    for name in [name for name in found if name.startswith("batch/")]:
        found[name] = np.zeros((n, 1), np.float32)
    for network, inputs in dict(actor=1, q1=2, q2=2, q1_target=2, q2_target=2, v=1).items():
        for i, shape in enumerate([(inputs, n), (n, 1)]):
            found[f"w0/{network}/dense{i}/kernel"] = np.zeros(shape, np.float32)
            found[f"w0/{network}/dense{i}/bias"] = np.zeros(shape[1], np.float32)


FIXTURES = {
    "objects": lambda meta, found, folder: found.update(
        {"batch/rewards": np.array(32 * [Run(folder)], object)}),
    "ten million updates": with_numbers(**{"f64/step10000000/loss/v": np.zeros(())}),
    "wide layers": with_numbers(**{f"w0/{x}/dense{i}/bias": np.zeros(10**5, np.float32)
        for x in ("actor", "q1", "v") for i in range(2)}),
    "rows without numbers": with_numbers(**{"batch/observations": np.zeros((10**7, 0))}),
    "a wide batch": wide_batch,
    "zeros, compressed": with_numbers(more=np.zeros(2**24)),
    "no numbers": with_numbers(**{"batch/rewards": np.array(32 * ["x"])}),
    "a kind of two lines": with_meta(kind="iql\n\r\x0b\u2028awac"),
    "a kind that cannot be printed": with_meta(kind="\ud800\x1b[2J"),
    "a kind without end": with_meta(kind=10**6 * "x"),
    "a kind that is a list": with_meta(kind=[1]),
    "settings that are a number": with_meta(settings=7),
    "infinite settings": with_meta(settings=dict(tau=float("inf"), discount=10**400)),
}  # fmt: skip


def renamed(name: str) -> bytes:
    """The fixture with one array under a name for which nothing is known."""
    with np.load(OWN_FIXTURES / "iql_adroit_dropout.npz") as file:
        arrays = dict(file)
    arrays[name] = arrays.pop("f64/step1/loss/v")
    np.savez(written := io.BytesIO(), **arrays)
    return written.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(written := io.BytesIO(), "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return written.getvalue()


HEADER = b"\x93NUMPY\x01\x00\x76\x00"
WHOLE = {
    "a pickle": lambda folder: pickle.dumps(Run(folder)),
    "a pickle for an array": lambda folder: zipped({"meta.npy": pickle.dumps(Run(folder))}),
    "an array without end": lambda folder: zipped({"meta.npy": HEADER
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(118)}),
    "a meta of brackets": lambda folder: zipped({"meta.npy": HEADER
        + b"{'descr': '<U60000', 'fortran_order': False, 'shape': (), }".ljust(118)
        + (60_000 * "[").encode("utf-32-le")}),
    "a name of two lines": lambda folder: renamed("f64/step1/loss/v\nw"),
    "a name that is no number": lambda folder: renamed("f64/stepx/loss/v"),
    "nothing": lambda folder: b"",
    "no arrays": lambda folder: zipped({}),
}  # fmt: skip


class Fixtures(Hostile, fuzz.Npz):
    names = [*FIXTURES, *WHOLE]

    @classmethod
    def files(cls, folder: Path) -> dict[str, bytes]:
        found = {}
        for name, change in FIXTURES.items():
            with np.load(OWN_FIXTURES / "iql_adroit_dropout.npz") as file:
                arrays = {key: file[key] for key in file if not key.startswith("noise/")}
            meta = json.loads(str(arrays.pop("meta")))
            meta["settings"]["dropout_rate"] = None
            change(meta, arrays, folder)
            np.savez_compressed(written := io.BytesIO(), meta=json.dumps(meta), **arrays)
            found[name] = written.getvalue()
        return found | {name: make(folder) for name, make in WHOLE.items()}

    @classmethod
    def samples(cls, folder: Path) -> list[fuzz.Sample]:
        return [fuzz.Sample(x.name, x.content, script="iql") for x in super().samples(folder)]


# --- Hostile checkpoints --------------------------------------------------------------------------


def sealed(content: bytes) -> bytes:
    """With the checksum that a checkpoint has at its end."""
    return content + sha256(content).digest()


def saved(state) -> bytes:
    torch.save(state, content := io.BytesIO())
    return sealed(content.getvalue())


def with_pickle(content: bytes, pickled: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    [name] = [name for name in members if name.endswith("data.pkl")]
    return sealed(zipped(members | {name: pickled}))


CHECKPOINTS = {
    "a pickle": lambda content, state, folder: sealed(pickle.dumps(Run(folder), 2)),
    "a pickle inside": lambda content, state, folder: with_pickle(
        content, pickle.dumps(Run(folder), 2)),
    "code for the counters": lambda content, state, folder: saved(state | {"done": Run(folder)}),
    "code among the weights": lambda content, state, folder: saved(
        state | {"agent": state["agent"] | {"log_alpha": Run(folder)}}),
    "code beside all": lambda content, state, folder: saved(state | {"more": Run(folder)}),
    "a module": lambda content, state, folder: saved(torch.nn.Linear(2, 2)),
    "a list": lambda content, state, folder: saved([1, 2]),
    "rows of another width": lambda content, state, folder: saved(
        state | {"ring": state["ring"][:, 1:]}),
    "nothing": lambda content, state, folder: b"",
}  # fmt: skip


class Checkpoints(Hostile, fuzz.Checkpoint):
    """Each of them twice, the second time with a good one before it: if its hash is right, that is
    not taken for damage, and nothing is touched."""

    names = [*CHECKPOINTS, *(f"{name}, after another" for name in CHECKPOINTS)]

    @classmethod
    def samples(cls, folder: Path) -> list[fuzz.Sample]:
        good, *_ = fuzz.Checkpoint.samples(folder)
        state = torch.load(io.BytesIO(good.content), weights_only=True)
        samples = []
        for name in cls.names:
            make = CHECKPOINTS[name.removesuffix(", after another")]
            sample = fuzz.Sample(**vars(good) | {"name": name})
            sample.content = make(good.content, state, folder)
            samples.append(sample)
        return samples

    @classmethod
    def change(cls, samples, seed, number) -> fuzz.Change:
        sample = samples[number]
        files = [sample.content, sample.previous][: 1 + sample.name.endswith("another")]
        return fuzz.Change(sample, files, True, sample.name)

    def expected(self, sample: fuzz.Sample) -> dict:
        self.write(sample, [sample.previous])
        return {"previous": self.load(sample)}


# --- What comes of them ---------------------------------------------------------------------------


HOSTILE = {"hdf5": Datasets, "npz": Fixtures, "checkpoint": Checkpoints}


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory):
    """What came of a hostile file, all of a kind being loaded by one child, and whether one ran."""
    found = {}

    def outcome_of(kind: str, name: str) -> str:
        if kind not in found:
            folder = tmp_path_factory.mktemp("hostile")
            results = fuzz.fuzz(HOSTILE[kind], range(len(HOSTILE[kind].names)), 0, folder, LONGEST)
            found[kind] = {result.change: result.outcome for result in results}
            assert not (folder / "ran").exists(), "code of a file was run"
        return found[kind][name]

    return outcome_of


@pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind, hostile in HOSTILE.items() for name in hostile.names]
)
def test_a_hostile_file_is_refused(outcome_of, kind, name):
    """In one line, and soon, and in the memory that its size justifies."""
    damaged = name == "nothing, after another"  # its hash is not right
    assert outcome_of(kind, name) == ("previous" if damaged else "refused")

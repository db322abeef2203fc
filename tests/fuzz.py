"""Damages valid files in many ways, loads them, and looks at what comes of it.

    python tests/fuzz.py --n 1000 --seed 1 [--kind hdf5|npz|checkpoint] [--only NUMBER]

Datasets are loaded by a script's load_task, fixtures by tests/parity.py, and checkpoints by
read_checkpoint, with and without another one in checkpoint.previous. Bits are flipped, runs of
bytes overwritten, inserted, swapped or cut off, and numbers of the format made 0 or huge: sizes,
addresses, lengths.

A load is good if it gives the same data, or ends with status 2 and one line that names the file.
Where nothing in a file tells that a number is another (a plain HDF5 file), other numbers of the
same shapes are good, too: "changed". All else is bad: a traceback, another status, more lines, a
signal, or no end within a minute. Exit status 1: a load was bad; how to repeat it is printed.

Every load happens in a child, which does many of them, and the parent looks at the clock.
"""

import argparse
import collections
import contextlib
import functools
import io
import os
import random
import re
import resource
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import h5py
import numpy as np
import toy
from conftest import quick, read_checkpoint, same_bits  # first: it sees to a single thread
from lives import SERVER
from scripts import OWN_FIXTURES, ROOT, load_script

ONE = "cql"  # loading is the same in all scripts
PATIENCE = 60  # seconds for a load, most of which take some hundredths
CEILING = 8 << 30  # bytes that a child may ask for, for the sake of the machine


class Result(NamedTuple):
    number: int
    outcome: str  # "same", "previous", "refused", "changed", or what was bad
    change: str  # what was done to which file

    @property
    def bad(self) -> bool:
        return self.outcome not in ("same", "previous", "refused", "changed")


@dataclass
class Sample:
    """A valid file. `sizes` are numbers that its format tells: rows, widths, lengths."""

    name: str
    content: bytes
    sizes: tuple[int, ...] = ()
    checked: bool = True  # whether its format has checksums of all that is read
    script: str = ONE
    previous: bytes = b""  # the checkpoint before it


# --- Damage ---------------------------------------------------------------------------------------


SIGNATURES = re.compile(
    rb"\x89HDF|OHDR|OCHK|TREE|SNOD|HEAP|GCOL|FRHP|FHDB|FHIB|BTHD|BTLF|BTIN|FAHD|FADB|EAHD|EADB"
    rb"|FSHD|FSSE|observations|actions|rewards|terminals|timeouts|env_id|env_kwargs|ref_m"
    rb"|PK\x01\x02|PK\x03\x04|PK\x05\x06|PK\x06\x06|\x93NUMPY|data\.pkl"
)
NUMBERS = [0, 1, 2, 7, 255, 4096, 65535, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**40]
NUMBERS += [2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
WAYS = ["bits", "bits", "bits", "number", "number", "size", "size", "run", "insert", "delete"]
WAYS += ["cut", "swap"]


@functools.cache
def landmarks(content: bytes) -> list[int]:
    return [match.start() for match in SIGNATURES.finditer(content)] or [0]


@functools.cache
def places(content: bytes, size: int) -> list[int]:
    """Where a number of the format stands, as far as four bytes can tell."""
    return [m.start() for m in re.finditer(re.escape(struct.pack("<I", size)), content)]


def spot(rng: random.Random, content: bytes) -> int:
    """Anywhere, or near something that matters."""
    if rng.random() < 0.4:
        return rng.randrange(len(content))
    near = rng.choice(landmarks(content)) + rng.randrange(-16, 160)
    return min(max(near, 0), len(content) - 1)


def damage(rng: random.Random, content: bytes, sizes: tuple[int, ...]) -> tuple[bytes, str]:
    """A changed copy, and what was changed."""
    changed, told = bytearray(content), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        way, at, n = rng.choice(WAYS), spot(rng, content), int(2 ** rng.uniform(0, 12))
        other = spot(rng, content)
        some_bytes = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])
        if way == "bits":
            n = rng.choice([1, 1, 2, 8])
            for place in [at] + [spot(rng, content) for _ in range(n - 1)]:
                changed[min(place, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif way in ("number", "size"):
            found = places(content, rng.choice(sizes)) if sizes and way == "size" else []
            at, n = rng.choice(found or [at]), rng.choice([1, 2, 4, 8])
            changed[at : at + n] = struct.pack("<Q", rng.choice(NUMBERS))[:n]
        elif way == "run":
            changed[at : at + n] = some_bytes[: len(changed[at : at + n])]
        elif way == "insert":
            changed[at:at] = some_bytes
        elif way == "delete":
            del changed[at : at + n]
        elif way == "cut":
            del changed[max(at, 1) :]
        elif way == "swap":
            n = min(n, abs(at - other), len(changed) - max(at, other))
            if n > 0:
                block = changed[at : at + n]
                changed[at : at + n] = changed[other : other + n]
                changed[other : other + n] = block
        told.append(f"{way} of {n} at {at}")
        changed = changed or bytearray(1)
    return bytes(changed), "; ".join(told)


class Change(NamedTuple):
    sample: Sample
    files: list[bytes]  # what is in the place of the sample, and of the checkpoint before it
    told: str  # what was done


# --- Loading, in a child --------------------------------------------------------------------------


class Kind:
    """A kind of file, and how it is loaded."""

    path = Path("damaged")

    @staticmethod
    def samples(folder: Path) -> list[Sample]:
        raise NotImplementedError

    @classmethod
    def change(cls, samples: list[Sample], seed: int, number: int) -> Change:
        """What a number stands for."""
        rng = random.Random(f"{cls.__name__} {seed} {number}")
        sample = rng.choice(samples)
        content, told = damage(rng, sample.content, sample.sizes)
        files = [content]
        if sample.previous and (case := rng.randrange(3)):
            files.append(sample.previous)
            told += "; checkpoint.previous is there"
            if case == 2:
                files[1], more = damage(rng, sample.previous, ())
                told += f", too, {more}"
        return Change(sample, files, f"{sample.name}: {told}")

    def write(self, files: list[bytes]) -> None:
        self.path.write_bytes(files[0])

    def load(self, sample: Sample):
        """What is in the file. Raises: SystemExit."""
        raise NotImplementedError

    def expected(self, sample: Sample) -> dict[str, object]:
        """Outcomes that are good, and what is then in the file."""
        self.write([sample.content])
        return {"same": self.load(sample)}

    def plausible(self, found, expected) -> bool:
        """Whether it might be the content of a valid file."""
        return False

    def named(self, line: str) -> bool:
        """Whether a line tells what was refused."""
        return self.path.stem in line


class Hdf5(Kind):
    """Datasets of the toy task: plain ones, with gzip, and as this project writes them."""

    path = Path("damaged.hdf5")

    @staticmethod
    def samples(folder: Path) -> list[Sample]:
        sys.path.append(str(ROOT))
        from benchmarks.data.convert import layout

        data = toy.play(gym.make("toy:Toy-v0"), episodes=12)
        attributes = dict(ref_min_score=-10.0, ref_max_score=0.0)
        texts = dict(env_id="toy:Toy-v0", env_kwargs='{"low": -1.0}')
        sizes = (len(data["rewards"]), 20, 1, 2, 4)
        plain, gzip, own = (folder / f"{name}.hdf5" for name in ("plain", "gzip", "own"))
        # Texts of a fixed length: those of any length can make libhdf5 itself hang or crash.
        fixed = {key: np.bytes_(text.encode()) for key, text in texts.items()}
        toy.save(plain, {key: data[key] for key in toy.ARRAYS[:4]}, **attributes | fixed)
        with h5py.File(gzip, "w") as file:
            for key, array in data.items():
                chunks = (20, *array.shape[1:])
                file.create_dataset(key, data=array, compression="gzip", chunks=chunks)
            file.attrs.update(attributes | fixed)
        layout.write(own, data, attributes | texts)
        return [
            Sample("plain", plain.read_bytes(), sizes, checked=False),
            Sample("gzip", gzip.read_bytes(), sizes, checked=False),
            Sample("own", own.read_bytes(), sizes),
        ]

    def load(self, sample: Sample) -> dict:
        module = load_script(ONE)
        module.diagnose_dataset = lambda *_: None  # what is strange in a valid file
        task = module.load_task(module.Args(dataset=str(self.path)))
        return {"rows": task.rows, "attributes": {k: str(x) for k, x in task.attributes.items()}}

    def plausible(self, found: dict, expected: dict) -> bool:
        """An array that need not be there may be lost, and episodes end elsewhere."""
        same = found["rows"].shape[1:] == expected["rows"].shape[1:]
        return same and bool(found["rows"].isfinite().all())

    def named(self, line: str) -> bool:
        return super().named(line) or "--env-id" in line  # the name in the file may be another


class Npz(Kind):
    """Fixtures of tests/parity.py."""

    path = Path("damaged.npz")

    @staticmethod
    def samples(folder: Path) -> list[Sample]:
        pairs = dict(calql_antmaze="cal_ql", cql_adroit="cql", iql_adroit_dropout="iql")
        pairs |= dict(awac_jaxrl_lambda0333="awac", return_to_go="cql")
        return [
            Sample(name, (OWN_FIXTURES / f"{name}.npz").read_bytes(), (32, 7, 3), script=script)
            for name, script in pairs.items()
        ]

    def load(self, sample: Sample) -> dict:
        import parity

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = parity.main([sample.script, str(self.path)])
        if status == 2:
            print(printed.getvalue(), file=sys.stderr, end="")
            raise SystemExit(2)
        return {"status": status, "lines": printed.getvalue().splitlines()}


class Checkpoint(Kind):
    """Checkpoints of runs, the way --resume reads them."""

    path = Path("run/checkpoint.pt")

    @staticmethod
    def samples(folder: Path) -> list[Sample]:
        os.chdir(folder)
        data = toy.save(folder / "toy-small.hdf5", toy.play(gym.make("toy:Toy-v0"), episodes=6))
        samples = []
        for script in (ONE, "iql"):  # one optimiser, and several
            settings = dict(offline_steps=20, online_steps=20, dataset=data, run_dir=script)
            module = load_script(script)
            module.draw_curves = lambda folder: None
            module.main(quick(script, **settings))
            old, new = ((folder / script / f"checkpoint.{x}") for x in ("previous", "pt"))
            sample = Sample(script, new.read_bytes(), script=script, previous=old.read_bytes())
            samples.append(sample)
        return samples

    def write(self, files: list[bytes]) -> None:
        folder, previous = self.path.parent, self.path.with_suffix(".previous")
        folder.mkdir(exist_ok=True)
        self.path.write_bytes(files[0])
        previous.unlink(missing_ok=True)
        for content in files[1:]:
            previous.write_bytes(content)

    def load(self, sample: Sample) -> dict:
        return load_script(sample.script).read_checkpoint(self.path.parent)

    def expected(self, sample: Sample) -> dict[str, object]:
        self.write([sample.content, sample.previous])
        folder = self.path.parent
        names = dict(same="checkpoint.pt", previous="checkpoint.previous")
        return {outcome: read_checkpoint(folder, name) for outcome, name in names.items()}


KINDS = {"hdf5": Hdf5, "npz": Npz, "checkpoint": Checkpoint}


def try_one(kind: Kind, change: Change, expected: dict) -> str:
    """Loads a damaged file; the outcome."""
    sample, files, _ = change
    kind.write(files)
    outcome, errors = "refused", io.StringIO()
    with contextlib.redirect_stderr(errors):
        try:
            found = kind.load(sample)
        except SystemExit as stop:
            outcome = outcome if stop.code == 2 else f"status {stop.code}"
        except BaseException as error:  # some libraries' own are no Exception
            outcome = f"traceback: {error!r:.300}"
        else:
            same = [outcome for outcome, state in expected.items() if same_bits(found, state)]
            other = not sample.checked and kind.plausible(found, expected["same"])
            outcome = [*same, "changed" if other else "other data, and nothing said"][0]
    lines = [line for line in errors.getvalue().splitlines() if ": warning: " not in line]
    good = len(lines) == (outcome == "refused") and all(map(kind.named, lines))
    return outcome if good else f"{outcome} with the lines {lines}"


def serve(connection, kind: type[Kind], folder: Path, samples, seed: int, numbers: list[int]):
    """Body of a child: makes the samples unless it is given them, and does the given numbers one
    after the other. It tells before what it does, and after what came of it."""
    warnings.simplefilter("ignore")  # gymnasium's, of odd arguments of an environment
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            samples = samples or kind.samples(folder)
        connection.send(samples)
        with tempfile.TemporaryDirectory() as own, contextlib.redirect_stdout(io.StringIO()):
            os.chdir(own)
            loader = kind()
            expected = {sample.name: loader.expected(sample) for sample in samples}
            resource.setrlimit(resource.RLIMIT_AS, (CEILING, -1))
            for number in numbers:
                change = kind.change(samples, seed, number)
                connection.send(change.told)
                connection.send(try_one(loader, change, expected[change.sample.name]))
    except BaseException:  # our own, and not of a load
        connection.send(RuntimeError(traceback.format_exc()))


def ask(connection, patience: float):
    """The next message of a child. Raises: TimeoutError; EOFError where it has died."""
    if not connection.poll(patience):
        raise TimeoutError
    message = connection.recv()
    if isinstance(message, RuntimeError):
        raise message
    return message


def fuzz(
    kind: type[Kind], numbers: Iterable[int], seed: int, folder: Path, patience: float = PATIENCE
) -> Iterator[Result]:
    """The results of the given numbers, each of which stands for a change of a file."""
    numbers, samples = collections.deque(numbers), None
    while numbers:
        connection, there = SERVER.Pipe()
        work = (there, kind, folder, samples, seed, [*numbers])
        child = SERVER.Process(target=serve, args=work, daemon=True)
        child.start()
        there.close()
        samples, alive = ask(connection, 10 * PATIENCE), True
        while numbers and alive:
            change = ask(connection, 10 * PATIENCE)
            try:
                outcome = ask(connection, patience)
            except TimeoutError:
                outcome, alive = f"no end within {patience} s", False
            except EOFError:
                child.join()
                outcome, alive = f"died with status {child.exitcode}", False
            yield Result(numbers.popleft(), outcome, change)
        child.kill()
        child.join()


def main() -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--n", type=int, default=100, help="changes for each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--only", type=int, help="this change alone, and what it was")
    options = parser.parse_args()
    numbers = [*range(options.n)] if options.only is None else [options.only]
    status = 0
    for name in options.kind or KINDS:
        counts = collections.Counter()
        with tempfile.TemporaryDirectory() as folder:
            for result in fuzz(KINDS[name], numbers, options.seed, Path(folder)):
                counts["bad" if result.bad else result.outcome] += 1
                if result.bad or options.only is not None:
                    again = f"--seed {options.seed} --kind {name} --only {result.number}"
                    print(f"{again}: {result.change}: {result.outcome}", flush=True)
                status |= result.bad
        print(f"{name}, seed {options.seed}:", dict(counts.most_common()), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())

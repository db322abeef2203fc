"""Damages valid files in many ways, loads them, and looks at what comes of it.

    python tests/fuzz.py --n 1000 --seed 1 [--kind hdf5|npz|checkpoint] [--only NUMBER]

Datasets are loaded by a script's read_dataset and load_episodes, fixtures by tests/parity.py, and
checkpoints by --resume, with and without another one in checkpoint.previous. Bits are flipped, runs
of bytes overwritten, inserted, swapped or cut off, and numbers of the format made 0 or huge: sizes,
addresses, lengths; in zip files also behind the checksums, which are then made right again.

A load is good if it gives the same data, or ends with status 2 and one line that names the file.
Where nothing in a file tells that a number is another (a plain HDF5 file, an array whose checksum
is right), other numbers of the same shapes are good, too: "changed". All else is bad: a traceback,
another status, more lines, a signal, no end within a minute, or more memory than 1200 times the
file and 64 MB. Exit status 1: a load was bad; how to repeat it is printed. 0: none was.

Every load happens in a child, which does many of them, and the parent looks at the clock.
"""

import argparse
import ast
import collections
import contextlib
import functools
import io
import multiprocessing
import os
import pickletools
import random
import re
import resource
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import gymnasium as gym
import h5py
import torch
import toy
from conftest import quick, same_bits  # first: it sees to a single thread
from scripts import OWN_FIXTURES, ROOT, load_script

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch.utils.tensorboard", "gymnasium", "h5py", "tyro", "filelock", "pytest", "torch._dynamo"]
)
ONE = "cql"  # loading lies in Part II alone
PATIENCE = 60  # seconds for a load, most of which take some hundredths
SLACK = 64 << 20  # bytes of memory for any file, and for each byte of the file:
EXPANSION = 1200
LONGEST = 2000  # characters of a line
CEILING = 8 << 30  # bytes that a child may ask for at all, for the sake of the machine


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
    previous: bytes = b""  # of a checkpoint
    settings: bytes = b""  # args.json of its run
    weight: float = 1.0  # how often it is taken


# --- Damage ---------------------------------------------------------------------------------------


SIGNATURES = re.compile(
    rb"\x89HDF|OHDR|OCHK|TREE|SNOD|HEAP|GCOL|FRHP|FHDB|FHIB|BTHD|BTLF|BTIN|FAHD|FADB|EAHD|EADB"
    rb"|FSHD|FSSE|observations|actions|rewards|terminals|timeouts|env_id|env_kwargs|ref_m"
    rb"|PK\x01\x02|PK\x03\x04|PK\x05\x06|PK\x06\x06|\x93NUMPY|data\.pkl"
)
NUMBERS = [0, 1, 2, 7, 255, 4096, 65535, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**40]
NUMBERS += [2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@functools.cache
def landmarks(content: bytes) -> list[int]:
    return [match.start() for match in SIGNATURES.finditer(content)] or [0]


@functools.cache
def places(content: bytes, size: int) -> list[int]:
    """Where a number of the format stands, as far as four bytes can tell."""
    return [m.start() for m in re.finditer(re.escape(struct.pack("<I", size)), content)]


def damage(rng: random.Random, content: bytes, sizes: tuple[int, ...] = ()) -> tuple[bytes, str]:
    """A changed copy, and what was changed."""
    changed, told = bytearray(content), []

    def spot() -> int:
        """Anywhere, or near something that matters."""
        if rng.random() < 0.4:
            return rng.randrange(len(changed) + 1)
        return min(max(rng.choice(landmarks(content)) + rng.randrange(-16, 160), 0), len(changed))

    def length() -> int:
        return int(2 ** rng.uniform(0, 12))

    def some_bytes(n: int) -> bytes:
        return rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n)])

    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not changed:
            break
        at, n = spot(), length()
        kind = rng.choice(
            "bits bits bits number number number size size run insert delete cut swap copy".split()
        )
        if kind == "bits":
            n = rng.choice([1, 1, 2, 8])
            bits = [(min(spot(), len(changed) - 1), rng.randrange(8)) for _ in range(n)]
            for byte, bit in bits:
                changed[byte] ^= 1 << bit
            told.append(f"bits {bits} flipped")
            continue
        if kind == "size":
            found = places(content, rng.choice(sizes)) if sizes else []
            at, kind = rng.choice(found) if found else at, "number"
        if kind == "number":
            number, width = rng.choice(NUMBERS), rng.choice([1, 2, 4, 8])
            changed[at : at + width] = struct.pack("<Q", number)[:width]
            told.append(f"{number} as {width} bytes at {at}")
        elif kind == "run":
            changed[at : at + n] = some_bytes(len(changed[at : at + n]))
            told.append(f"{n} bytes overwritten at {at}")
        elif kind == "insert":
            changed[at:at] = some_bytes(n)
            told.append(f"{n} bytes inserted at {at}")
        elif kind == "delete":
            del changed[at : at + n]
            told.append(f"{n} bytes deleted at {at}")
        elif kind == "cut":
            del changed[at:]
            told.append(f"cut off at {at}")
        else:
            other = spot()
            block, there = changed[at : at + n], changed[other : other + n]
            if len(block) == len(there) and abs(at - other) >= n:
                changed[other : other + n] = block
                if kind == "swap":
                    changed[at : at + n] = there
                told.append(f"{kind} of {n} bytes at {at} and {other}")
    return bytes(changed), "; ".join(told)


def damage_behind_checksums(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A zip file with one member changed, all checksums and lengths being right again. What stands
    behind the zip file's end stays as it is."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    tail = content[content.rindex(b"PK\x05\x06") + 22 :]
    pickles = [name for name in members if name.endswith(".pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.7 else [*members])
    kind, compression = rng.random(), zipfile.ZIP_STORED
    if kind < 0.05:
        del members[name]
        told = "removed"
    elif kind < 0.1:
        members[name + rng.choice(["x", "\n", "/../y"])] = members.pop(name)
        told = "renamed"
    elif kind < 0.15:
        members[name] += bytes(2**24)
        compression, told = zipfile.ZIP_DEFLATED, "16 MB of zeros, compressed, at its end"
    elif name.endswith(".npy") and kind < 0.6:
        members[name], told = damage_header(rng, members[name])
    elif name.endswith(".pkl") and kind < 0.7:
        members[name], told = damage_pickle(rng, members[name])
    else:
        members[name], told = damage(rng, members[name])
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as archive:
        for member, value in members.items():
            archive.writestr(zipfile.ZipInfo(member), value, compression)  # without the time
    return written.getvalue() + tail, f"{name} behind its checksum: {told}"


def damage_header(rng: random.Random, member: bytes) -> tuple[bytes, str]:
    """What a .npy file says of type, order and shape."""
    end = member.index(b"\n") + 1
    header, kind = (
        ast.literal_eval(member[10:end].decode()),
        rng.choice(["descr", "fortran_order", "shape"]),
    )
    shape = list(header["shape"]) or [1]
    shape[rng.randrange(len(shape))] = rng.choice([*NUMBERS, -1, 2.5, "3"])
    header[kind] = {
        "descr": rng.choice(["|O", "<f2", "<f4", "<f8", "<i8", "|S0", "<U0", "<c8", "|V9", "<M8[s]",
            "<U99999999", "<U1000000000", ">f4", "x", [("a", "<f4"), ("b", "|O")]]),
        "fortran_order": rng.choice([not header["fortran_order"], 2, "True", None]),
        "shape": rng.choice([tuple(shape), tuple(shape[:-1]), (), (*shape, 0), 5 * (2**40,)]),
    }[kind]  # fmt: skip
    text = repr(header).encode() + b"\n"
    content = member[:8] + struct.pack("<H", len(text)) + text + member[end:]
    return content, f"header {header}"


def damage_pickle(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """One number, text, name of a class, or truth value in a pickle is made another."""
    operations = [*pickletools.genops(content)]
    ends = [at for _, _, at in operations[1:]] + [len(content)]
    values = {
        "BININT1": NUMBERS[:-2], "BININT2": NUMBERS[:-2], "BININT": NUMBERS[:-2],
        "BINUNICODE": ["", "cpu", "0", "999", "meta", "cuda:7", "x", "lr", "\n", "\ud800", 0, None],
        "GLOBAL": ["os system", "builtins eval", "torch load", "torch._utils _rebuild_tensor_v2",
            "torch DoubleStorage", "torch BoolStorage", "collections OrderedDict", "torch Size",
            "torch._utils _rebuild_parameter", "torch._utils _rebuild_meta_tensor_no_storage"],
        "NEWTRUE": [False, None, 0], "NEWFALSE": [True, None, 7],
        "NONE": [True, 0, "x"],
        "BINFLOAT": [float("nan"), float("inf"), -1.0, 1e308, "x", None, 2**62],
    }  # fmt: skip
    kinds = [kind for kind in values if any(kind == op.name for op, _, _ in operations)]
    kind = rng.choice(kinds)
    spots = [i for i, (op, _, _) in enumerate(operations) if op.name == kind]
    i = rng.choice(spots)
    old, at, new = operations[i][1], operations[i][2], rng.choice(values[kind])
    if kind == "GLOBAL":
        code = b"c" + new.replace(" ", "\n").encode() + b"\n"
    elif isinstance(new, bool) or new is None:
        code = {True: b"\x88", False: b"\x89", None: b"N"}[new]
    elif isinstance(new, int):
        code = b"\x8a\x09" + new.to_bytes(9, "little", signed=True)
    elif isinstance(new, float):
        code = b"G" + struct.pack(">d", new)
    else:
        text = new.encode("utf-8", "surrogatepass")
        code = b"X" + struct.pack("<I", len(text)) + text
    return content[:at] + code + content[ends[i] :], f"{kind} {old!r} at {at} is {new!r}"


class Change(NamedTuple):
    sample: Sample
    files: list[bytes]  # what is in the place of the sample, and of the checkpoint before it
    checked: bool  # whether other numbers must be noticed
    told: str  # what was done


# --- Loading, in a child --------------------------------------------------------------------------


class Kind:
    """A kind of file, and how it is loaded."""

    zipped = False  # whether it is a zip file, in which something can be changed behind a checksum
    own_checksum = False  # whether it has another one, which tells even that
    path = Path("damaged")

    @staticmethod
    def samples(folder: Path) -> list[Sample]:
        raise NotImplementedError

    @classmethod
    def change(cls, samples: list[Sample], seed: int, number: int) -> Change:
        """What a number stands for."""
        rng = random.Random(f"{cls.__name__} {seed} {number}")
        [sample] = rng.choices(samples, [sample.weight for sample in samples])

        def one(content: bytes) -> tuple[bytes, bool, str]:
            if cls.zipped and rng.random() < 0.4:
                content, told = damage_behind_checksums(rng, content)
                return content, cls.own_checksum, told
            content, told = damage(rng, content, sample.sizes)
            return content, sample.checked, told

        content, checked, told = one(sample.content)
        files = [content]
        if sample.previous and (case := rng.randrange(3)):
            files.append(sample.previous)
            told += "; checkpoint.previous is there"
            if case == 2:
                files[1], _, more = one(sample.previous)
                told += f", too, {more}"
        return Change(sample, files, checked, f"{sample.name}: {told}")

    def write(self, sample: Sample, files: list[bytes]) -> None:
        self.path.write_bytes(files[0])

    def load(self, sample: Sample):
        """What is in the file. Raises: SystemExit."""
        raise NotImplementedError

    def expected(self, sample: Sample) -> dict[str, object]:
        """Outcomes that are good, and what is then in the file."""
        self.write(sample, [sample.content])
        return {"same": self.load(sample)}

    def plausible(self, found, expected) -> bool:
        """Whether it might be the content of a valid file."""
        return False

    def lines(self, outcome: str) -> range:
        """How many lines may be printed on stderr."""
        return range(1, 2) if outcome == "refused" else range(0, 1)

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
        scores = dict(ref_min_score=-10.0, ref_max_score=0.0)
        texts = dict(env_id="toy:Toy-v0", env_kwargs='{"low": -1.0}')
        sizes = (len(data["rewards"]), 20, 1, 2, 4)
        names = ("plain", "text", "gzip", "own")
        plain, text, gzip, own = (folder / f"{name}.hdf5" for name in names)
        toy.save(plain, data, **scores)
        toy.save(text, {key: data[key] for key in toy.ARRAYS[:4]}, **texts)
        with h5py.File(gzip, "w") as file:
            for key, array in data.items():
                chunks = (20, *array.shape[1:])
                file.create_dataset(key, data=array, compression="gzip", chunks=chunks)
            file.attrs.update(scores)
        layout.write(own, data, texts | scores)
        embedded = (ROOT / "benchmarks" / "data" / "pointmaze.hdf5").read_bytes()
        return [
            Sample("plain", plain.read_bytes(), sizes, checked=False),
            Sample("text", text.read_bytes(), sizes, checked=False, weight=0.3),
            Sample("gzip", gzip.read_bytes(), sizes, checked=False),
            Sample("own", own.read_bytes(), sizes),
            Sample("embedded", embedded, (20_000, 2)),
        ]

    def load(self, sample: Sample) -> dict:
        module = load_script(ONE)
        data, attributes = module.read_dataset(str(self.path))
        del attributes["sha256"]
        arrays = {key: torch.tensor(array) for key, array in data.items()}
        spaces = [gym.spaces.Box(-1, 1, (n,)) for n in self.widths(sample.content)]
        env = SimpleNamespace(observation_space=spaces[0], spec=SimpleNamespace())
        env.env, env.spec.max_episode_steps = SimpleNamespace(action_space=spaces[1]), toy.LIMIT
        rows = module.load_episodes(module.Args(dataset=str(self.path)), data, env)
        return {"attributes": attributes, "arrays": arrays, "rows": rows}

    @staticmethod
    @functools.cache
    def widths(content: bytes) -> list[int]:
        with h5py.File(io.BytesIO(content)) as file:
            return [file[key].shape[1] for key in ("observations", "actions")]

    def plausible(self, found: dict, expected: dict) -> bool:
        shapes = [{k: x.shape for k, x in state["arrays"].items()} for state in (found, expected)]
        return shapes[0].items() <= shapes[1].items() and bool(found["rows"].isfinite().all())


class Npz(Kind):
    """Fixtures of tests/parity.py."""

    zipped = True
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

    def plausible(self, found: dict, expected: dict) -> bool:
        return all(line.startswith(f"{self.path}") for line in found["lines"])


class Checkpoint(Kind):
    """Checkpoints of runs, as --resume loads them: everything but the training happens."""

    zipped = own_checksum = True
    path = Path("run/checkpoint.pt")

    @staticmethod
    def samples(folder: Path) -> list[Sample]:
        os.chdir(folder)
        data = toy.save(folder / "toy-small.hdf5", toy.play(gym.make("toy:Toy-v0"), episodes=6))
        samples = []
        for script in (ONE, "iql"):  # one optimiser, and several
            settings = dict(offline_steps=20, online_steps=20, dataset=data, run_dir=script)
            module = load_script(script)
            module.HERE, sys.argv = folder, [f"{script}.py", *quick(script, **settings)]
            module.main()
            (folder / script / "summary.json").unlink()
            old, new = ((folder / script / f"checkpoint.{x}") for x in ("previous", "pt"))
            sample = Sample(script, new.read_bytes(), script=script, previous=old.read_bytes())
            sample.settings = (folder / script / "args.json").read_bytes()
            samples.append(sample)
        return samples

    def write(self, sample: Sample, files: list[bytes]) -> None:
        folder, previous = self.path.parent, self.path.with_suffix(".previous")
        folder.mkdir(exist_ok=True)
        (folder / "args.json").write_bytes(sample.settings)
        self.path.write_bytes(files[0])
        previous.unlink(missing_ok=True)
        for content in files[1:]:
            previous.write_bytes(content)

    def load(self, sample: Sample) -> dict:
        module = load_script(sample.script)
        module.RUN = {"saved": "none"}
        module.SummaryWriter = lambda *_, **__: None
        module.train = self.loaded
        sys.argv = [f"{sample.script}.py", "--resume", str(self.path.parent)]
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                module.main()
            except Loaded as loaded:
                return loaded.args[0]

    @staticmethod
    def loaded(agent, buffer, env, attributes, done, writer, save) -> None:
        """In the place of `train`."""
        state = {"agent": agent.state_dict(), "done": vars(done), "added": buffer.added}
        state |= {name: optimizer.state_dict() for name, optimizer in agent.optimizers.items()}
        raise Loaded(state | {"ring": buffer.ring[: buffer.added], "offline": buffer.offline})

    def expected(self, sample: Sample) -> dict[str, object]:
        found = super().expected(sample)
        self.write(sample, [sample.previous])
        return found | {"previous": self.load(sample)}

    def lines(self, outcome: str) -> range:
        """A line for each file that is damaged, and how to begin again."""
        return {"refused": range(1, 4), "previous": range(1, 2)}.get(outcome, range(0, 1))


class Loaded(BaseException):
    """A run is resumed, as it has it in its only argument, and would now go on."""


KINDS = {"hdf5": Hdf5, "npz": Npz, "checkpoint": Checkpoint}


class Printed:
    """What goes to stdout and stderr of this process, libraries' own lines, too."""

    def __init__(self):
        self.files = [tempfile.TemporaryFile() for _ in range(2)]
        for number, file in enumerate(self.files, 1):
            os.dup2(file.fileno(), number)

    def forget(self) -> None:
        for number, stream in enumerate((sys.stdout, sys.stderr), 1):
            stream.flush()
            os.ftruncate(number, 0)
            os.lseek(number, 0, os.SEEK_SET)

    def errors(self) -> list[str]:
        sys.stderr.flush()
        return os.pread(2, 1 << 20, 0).decode(errors="replace").splitlines()


def memory(key: str) -> int:
    """Bytes of this process: VmRSS, those that it has, or VmHWM, the most that it had."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def forget_the_most() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def try_one(kind: Kind, change: Change, expected: dict, printed: Printed) -> str:
    """Loads a damaged file; the outcome."""
    sample, files, checked, _ = change
    kind.write(sample, files)
    printed.forget()
    forget_the_most()
    before, outcome = memory("VmRSS"), "refused"
    try:
        found = kind.load(sample)
    except SystemExit as stop:
        outcome = outcome if stop.code == 2 else f"status {stop.code}"
    except BaseException as error:  # some libraries' own are no Exception
        outcome = f"traceback: {error!r:.300}"
    else:
        same = [outcome for outcome, state in expected.items() if same_bits(found, state)]
        other = not checked and kind.plausible(found, expected["same"])
        outcome = [*same, "changed" if other else "other data, and nothing said"][0]
    used, lines = memory("VmHWM") - before, printed.errors()
    named = lines and kind.named(lines[-1])
    good = len(lines) in kind.lines(outcome) and max(map(len, lines), default=0) < LONGEST
    if not good or (outcome == "refused" and not named):
        outcome += f" with the lines {lines}"
    justified = SLACK + EXPANSION * max(map(len, files))
    return outcome if used <= justified else f"{used >> 20} MB of memory, {outcome}"


def serve(connection, kind: type[Kind], folder: Path, samples, seed: int, numbers: list[int]):
    """Body of a child: makes the samples unless it is given them, and does the given numbers one
    after the other. It tells before what it does, and after what came of it."""
    printed = Printed()
    try:
        samples = samples or kind.samples(folder)
        connection.send(samples)
        with tempfile.TemporaryDirectory() as own:
            os.chdir(own)
            warnings.simplefilter("always")  # not once only: each is a line too many
            loader = kind()
            expected = {sample.name: loader.expected(sample) for sample in samples}
            resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + CEILING, -1))
            for number in numbers:
                change = kind.change(samples, seed, number)
                connection.send(change.told)
                connection.send(try_one(loader, change, expected[change.sample.name], printed))
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
    if options.n < 1:
        parser.error("--n must be above 0")
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

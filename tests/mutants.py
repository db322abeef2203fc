"""Changes the maths of the scripts, one small thing at a time, and sees whether a test notices.

    python tests/mutants.py [SCRIPT ...] [--only TEXT] [--sample N] [--seed S] [--jobs J] [--list]

SCRIPT is iql, iql.py or the path of a copy that has a script's name; without one, all are tried.
Changed are the functions above what all scripts share: operators, signs, comparisons, numbers,
names, calls and their arguments; and whole statements are left out. A mutant, as such a text is
called, must fail in test_losses*.py, test_agent.py, test_precision.py or the comparison of
test_parity.py, where a script has the tests that load it.
--only takes mutants of lines that have TEXT, --sample N of each script, --list names them only.

Exit status 0: none survived but those known to compute the same. 1: others did, which are named,
or one that is said to compute the same does not. 2: bad arguments, or tests that fail anyway.
"""

import argparse
import ast
import gc
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase as fnmatch
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # as in conftest.py, before torch is loaded

import pytest
import scripts
from scripts import BANNER, ROOT, SCRIPTS

TIMEOUT = 60  # seconds, far more than all tests of a script take: beyond it a mutant has failed
PARITY = ROOT / "tests/algorithms/test_parity.py::test_the_script_reproduces_the_reference"
FILES = [*sorted(ROOT.glob("tests/algorithms/test_losses*.py"))]
FILES += [ROOT / f"tests/algorithms/test_{name}.py" for name in ("agent", "precision")]
FILES += [PARITY]
TESTS = [str(path) for path in FILES]

OTHERS = {"FloorDiv": "Mult", "Mod": "Mult", "Lt": "LtE GtE", "LtE": "Lt Gt", "Gt": "GtE LtE"}
OTHERS |= {"GtE": "Gt Lt", "logsumexp": "amax", "no_grad": "enable_grad"}
PAIRS = """Add Sub, Mult Div, And Or, Eq NotEq, Is IsNot, In NotIn, amin amax, min max, mean sum,
    minimum maximum, rand randn, obs next_obs, critic critic_target, rewards mc_returns,
    actor_lr critic_lr, actor_hidden critic_hidden, actor target, policy random"""
for one, other in map(str.split, PAIRS.split(",")):
    OTHERS |= {one: other, other: one}

ALL = "awac cal_ql cql iql"
EQUIVALENT = {  # why -> mutants that compute the same: scripts, part of the line, what is new in it
    "where there is no other device all is on the CPU anyway": [
        (ALL, "self.to(device)", "pass"),
        (ALL, "options", "dict(generator=generator)"),
        (ALL, "noise = torch.randn(mean.shape", "torch.randn(mean.shape, generator=generator)"),
    ],
    "names may come in any order": [(ALL, "at_least(", "at_least(self, ?, *")],
    "without hidden layers there is nothing wide": [(ALL, "if self.bf16", "1")],
    "the two are only added": [(ALL, "self.critic = ", "Critic(action_dim, obs_dim, *")],
    "of two either may come first": [("cal_ql", "q_policy = ", "torch.maximum(mc_returns, *")],
    "the gain is that of the other layers": [
        ("awac iql", "OUTPUT_GAIN", new) for new in ("pass", "2")
    ],
    "the same numbers but for roundings": [("awac iql", "fused=True", "False")],
    "without NaN nothing is to be refused": [("awac iql", "validate_args=False", "True")],
    "all is summed in the end": [("awac", "actor_loss = ", "pi.log_prob(actions)")],
    "-0 is 0": [("cal_ql cql", "torch.zeros_like", "-torch.zeros_like(self.log_lagrange)")],
    "the losses need all draws, logged or not": [("cal_ql cql", "def draw(", "False")],
    "it multiplies A = 0": [("iql", "weights = ", "advantage <= 0")],
    "both are drawn or neither": [("awac iql", "metrics = ", "'random'")],
    "one draw in 2^24 equals the bound": [("iql", "keep = ", "torch.rand(*) <= kept")],
    "draws are as likely with the other sign": [
        ("awac", "target", "-torch.randn(*"),
        ("awac", "actor", "-torch.randn(*"),
        ("awac iql", "policy", "-torch.randn(*"),
        ("awac iql", "random", "-(2 ? torch.rand(*"),
    ],
}


class Mutant(NamedTuple):
    script: str
    line: int
    source: str  # the line as it was
    old: str
    new: str
    text: str  # of the whole script

    def is_in(self, known: tuple[str, str, str]) -> bool:
        names, part, pattern = known
        return self.script in names.split() and part in self.source and fnmatch(self.new, pattern)

    def equivalent(self) -> bool:
        return any(self.is_in(known) for entries in EQUIVALENT.values() for known in entries)

    def __str__(self) -> str:
        return f"{self.script}:{self.line}: {self.old} -> {self.new}    in: {self.source}"


# --- What is changed ------------------------------------------------------------------------------


def swapped(items: list) -> Iterator[list]:
    """The list with two neighbours in each other's place, for all neighbours."""
    for i in range(len(items) - 1):
        yield [*items[:i], items[i + 1], items[i], *items[i + 2 :]]


def changes(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """What is tried in the node's place."""

    def but(**fields) -> ast.AST:
        return type(node)(**dict(ast.iter_fields(node)) | fields)

    def others(of: ast.operator | ast.boolop | ast.cmpop) -> list[ast.AST]:
        return [getattr(ast, name)() for name in OTHERS.get(type(of).__name__, "").split()]

    match node:
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield from map(ast.Constant, [value + 1, value - 1] if value else [1])
        case ast.Constant(float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Constant(str(value)) if " " in value:
            pass  # a message
        case ast.Constant(str(value)):
            yield ast.Constant(OTHERS.get(value, value + "_"))
        case ast.BinOp(left, ast.BitOr()):
            yield left
        case ast.BinOp(op=op) | ast.BoolOp(op=op):
            yield from (but(op=other) for other in others(op))
        case ast.Compare(ops=[op]):
            yield from (but(ops=[other]) for other in others(op))
        case ast.UnaryOp(ast.USub(), ast.Constant(int(1))):
            pass  # the last axis, which 1 may be, too; -0 and -2 are tried
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Name(name, ast.Load()) if name in OTHERS:
            yield ast.Name(OTHERS[name])
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in OTHERS:
            yield but(attr=OTHERS[name])
        case ast.Tuple(items, ast.Store()):
            yield from map(ast.Tuple, swapped(items))
        case ast.List(items):
            yield from (but(elts=items[:i] + items[i + 1 :]) for i in range(len(items)))
        case ast.Call(function, args, keywords):
            if not isinstance(parent, ast.Expr):  # f(x) and x.f() become x
                yield from (x for x in args[:1] if not isinstance(x, ast.Starred))
                yield from [function.value] if isinstance(function, ast.Attribute) else []
            yield from (but(args=items) for items in swapped(args))
            for i, keyword in enumerate(keywords):
                rest = keywords[:i] + keywords[i + 1 :]
                if keyword.arg in OTHERS:
                    yield but(keywords=[*rest, ast.keyword(OTHERS[keyword.arg], keyword.value)])
                if not isinstance(keyword.value, ast.Constant):
                    yield but(keywords=rest)
        case ast.stmt():
            yield ast.Pass()
    values = ast.BinOp | ast.Call | ast.Name | ast.Attribute | ast.Subscript | ast.IfExp
    if isinstance(node, values) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        if isinstance(parent, ast.Assign | ast.AugAssign | ast.Return | ast.Dict | ast.Tuple):
            yield ast.UnaryOp(ast.USub(), node)
    if isinstance(parent, ast.If | ast.IfExp) and node is parent.test:
        yield ast.UnaryOp(ast.Not(), node)


def code_of(text: str) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What these functions are made of, nodes with their parents, but for docstrings."""
    end = text.count("\n", 0, text.index(BANNER))
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef) and function.lineno <= end:
            roots = function.decorator_list + function.args.defaults + function.body
            pairs = [(node, function) for node in roots]
            for node, parent in pairs:  # which grows
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    continue  # a docstring
                yield node, parent
                if not isinstance(node, ast.JoinedStr):  # before 3.12 its parts have no positions
                    pairs += [(child, node) for child in ast.iter_child_nodes(node)]


def mutants_of(script: str, text: str) -> list[Mutant]:
    raw, found = text.encode(), {}  # ast counts bytes
    start = [0, *itertools.accumulate(map(len, raw.splitlines(keepends=True)))]
    lines = text.splitlines()
    for node, parent in code_of(text):
        for new in changes(node, parent):
            begin = start[node.lineno - 1] + node.col_offset
            end = start[node.end_lineno - 1] + node.end_col_offset
            old, code = (" ".join(ast.unparse(x).split()) for x in (node, new))
            loose = isinstance(new, ast.BinOp | ast.BoolOp | ast.UnaryOp | ast.Compare | ast.IfExp)
            inserted = f"({code})" if loose else code
            changed = (raw[:begin] + inserted.encode() + raw[end:]).decode()
            source = lines[node.lineno - 1].strip()
            found[changed] = Mutant(script, node.lineno, source, old, code, changed)  # a text once
    return sorted(found.values())


# --- Whether a test notices -----------------------------------------------------------------------


def in_forks(jobs: int, tasks: list, work: Callable) -> Iterator[tuple]:
    """(task, work(task)) for each as they end; None for work that died or took too long. A fork has
    all that is imported here at once, and leaves nothing behind."""
    waiting, running = tasks[::-1], {}
    while waiting or running:
        if waiting and len(running) < jobs:
            task, folder = waiting.pop(), tempfile.TemporaryDirectory()
            if (pid := os.fork()) == 0:
                signal.alarm(TIMEOUT)
                os.environ["PYTEST_DEBUG_TEMPROOT"] = folder.name
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                with suppress(BaseException):
                    Path(folder.name, "result").write_text(json.dumps(work(task)))
                os._exit(0)
            running[pid] = task, folder
        else:
            task, folder = running.pop(os.wait()[0])
            with folder:
                result = Path(folder.name, "result")
                yield task, json.loads(result.read_text() or "null") if result.exists() else None


class Referee:
    """A plugin of pytest: in place of running the tests once, it runs them for each mutant."""

    def __init__(self, mutants: list[Mutant], texts: dict[str, str], jobs: int):
        self.mutants, self.texts, self.jobs = mutants, texts, jobs
        self.good, self.failed, self.survivors, self.died = False, False, [], []

    def pytest_runtest_logreport(self, report) -> None:
        self.failed |= report.failed

    def pytest_runtestloop(self, session) -> bool:
        for name in SCRIPTS:  # loads now what each fork would load again
            scripts.small_problem(scripts.load_script(name))
        gc.freeze()
        run = partial(self.run, session.items)
        [(_, times)] = in_forks(1, [self.texts], run)
        self.good = bool(times) and not session.testsfailed
        tests = {}
        for script in self.texts if self.good else ():  # of those that load it the quickest first
            used = [(of[script], i) for i, of in enumerate(times) if script in of]
            tests[script] = [session.items[i] for _, i in sorted(used)]

        def survives(mutant: Mutant) -> bool:
            return self.run(tests[mutant.script], {mutant.script: mutant.text}) is not False

        tried = in_forks(self.jobs, self.mutants if self.good else [], survives)
        for k, (mutant, alive) in enumerate(tried, 1):
            self.survivors += [mutant] if alive else []
            self.died += [mutant] if alive is None else []
            if sys.stdout.isatty():
                print(f"{k}/{len(self.mutants)}", end="\r", flush=True)
        return True

    def run(self, items: list, texts: dict[str, str]) -> list[dict[str, float]] | bool:
        """Runs tests with scripts of these texts: False if one fails, else for each test the
        seconds that it took, by the names of the scripts that it loaded."""
        modules = {name: ModuleType(name) for name in texts}
        for name, module in modules.items():
            module.__file__, sys.modules[name] = str(ROOT / f"{name}.py"), module
            try:
                exec(compile(texts[name], module.__file__, "exec"), vars(module))
            except Exception:
                return False
        load, loaded, times = scripts._load, set(), []
        scripts._load = lambda path: loaded.add(path.stem) or modules.get(path.stem) or load(path)
        self.failed = False
        for item in items:
            began = time.perf_counter()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self.failed:
                return False
            times.append(dict.fromkeys(loaded, time.perf_counter() - began))
            loaded.clear()
        return times


# --- Command line ---------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.error = lambda message: parser.exit(2, f"mutants.py: {message}\n")  # one line
    parser.add_argument("scripts", nargs="*", default=SCRIPTS, metavar="SCRIPT")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--sample", type=int, default=None, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(argv)
    texts, mutants = {}, []
    for name in options.scripts:
        path = Path(name) if Path(name).is_file() else ROOT / f"{Path(name).stem}.py"
        if path.stem not in SCRIPTS:
            parser.error(f"{name} has the name of no script; they are {', '.join(SCRIPTS)}")
        try:
            text = texts[path.stem] = path.read_text()
            found = mutants_of(path.stem, text)
        except (OSError, ValueError, SyntaxError) as error:
            parser.error(f"{path} cannot be read: {error}")
        n_lines = len({mutant.line for mutant in found})
        print(f"{path.stem}: {len(found)} mutants of {n_lines} lines", flush=True)
        found = [mutant for mutant in found if options.only in mutant.source]
        if options.sample is not None:
            found = [mutant for mutant in found if not mutant.equivalent()]
            random.Random(options.seed).shuffle(found)
        mutants += found[: options.sample]
    if not mutants or options.jobs < 1:
        parser.error("nothing to do; is --only in a line, and are --sample and --jobs above 0?")
    if options.list:
        print(*mutants, sep="\n")
        return 0
    began, referee = time.time(), Referee(mutants, texts, options.jobs)
    status = pytest.main(["-s", "-p", "no:terminal", "-p", "no:cacheprovider", *TESTS], [referee])
    if status or not referee.good:
        parser.error("the tests fail without any change, or were interrupted")
    survived = sorted(referee.survivors)
    bad = [f"survived: {mutant}" for mutant in survived if not mutant.equivalent()]
    counts = f"{len(survived)} survived, of which {len(survived) - len(bad)} are equivalent"
    wrong = [mutant for mutant in mutants if mutant.equivalent() and mutant not in survived]
    bad += [f"not equivalent: {mutant}" for mutant in wrong]
    bad += [f"neither passed nor failed in {TIMEOUT} s: {mutant}" for mutant in referee.died]
    print("".join(f"{line}\n" for line in bad), end="")
    print(f"{len(mutants)} tried in {time.time() - began:.0f} s: {counts}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

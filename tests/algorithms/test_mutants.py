"""The tests of the maths notice changes of it, and the program that says so is honest."""

import ast
import datetime
import os
import subprocess
import sys
from types import SimpleNamespace

import mutants
import pytest
from scripts import BANNER, ROOT, SCRIPTS, text_of

if not hasattr(os, "fork"):
    pytest.skip("a mutant is tried in a fork", allow_module_level=True)


def run_mutants(*words, before: str = "pass"):
    """The program in a process of its own, after a statement that may change it."""
    code = f"import sys, mutants; {before}; sys.exit(mutants.main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    return SimpleNamespace(status=done.returncode, lines=done.stdout.splitlines(), text=done.stderr)


def test_the_tests_notice_a_sample_of_mutants():
    """Others every day; without --sample the program tries all of them."""
    day = datetime.date.today().toordinal()
    run = run_mutants("--sample", 3, "--seed", day)
    assert run.status == 0, f"--sample 3 --seed {day}: {run.lines} {run.text}"
    assert len(run.lines) == len(SCRIPTS) + 1
    assert run.lines[-1].startswith(f"{3 * len(SCRIPTS)} tried in ")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_line_of_the_maths_has_a_mutant(name):
    text = text_of(name)
    lines = {mutant.line for mutant in mutants.mutants_of(name, text)}
    assert max(lines) < text[: text.index(BANNER)].count("\n") + 1, "what is shared is left alone"
    functions = [x for x in ast.walk(ast.parse(text)) if isinstance(x, ast.FunctionDef)]
    of_the_maths = {"min_slow_q", "squash", "calibration", "update", "draw", "act", "mlp"}
    n_losses = 0
    for function in functions:
        if "loss" in function.name or function.name in of_the_maths:
            n_losses += "loss" in function.name
            body = function.body[1:] if ast.get_docstring(function) else function.body
            nodes = [x for statement in body for x in ast.walk(statement)]
            assert {x.lineno for x in nodes if isinstance(x, ast.expr | ast.stmt)} <= lines
    assert n_losses >= 2


def test_what_is_said_to_be_equivalent_is_there():
    found = [mutant for name in SCRIPTS for mutant in mutants.mutants_of(name, text_of(name))]
    for known in (known for entries in mutants.EQUIVALENT.values() for known in entries):
        of = {mutant.script for mutant in found if mutant.is_in(known)}
        assert of == set(known[0].split()), known


# --- What is changed ------------------------------------------------------------------------------


SMALL = f'''class Args:
    gamma: float = 0.99 - 0.5


@torch.no_grad()
def loss(self, q: Tensor | None, log=True) -> Tensor | None:
    """A docstring - it stays."""
    if q is None or q < -1:  # a comment - it stays, too
        return 0.5 * {{"ä": -q**2}}["ä"]
    mean, std = self.actor(q[:, 3], limit=q)
    return torch.maximum(mean["actor"].exp(), [std])


{BANNER}
def plumbing(x):
    return x - 1
'''
CHANGED = {
    5: ["torch.no_grad -> torch.enable_grad", "torch.no_grad() -> torch"],
    6: ["True -> False"],
    8: [
        "if q is None or q < -1: return 0.5 * {'ä': -q ** 2}['ä'] -> pass",
        "q is None or q < -1 -> q is None and q < -1",
        "q is None or q < -1 -> not (q is None or q < -1)",
        "q is None -> q is not None",
        "q < -1 -> q <= -1",
        "q < -1 -> q >= -1",
        "1 -> 0",
        "1 -> 2",
    ],
    9: [
        "return 0.5 * {'ä': -q ** 2}['ä'] -> pass",
        "0.5 * {'ä': -q ** 2}['ä'] -> 0.5 / {'ä': -q ** 2}['ä']",
        "0.5 * {'ä': -q ** 2}['ä'] -> -(0.5 * {'ä': -q ** 2}['ä'])",
        "0.5 -> 1.0",
        "'ä' -> 'ä_'",
        "-q ** 2 -> q ** 2",
        "2 -> 1",
        "2 -> 3",
        "'ä' -> 'ä_'",
    ],
    10: [
        "mean, std = self.actor(q[:, 3], limit=q) -> pass",
        "(mean, std) -> (std, mean)",
        "self.actor(q[:, 3], limit=q) -> -self.actor(q[:, 3], limit=q)",
        "self.actor(q[:, 3], limit=q) -> q[:, 3]",
        "self.actor(q[:, 3], limit=q) -> self",
        "self.actor(q[:, 3], limit=q) -> self.actor(q[:, 3])",
        "self.actor -> self.target",
        "3 -> 2",
        "3 -> 4",
    ],
    11: [
        "return torch.maximum(mean['actor'].exp(), [std]) -> pass",
        "torch.maximum(mean['actor'].exp(), [std]) -> -torch.maximum(mean['actor'].exp(), [std])",
        "torch.maximum(mean['actor'].exp(), [std]) -> torch.maximum([std], mean['actor'].exp())",
        "torch.maximum(mean['actor'].exp(), [std]) -> mean['actor'].exp()",
        "torch.maximum(mean['actor'].exp(), [std]) -> torch",
        "torch.maximum -> torch.minimum",
        "mean['actor'].exp() -> mean['actor']",
        "'actor' -> 'target'",
        "mean -> sum",
        "[std] -> []",
    ],
}


def test_what_is_changed():
    found = mutants.mutants_of("small", SMALL)
    changed = {}
    for mutant in found:
        changed.setdefault(mutant.line, []).append(f"{mutant.old} -> {mutant.new}")
    wanted = {line: sorted(changes) for line, changes in CHANGED.items()}
    assert {line: sorted(changes) for line, changes in sorted(changed.items())} == wanted
    for mutant in found:
        ast.parse(mutant.text)
        differing = [x for x in zip(SMALL.splitlines(), mutant.text.splitlines()) if x[0] != x[1]]
        # Nothing but a statement of two lines reaches beyond its own.
        assert len(differing) == 1 or mutant.old.startswith("if "), mutant
        assert differing[0][0] == SMALL.splitlines()[mutant.line - 1]


# --- What the program tells -----------------------------------------------------------------------


def test_survivors_and_wrong_claims_are_told(tmp_path):
    """A line that nothing needs, in a copy of a script; and a change of the loss that is said to
    make no difference."""
    last = "advantage = slow_q - self.value(batch.obs)  # A, (B, 1)"
    lines = text_of("iql").replace(last, f"spare = 0.5 * slow_q  # try\n        {last}  # try")
    (tmp_path / "iql.py").write_text(lines)
    at = next(i for i, line in enumerate(lines.splitlines(), 1) if "spare" in line)
    before = "mutants.EQUIVALENT['?'] = [('iql', 'advantage', 'slow_q + self.*')]"
    run = run_mutants(tmp_path / "iql.py", "--only", "# try", before=before)
    source = "in: spare = 0.5 * slow_q  # try"
    assert run.status == 1 and run.text == ""
    assert run.lines[1:-1] == [
        f"survived: iql:{at}: 0.5 -> 1.0    {source}",
        f"survived: iql:{at}: 0.5 * slow_q -> -(0.5 * slow_q)    {source}",
        f"survived: iql:{at}: 0.5 * slow_q -> 0.5 / slow_q    {source}",
        f"survived: iql:{at}: spare = 0.5 * slow_q -> pass    {source}",
        f"not equivalent: iql:{at + 1}: slow_q - self.value(batch.obs)"
        f" -> slow_q + self.value(batch.obs)    in: {last}  # try",
    ]
    assert run.lines[-1].endswith(": 4 survived, of which 0 are equivalent")


def test_a_script_that_fails_anyway_tells_nothing(tmp_path):
    (tmp_path / "iql.py").write_text(text_of("iql").replace("* advantage**2", "* advantage**3"))
    run = run_mutants(tmp_path / "iql.py", "--only", "advantage**3")
    assert run.status == 2
    assert run.text == "mutants.py: the tests fail without any change, or were interrupted\n"


def test_forks_that_do_not_end_well(monkeypatch):
    monkeypatch.setattr(mutants, "TIMEOUT", 1)

    def work(task):
        while task == "hangs":
            pass
        return os._exit(0) if task == "dies" else task * 2

    found = dict(mutants.in_forks(2, ["hangs", "dies", "works", "too"], work))
    assert found == {"hangs": None, "dies": None, "works": "worksworks", "too": "tootoo"}


@pytest.mark.parametrize(
    "words",
    [
        ["no_such_script"],
        [__file__],
        ["--sample", "many"],
        ["--sample", "0"],
        ["--jobs", "0"],
        ["--only", "no line has this"],
        ["--no-such-flag"],
    ],
)
def test_bad_arguments_give_one_line(capsys, words):
    with pytest.raises(SystemExit, match="2"):
        mutants.main(words)
    message = capsys.readouterr().err
    assert message.startswith("mutants.py: ") and message.count("\n") == 1

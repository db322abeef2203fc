"""The scripts as texts: what must be the same in all, what may differ, and their form."""

import ast
import copy
import difflib
import itertools
import math
import re
import subprocess
import sys
import tomllib
from dataclasses import fields

import pytest
from conftest import quick
from scripts import BANNER, CQL_FAMILY, ROOT, SCRIPTS, load_script, text_of

EVERY = pytest.mark.parametrize("name", SCRIPTS)
PAIRS = pytest.mark.parametrize("one, other", list(itertools.combinations(SCRIPTS, 2)))
DEFINITION = ast.ClassDef | ast.FunctionDef
IMPORT = ast.Import | ast.ImportFrom


def nodes(name: str, kind=ast.AST) -> list:
    return [node for node in ast.walk(ast.parse(text_of(name))) if isinstance(node, kind)]


def without_docstrings(name: str) -> ast.Module:
    """The code alone: ast.unparse drops comments and layout."""
    tree = ast.parse(text_of(name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | DEFINITION) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def definitions(name: str) -> dict[str, str]:
    """The text of every function and class at the top level, by name."""
    text = text_of(name)
    found = [node for node in ast.parse(text).body if isinstance(node, DEFINITION)]
    lines = text.splitlines()
    # From the first decorator on, and with the comment at the end of the last line.
    start = {x.name: min([x.lineno, *(d.lineno for d in x.decorator_list)]) for x in found}
    return {x.name: "\n".join(lines[start[x.name] - 1 : x.end_lineno]) for x in found}


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line.partition("#")[0].strip() for line in lines]


# --- One line apart -------------------------------------------------------------------------------


def test_cal_ql_is_cql_with_one_more_statement_in_the_loss():
    cql, cal_ql = without_docstrings("cql"), without_docstrings("cal_ql")
    [agent] = [x for x in cal_ql.body if getattr(x, "name", "") == "Agent"]
    [losses] = [x for x in agent.body if getattr(x, "name", "") == "critic_losses"]
    found = []
    for i, statement in enumerate(list(losses.body)):
        del losses.body[i]
        if ast.unparse(cal_ql) == ast.unparse(cql):
            found.append(ast.unparse(statement))
        losses.body.insert(i, statement)
    assert len(found) == 1, "without one statement cal_ql.py must be cql.py"
    assert "mc_returns" in found[0]


def difference(context: int) -> list[str]:
    texts = (text_of(name).splitlines() for name in ("cql", "cal_ql"))
    return list(difflib.unified_diff(*texts, "cql.py", "cal_ql.py", lineterm="", n=context))


def test_the_raw_diff_is_short():
    changed = [line for line in difference(0) if re.match(r"[+-](?![+-])|[+-]$", line)]
    assert len(changed) <= 16, changed


# --- What all scripts share -----------------------------------------------------------------------


@EVERY
def test_one_banner_parts_the_algorithm_from_what_all_share(name):
    assert text_of(name).count(BANNER) == 1
    above, _, below = text_of(name).partition(BANNER)
    assert "class Agent" in above and "class Batch" in below


@PAIRS
def test_from_the_banner_on_all_are_the_same_to_the_byte(one, other):
    tails = [text_of(name).partition(BANNER)[2] for name in (one, other)]
    assert tails[0] == tails[1]


@PAIRS
def test_what_has_the_same_name_has_the_same_text(one, other):
    """CQL and Cal-QL differ by a line in Agent; other algorithms have other policies and flags."""
    related = {one, other} <= set(CQL_FAMILY)
    excepted = {"Agent"} if related else {"Agent", "Actor", "Args"}
    first, second = definitions(one), definitions(other)
    for name in (first.keys() & second.keys()) - excepted:
        assert first[name] == second[name], name
    if related:
        assert list(first) == list(second)


@PAIRS
def test_agents_normalise_observations_alike(one, other):
    pattern = r"(?s)    def normalize\(.*?\n\n"
    assert re.findall(pattern, text_of(one)) == re.findall(pattern, text_of(other)) != []


def header(name: str) -> str:
    """The block of comments that tells `uv run` what to install, PEP 723."""
    return text_of(name).partition('"""')[0]


def imports(name: str) -> str:
    top = [node for node in ast.parse(text_of(name)).body if isinstance(node, IMPORT)]
    return "\n".join(text_of(name).splitlines()[top[0].lineno - 1 : top[-1].end_lineno])


@PAIRS
def test_header_and_imports_are_the_same(one, other):
    assert header(one) == header(other)
    assert imports(one) == imports(other)


@EVERY
def test_the_header_has_the_requirements(name):
    """In the same order and versions as requirements.txt."""
    [block] = re.findall(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", header(name))
    metadata = tomllib.loads(re.sub(r"(?m)^# ?", "", block))
    assert metadata["dependencies"] == requirements()


def test_requirements_are_exact():
    assert all(re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\w.]+", line) for line in requirements())


@EVERY
def test_a_script_needs_nothing_else(name):
    """It can be copied alone into an empty folder: what lies beside it is asked for only within a
    function, and may be missing."""
    packages = {re.split(r"[\[<>=!~ ]", line)[0].replace("-", "_") for line in requirements()}
    on_top = [node for node in ast.parse(text_of(name)).body if isinstance(node, IMPORT)]
    for node in nodes(name, IMPORT):
        modules = [alias.name for alias in node.names]
        modules = [node.module] if isinstance(node, ast.ImportFrom) else modules
        assert not getattr(node, "level", 0), "a relative import"
        for module in {module.split(".")[0] for module in modules}:
            inside = ast.unparse(node) not in map(ast.unparse, on_top)
            optional = {"benchmarks", "wandb"} if inside else set()
            assert module in packages | sys.stdlib_module_names | optional, module


# --- Their form -----------------------------------------------------------------------------------


@EVERY
def test_a_script_has_the_usual_form(name):
    """ruff's, as it comes, but for lines of 100 characters, and nothing is taken out of it."""
    assert not re.search(r"fmt: *(skip|off)", text_of(name))
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length=100", "--check"]
    done = subprocess.run([*ruff, ROOT / f"{name}.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@EVERY
def test_no_function_is_long(name):
    for function in nodes(name, ast.FunctionDef):
        assert function.end_lineno - function.lineno < 60, function.name


# In formulas and for a number of things; everything else has a name that says what it is.
LETTERS = set("qvuzxnikt")


@EVERY
def test_names_are_words(name):
    variables = [x.id for x in nodes(name, ast.Name)] + [x.arg for x in nodes(name, ast.arg)]
    assert {x for x in variables if len(x) == 1} <= LETTERS | {"_"}
    others = [x.name for x in nodes(name, DEFINITION)]
    others += [x.attr for x in nodes(name, ast.Attribute) if isinstance(x.ctx, ast.Store)]
    assert not [x for x in others if len(x) == 1]
    assert not {*variables, *others} & {"RUN", "look", "due"}, "run, look for what, what is due?"


@EVERY
def test_a_module_has_no_state(run_here, small_file, name):
    """All that changes while a script runs belongs to an object: two runs in one process, as in a
    notebook, have nothing to do with each other."""
    module = load_script(name)
    assert not nodes(name, ast.Global)
    assert not re.search(r"(?m)^@.*cache", text_of(name))

    def values() -> dict:
        return {key: value for key, value in vars(module).items() if key.isupper()}

    names, before = set(vars(module)), copy.deepcopy(values())
    assert "SETTINGS" in before
    run_here(name, *quick(name, dataset=small_file, offline_steps=2, online_steps=2))
    assert set(vars(module)) == names and values() == before


# --- Settings -------------------------------------------------------------------------------------


@EVERY
def test_rows_of_settings_are_settings(name):
    """A row is how the names of datasets begin, up to a hyphen; the first that fits is taken."""
    script, rows = load_script(name), list(load_script(name).SETTINGS)
    for row, settings in script.SETTINGS.items():
        assert settings.keys() <= {field.name for field in fields(script.Args)}, row
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row)
    for general, special in itertools.combinations(rows, 2):
        assert not special.startswith(f"{general}-"), f"{special} would never be found"


@pytest.mark.parametrize(
    "dataset, row",
    [
        ("kitchen-complete-v0", "kitchen-complete"),
        ("kitchen-complete", "kitchen-complete"),
        ("kitchen-partial-v0", "kitchen"),
        ("kitchen-completed-v0", "kitchen"),
        ("kitchen", "kitchen"),
        ("kitchencomplete", "defaults"),
        ("my-kitchen-complete-v0", "defaults"),
    ],
)
def test_the_most_special_row_is_taken(dataset, row):
    for name in (dataset, f"/data/{dataset}.hdf5"):
        assert load_script("awac").row_of(name) == row


# The settings of the papers' runs, written out a second time: what a domain has of its own in the
# order of DOMAINS, then what is the same in all.
DOMAINS = ("antmaze-large-diverse-v2", "kitchen-complete-v0", "kitchen-partial-v0")
DOMAINS += ("pen-binary-v0", "door-binary-v0", "relocate-binary-v0")
EVERYWHERE = {  # whatever the algorithm
    "online_steps": [1_000_000, 1_500_000, 1_500_000, 200_000, 1_000_000, 1_000_000],
    "failure_reward": [0, None, None, -1, -1, -1],
    "infinite_horizon": [False, True, True, False, False, False],
    **dict(gamma=0.99, tau=0.005, utd=1),
}
PAPERS = {
    "cql": {
        "offline_steps": [1_000_000, 500_000, 500_000, 20_000, 20_000, 20_000],
        "reward_scale": [10, 1, 1, 10, 10, 10],
        "reward_bias": [-5, 0, 0, 5, 5, 5],
        "offline_share": [0.5, 0.25, 0.25, 0.5, 0.5, 0.5],
        "cql_weight": [5, 5, 5, 1, 1, 1],
        "lagrange_gap": [0.8, None, None, None, None, None],
        "importance_sampling": [True, False, False, True, True, True],
        "actor_hidden": [(256,) * 2, (512,) * 3, (512,) * 3, (512,) * 2, (512,) * 2, (512,) * 2],
        "critic_hidden": [(256,) * 4, *[(512,) * 3] * 5],
    }
    | EVERYWHERE
    | dict(batch_size=256, actor_lr=1e-4, critic_lr=3e-4)
    | dict(n_actions=10, max_target_backup=True, target_entropy=-1),
    "iql": {
        "offline_steps": [1_000_000, 500_000, 500_000, 20_000, 20_000, 20_000],
        "reward_bias": [-1, 0, 0, 0, 0, 0],
        "offline_share": [0.5, 0.25, 0.25, 0.5, 0.5, 0.5],
        "expectile": [0.9, 0.7, 0.7, 0.8, 0.8, 0.8],
        "beta": [10, 0.5, 0.5, 3, 3, 3],
        "dropout": [0, 0.1, 0.1, 0, 0, 0],
        "fixed_log_std": [None, None, None, *[math.log(0.03)] * 3],
    }
    | EVERYWHERE
    | dict(batch_size=256, reward_scale=1)
    | dict(actor_hidden=(256, 256), critic_hidden=(256, 256), value_hidden=(256, 256))
    | dict(actor_lr=3e-4, critic_lr=3e-4, value_lr=3e-4),
    "awac": {
        "offline_steps": [1_000_000, 500_000, 500_000, 25_000, 25_000, 25_000],
        "awac_lambda": [1, 0.3, 1, 1, 1, 1],
        "critic_hidden": [(256,) * 4, *[(256,) * 2] * 5],
    }
    | EVERYWHERE
    | dict(batch_size=1024, offline_share=-1)
    | dict(reward_scale=1, reward_bias=0, actor_hidden=(256, 256, 256, 256))
    | dict(actor_lr=3e-4, critic_lr=3e-4, weight_decay=1e-4, n_actions=1),
}
PAPERS["cal_ql"] = PAPERS["cql"]


@EVERY
@pytest.mark.parametrize("domain", DOMAINS)
def test_settings_are_those_of_the_papers(name, domain):
    args = load_script(name).parse_args(["--dataset", f"{domain}.hdf5"])
    for setting, wanted in PAPERS[name].items():
        wanted = wanted[DOMAINS.index(domain)] if isinstance(wanted, list) else wanted
        assert getattr(args, setting) == wanted, setting


# Defaults by which a script keeps to its paper, and those of the others.
OWN_DEFAULTS = {
    "awac": {
        "batch_size: int = 1024 ": "batch_size: int = 256 ",
        "offline_share: float = -1.0 ": "offline_share: float = 0.5 ",
    }
}


def shared_settings(name: str) -> str:
    """The text of the settings of task, run, data and batches: those up to tau, all in all."""
    text = re.match(r"(?s).*?\n    tau: .*?\n", definitions(name)["Args"]).group()
    for own, usual in OWN_DEFAULTS.get(name, {}).items():
        assert text.count(own) == 1, own
        text = text.replace(own, usual)
    return text


@PAIRS
def test_settings_of_task_and_run_are_the_same(one, other):
    """Names, order, types and help to the byte, and the defaults but for those named above."""
    assert shared_settings(one) == shared_settings(other)
    assert shared_settings(one).count("  # ") > 20


@EVERY
def test_every_setting_has_its_help(name):
    """tyro shows the comment behind a field, so one line says it all."""
    script, text = load_script(name), definitions(name)["Args"]
    for field in fields(script.Args):
        [line] = [line for line in text.splitlines() if line.startswith(f"    {field.name}: ")]
        assert len(line.partition("  # ")[2].split()) > 1, field.name

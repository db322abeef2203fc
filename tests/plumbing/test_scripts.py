"""The scripts as texts: what must be the same in all, what may differ, and their budgets."""

import ast
import difflib
import io
import itertools
import math
import re
import subprocess
import sys
import tokenize
import tomllib
from dataclasses import fields

import pytest
from scripts import BANNER, CQL_FAMILY, ROOT, SCRIPTS, load_script, text_of

EVERY = pytest.mark.parametrize("name", SCRIPTS)
PAIRS = pytest.mark.parametrize("one, other", list(itertools.combinations(SCRIPTS, 2)))
IMPORT = ast.Import | ast.ImportFrom
REQUIREMENTS = ROOT / "requirements.txt"


def without_docstrings(name: str) -> ast.Module:
    """The code alone: ast.unparse drops comments and layout."""
    tree = ast.parse(text_of(name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def definitions(name: str) -> dict[str, str]:
    """The text of every function and class at the top level, by name."""
    text = text_of(name)
    nodes = [x for x in ast.parse(text).body if isinstance(x, ast.ClassDef | ast.FunctionDef)]
    lines = text.splitlines()
    # From the first decorator on, and with the comment at the end of the last line.
    start = {x.name: min([x.lineno, *(d.lineno for d in x.decorator_list)]) for x in nodes}
    return {x.name: "\n".join(lines[start[x.name] - 1 : x.end_lineno]) for x in nodes}


def part_one(name: str) -> str:
    return text_of(name)[: text_of(name).index(BANNER)]


def imports(name: str) -> list[ast.Import | ast.ImportFrom]:
    return [
        x for x in ast.walk(ast.parse(text_of(name))) if isinstance(x, ast.Import | ast.ImportFrom)
    ]


def requirements() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def inline_metadata(name: str) -> str:
    """PEP 723: the block of comments that tells `uv run` what to install."""
    [block] = re.findall(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", text_of(name))
    return re.sub(r"(?m)^# ?", "", block)


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


def test_the_readme_shows_the_diff():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md yet")
    blocks = re.findall(r"(?ms)^```diff\n(.*?)^```", readme.read_text())
    assert blocks, "README.md has no block that begins with ```diff"
    shown = blocks[0].splitlines()
    # Editors strip blanks at the end of a line, of which an empty line of context has one.
    assert [line.rstrip() for line in shown] == [line.rstrip() for line in difference(2)]


# --- What all scripts share -----------------------------------------------------------------------


@EVERY
def test_one_banner_parts_the_paper_from_the_plumbing(name):
    assert text_of(name).count(BANNER) == 1
    assert "class Agent" in part_one(name) and "def main" not in part_one(name)


@PAIRS
def test_part_two_is_the_same_to_the_byte(one, other):
    tails = [text_of(name).partition(BANNER)[2] for name in (one, other)]
    assert tails[0] == tails[1]


@PAIRS
def test_what_has_the_same_name_has_the_same_text(one, other):
    # CQL and Cal-QL differ by a line in Agent; other algorithms have other policies and flags.
    related = {one, other} <= set(CQL_FAMILY)
    excepted = {"Agent"} if related else {"Agent", "Actor", "Args"}
    first, second = definitions(one), definitions(other)
    for name in (first.keys() & second.keys()) - excepted:
        assert first[name] == second[name], name
    if related:
        assert list(first) == list(second)


@PAIRS
def test_the_imports_are_the_same(one, other):
    blocks = []
    for name in (one, other):
        top = [
            x for x in ast.parse(text_of(name)).body if isinstance(x, ast.Import | ast.ImportFrom)
        ]
        blocks.append(text_of(name).splitlines()[top[0].lineno - 1 : top[-1].end_lineno])
    assert blocks[0] == blocks[1]


@EVERY
def test_inline_metadata_and_requirements_are_the_same(name):
    metadata = tomllib.loads(inline_metadata(name))
    assert sorted(metadata["dependencies"]) == sorted(requirements())
    assert inline_metadata(name) == inline_metadata(SCRIPTS[0])


@EVERY
def test_a_script_needs_nothing_else(name):
    """It can be copied alone into an empty folder."""
    packages = {re.split(r"[\[<>=!~ ]", line)[0].replace("-", "_") for line in requirements()}
    for node in ast.walk(ast.parse(text_of(name))):
        if not isinstance(node, IMPORT):
            continue
        modules = [alias.name for alias in node.names]
        modules = [node.module] if isinstance(node, ast.ImportFrom) else modules
        for module in modules:
            assert module.split(".")[0] in packages | sys.stdlib_module_names, module
        assert not getattr(node, "level", 0), "a relative import"


def test_requirements_are_exact():
    assert all(re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\w.]+", line) for line in requirements())


# --- Budgets --------------------------------------------------------------------------------------


@EVERY
def test_a_script_keeps_to_its_budget(name):
    lines = text_of(name).splitlines()
    assert len(lines) < 620
    assert len(part_one(name).splitlines()) <= 290
    assert [line for line in lines if len(line) > 100] == []
    # A semicolon in a text or comment is no statement.
    tokens = tokenize.generate_tokens(io.StringIO(text_of(name)).readline)
    assert not [token.line for token in tokens if token.string == ";"]


@EVERY
def test_a_script_is_formatted_with_single_blank_lines(name):
    """As ruff has it, imports included, but for one blank line where ruff leaves two."""
    text, options = text_of(name), ["--config", str(ROOT / "pyproject.toml"), "-"]
    for line in (["format"], ["check", "--quiet", "--fix", "--select=I"]):
        ruff = [sys.executable, "-m", "ruff", *line, *options]
        text = subprocess.run(ruff, input=text, text=True, capture_output=True, check=True).stdout
    assert text.replace("\n\n\n", "\n\n") == text_of(name)


@pytest.mark.parametrize("name", CQL_FAMILY)
def test_the_loss_comes_early(name):
    [line] = [i for i, x in enumerate(text_of(name).splitlines(), 1) if "def critic_losses" in x]
    assert line < 215


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
        ("kitchencomplete", "own"),
        ("my-kitchen-complete-v0", "own"),
    ],
)
def test_the_most_special_row_is_taken(dataset, row):
    _, record = load_script("awac").parse_args(["--dataset", f"/data/{dataset}.hdf5"])
    assert record["row"] == row


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
    args, _ = load_script(name).parse_args(["--dataset", f"{domain}.hdf5"])
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

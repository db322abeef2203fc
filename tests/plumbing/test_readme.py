"""What the README and the other pages show is so: code runs, commands and links lead somewhere, and
what is logged and can be set is explained. How they say it is theirs."""

import difflib
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import read_events
from scripts import ROOT, SCRIPTS, load_script, text_of
from settings_table import PAGE, READING_ORDER, settings_of, settings_table

README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("benchmarks/**/*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
EXPLAINED = "\n".join(page.read_text() for page in [README, *ROOT.glob("docs/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", page.read_text())


@EVERY_PAGE
def test_a_page_is_finished(page):
    assert not re.search(r"@@[A-Z]+@@|TODO", page.read_text()), "a place that was to be filled in"


# --- Code -----------------------------------------------------------------------------------------

BEFORE = """
import pathlib, h5py, numpy as np, cal_ql
few = "--offline-steps 20 --online-steps 1 --eval-episodes 1 --actor-hidden 8 --critic-hidden 8"
cal_ql.draw_curves = lambda folder: None
cal_ql.main(["--run-dir", "runs/cal_ql-pointmaze-s0", *few.split()])
shared = dict(h5py=h5py, np=np, arrays={"rewards": np.zeros(3)})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In it all blocks of Python were run, in order, after a short run of the embedded task."""
    found = [block for page in PAGES for block in blocks(page, "python")]
    assert any("load_state_dict" in block for block in found)
    code = BEFORE + "\n".join(f"exec({block!r}, dict(shared))" for block in found)
    folder = tmp_path_factory.mktemp("readme")
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + code], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return folder


def test_code_runs(folder):
    assert (folder / "runs" / "cal_ql-pointmaze-s0" / "summary.json").exists()


def test_every_logged_key_is_explained(folder):
    keys = set(read_events(folder / "runs" / "cal_ql-pointmaze-s0"))
    assert {"eval/score", "train/return"} <= keys
    for name in SCRIPTS:  # and what is logged by other scripts, or with other settings
        keys |= set(re.findall(r'"((?:loss|q|pi|calibration|train)/\w+)"', text_of(name)))
    assert not {key for key in keys if f"`{key}`" not in EXPLAINED}


def test_every_setting_is_explained():
    """`python tests/settings_table.py` prints the table."""
    assert sorted(READING_ORDER) == SCRIPTS
    for script in SCRIPTS:
        settings = [name for name, _, _ in settings_of(script)]
        assert settings == [field.name for field in fields(load_script(script).Args)]
    assert settings_table() in PAGE.read_text()


# --- Commands -------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """Those in blocks and in running text."""
    running_text = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    text = "\n".join([*blocks(page, "bash"), *re.findall(r"`([^`]+)`", running_text)])
    return re.findall(r"python (?:-m )?[^\n&|;]+", text)


@EVERY_PAGE
def test_commands_name_what_is_there(page):
    """Files, modules of this project, and flags of the scripts."""
    for block in blocks(page, "bash"):
        for name in re.findall(r"[\w./-]+\.(?:py|txt|sh)\b", block):
            assert (ROOT / name).exists(), name
    for command in commands(page):
        for module in re.findall(r"-m (benchmarks[\w.]*)", command):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), command
        if script := re.match(rf"python ({'|'.join(SCRIPTS)})\.py", command):
            known = {field.name for field in fields(load_script(script[1]).Args)} | {"help"}
            flags = re.findall(r"--(?:no-)?([a-z][a-z-]+)", command)
            assert {flag.replace("-", "_") for flag in flags} <= known, command


@EVERY_PAGE
def test_flags_in_the_text_exist(page):
    """In a program of this project, its tests included, or in one of those that are named here."""
    others = {"--no-deps", "--logdir", "--index-url", "--extra-index-url"}
    programs = [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/**/*.py")]
    text = "\n".join(path.read_text() for path in programs)
    for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text())) - others:
        name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
        assert f'"{flag}"' in text or re.search(rf"(?m)^    {name}: ", text), flag


def test_ci_runs_the_test_command_of_the_readme():
    command = next(block for block in blocks(README, "bash") if "pytest" in block)
    assert command.strip().split("&& ")[-1] in (ROOT / ".ci" / "run").read_text()


# --- Links, tables, numbers -----------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EVERY_PAGE
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_the_readme_shows_what_parts_cql_from_cal_ql():
    """The diff that it begins with is the real one or the end of it, where the statement is."""
    shown = [line.rstrip() for line in blocks(README, "diff")[0].splitlines()]
    assert any(line.startswith("+") and "mc_returns" in line for line in shown)
    ends = []
    for context in range(6):
        texts = (text_of(name).splitlines() for name in ("cql", "cal_ql"))
        lines = [*difflib.unified_diff(*texts, lineterm="", n=context)]
        ends.append([line.rstrip() for line in lines[-len(shown) :]])
    assert shown in ends


def lines_changed(one: str, other: str) -> int:
    """Lines gone and lines new, as diff counts them."""
    diff = ["diff", *(str(ROOT / f"{name}.py") for name in (one, other))]
    shown = subprocess.run(diff, capture_output=True, text=True).stdout
    return len(re.findall("(?m)^[<>]", shown))


@pytest.mark.skipif(not shutil.which("diff"), reason="no diff here")
def test_numbers_of_lines_are_true():
    """Those of the README's table of the files, by what its columns are called."""
    table = re.search(r"(?m)^\| file \|.*\n\|[-|]+\n((?:\|.*\n)+)", README.read_text())
    columns, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()
    )
    names = [re.match(r"\[`(\w+)\.py`\]", row[0])[1] for row in rows]
    assert sorted(names) == SCRIPTS
    for above, name, row in zip([None, *names], names, rows):
        for column, cell in zip(columns, row):
            if column == "lines":
                assert int(cell) == len(text_of(name).splitlines()), name
            elif "changed" in column and above:
                assert int(cell) == lines_changed(above, name), f"{above} to {name}"


def test_tests_in_the_table_of_fidelity_exist():
    """Each in the file that its table names, or that stands before it."""
    text, tests = (ROOT / "benchmarks" / "envs" / "FIDELITY.md").read_text(), ROOT / "tests"
    named = set(re.findall(r"`(test_\w+)`", text))
    defined = {
        x
        for path in tests.glob("envs/test_*.py")
        for x in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 50 and named <= defined, named - defined
    for section in re.split("(?m)^## ", text)[2:]:
        [file] = re.findall(r"\| test \(`(\w+\.py)`\)", section)
        here = set(re.findall(r"def (test_\w+)", (tests / "envs" / file).read_text()))
        assert set(re.findall(r"`(test_\w+)`", section)) <= here, section[:30]

"""What the README shows is run as it stands there."""

import re
import shutil
import subprocess
import sys

from scripts import BANNER, ROOT, SCRIPTS, text_of

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_load_a_trained_agent(tmp_path):
    run = tmp_path / "run"
    steps = "--offline-steps 20 --online-steps 1 --eval-episodes 1".split()
    script = [sys.executable, str(ROOT / "cal_ql.py"), "--run-dir", str(run), *steps]
    subprocess.run(script, check=True, capture_output=True)
    (code,) = [block for block in blocks("python") if "load_state_dict" in block]
    named = "runs/cal_ql-pointmaze-s0"
    assert named in code
    code = (
        code.replace(named, str(run)) + "\nassert action.shape == (2,) and action.abs().max() <= 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_commands_name_files_that_exist():
    for command in blocks("bash"):
        for name in re.findall(r"[\w./-]+\.(?:py|txt)\b", command):
            assert (ROOT / name).exists(), name


def test_ci_runs_the_test_command_of_the_readme():
    command = next(block for block in blocks("bash") if "pytest" in block)
    assert command.strip().split("&& ")[-1] in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


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


def test_line_counts_are_true():
    """Those of the files, and of what changes from each to the next one to be read."""
    rows = re.findall(r"\| \[`(\w+)\.py`\]\(\1\.py\) \| (\d+) \| ?(\d*) \|", README)
    assert [name for name, _, _ in rows] == ["iql", "awac", "cql", "cal_ql"]
    for (one, *_), (other, lines, changed) in zip([("", ""), *rows], rows):
        assert len(text_of(other).splitlines()) == int(lines), other
        if one and shutil.which("diff"):
            diff = ["diff", *(str(ROOT / f"{name}.py") for name in (one, other))]
            shown = subprocess.run(diff, capture_output=True, text=True).stdout
            assert len(re.findall("(?m)^[<>]", shown)) == int(changed), other


def test_length_of_part_one_is_true():
    lengths = [text_of(name).partition(BANNER)[0].count("\n") for name in ("iql", "awac", "cql")]
    assert f"the first {lengths[2]} lines of `cql.py` and fewer of" in README.replace("\n", " ")
    assert max(lengths) == lengths[2]


def test_every_logged_key_is_explained():
    for name in SCRIPTS:
        for key in re.findall(r'"((?:loss|q|pi|calibration|train)/\w+)"', text_of(name)):
            assert f"`{key}`" in README, key

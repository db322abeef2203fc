"""What the README shows is run as it stands there."""

import re
import subprocess
import sys

from scripts import ROOT

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


def test_line_counts_are_true():
    for name, lines in re.findall(r"\| \[`(\w+\.py)`\]\(\1\) \| (\d+) \|", README):
        assert len((ROOT / name).read_text().splitlines()) == int(lines), name


def test_length_of_part_one_is_true():
    lines = (ROOT / "cql.py").read_text().splitlines()
    banner = next(i for i, line in enumerate(lines) if line.startswith("# ==== Part II"))
    assert f"the first {banner} lines" in README


def test_every_logged_key_is_explained():
    source = (ROOT / "cql.py").read_text()
    for key in re.findall(r'"((?:loss|q|pi|calibration|train)/\w+)"', source):
        assert f"`{key}`" in README, key

"""The table of all settings in docs/settings.md, made from the scripts' Args.

python tests/settings_table.py                   prints it, to be put there after a change
"""

import re

from scripts import ROOT, text_of

READING_ORDER = ["iql", "awac", "cql", "cal_ql"]
PAGE = ROOT / "docs" / "settings.md"


def settings_of(script: str) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each, as they stand in the script."""
    text = text_of(script).partition("class Args:")[2].partition("    def __post_init__")[0]
    return re.findall(r"(?m)^    (\w+): .*? = (.*?)  # (.*)$", text)


def settings_table() -> str:
    """A row for each setting; where scripts differ in default or meaning, a row for each kind."""
    scripts_of = {}
    for script in READING_ORDER:
        for setting in settings_of(script):
            scripts_of.setdefault(setting, []).append(script)
    order = {name: k for k, (name, _, _) in enumerate(scripts_of)}
    lines = ["| setting | default | scripts | meaning |", "|---|---|---|---|"]
    for name, default, meaning in sorted(scripts_of, key=lambda setting: order[setting[0]]):
        scripts = scripts_of[name, default, meaning]
        which = "all" if scripts == READING_ORDER else ", ".join(f"`{each}`" for each in scripts)
        flag, meaning = name.replace("_", "-"), meaning.replace("|", "\\|")
        lines.append(f"| `--{flag}` | `{default}` | {which} | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(settings_table())

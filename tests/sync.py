"""Copies what all scripts share from one of them to the others, after a change of it there.

    python tests/sync.py cql.py                               the others become as cql.py is

What is shared: the requirements on top, the imports, the functions and classes of the same name
above the banner "From here on" (but for Args, Agent and Actor), and all from that banner on.
test_scripts.py sees that it stays the same.
"""

import re
import sys
from pathlib import Path

from scripts import BANNER, ROOT, SCRIPTS

OWN = {"Args", "Agent", "Actor"}  # cql.py and cal_ql.py share these, too: but for one statement


def shared_parts(text: str) -> dict[str, str]:
    """The shared parts of a script by their names, each as it stands there."""
    above, banner, below = text.partition(BANNER)
    docstring = text.index('"""')
    imports = text.index("\nimport ")
    parts = {"requirements": text[:docstring], "from the banner on": banner + below}
    parts["imports"] = text[imports : text.index("\n\n@dataclass", imports)]
    # A definition begins in the first column, with its decorators, and ends before the next thing
    # that does.
    for block in re.findall(r"(?ms)^(?:@[^\n]+\n)?(?:def|class) .*?(?=\n\n\S)", above + "."):
        name = re.search(r"(?:def|class) (\w+)", block)[1]
        if name not in OWN:
            parts[name] = block
    return parts


def synchronised(text: str, source: str) -> str:
    """The script `text` with the shared parts of the script `source`."""
    wanted = shared_parts(source)
    for name, part in shared_parts(text).items():
        text = text.replace(part, wanted.get(name, part))
    return text


def main(argv: list[str]) -> int:
    if len(argv) != 1 or Path(argv[0]).stem not in SCRIPTS:
        print(f"{__doc__}\nscripts: {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    source = (ROOT / f"{Path(argv[0]).stem}.py").read_text()
    for path in (ROOT / f"{name}.py" for name in SCRIPTS):
        text = path.read_text()
        if (new := synchronised(text, source)) != text:
            path.write_text(new)
            print(f"{path.name} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The program that copies what the scripts share."""

import pytest
import sync
from scripts import SCRIPTS, text_of


@pytest.mark.parametrize("name", SCRIPTS)
def test_nothing_is_to_be_copied_now(name):
    for source in SCRIPTS:
        assert sync.synchronised(text_of(name), text_of(source)) == text_of(name)


def test_a_change_is_copied_and_nothing_else():
    changes = {  # what is changed in one script -> whether it is to reach the others
        "class Critic(nn.Module):": True,
        "def check(good": True,
        "import gymnasium as gym": True,
        "def mlp(*widths": True,
        "# requires-python": True,
        "Adam's rate for the critics": False,
        "self.critic_target = copy": False,
    }
    iql, awac = text_of("iql"), text_of("awac")
    for text, shared in changes.items():
        source, changed = (x.replace(text, f"{text} # changed", 1) for x in (iql, awac))
        assert source != iql
        assert sync.synchronised(awac, source) == (changed if shared else awac)


def test_it_wants_a_script(capsys):
    assert sync.main(["README.md"]) == sync.main([]) == 2
    assert "cal_ql" in capsys.readouterr().err

"""docs/many-gpus.md shows what `fastgpt plan` prints, and the presets' sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastgpt import GPTConfig
from fastgpt.model import presets
from fastgpt.model.size import count_parameters
from tests.support import command

PAGE = (Path(__file__).parents[1] / "docs" / "many-gpus.md").read_text(encoding="utf-8")


@pytest.mark.needs("tyro", "rich", "triton")
def test_the_plan_is_what_the_command_prints(tmp_path):
    (shown,) = re.findall(r"^```\n\$ fastgpt (.*?)\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    words, text = shown
    done = command.run(*words.split(), cwd=tmp_path, COLUMNS="100")
    assert done.code == 0, done.err
    assert done.out.rstrip() == text


def test_parameters_of_the_presets():
    listed = re.findall(r"^\| `(gpt-\S+)` \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    large = [name for name in presets.names() if name.startswith("gpt-")]
    assert listed == [(name, f"{count_parameters(GPTConfig.preset(name).to_dict()):,}") for name in large]

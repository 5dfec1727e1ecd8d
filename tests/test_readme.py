"""The README's Python runs, and yields what its comments say."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_secure_mean_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[0], {})
    assert capsys.readouterr().out.startswith("(1, 3, 4, 5) 3.923")


def test_round_of_the_readme_survives_its_lost_client(capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[1], {})
    assert capsys.readouterr().out.split() == ["[3.", "3.", "3.", "3.]"]


def test_no_other_python_stands_in_the_readme_untested() -> None:
    assert len(BLOCKS) == 2

"""Broken configurations, each with exactly the lines it must give. ``{here}`` is the folder of the files."""

from __future__ import annotations

from pathlib import Path as File

import pytest

from relayd.config import ConfigFaults, load

HERE = File(__file__).parents[2] / "bad_configs"
FILES = sorted(HERE.glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_says_what_is_wrong_where(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    expected = file.with_suffix(".expected").read_text().replace("{here}", str(HERE))
    with pytest.raises(ConfigFaults) as raised:
        load(File(file.name))
    assert str(raised.value) + "\n" == expected


def test_there_are_enough_of_them() -> None:
    assert len(FILES) >= 25
    assert {file.stem for file in HERE.glob("*.expected")} == {file.stem for file in FILES}

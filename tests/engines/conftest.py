"""A shell in a folder with a config."""

from __future__ import annotations

import pytest

from tests.support.configs import write_config
from tests.support.shell import Shell


@pytest.fixture
def shell(shell: Shell) -> Shell:
    write_config(shell.folder / "model")
    return shell

"""The single file of a page, with its style, script and data inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

from ropex_eval.report.page.data import embed
from ropex_eval.report.page.markup import Markup, join

SCRIPTS = ("chart.js", "page.js")


def document(title: str, body: Markup, data: Mapping[str, Any]) -> str:
    """A page that can be saved.

    Only the script of this package may run, by its hash, and nothing may be loaded, so a browser
    neither executes nor fetches anything, whatever the name of a model, a text or a strategy.
    """
    script = "".join(_asset(each) for each in SCRIPTS)
    text = Template(_asset("page.html")).substitute(
        title=join([title]), policy=_policy(script), style=_asset("page.css"), body=body,
        data=embed(data), script=script,
    )  # fmt: skip
    return text.encode("utf-8", "replace").decode()  # a file's name may not be valid text


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")

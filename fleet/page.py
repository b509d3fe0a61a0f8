"""Pages of HTML that need nothing but a browser: names and messages escaped, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, facts: dict[str, Any], script: str = "") -> str:
    """The page of a template that extends ``page.html.j2``.

    :param script: file beside it. The page allows this very text to run and nothing else.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    if script:
        text = (_TEMPLATES / script).read_text()
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        # Our own file, and by its digest nothing else.
        facts = {
            **facts,
            "script": Markup(text),  # noqa: S704
            "script_digest": f"sha256-{digest}",
        }
    return environment.get_template(template).render(facts)

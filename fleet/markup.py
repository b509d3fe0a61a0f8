"""Ansible's documentation markup, ``O(name)``, ``L(text,url)``, ..., for the places where people read it.

https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_MARKDOWN = {"B": "**{}**", "I": "*{}*", "U": "<{}>"}


def markdown(text: str) -> str:
    """As Markdown: an option is a code span, a link a link."""
    return _render(text, r"[\1](\2)", _MARKDOWN, "`{}`")


def plain(text: str) -> str:
    """As a terminal has it: the words alone."""
    return _render(text, r"\1 (\2)", {}, "{}")


def _render(text: str, link: str, styles: Mapping[str, str], other: str) -> str:
    text = re.sub(r"\bL\(([^,)]*),\s*([^)]*)\)", link, text)
    return re.sub(
        r"\b([BCEIMOPUV]|RV)\(((?:\\.|[^)\\])*)\)",
        lambda match: styles.get(match[1], other).format(re.sub(r"\\(.)", r"\1", match[2])),
        text,
    )

"""fleet.markup: what Ansible's documentation markup becomes on a page and on a terminal."""

from __future__ import annotations

import pytest

from fleet.markup import markdown, plain


@pytest.mark.parametrize(
    ("markup", "page", "terminal"),
    [
        ("C(a b)", "`a b`", "a b"),
        ("O(a=b) and V(c)", "`a=b` and `c`", "a=b and c"),
        ("I(x) B(y)", "*x* **y**", "x y"),
        ("U(https://x.org)", "<https://x.org>", "https://x.org"),
        ("L(here, https://x.org)", "[here](https://x.org)", "here (https://x.org)"),
        (r"V(f(x\))", "`f(x)`", "f(x)"),
        ("RV(x)", "`x`", "x"),
        ("ABC(x) stays", "ABC(x) stays", "ABC(x) stays"),
    ],
)
def test_markup(markup: str, page: str, terminal: str) -> None:
    assert markdown(markup) == page
    assert plain(markup) == terminal

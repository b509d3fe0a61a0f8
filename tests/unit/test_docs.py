"""fleet.docs: generated pages say what the specifications say, and stale ones are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fleet import docs
from module_utils.apptainer_profiles import PROFILES

PROJECT = Path(__file__).parents[2]

SPECS = """
argument_specs:
  main:
    short_description: Paint nodes
    description:
      - Gives each node a colour, see O(paint_colour).
      - Does so B(once).
    options:
      paint_colour:
        description: The colour.
        type: str
        choices: [red, green]
        default: red
      paint_layers:
        description: Layers of paint.
        type: list
        elements: dict
        required: true
        options:
          thickness:
            description: How thick, V(1) to V(3).
            type: int
            required: true
"""
META = """
galaxy_info:
  description: Paint
  min_ansible_version: "2.19"
  platforms:
    - {name: Debian, versions: [trixie]}
dependencies: [{role: brush}]
"""
TASKS = """
- name: Paint
  tags: [wet]
  block:
    - name: Dry
      ansible.builtin.debug:
        msg: !unsafe dry
      tags: dry, slow
"""
PLAYBOOK = """
- hosts: all
  roles:
    - {role: paint, tags: paint}
    - {role: other, tags: never}
"""
MODULE = '''
DOCUMENTATION = r"""
module: colour
short_description: Colour of a node
description: Says which colour a node has, see L(colours,https://example.org/c) and RV(colour).
options:
  strict:
    description: Whether to be strict.
    type: bool
    default: false
attributes:
  check_mode: {support: full}
notes: [Not for O(strict=true).]
"""
EXAMPLES = r"""
- colour:
"""
RETURN = r"""
colour:
  description: The colour.
  returned: always
  type: str
  sample: red
"""
'''


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "roles/paint/meta/argument_specs.yml": SPECS,
        "roles/paint/meta/main.yml": META,
        "roles/paint/tasks/main.yml": TASKS,
        "playbooks/site.yml": PLAYBOOK,
        "library/colour.py": MODULE,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


ROLE_PAGE = Path("roles/paint/README.md")
MODULE_PAGE = Path("docs/reference/colour.md")
PROFILES_PAGE = docs.REFERENCE / "apptainer_profiles.md"
INDEX = Path("docs/reference/README.md")


def test_role_page(checkout: Path) -> None:
    page = docs.pages(checkout)[ROLE_PAGE]
    assert page.startswith(docs.MARK)
    for text in (
        "# Role `paint`\n\nPaint nodes.\n\nGives each node a colour, see `paint_colour`.\n\n",
        "\n\nDoes so **once**.\n",
        "### `paint_colour`\n\nstr, default `red`, one of `red`, `green`\n\nThe colour.\n",
        "### `paint_layers`\n\nlist of dict, required\n",
        "- `thickness` (int, required): How thick, `1` to `3`.\n",
        "  hosts: all\n  roles:\n    - role: paint\n      vars:\n        paint_layers: <list>\n",
        "- `dry`\n- `paint`\n- `slow`\n- `wet`\n",
        "- ansible-core 2.19 or newer",
        "- Debian (trixie)\n",
        "[`brush`](../brush/README.md)",
    ):
        assert text in page
    assert "`never`" not in page


def test_written_example_replaces_the_made_one(checkout: Path) -> None:
    file = checkout / "roles/paint/meta/argument_specs.yml"
    file.write_text(SPECS + "    examples: |\n      - hosts: walls\n", encoding="utf-8")
    assert "```yaml\n- hosts: walls\n```" in docs.pages(checkout)[ROLE_PAGE]


def test_module_page(checkout: Path) -> None:
    page = docs.pages(checkout)[MODULE_PAGE]
    for text in (
        "# Module `colour`\n\nColour of a node.\n",
        "see [colours](https://example.org/c) and `colour`.",
        "### `strict`\n\nbool, default `false`\n\nWhether to be strict.\n",
        "- `check_mode`: full\n",
        "- Not for `strict=true`.\n",
        "```yaml\n- colour:\n```",
        "### `colour`\n\nstr, returned: always, for example `red`\n",
    ):
        assert text in page


def test_index_links_to_every_page(checkout: Path) -> None:
    index = docs.pages(checkout)[INDEX]
    assert "[`paint`](../../roles/paint/README.md): Paint nodes" in index
    assert "[`colour`](colour.md): Colour of a node" in index


def run(checkout: Path, *options: str) -> Result:
    return CliRunner().invoke(docs.command, ["--project", str(checkout), *options])


def test_fresh_pages_pass_and_stale_ones_are_named(checkout: Path) -> None:
    always = [
        INDEX,
        PROFILES_PAGE,
        docs.REFERENCE / "fleet.md",
        docs.REFERENCE / "supported.md",
        docs.TROUBLESHOOTING,
    ]
    assert docs.check(checkout) == sorted([*always, MODULE_PAGE, ROLE_PAGE])
    assert run(checkout, "--check").exit_code == 1
    assert not (checkout / ROLE_PAGE).exists()
    assert run(checkout).exit_code == 0
    assert docs.check(checkout) == []
    assert docs.write(checkout) == []

    specs = checkout / "roles/paint/meta/argument_specs.yml"
    specs.write_text(SPECS.replace("default: red", "default: green"), encoding="utf-8")
    result = run(checkout, "--check")
    assert result.exit_code == 1
    assert result.output == f"{ROLE_PAGE}: stale; run `fleet docs`\n"


def test_page_of_what_is_gone_is_removed_and_others_are_left(checkout: Path) -> None:
    docs.write(checkout)
    by_hand = checkout / "docs/reference/by-hand.md"
    by_hand.write_text("# Written by people\n", encoding="utf-8")
    (checkout / "library/colour.py").unlink()
    assert docs.check(checkout) == [INDEX, MODULE_PAGE]
    docs.write(checkout)
    assert by_hand.exists()
    assert not (checkout / MODULE_PAGE).exists()


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("roles/paint/meta/argument_specs.yml", "argument_specs: {}\n", "entry point main"),
        ("roles/paint/meta/argument_specs.yml", "a: [\n", "argument_specs.yml"),
        ("library/colour.py", "'''No DOCUMENTATION.'''\n", "DOCUMENTATION"),
        ("library/colour.py", "DOCUMENTATION = 'module: other'\n", "colour"),
    ],
)
def test_what_is_not_documented_is_refused(checkout: Path, file: str, text: str, word: str) -> None:
    (checkout / file).write_text(text, encoding="utf-8")
    with pytest.raises(docs.DocumentationError, match=word):
        docs.pages(checkout)


def test_pages_of_this_project_are_fresh() -> None:
    # A process of its own: Click remembers what a command's --help was called when a test called it alone.
    ended = subprocess.run(
        [sys.executable, "-m", "fleet", "docs", "--check"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_page_of_the_profiles_is_their_data(checkout: Path) -> None:
    page = docs.pages(checkout)[PROFILES_PAGE]
    for name, profile in PROFILES.items():
        section = page.partition(f"## `{name}`\n")[2].partition("\n## ")[0]
        assert profile.about in section and all(setting.why in section for setting in profile.settings)
        assert all(f"- {sentence}\n" in f"{section}\n" for sentence in (*profile.holds, *profile.know))
    assert "| `allow setuid-mount squashfs` | `iflimited`, before 1.3.0 `yes` |" in page

"""apptainer.conf by the program itself: what it takes from a file, and whether we say the same of it.

The hidden command `apptainer confgen OLD NEW` writes what Apptainer has made of OLD into NEW; only of "binary
path" its template says nothing.
"""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from module_utils import apptainer_conf, apptainer_conf_lint

sys.path.append(str(Path(__file__).parents[3] / "tests"))

import apptainer_conf_upstream as upstream

testinfra_hosts = ["node"]

FATAL = "every command fails"
UNSEEN = ("binary path", "suidbinary path")
#: Its template has another name for it than its parser.
NAMES = {"apptheus socket path": "apptheus communication socket path"}
ASK = """
set -eu
rm -rf /srv/conf && mkdir -p /srv/conf/in /srv/conf/out && tar -x -C /srv/conf/in
for file in /srv/conf/in/*; do
    name=$(basename "$file")
    if apptainer --config "$file" version >/dev/null 2>/srv/conf/out/said; then
        apptainer confgen "$file" "/srv/conf/out/$name"
    else
        mv /srv/conf/out/said "/srv/conf/out/$name.fatal"
    fi
done
tar -c -C /srv/conf/out .
"""

# What stands in the file; the directive in question; what Apptainer takes for it; the rules that it breaks to
# our lint. "mount tmp" is yes by default.
HOSTILE = {
    "as it should be": ("mount tmp = no\n", "mount tmp", "no", set()),
    "no line end": ("mount tmp = no", "mount tmp", "no", set()),
    "no blanks": ("mount tmp=no\n", "mount tmp", "no", set()),
    "tabs around": ("\tmount tmp\t=\tno\t\n", "mount tmp", "no", set()),
    "form feed before": ("\fmount tmp = no\n", "mount tmp", "no", set()),
    "line ends of DOS": ("mount home = no\r\nmount tmp = no\r\n", "mount tmp", "no", set()),
    "no-break space behind": ("mount tmp = no\xa0\n", "mount tmp", "no", set()),
    "very many blanks": ("mount tmp = no" + " " * 200_000 + "\n", "mount tmp", "no", set()),
    "comment": ("# mount tmp = no\n", "mount tmp", "yes", set()),
    "indented comment": ("  \t# mount tmp = no\n", "mount tmp", "yes", set()),
    "comment in Latin-1": (b"# caf\xe9\nmount tmp = no\n", "mount tmp", "no", set()),
    "empty file": ("", "mount tmp", "yes", set()),
    "byte order mark": ("\ufeffmount tmp = no\n", "mount tmp", "yes", {"L01"}),
    "byte order mark before a comment": ("\ufeff# x\nmount tmp = no\n", "mount tmp", "no", {"L01"}),
    "UTF-16": ("mount tmp = no\n".encode("utf-16"), "mount tmp", "yes", {"L01"}),
    "line ends of old Macs": ("mount tmp = no\rmount home = no\r", "mount tmp", FATAL, {"L02"}),
    "two blanks": ("mount  tmp = no\n", "mount tmp", "yes", {"L01"}),
    "tab in the name": ("mount\ttmp = no\n", "mount tmp", "yes", {"L01"}),
    "no-break space in the name": ("mount\xa0tmp = no\n", "mount tmp", "yes", {"L01"}),
    "no-break space before": ("\xa0mount tmp = no\n", "mount tmp", "yes", {"L01"}),
    "zero-width space behind the name": ("mount tmp\u200b = no\n", "mount tmp", "yes", {"L01"}),
    "vertical tab before": ("\vmount tmp = no\n", "mount tmp", "yes", {"L01"}),
    "NUL before": ("\0mount tmp = no\n", "mount tmp", "yes", {"L01"}),
    "capitals in the name": ("Mount Tmp = no\n", "mount tmp", "yes", {"L01"}),
    "underscore": ("mount_tmp = no\n", "mount tmp", "yes", {"L01"}),
    "plural": ("mount tmps = no\n", "mount tmp", "yes", {"L01"}),
    "colon": ("mount tmp: no\n", "mount tmp", "yes", {"L01"}),
    "no equals sign": ("mount tmp no\n", "mount tmp", "yes", {"L01"}),
    "semicolon for a comment": ("; mount tmp = no\n", "mount tmp", "yes", {"L01"}),
    "two slashes for a comment": ("// mount tmp = no\n", "mount tmp", "yes", {"L01"}),
    "very long name": ("x" * 200_000 + " = no\nmount tmp = no\n", "mount tmp", "no", {"L01"}),
    "directive of 1.0": ("mksquashfs path = /x\nmount tmp = no\n", "mount tmp", "no", {"L01"}),
    "directive of SingularityCE": ("oci mode = yes\nmount tmp = no\n", "mount tmp", "no", {"L01"}),
    "as Apptainer's template has it": (
        "apptheus socket path = /x\n",
        "apptheus communication socket path",
        "/run/apptheus/gateway.sock",
        {"L01"},
    ),
    "capitals in the value": ("mount tmp = No\n", "mount tmp", FATAL, {"L02"}),
    "another word": ("mount tmp = false\n", "mount tmp", FATAL, {"L02"}),
    "quotes": ('mount tmp = "no"\n', "mount tmp", FATAL, {"L02"}),
    "comment behind": ("mount tmp = no # x\n", "mount tmp", FATAL, {"L02"}),
    "two equals signs": ("mount tmp == no\n", "mount tmp", FATAL, {"L02"}),
    "continued line": ("mount tmp = \\\nno\n", "mount tmp", FATAL, {"L01", "L02"}),
    "NUL behind": ("mount tmp = no\0\n", "mount tmp", FATAL, {"L02"}),
    "file separator behind": ("mount tmp = no\x1c\n", "mount tmp", FATAL, {"L02"}),
    "Latin-1": (b"mount tmp = n\xf3\n", "mount tmp", FATAL, {"L02"}),
    "empty value": ("mount tmp =\n", "mount tmp", "yes", {"L02"}),
    "empty, then a value": ("mount tmp =\nmount tmp = no\n", "mount tmp", "no", {"L02"}),
    "word of a later release": ("enable underlay = always\n", "enable underlay", FATAL, {"L02"}),
    "nothing before a comma, of yes and no": ("mount tmp = ,no\n", "mount tmp", FATAL, {"L04"}),
    "nothing before a comma, of words": ("mount dev = ,no\n", "mount dev", "", {"L04"}),
    "comma": ("mount tmp = no,yes\n", "mount tmp", "no", {"L04"}),
    "blank and comma": ("mount tmp = no ,yes\n", "mount tmp", FATAL, {"L04"}),
    "comma in a text": ("image driver = a,b\n", "image driver", "a", {"L04"}),
    "comment in a text": ("image driver = a # b\n", "image driver", "a # b", {"L02"}),
    "twice, first wins": ("mount tmp = no\nmount tmp = yes\n", "mount tmp", "no", {"L03"}),
    "taken back": ("mount tmp = no\nmount tmp =\n", "mount tmp", "no", {"L03"}),
    "hexadecimal": ("sessiondir max size = 0x10\n", "sessiondir max size", "16", set()),
    "octal": ("sessiondir max size = 020\n", "sessiondir max size", "16", set()),
    "no octal number": ("sessiondir max size = 08\n", "sessiondir max size", FATAL, {"L02"}),
    "underscore in a number": ("sessiondir max size = 1_0\n", "sessiondir max size", "10", set()),
    "underscore behind a number": ("sessiondir max size = 10_\n", "sessiondir max size", FATAL, {"L02"}),
    "unit": ("sessiondir max size = 16M\n", "sessiondir max size", FATAL, {"L02"}),
    "negative": ("sessiondir max size = -1\n", "sessiondir max size", FATAL, {"L02"}),
    "sign": ("sessiondir max size = +1\n", "sessiondir max size", FATAL, {"L02"}),
    "Arabic digit": ("sessiondir max size = \u0661\n", "sessiondir max size", FATAL, {"L02"}),
    "too large": (f"sessiondir max size = {2**64}\n", "sessiondir max size", FATAL, {"L02"}),
    "a list's default is for no file": ("mount tmp = no\n", "bind path", (), set()),
    "a list on two lines": ("bind path = /a, /b\nbind path = /c\n", "bind path", ("/a", "/b", "/c"), set()),
    "a list taken back": ("bind path = /a\nbind path =\n", "bind path", ("/a",), {"L03"}),
    "comment behind a list": ("bind path = /a # /b\n", "bind path", ("/a # /b",), {"L18"}),
}


@pytest.fixture(scope="module")
def version(repository):
    """The release on the node."""
    return repository["versions"][0]


@pytest.fixture(scope="module")
def apptainer(lab_state):
    """What lets the program on the node read files: contents → for each what it has in force, or FATAL."""

    def ask(contents, release):
        sent = io.BytesIO()
        with tarfile.open(fileobj=sent, mode="w") as tar:
            for number, content in enumerate(contents):
                entry = tarfile.TarInfo(f"{number}.conf")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        ssh = ["ssh", "-F", str(lab_state / "ssh_config"), "root@node", f"sh -c '{ASK}'"]
        done = subprocess.run(ssh, input=sent.getvalue(), capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
            got = {Path(entry.name).name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
        answers = []
        for number in range(len(contents)):
            said = got.get(f"{number}.conf.fatal")
            assert said is None or b"parse configuration file" in said, said
            answers.append(in_force(got[f"{number}.conf"], release) if said is None else FATAL)
        return answers

    return ask


def in_force(written, release):
    """What `confgen` says is in force; what its template has in a comment has its default."""
    config = {}
    for name, (kind, default, _) in upstream.MATRIX[release].items():
        config[name] = () if kind == "[]string" else default or ""
    for line in upstream.text_of(written).split("\n"):
        name, found, value = line.partition("=")
        name, value = name.strip(), value.strip(upstream.SPACE)
        name = NAMES.get(name, name)
        if found and not line.startswith("#"):
            kind = upstream.MATRIX[release][name][0]
            config[name] = (*config[name], *value.split(", ")) if kind == "[]string" else value
    return seen(config)


def seen(config):
    return {
        name: value.strip(upstream.SPACE) if isinstance(value, str) else value
        for name, value in config.items()
        if name not in UNSEEN
    }


def transcribed(content, release):
    try:
        return seen(upstream.read(content, release))
    except upstream.FatalError:
        return FATAL


def test_what_apptainer_makes_of_hostile_files_is_what_we_say(apptainer, version):
    contents = [text.encode() if isinstance(text, str) else text for text, _, _, _ in HOSTILE.values()]
    wrong = []
    for (case, (_, directive, taken, rules)), content, answer in zip(
        HOSTILE.items(), contents, apptainer(contents, version), strict=True
    ):
        real = answer if answer == FATAL else answer[directive]
        _, problems = apptainer_conf_lint.read(upstream.text_of(content), version)
        ours = {problem.rule for problem in problems}
        if (real, ours) != (taken, rules):
            wrong.append(f"{case}: Apptainer takes {real!r}, not {taken!r}; we say {ours}, not {rules}")
        if answer != transcribed(content, version):
            wrong.append(f"{case}: the transcription has {transcribed(content, version)}")
        wrong.append(upstream.disagreement(content, version) and f"{case}: {content[:99]}")
    assert not list(filter(None, wrong))


def test_every_value_of_every_directive_is_read_back_as_it_was_written(apptainer, version):
    cases = []
    for name, directive in apptainer_conf.schema(version).items():
        values = {
            "choice": directive.choices,
            "number": ("0", "1", str(2**64 - 1)),
            "text": ("/some/path", directive.default),
            "list": ((), ("/one",), ("/one", "/two:/three")),
        }[directive.kind]
        cases += [{name: value} for value in values]
    answers = apptainer([apptainer_conf.render(config, version).encode() for config in cases], version)
    assert len(cases) > 100
    for config, answer in zip(cases, answers, strict=True):
        assert answer == seen(apptainer_conf.complete(config, version)), config


def test_the_program_reads_files_that_are_almost_right_as_the_transcription_does(apptainer, version):
    contents = [content for _, content in upstream.mutants(7, 400, version)]
    answers = apptainer(contents, version)
    assert 50 < answers.count(FATAL) < 350
    for content, answer in zip(contents, answers, strict=True):
        assert answer == transcribed(content, version), content
        assert not upstream.disagreement(content, version), content

"""Definition files: whatever they hold, what is taken begins from exactly what Apptainer would begin from."""

from hypothesis import given
from hypothesis import strategies as st

from module_utils import definition_file, image_facts
from module_utils.definition_file import DefinitionError

DIGEST = "sha256:" + "a1" * 32
LINES = st.sampled_from(
    [
        *[
            "Bootstrap: docker",
            "bootstrap: scratch",
            "BOOTSTRAP: localimage",
            "Bootstrap: library",
            " Bootstrap: x",
        ],
        *[
            f"From: quay.io/org/tool@{DIGEST}",
            "From: base_1.sif",
            "from: debian",
            f"From: q.io/t@{DIGEST} # x",
        ],
        *[
            "From: \\",
            "Stage: one",
            "MirrorURL: http://x",
            "%post",
            "%files",
            "%files from one",
            "%setup",
            "%",
        ],
        *[
            "%help",
            "%labels",
            "  a b",
            "  /etc/x y",
            "# text",
            "",
            "\t",
            "%post\x85",
            "\u00a0%post",
            "{{ X }}",
            "x",
        ],
    ]
)
TEXTS = st.lists(LINES, max_size=12).map("\n".join) | st.text(max_size=80)


@given(TEXTS)
def test_what_is_taken_begins_from_what_apptainer_would_begin_from(text):
    try:
        definition = definition_file.read(text.encode("utf-8", "surrogateescape"))
    except (DefinitionError, UnicodeEncodeError):
        return
    sources = [
        f"{stage.agent}://{stage.begin}" if stage.begin else stage.agent for stage in definition.stages
    ]
    # The other reader takes everything that Apptainer takes, as policies judge images of others.
    assert sources == image_facts.definition_sources(text)


@given(st.binary(max_size=200))
def test_octets_are_taken_or_refused_and_nothing_else(content):
    try:
        definition_file.read(content)
    except DefinitionError as error:
        assert error.problems

"""Files of sysctl.d(5), read as a boot reads them."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from module_utils import sysctl_files

NAMES = ["user.max_user_namespaces", "kernel.pid_max"]
files = st.dictionaries(
    st.sampled_from(["10-a.conf", "60-ours.conf", "99-z.conf", "README"]),
    st.lists(
        st.one_of(
            st.builds(
                "{}{}{}={}".format,
                st.sampled_from(["", "-", " "]),
                st.sampled_from([*NAMES, "user/max_user_namespaces", "kernel.other"]),
                st.sampled_from(["", " "]),
                st.integers(0, 3),
            ),
            st.text("#;=-. \taü\r", max_size=8),
        ),
        max_size=4,
    ).map("\n".join),
    max_size=4,
)


@given(files, files)
def test_what_is_said_of_a_boot_is_what_a_boot_does(etc, lib):
    """The last assignment, file by file in the order of their names, and /etc before /lib."""
    with tempfile.TemporaryDirectory() as root:
        for folder, content in (("etc", etc), ("lib", lib)):
            (Path(root) / folder).mkdir()
            for name, text in content.items():
                (Path(root) / folder / name).write_text(text, newline="")
        settings = sysctl_files.others(
            NAMES, f"{root}/etc/60-ours.conf", (f"{root}/etc", f"{root}/lib"), f"{root}/none"
        )
    expected = {}
    for name in sorted({**lib, **etc}):
        # Our own file masks that of /lib; it isn't asked for what it says itself.
        if name.endswith(".conf") and not (name == "60-ours.conf" and name in etc):
            for line in {**lib, **etc}[name].split("\n"):
                key, separator, value = line.strip().partition("=")
                key = key.strip().lstrip("-").strip().replace("/", ".")
                if separator and key in NAMES:
                    expected[key] = value.strip()
    assert {s.name: s.value for s in settings} == expected
    for name in NAMES:
        found = sysctl_files.last(settings, name)
        assert (found.value if found else None) == expected.get(name)

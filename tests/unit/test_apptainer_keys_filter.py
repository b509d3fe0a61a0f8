"""Keys of the role apptainer, read on the controller: a wrong one is refused before a node is touched."""

import base64

import pytest
from ansible.errors import AnsibleFilterError

from module_utils import openpgp

# RSA with a modulus of one octet: no key for anybody, but whole packets.
KEY = b"\xc6\x0c\x04\x00\x00\x00\x00\x01\x00\x08\xff\x00\x02\x03" + b"\xcd\x05a@b.c"
FINGERPRINT = openpgp.public_keys(KEY)[0].fingerprint


@pytest.fixture
def read_keys(filter_plugin):
    return filter_plugin("apptainer_keys").apptainer_read_keys


def test_the_key_that_was_promised_is_read(read_keys, tmp_path):
    (tmp_path / "site.gpg").write_bytes(KEY)
    assert read_keys([{"fingerprint": FINGERPRINT.lower(), "file": str(tmp_path / "site.gpg")}]) == [
        {"fingerprint": FINGERPRINT, "content": base64.b64encode(KEY).decode()}
    ]
    assert read_keys([]) == []


def test_every_problem_is_told_with_entry_and_file(read_keys, tmp_path):
    (tmp_path / "site.gpg").write_bytes(KEY)
    good, none = str(tmp_path / "site.gpg"), str(tmp_path / "none")
    with pytest.raises(AnsibleFilterError) as error:
        read_keys(
            [
                {"fingerprint": "A" * 40, "file": good},
                {"fingerprint": FINGERPRINT[-16:], "file": good},
                {"fingerprint": FINGERPRINT, "file": none},
                {"fingerprint": FINGERPRINT, "file": "site.gpg"},
            ]
        )
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"apptainer_keys[{number}]" for number in range(4)]
    for line, (file, words) in zip(
        lines,
        [
            (good, f"was promised, but it holds {FINGERPRINT}"),
            (good, "short key ID"),
            (none, "No such file"),
            ("site.gpg", "not absolute"),
        ],
        strict=True,
    ):
        assert file in line and words in line

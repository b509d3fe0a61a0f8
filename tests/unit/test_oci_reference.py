"""References to images in registries."""

import pytest

from module_utils import oci_reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        f"docker://quay.io/org/tool@{DIGEST}",
        f"docker://quay.io/org/tool:1.2@{DIGEST}",
        f"docker://quay.io:5000/a/b__c/d-e@{DIGEST}",
        f"oras://localhost/tool@{DIGEST}",
        f"docker://registry:5000/tool:v1_2.3-x@{DIGEST}",
    ],
)
def test_what_names_a_digest_is_read_and_written_the_same(text):
    assert oci_reference.parse(text).text == text


def test_its_parts_are_told_apart():
    reference = oci_reference.parse(f"docker://quay.io:5000/org/tool:1.2@{DIGEST}")
    assert reference == ("docker", "quay.io:5000", "org/tool", "1.2", DIGEST)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("docker://quay.io/org/tool", "add the digest"),
        ("docker://quay.io/org/tool:1.2", "add the digest"),
        ("docker://quay.io/org/tool:latest", "add the digest"),
        ("docker://quay.io/org/tool@latest", "after @"),
        ("docker://quay.io/org/tool@sha256:abc", "after @"),
        (f"docker://quay.io/org/tool@{DIGEST.upper()}", "after @"),
        (f"docker://quay.io/org/tool@{DIGEST}\n", "after @"),
        (f"docker://quay.io/org/tool@md5:{'0' * 32}", "after @"),
        (f"docker://debian@{DIGEST}", "name registry and repository"),
        (f"docker://library/debian@{DIGEST}", "name registry and repository"),
        (f"docker://quay.io/Org/tool@{DIGEST}", "name registry and repository"),
        (f"docker://quay.io/../tool@{DIGEST}", "name registry and repository"),
        (f"docker://user:word@quay.io/tool@{DIGEST}", "after @"),
        (f"docker://quay.io/org/tool:@{DIGEST}", "is no tag"),
        (f"docker://--option/x.y@{DIGEST}", "name registry and repository"),
        (f"library://quay.io/org/tool@{DIGEST}", "no docker:// or oras://"),
        (f"quay.io/org/tool@{DIGEST}", "no docker:// or oras://"),
        ("", "no docker:// or oras://"),
    ],
)
def test_what_names_nothing_certain_is_refused_with_the_reason(text, reason):
    with pytest.raises(oci_reference.BadReferenceError, match=reason):
        oci_reference.parse(text)

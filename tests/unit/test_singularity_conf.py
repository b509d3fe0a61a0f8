"""singularity.conf in the words of Apptainer: what a site has changed there, and what of it can't be had."""

import pytest

from module_utils import apptainer_conf, singularity_conf

RELEASE = "1.4.5"


def translate(text, **chosen):
    return singularity_conf.translate(text, RELEASE, chosen)


def test_what_the_site_has_changed_is_carried_over_and_what_it_has_not_is_not():
    text = "allow setuid = yes\nmax loop devices = 64\nbind path = /etc/hosts, /opt\nbind path = /data\n"
    settings, left_out = translate(text)
    assert settings == {"max loop devices": "64", "bind path": ("/etc/hosts", "/opt", "/data")}
    assert left_out == []
    # And Apptainer takes them so.
    written = apptainer_conf.render(settings, RELEASE)
    assert apptainer_conf.parse(written, RELEASE)["bind path"] == ("/etc/hosts", "/opt", "/data")


def test_defaults_of_the_old_program_do_not_become_settings_of_the_new():
    """16 MiB was the default until 1.2.0, and is a poor choice since."""
    assert translate("sessiondir max size = 16\nenable overlay = try\n").settings == {}


def test_what_the_site_says_now_wins_and_is_told():
    settings, left_out = translate("max loop devices = 64\nmount hostfs = yes\n", **{"max loop devices": 128})
    assert settings == {"mount hostfs": "yes"}
    assert left_out == ["line 1: 'max loop devices' has another value in apptainer_config or in the profile"]
    assert translate("max loop devices = 64\n", **{"max loop devices": 64}) == ({}, [])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("allow kernel extfs = no", "'allow kernel extfs' is a directive of SingularityCE"),
        ("oci mode = yes", "'oci mode' is a directive of SingularityCE"),
        ("mksquashfs path = /usr/bin/mksquashfs", "'mksquashfs path' is no directive of Apptainer 1.4.5"),
        ("mount tmp = perhaps", "'mount tmp' must be exactly one of yes, no"),
        ("bind path = /a:/b:ro", "Apptainer drops a third part"),
        ("mount tmp", "is neither a comment nor a directive"),
    ],
)
def test_what_apptainer_has_no_word_for_is_told_with_its_line(line, told):
    settings, left_out = translate(f"# Singularity\n{line}\nmax loop devices = 64\n")
    assert settings["max loop devices"] == "64" and line.split(" =")[0] not in {
        name for name, value in settings.items() if name != "bind path"
    }
    assert any("line 2" in text and told in text for text in left_out), left_out


def test_of_two_lines_the_first_counts_as_it_did():
    settings, left_out = translate("max loop devices = 64\nmax loop devices = 32\n")
    assert settings == {"max loop devices": "64"} and "only the first counts" in left_out[0]


def test_it_is_kept_once_and_found_again(tmp_path):
    old, kept = tmp_path / "singularity.conf", tmp_path / "lib" / "kept.conf"
    assert singularity_conf.find((str(old), str(kept))) == ""
    singularity_conf.keep(str(old), str(kept))
    assert not kept.exists()
    old.write_text("max loop devices = 64\n")
    singularity_conf.keep(str(old), str(kept))
    old.unlink()
    assert singularity_conf.find((str(old), str(kept))) == "max loop devices = 64\n"

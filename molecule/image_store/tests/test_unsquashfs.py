"""The unit tests of what unsquashfs lists, where there is one: machines that run them need not have it."""

import io
import subprocess
import tarfile
from pathlib import Path

testinfra_hosts = ["node"]

PROJECT = Path(__file__).resolve().parents[3]
TESTS = ("tests/unit/test_squashfs.py", "tests/unit/test_image_check.py")
RUN = """set -eu
rm -rf unsquashfs && mkdir unsquashfs && cd unsquashfs && tar xz
PYTHONPATH=.:tests python3 -m pytest -q -rs -p no:cacheprovider -c /dev/null --rootdir . {tests}"""


def test_none_is_skipped_and_all_pass(lab_state):
    sent = io.BytesIO()
    with tarfile.open(fileobj=sent, mode="w:gz") as archive:
        helpers = [f"tests/{path.name}" for path in PROJECT.glob("tests/*_*.py")]
        for name in (*TESTS, "module_utils", *helpers):
            archive.add(PROJECT / name, name)
    # As root, who may read a file system as nobody.
    login = ["ssh", "-F", str(lab_state / "ssh_config"), "-l", "root", "node"]
    argv = [*login, RUN.format(tests=" ".join(TESTS))]
    ended = subprocess.run(argv, input=sent.getvalue(), capture_output=True, check=False)
    said = ended.stdout.decode() + ended.stderr.decode()
    assert ended.returncode == 0, said
    assert " passed" in said and "skipped" not in said, said

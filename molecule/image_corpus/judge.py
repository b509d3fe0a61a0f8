#!/usr/bin/env python3
"""Say of each image of a corpus what Apptainer, siftool and we say: ``judge.py FOLDER`` prints JSON.

Runs on the node where corpus.py has run, beside module_utils; our verdict is by Apptainer's authenticator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from module_utils import openpgp, sif
from module_utils.sif_signers import ApptainerAuthenticator, Authenticator, TrustedKeys, pem_key, verify

PEM = ("ed25519", "p256", "rsa")


def trusted_keys(folder: Path) -> TrustedKeys:
    """The keys that images of the corpus may be signed by."""
    pgp = openpgp.public_keys((folder / "trusted.pgp").read_bytes())
    return TrustedKeys(pgp, tuple(pem_key((folder / f"{name}.pem").read_text()) for name in PEM))


def ours(path: Path, authenticate: Authenticator) -> dict[str, Any]:
    """Our verdict: its state or why it can't be read, problems, and remarks of the reader."""
    try:
        with sif.open_image(path) as opened:
            image = sif.read(opened)
            verdict = verify(image, authenticate)
    except sif.SifError as error:
        return {"state": f"unreadable: {error}", "signers": [], "problems": [], "remarks": []}
    return {
        "state": verdict.state,
        "signers": sorted(verdict.signers),
        "problems": list(verdict.problems),
        "remarks": [remark.code for remark in image.remarks],
    }


def ends(*argv: str, **env: str) -> tuple[int, str]:
    """How a program ended, and the first line of a panic or the last one of its messages."""
    ended = subprocess.run(argv, check=False, capture_output=True, env={**os.environ, **env})
    lines = ended.stderr.decode(errors="replace").strip().splitlines() or [""]
    panics = [line for line in lines if line.startswith("panic")]
    return ended.returncode, (panics or lines[-1:])[0]


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    found = {}
    with tempfile.TemporaryDirectory() as keys, ApptainerAuthenticator(trusted_keys(folder)) as authenticate:
        Path(keys, "pgp-public").write_bytes((folder / "trusted.pgp").read_bytes())
        for case in json.loads((folder / "cases.json").read_text()):
            path = folder / f"{case['name']}.sif"
            key = ["--local"] if case["keys"] == "pgp" else ["--key", str(folder / f"{case['keys']}.pem")]
            found[case["name"]] = {
                "verify": ends("apptainer", "verify", *key, str(path), APPTAINER_KEYSDIR=keys),
                "list": ends("apptainer", "sif", "list", str(path)),
                "siftool": ends("siftool", "list", str(path)),
                "node": ours(path, authenticate),
            }
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

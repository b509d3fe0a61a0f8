# SPDX-License-Identifier: Apache-2.0
"""Hook of OpenPBS: folders for the containers of a job, the end of what it left, and the node's health.

Its configuration is JSON beside it (``pbs.hook_config_filename``): ``program`` cleans up, ``base`` is where
jobs have folders, ``seconds`` is what a step may take, ``health`` is the command of the health program, or
empty. A hook that fails would hold up jobs, so what goes wrong here is logged, and the event accepted.

Source: OpenPBS 23 Hooks Guide (events, ``pbs.event()``, ``e.env`` of execjob_launch).
"""

import json
import pwd
import subprocess
from pathlib import Path

import pbs

PYTHON = ["/usr/bin/python3", "-IS"]


def settings():
    """Return the configuration."""
    return json.loads(Path(pbs.hook_config_filename).read_text(encoding="utf-8"))


def run(argv, seconds):
    """Run a program that says in its own words what went wrong; log what it says."""
    ended = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
    )
    for line in ended.stdout.decode(errors="replace").splitlines():
        pbs.logmsg(pbs.LOG_WARNING, "apptainer_fleet: " + line)


def job_folders(action, job, given):
    """Make the folders of a job, or clean up behind it."""
    uid = pwd.getpwnam(job.euser).pw_uid
    argv = [given["program"], action, "--job", job.id, "--uid", str(uid), "--base", given["base"]]
    # The program ends by itself after these seconds; this is for one that doesn't.
    run([*PYTHON, *argv, "--seconds", str(given["seconds"])], given["seconds"] + 10)


def environment(event, given):
    """Tell containers of the job where its folders are, if there are any."""
    folder = Path(given["base"]) / event.job.id
    if folder.is_dir():
        event.env["APPTAINER_TMPDIR"] = str(folder / "tmp")
        event.env["APPTAINER_CACHEDIR"] = str(folder / "cache")
        # A container with --cleanenv is still known as one of this job.
        event.env["APPTAINERENV_PBS_JOBID"] = event.job.id


def main():
    """Do what the event is for."""
    event = pbs.event()
    given = settings()
    if event.type == pbs.EXECJOB_BEGIN:
        job_folders("prepare", event.job, given)
    elif event.type in (pbs.EXECJOB_EPILOGUE, pbs.EXECJOB_END):
        job_folders("clean", event.job, given)
    elif event.type == pbs.EXECJOB_LAUNCH:
        environment(event, given)
    elif event.type == pbs.EXECHOST_PERIODIC and given["health"]:
        run(given["health"], 60)


try:
    main()
except Exception as error:  # pbs makes errors of its own, and none of them is the job's fault
    pbs.logmsg(pbs.LOG_WARNING, "apptainer_fleet: %s: %s" % (type(error).__name__, error))
pbs.event().accept()

"""Work with a deadline: what hangs costs its time and nothing more, and nobody waits for it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from module_utils import bounded
from module_utils.bounded import Task


def forever():
    time.sleep(600)


def stubborn():
    """As a process that waits for a server: nothing ends it. Here it just leaves its group and stays."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    forever()


def test_values_and_errors_come_back_by_name():
    def fails():
        raise OSError("no such thing")

    def silent():
        raise ValueError

    def dies():
        os.kill(os.getpid(), signal.SIGKILL)

    tasks = {"good": lambda: {"a": [1, None]}, "bad": fails, "silent": silent, "dead": dies}
    tasks["big"] = lambda: "x" * 10**6
    result = bounded.run({name: Task(function, 300) for name, function in tasks.items()})
    assert list(result) == list(tasks)
    assert result["good"].value == {"a": [1, None]} and not result["good"].error
    assert result["bad"].error == "no such thing" and result["silent"].error == "ValueError"
    assert result["dead"].error == "ended without a word" and len(result["big"].value) == 10**6


def test_what_hangs_ends_at_its_deadline_and_holds_nobody_up():
    began = time.monotonic()
    tasks = {"hangs": Task(forever, 0.3), "stubborn": Task(stubborn, 0.3), "good": Task(lambda: 1, 300)}
    result = bounded.run(tasks)
    assert time.monotonic() - began < 300  # half of what they would take
    assert result["good"].value == 1
    assert "did not answer within" in result["hangs"].error and "did not answer" in result["stubborn"].error
    # It could be killed, so there is nothing to remember.
    assert result["hangs"].process == result["stubborn"].process == ""


def test_what_it_has_started_ends_with_it(tmp_path):
    file = tmp_path / "pid"

    def starts():
        file.write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        forever()

    bounded.run({"one": Task(starts, 5)})
    pid = int(file.read_text())
    for _ in range(100):
        if not bounded.identity(pid):
            break
        time.sleep(0.05)
    assert not bounded.identity(pid)


def test_a_process_that_is_still_there_gets_no_company(monkeypatch):
    # What a kernel does with a process that waits for a server: SIGKILL changes nothing for now.
    monkeypatch.setattr(bounded, "_REAPING", 0.1)
    monkeypatch.setattr(bounded.signal, "SIGKILL", 0)
    first = bounded.run({"mount": Task(forever, 0.2)})["mount"]
    pid = int(first.process.split()[0])
    try:
        began = []
        again = bounded.run({"mount": Task(lambda: began.append(1), 300)}, {"mount": first.process})["mount"]
        assert "has not answered since an earlier look" in again.error and again.process == first.process
        assert again.seconds == 0
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    # It is gone: another look is taken.
    assert bounded.run({"mount": Task(lambda: 7, 300)}, {"mount": first.process})["mount"].value == 7


@pytest.mark.parametrize("pid", [1, 0, 999999999])
def test_a_process_that_has_the_number_of_another_is_not_taken_for_it(pid):
    left = f"{pid or os.getpid()} 5"
    assert bounded.run({"mount": Task(lambda: 7, 300)}, {"mount": left})["mount"].value == 7


def test_whoever_reads_the_output_does_not_wait_for_what_was_left_behind():
    code = """
import signal, time
from module_utils import bounded
bounded.signal.SIGKILL = 0
bounded._REAPING = 0.1
left = bounded.run({"mount": bounded.Task(lambda: time.sleep(600), 0.2)})["mount"]
print(left.process.split()[0], flush=True)
"""
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    os.kill(int(ended.stdout), signal.SIGKILL)
    assert time.monotonic() - began < 300

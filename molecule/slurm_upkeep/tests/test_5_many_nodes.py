"""slurm.conf of 5,000 nodes in four classes, as the role makes it from an inventory, and a real slurmctld."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from fleet.lab.model import load_lab

SCENARIO = Path(__file__).resolve().parent.parent
BENCH = SCENARIO.parents[1] / "tests/bench/slurm_conf"


@pytest.fixture(scope="module")
def bench():
    """The bench, which takes the seconds; here only what slurmctld says counts."""
    loader = importlib.machinery.SourceFileLoader("slurm_conf_bench", str(BENCH))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def said(bench, capsys):
    """Let a slurmctld on the host of slurmdbd start on the files; return what is said of them."""

    def run(change=lambda text: text):
        content = bench.render("db", bench.own_settings())
        content["slurm.conf"] = change(content["slurm.conf"])
        bench.try_it(load_lab(SCENARIO / "inventory").name, "db", content)
        return capsys.readouterr().out

    return run


def test_slurmctld_takes_the_file(said, bench):
    output = said()
    lines = [
        line for line in bench.render("db", {})["slurm.conf"].splitlines() if line[:4] in ("Node", "Part")
    ]
    assert len(lines) < 40
    for line in ("main* 4500 nodes (null)", "fat 500 nodes (null)", "gpu 400 nodes gpu:h100:8", "0 errors"):
        assert line in output, output


def test_a_file_that_slurmctld_does_not_take_is_told_from_one_that_it_does(said):
    output = said(lambda text: text.replace("NodeName=f[001-500]", "NodeName=n[0001-0500]"))
    assert "main*" not in output and "Duplicated" in output, output

"""What containers get of the driver: real libraries, found here in another way than the role does."""

import re

LIBS = "/.singularity.d/libs"


def wanted(c1):
    """File name → path of the libraries that nvliblist.conf and the node's ldconfig name together."""
    names = [
        line
        for line in c1.check_output("cat /etc/apptainer/nvliblist.conf").splitlines()
        if ".so" in line and not line.startswith("#")
    ]
    cached = re.findall(r"(?m)^\s*(\S+) \(.*x86-64.*\) => (\S+)$", c1.check_output("/sbin/ldconfig -p"))
    return {path.rpartition("/")[2]: path for name, path in cached if any(map(name.startswith, names))}


def test_nv_binds_what_the_node_has_of_the_list_and_nothing_else(c1, inside):
    found = inside(f"ls {LIBS}", "--nv")
    assert found.rc == 0, found.stderr
    libraries = wanted(c1)
    assert set(found.stdout.split()) == set(libraries)
    # Debian's 550 has these three of the list for programs that compute.
    assert {"libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1"} <= set(libraries)


def test_they_are_the_files_of_the_node(c1, inside):
    libraries = wanted(c1)
    said = inside(f"cd {LIBS} && sha256sum *", "--nv").stdout.split()
    there = c1.check_output(f"sha256sum {' '.join(libraries.values())}").split()
    assert dict(zip(said[1::2], said[::2], strict=True)) == {
        path.rpartition("/")[2]: digest for digest, path in zip(there[::2], there[1::2], strict=True)
    }


def test_device_nodes_and_programs_are_there_and_the_libraries_load(inside):
    devices = inside("ls /dev", "--nv", "--contain").stdout.split()
    assert {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"} <= set(devices)
    # NVIDIA's own program, with its own library, as far as it comes without a driver.
    said = inside("nvidia-smi", "--nv")
    assert said.rc != 0 and "couldn't communicate with the NVIDIA driver" in said.stdout + said.stderr


def test_without_nv_there_is_nothing_of_it(inside):
    assert inside(f"ls {LIBS}").stdout.split() == []
    assert inside("nvidia-smi").rc == 127
    assert "nvidia0" not in inside("ls /dev", "--contain").stdout

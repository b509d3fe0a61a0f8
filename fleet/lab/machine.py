"""A virtual machine that has booted once: its disk, and its memory just before it gets an identity.

Booting in an emulator takes half a minute, restoring a second. So the cache keeps the machine's memory as
a file that every clone maps privately, and the state of its devices: QEMU's migration stream without the
memory (capability ``x-ignore-shared``).
"""

from __future__ import annotations

import functools
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import FleetError
from fleet.lab.cache import cache_key, cached, check_space
from fleet.lab.host import Mirror
from fleet.lab.image import BaseImage
from fleet.lab.model import Node, lab_cache
from fleet.lab.qmp import QEMU_LOG, Qmp, connected
from fleet.lab.run import ISOLATED, environment, run

#: Debian's ordinary kernel: the one for clouds has no RDMA, no NFS server.
KERNEL_PACKAGES = ("initramfs-tools", "kmod", "linux-image-amd64", "udev", "zstd")
GUEST = Path(__file__).with_name("guest")
DISK_SIZE = "8G"
#: What a clone needs of a snapshot; a file of it that was cut short gives a machine that hangs.
PARTS = ("accelerator", "disk.qcow2", "disk.raw", "initrd", "ram", "state", "vmlinuz")
#: In a snapshot, the sizes that these have.
SIZES = "sizes.json"
#: MiB that the disk of a booted machine takes, and that its first boot adds.
DISK_MIB = 1536
#: Half a minute on a quiet machine, a minute of processor time in any case.
COLD_BOOT_DEADLINE = 1200.0
#: An accelerator that has not brought the kernel to user space by then never will; seen with nested KVM.
KVM_DEADLINE = 30.0
#: What services do after boot should not be done again in every clone.
SETTLE = 5.0
#: A kernel that cannot go on boots again: nobody sits at its console. And systemd is patient: on a busy host,
#: an emulated boot takes so long that it would give services up.
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet panic=1 oops=panic"
    " systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900"
    " systemd.service_watchdogs=no"
)

#: $1 root file system, $2 the folder to make, $3 the guest's files. mkfs fills the disk: no loop device.
MAKE_DISK = f"""\
set -eu
cd "$2"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=$1,upperdir=upper,workdir=work" root
install -m 0755 "$3/lab-identity" root/usr/local/sbin/lab-identity
install -m 0644 "$3/lab-identity.service" root/etc/systemd/system/lab-identity.service
systemctl --quiet --root=root enable lab-identity
echo '/dev/vda / ext4 defaults 0 0' > root/etc/fstab
# QEMU boots the initrd beside the disk: what a package installs in the machine never has to make another,
# which takes minutes in an emulator.
sed -i 's/^update_initramfs=.*/update_initramfs=no/' root/etc/initramfs-tools/update-initramfs.conf
ssh-keygen -q -t ed25519 -N '' -f root/etc/ssh/ssh_host_ed25519_key
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd
truncate -s {DISK_SIZE} disk.raw
mkfs.ext4 -q -d root disk.raw
umount root
rm -rf upper work root
qemu-img create -q -f qcow2 -F raw -b disk.raw disk.qcow2
"""


@dataclass(frozen=True)
class Machine:
    """What decides a snapshot.

    :param memory: MiB.
    """

    image: BaseImage
    cpus: int
    memory: int

    @classmethod
    def of(cls, node: Node, mirror: Mirror) -> Machine:
        """The machine that this node is a clone of."""
        packages = tuple(sorted({*node.packages, *KERNEL_PACKAGES}))
        return cls(BaseImage(node.release, packages, node.users, mirror), node.cpus, node.memory)

    @property
    def folder(self) -> Path:
        """What is in PARTS; in the cache, there or to be made."""
        guest = {path.name: path.read_text() for path in sorted(GUEST.iterdir())}
        key = cache_key(
            {
                "image": self.image.folder.name,
                "cpus": self.cpus,
                "memory": self.memory,
                "guest": guest,
                "disk": MAKE_DISK,
                "arguments": KERNEL_ARGUMENTS,
                "hardware": self._hardware("", Path(), shared=True),
                "emulator": _emulator_version(),
                "host": platform.release(),
            }
        )
        return lab_cache() / "machines" / f"{self.image.release}-{key}"

    def build(self, lab_name: str) -> Path:
        """The snapshot, made first if the cache has none: image, disk, cold boot, saving.

        :raises FleetError: a program failed, or the machine did not boot with any accelerator.
        """
        root = self.image.build(lab_name)
        return cached(self.folder, lambda part: self._make(root, part, lab_name), lambda _: self.is_made)

    @property
    def is_made(self) -> bool:
        """Whether the cache has it, whole."""
        try:
            return bool(json.loads((self.folder / SIZES).read_text()) == _sizes(self.folder))
        except (OSError, ValueError):
            return False

    def _make(self, root: Path, part: Path, lab_name: str) -> None:
        check_space(part, self.memory + DISK_MIB)
        run([*ISOLATED, "sh", "-c", MAKE_DISK, "sh", root, part, GUEST], lab_name=lab_name)
        # Whether KVM carries an ordinary kernel is only known when it has: /dev/kvm alone says little.
        said = ""
        for accelerator, seconds in (("kvm", KVM_DEADLINE), ("tcg", COLD_BOOT_DEADLINE)):
            if accelerator == "kvm" and not Path("/dev/kvm").exists():
                continue
            (part / "accelerator").write_text(accelerator)
            try:
                self._boot_and_save(part, lab_name, time.monotonic() + seconds)
            except FleetError as error:
                said = error.message
                continue
            (part / SIZES).write_text(json.dumps(_sizes(part)))
            return
        log = self.folder.with_suffix(".log")
        shutil.copy(part / "console.log", log)
        raise FleetError(f"the virtual machine does not boot: {said}", f"see its console, {log}")

    def _boot_and_save(self, part: Path, lab_name: str, deadline: float) -> None:
        for name in ("console.log", "qmp.sock", "identity.sock"):
            (part / name).unlink(missing_ok=True)
        argv = [*self.command(part), *cold_start(part), "-drive", disk_option(part / "disk.qcow2")]
        with launched(argv, part, lab_name) as process:
            with connected(part / "identity.sock", deadline, process.poll) as agent:
                expect_line(agent.recv, b"waiting\n")
            time.sleep(SETTLE)
            with connected(part / "qmp.sock", time.monotonic() + 120, process.poll) as connection:
                qmp = Qmp(connection)
                qmp.ask("stop")
                qmp.ask("migrate-set-capabilities", capabilities=[IGNORE_SHARED])
                qmp.ask("migrate", uri="exec:cat > state")
                qmp.wait_for_migration(time.monotonic() + 120)
                qmp.ask("quit")

    def command(self, memory_folder: Path, *, shared: bool = True) -> list[str]:
        """QEMU and what snapshot and clones must have in common; run it in the folder of the node.

        :param memory_folder: where the file ``ram`` is.
        :param shared: whether to write to it, as only the first boot may.
        """
        return self._hardware((memory_folder / "accelerator").read_text(), memory_folder, shared=shared)

    def _hardware(self, accelerator: str, memory_folder: Path, *, shared: bool) -> list[str]:
        share = "on" if shared else "off"
        processor = "host" if accelerator == "kvm" else "qemu64"
        return [
            *["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"],
            *["-machine", "q35,memory-backend=ram", "-smp", str(self.cpus), "-m", str(self.memory)],
            # With thread=multi one processor may run code that another has just replaced, as Linux does with
            # its own (jump labels): on a busy host, one boot in ten ended in "Oops: int3".
            *["-accel", "tcg,thread=single" if accelerator == "tcg" else "kvm", "-cpu", processor],
            "-object",
            f"memory-backend-file,id=ram,size={self.memory}M,mem-path={memory_folder}/ram,share={share}",
            *["-device", "virtio-rng-pci", "-serial", "file:console.log"],
            *["-qmp", "unix:qmp.sock,server=on,wait=off"],
            *[
                "-device",
                "virtio-serial-pci",
                "-chardev",
                "socket,id=id,path=identity.sock,server=on,wait=off",
            ],
            *["-device", "virtserialport,chardev=id,name=lab.identity"],
        ]


IGNORE_SHARED = {"capability": "x-ignore-shared", "state": True}


def disk_option(path: Path) -> str:
    """QEMU's words for a disk that need not survive a crash of this machine.

    Without space for it the machine sees errors; by itself QEMU would let it stand still, silently.
    """
    return f"file={path},if=virtio,format=qcow2,cache=unsafe,discard=unmap,werror=report"


def cold_start(folder: Path) -> list[str]:
    """QEMU's words for booting the machine's kernel, with a network card that is not connected."""
    kernel = ["-kernel", f"{folder}/vmlinuz", "-initrd", f"{folder}/initrd", "-append", KERNEL_ARGUMENTS]
    return [*kernel, "-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci,netdev=net"]


class launched:  # noqa: N801 - a context manager, used like a function
    """Run QEMU in a folder for the time of a ``with``; afterwards it is gone."""

    def __init__(self, argv: list[str], folder: Path, lab_name: str) -> None:
        self._process = start_qemu(argv, folder, lab_name)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start_qemu(argv: list[str], folder: Path, lab_name: str) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, its own words going to a file."""
    with (folder / QEMU_LOG).open("ab") as log:
        return subprocess.Popen(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(lab_name),
        )


def expect_line(receive: Callable[[int], bytes], wanted: bytes) -> None:
    """Read until the agent in the machine says that line.

    :raises FleetError: the machine ends before, or the agent says another.
    """
    line = read_line(receive)
    if line != wanted:
        raise FleetError(f"the virtual machine says {line!r} and not {wanted!r}", "see its console log")


def read_line(receive: Callable[[int], bytes]) -> bytes:
    """The next line that the agent in the machine says.

    :raises FleetError: the machine ends before.
    """
    line = b""
    while not line.endswith(b"\n"):
        part = receive(1)
        if not part:
            raise FleetError("the virtual machine ended while booting", "see its console log")
        line += part
    return line


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in PARTS}


@functools.cache
def _emulator_version() -> str:
    if not shutil.which("qemu-system-x86_64"):
        return ""
    return subprocess.check_output(["qemu-system-x86_64", "--version"], text=True).splitlines()[0]

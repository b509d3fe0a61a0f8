"""What a user might do to the clean-up of a job, as programs: silent FOLDER, flood FOLDER, race FOLDER.

silent mounts a FUSE file system there that takes requests and never answers one, so that no signal ends who
waits for it; flood makes files until it is ended; race renames folders and puts links in their places.
"""

import array
import contextlib
import itertools
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

INIT_ANSWER = struct.pack("<IIIIHHII", 7, 31, 65536, 0, 12, 9, 65536, 1).ljust(64, b"\0")


def silent(folder):
    ours, theirs = socket.socketpair()
    subprocess.run(
        ["fusermount3", "-o", "fsname=silent", "--", folder],
        env={"PATH": "/usr/bin:/bin", "_FUSE_COMMFD": str(theirs.fileno())},
        pass_fds=[theirs.fileno()],
        check=True,
    )
    ((_, _, number),) = ours.recvmsg(1, socket.CMSG_SPACE(4))[1]
    device = array.array("i", number)[0]
    unique = struct.unpack_from("<IIQ", os.read(device, 1 << 17))[2]
    os.write(device, struct.pack("<IiQ", 16 + len(INIT_ANSWER), 0, unique) + INIT_ANSWER)
    print("ready", flush=True)
    while True:
        os.read(device, 1 << 17)


def flood(folder):
    print("ready", flush=True)
    for number in itertools.count():
        inner = Path(folder, str(os.getpid()), str(number // 1000 % 10), str(number // 1000))
        if number % 1000 == 0:
            inner.mkdir(parents=True)
        (inner / str(number)).touch()


def race(folder):
    at = os.open(folder, os.O_RDONLY)
    print("ready", flush=True)
    while True:
        with contextlib.suppress(OSError):
            os.mkdir("one", dir_fd=at)
        with contextlib.suppress(OSError):
            os.close(os.open("one/file", os.O_CREAT, dir_fd=at))
        with contextlib.suppress(OSError):
            os.rename("one", "two", src_dir_fd=at, dst_dir_fd=at)
        with contextlib.suppress(OSError):
            os.symlink("/home/alice/precious", "one", dir_fd=at)
        with contextlib.suppress(OSError):
            os.unlink("one", dir_fd=at)


{"silent": silent, "flood": flood, "race": race}[sys.argv[1]](sys.argv[2])

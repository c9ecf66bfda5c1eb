"""How far a file lock reaches: over every host that sees the file, this host alone, or nowhere.

It is told by the file system's type and its mount options, as /proc/self/mountinfo has them:

- NFS: flock has been a lock at the server since Linux 2.6.12 (flock(2), "NFS details"), by NLM for
  version 3 and in the protocol itself for version 4, unless it is mounted ``nolock`` or
  ``local_lock=flock`` or ``all`` (nfs(5)).
- Lustre: with ``flock`` coherent, with ``localflock`` of one client, with ``noflock`` an error
  (mount.lustre(8)).
- SMB: a lock at the server since Linux 5.5 (flock(2), "CIFS details"), unless it is mounted
  ``nobrl`` (mount.cifs(8)). AFS: of this host with ``flock=local`` (afs.rst of the kernel).
- FUSE (s3fs, sshfs, gcsfuse, Mountpoint, …): the kernel answers for this host alone, unless the
  daemon asks for locks (FUSE_FLOCK_LOCKS in linux/fuse.h), which no mount option shows.
- BeeGFS: of this host, unless its client's configuration sets ``tuneUseGlobalFileLocks``, which no
  mount option shows. 9p, virtiofs: of this host, whatever else sees the folder.
- CephFS, GPFS, GFS2, OCFS2: of the cluster. A disk of this host (ext4, xfs, …) no other one sees.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system says that has none, or whose lock service does not answer."""

OF_THIS_HOST = {"beegfs", "9p", "virtiofs"}
LOCAL_OPTIONS = {
    "nfs": {"nolock", "local_lock=flock", "local_lock=all"},
    "nfs4": {"nolock", "local_lock=flock", "local_lock=all"},
    "lustre": {"localflock", "noflock"},
    "cifs": {"nobrl"},
    "smb3": {"nobrl"},
    "afs": {"flock=local"},
}


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, its type, its options."""

    point: str
    kind: str
    options: frozenset[str]

    @property
    def locks_stay_here(self) -> bool:
        """Whether other hosts may see its files, and not the locks on them."""
        if self.kind.startswith("fuse.") or self.kind in OF_THIS_HOST:
            return True
        return bool(self.options & LOCAL_OPTIONS.get(self.kind, set()))


def mount_of(path: Path, mounts: Path = MOUNTS) -> Mount | None:
    """What the file system of an existing path is mounted as; None where the system does not
    say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = os.path.realpath(path)
    found = [mount for mount in map(_parse, lines) if mount and _holds(mount.point, place)]
    # The longest; of several at one point the last covers the others.
    return max(reversed(found), key=lambda mount: len(mount.point), default=None)


def _parse(line: str) -> Mount | None:
    """A line as proc_pid_mountinfo(5) has it: the type and the file system's own options stand
    behind the `` - ``."""
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(rest) < 3:
        return None
    point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
    return Mount(point, rest[0], frozenset([*fields[5].split(","), *rest[2].split(",")]))


def _holds(point: str, place: str) -> bool:
    return place == point or place.startswith(point.rstrip("/") + "/")

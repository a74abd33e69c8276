"""What a submission may not do: reach the network, read the course, write files, outlive its grading, use up memory.

On Linux a process can give these rights up by itself, without being root: it enters namespaces of its own (users,
processes, network, mounts, IPC), sees a file system that holds Python and nothing else, read only but for a scratch
folder in memory, drops all capabilities, and may not start further processes. Where the system refuses a step, the
others are still taken, and the list of what is missing goes to the report.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

from common.grade.sandbox import folders

SCRATCH = "/tmp"  # the only folder that can be written to
MEGABYTE = 2**20

# from the headers of Linux: sched.h, mount.h, prctl.h, seccomp.h
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME, BIND, REC, PRIVATE, RELATIME = (
    1, 2, 4, 8, 32, 1024, 4096, 16384, 1 << 18, 1 << 21,
)  # fmt: skip
DETACH, RECURSIVE, MOUNT_SETATTR = 2, 0x8000, 442  # the last is a system call, the same on all architectures
PDEATHSIG, CAPBSET_DROP, NO_NEW_PRIVS, SECCOMP = 1, 24, 38, 22
CALLS = {  # numbers of system calls: (architecture, fork, vfork, clone, clone3, pivot_root, capset)
    "x86_64": (0xC000003E, 57, 58, 56, 435, 155, 126),
    "aarch64": (0xC00000B7, None, None, 220, 435, 41, 91),
}


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def must(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def enter(course: Path, megabytes: int = 1500, cpu: int = 600) -> list[str]:
    """Put this process into the jail; the caller's process only waits, and a child of it returns from here.

    course     folder that must not be readable
    megabytes  memory that may be used beyond what is used now
    cpu        seconds of CPU time
    returns    what the system does not offer, in words
    """
    missing: list[str] = []
    if sys.platform == "linux":
        missing += isolate(course)
    else:
        missing.append(f"no isolation of files, network and processes on {platform.system()}")
    missing += limit(megabytes, cpu)
    if sys.platform == "linux":
        missing += renounce()
    with suppress(OSError):
        os.chdir(SCRATCH)
    return missing


# ---------------------------------------------------------------------------------------------------------- namespaces


def isolate(course: Path) -> list[str]:
    """Enter namespaces of one's own."""
    user, group = os.getuid(), os.getgid()
    spaces = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    c = libc()
    if c.unshare(spaces | NEWUSER) == 0:
        with suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        with suppress(OSError):
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    elif c.unshare(spaces) != 0:
        missing = become_nobody()
        c.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return missing
    if child := os.fork():  # the child is process 1 of its namespace: with it, all others there end
        os.closerange(0, 1024)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    c.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    if os.getppid() != 0:  # the parent is in another namespace, and so has no number here, unless it has ended
        os._exit(1)
    try:
        build_root(c, course)
    except OSError as problem:
        return [f"the course and other files stay readable (mounting fails: {problem.strerror})"]
    return []


def become_nobody() -> list[str]:
    """Where there are no namespaces, root can at least become a user who owns nothing."""
    missing = "no isolation of network, files and processes: this system does not permit namespaces"
    if os.getuid() != 0:
        return [missing]
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return [f"{missing}; the submission runs as a user without rights"]


def build_root(c: ctypes.CDLL, course: Path) -> None:
    """Make a file system of Python and system libraries, read only, the only one that this process sees."""

    def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        texts = [None if each is None else os.fsencode(each) for each in (source, target, kind, options)]
        must(c.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]))

    def bind(path: str) -> None:
        target = root + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            open(target, "ab").close()
        mount(path, target, None, BIND | REC)
        restrict(c, target, NOSUID | (0 if path.startswith("/dev/") else RDONLY | NODEV), kept_flags(path))

    mount("none", "/", None, REC | PRIVATE)
    root = "/proc"  # its files are not needed any more, and it exists on every Linux
    mount("none", root, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    os.makedirs(root + SCRATCH)  # before the folders of Python, which may lie in it
    mount("none", root + SCRATCH, "tmpfs", NOSUID | NODEV | NOEXEC, "size=64m,mode=777")
    paths, hidden = folders.needed(), os.path.realpath(course)
    real = list(map(os.path.realpath, paths))
    for path in folders.outermost(each for each in real if not folders.within(each, hidden)):
        bind(path)
    if os.path.isdir(root + hidden):
        mount("none", root + hidden, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    environment = [each for each in real if folders.within(each, hidden) and not folders.of_course(each, hidden)]
    for path in folders.outermost(environment):
        bind(path)
    for path in paths:  # the names under which Python knows these folders, where a link leads to them
        if not os.path.lexists(root + path) and not folders.of_course(path, hidden):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(os.path.realpath(path), root + path)
    for name in ("null", "zero", "urandom", "random"):
        bind(f"/dev/{name}")
    os.chdir(root)
    must(c.syscall(CALLS[platform.machine()][5], b".", b"."))
    must(c.umount2(b".", DETACH))
    os.chdir("/")
    mount("none", "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def restrict(c: ctypes.CDLL, path: str, flags: int, kept: int) -> None:
    """Give a mount these restrictions, and all mounts in it, where the kernel can do that (Linux 5.12)."""
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)
    if c.syscall(MOUNT_SETATTR, -1, os.fsencode(path), RECURSIVE, attributes, len(attributes)) != 0:
        must(c.mount(b"none", os.fsencode(path), None, ctypes.c_ulong(REMOUNT | BIND | flags | kept), None))


def kept_flags(path: str) -> int:
    """Restrictions of a mount that may not be lifted."""
    now = os.statvfs(path).f_flag
    pairs = ((os.ST_NODEV, NODEV), (os.ST_NOEXEC, NOEXEC), (os.ST_NOATIME, NOATIME), (os.ST_RELATIME, RELATIME))
    return sum(flag for has, flag in pairs if now & has)


# ------------------------------------------------------------------------------------------------------ limits, rights


def limit(megabytes: int, cpu: int) -> list[str]:
    """Limit memory, CPU time, and the size and number of files."""
    wanted = {"RLIMIT_CPU": cpu, "RLIMIT_FSIZE": 20 * MEGABYTE, "RLIMIT_NOFILE": 128, "RLIMIT_CORE": 0}
    wanted |= {"RLIMIT_NPROC": 64, "RLIMIT_AS": address_space() + megabytes * MEGABYTE}
    missing = []
    for name, value in wanted.items():
        try:
            which = getattr(resource, name)
            _, hard = resource.getrlimit(which)
            if hard != resource.RLIM_INFINITY:
                value = min(value, hard)
            resource.setrlimit(which, (value, value))
        except (OSError, ValueError, AttributeError):
            missing.append(f"no limit of {name.removeprefix('RLIMIT_')}")
    return missing


SIZE = [0]  # bytes of addresses that a new process has; read before /proc is gone


def address_space() -> int:
    """Bytes of addresses that this process has mapped."""
    if not SIZE[0]:
        with suppress(OSError, ValueError, IndexError):
            SIZE[0] = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    return SIZE[0] or 6000 * MEGABYTE


def renounce() -> list[str]:
    """Give up all capabilities, and the right to start processes and programs."""
    c, missing = libc(), []
    if c.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return ["capabilities are kept"]
    for capability in range(64):
        c.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    if platform.machine() not in CALLS:
        return ["further processes can be started"]
    architecture, fork, vfork, clone, clone3, _, capset = CALLS[platform.machine()]
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    if c.syscall(capset, header, nothing) != 0:
        missing.append("capabilities are kept")
    if not forbid_processes(c, architecture, [n for n in (fork, vfork) if n is not None], clone, clone3):
        missing.append("further processes can be started")
    return missing


def forbid_processes(c: ctypes.CDLL, architecture: int, forks: list[int], clone: int, clone3: int) -> bool:
    """Let the kernel refuse to start processes (threads may be started), with a seccomp filter."""
    load, equal, at_least, has_bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06  # of the Berkeley packet filter
    allow, deny, unknown = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38  # EPERM; ENOSYS, so that libc takes clone
    thread = 0x10000  # CLONE_THREAD
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, allow), (load, 0, 0, 0)]
    lines += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, deny)]  # the x32 numbers of the same calls
    for number in forks:
        lines += [(equal, 0, 1, number), (answer, 0, 0, deny)]
    lines += [(equal, 0, 1, clone3), (answer, 0, 0, unknown)]
    lines += [(equal, 0, 3, clone), (load, 0, 0, 16), (has_bits, 1, 0, thread), (answer, 0, 0, deny)]
    lines += [(answer, 0, 0, allow)]
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer))
    return c.prctl(SECCOMP, 2, ctypes.c_char_p(program), 0, 0) == 0

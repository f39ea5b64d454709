"""The process that runs one unit test: `python sandboxed.py`, with its program on stdin. It imports nothing of lmtrain.

Before the program runs, the process enters new user, network, process and mount namespaces: it has no network, sees
only its own processes, may write only in an empty folder in memory, and whatever it starts ends with it. A filter of
system calls refuses sockets, also those of Unix, which are files (D-Bus, Docker). If the kernel does not permit that,
an audit hook of Python forbids sockets, processes and changes of files outside of the folder.
"""

import ctypes
import ctypes.util
import errno
import json
import os
import resource
import signal
import struct
import sys
import time

# unshare(2), mount(2), mount_setattr(2), prctl(2), capset(2)
NEW_USER, NEW_NETWORK, NEW_PROCESSES, NEW_MOUNTS = 0x10000000, 0x40000000, 0x20000000, 0x00020000
PRIVATE, RECURSIVE, NO_SETUID, NO_DEVICES = 1 << 18, 1 << 14, 2, 4
MOUNT_SETATTR, HERE, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38
CAPABILITY_VERSION = 0x20080522

# seccomp(2): {machine: (AUDIT_ARCH, numbers of socket and socketpair)}, and opcodes of its programs, see bpf(4).
SECCOMP, MODE_FILTER, ALLOW, REFUSE = 22, 2, 0x7FFF0000, 0x50001  # REFUSE: EPERM
SYSTEM_CALLS = {'x86_64': (0xC000003E, 41, 53), 'aarch64': (0xC00000B7, 198, 199)}
IO_URING_SETUP, X32 = 425, 0x40000000  # x32: a second table of system calls of x86_64
LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
NUMBER, ARCHITECTURE, SECOND_ARGUMENT = 0, 4, 24  # bytes in struct seccomp_data
STREAM, SEQPACKET, TYPE = 1, 5, 0xF  # types of sockets, and the bits of a type

FOLDER = 64 << 20  # bytes of all files
MAX_FILE, MAX_FILES, MAX_PROCESSES = 16 << 20, 64, 64  # bytes of one file, open files, processes
FORBIDDEN = (
    'socket.', 'subprocess.', 'os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'os.spawn', 'os.kill', 'ctypes.',
    'pty.', 'signal.pthread_kill', 'ftplib.', 'smtplib.', 'urllib.', 'sqlite3.', 'syslog.', 'webbrowser.',
)  # fmt: skip
CHANGES = (
    'os.remove', 'os.rename', 'os.rmdir', 'os.mkdir', 'os.chmod', 'os.chown', 'os.link', 'os.symlink', 'os.truncate',
    'os.utime', 'os.setxattr', 'os.removexattr', 'shutil.',
)  # fmt: skip


def main() -> None:
    program = json.loads(sys.stdin.buffer.readline())
    verdict = os.dup(1)  # the program's own output goes to file 2
    os.dup2(2, 1)
    folder = os.getcwd()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == 'linux' else None
    isolated, reason = isolate(libc, folder)
    if isolated and (child := os.fork()):  # the first child is process 1 of the new namespace
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:  # as the child ended, with a signal
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
            os.kill(os.getpid(), -code)
        os._exit(code)
    limit(program['seconds'], program['memory_mib'] << 20)
    if libc:
        libc.prctl(DEATH_SIGNAL, signal.SIGKILL)
    if isolated:
        drop_capabilities(libc)
    else:
        sys.addaudithook(forbid(folder))
    clock = time.monotonic  # the program may replace it
    begun = clock()
    status = run(program)
    if clock() - begun > program['seconds']:
        status = 'time limit'
    message = {'status': status, 'token': program['token'], 'isolated': isolated, 'reason': reason}
    os.write(verdict, json.dumps(message).encode())
    os._exit(0)


def isolate(libc, folder: str) -> tuple[bool, str]:
    """(whether the process is in new namespaces, why not)."""
    if libc is None:
        return False, f'{sys.platform} has no namespaces'
    uid, gid = os.getuid(), os.getgid()

    def call(name, *arguments):
        if getattr(libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f'{name}: {os.strerror(ctypes.get_errno())}')

    try:
        call('unshare', NEW_USER | NEW_NETWORK | NEW_PROCESSES | NEW_MOUNTS)
        for name, text in (('setgroups', 'deny'), ('uid_map', f'{uid} {uid} 1'), ('gid_map', f'{gid} {gid} 1')):
            with open(f'/proc/self/{name}', 'w', encoding='ascii') as file:
                file.write(text)
        call('mount', None, b'/', None, ctypes.c_ulong(PRIVATE | RECURSIVE), None)
        attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
        call('syscall', MOUNT_SETATTR, HERE, b'/', AT_RECURSIVE, attributes, ctypes.c_size_t(32))
        options = f'size={FOLDER},mode=700'.encode()
        call('mount', b'tmpfs', folder.encode(), b'tmpfs', ctypes.c_ulong(NO_SETUID | NO_DEVICES), options)
        os.chdir(folder)
        call('prctl', NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        program = socket_filter(os.uname().machine)
        instructions = (ctypes.c_char * len(program)).from_buffer_copy(program)
        described = struct.pack('HP', len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
        call('prctl', SECCOMP, MODE_FILTER, described, 0, 0)
    except OSError as error:
        return False, str(error.strerror)
    return True, ''


def socket_filter(machine: str) -> bytes:
    """A program of seccomp that refuses new sockets but connected pairs. Raises OSError if the machine is unknown.

    io_uring opens sockets too. A pair of datagram sockets can send to other addresses, a connected stream cannot.
    """
    if machine not in SYSTEM_CALLS or sys.maxsize < 1 << 32:
        raise OSError(errno.ENOSYS, f'no filter of system calls for {machine}')
    architecture, socket, socketpair = SYSTEM_CALLS[machine]
    # (opcode, instructions to skip if true and if false, operand)
    instructions = (
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 0, 9, architecture),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 7, 0, X32),
        (EQUAL, 6, 0, socket),
        (EQUAL, 5, 0, IO_URING_SETUP),
        (EQUAL, 0, 5, socketpair),
        (LOAD, 0, 0, SECOND_ARGUMENT),
        (AND, 0, 0, TYPE),
        (EQUAL, 2, 0, STREAM),
        (EQUAL, 1, 0, SEQPACKET),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    )
    return b''.join(struct.pack('HBBI', *each) for each in instructions)


def limit(seconds: float, memory: int) -> None:
    """Limits of this process and, each for itself, of those that it starts."""
    for name, value in (
        ('RLIMIT_CPU', int(seconds) + 1),
        ('RLIMIT_AS', memory),
        ('RLIMIT_FSIZE', min(memory, MAX_FILE)),
        ('RLIMIT_NOFILE', MAX_FILES),
        ('RLIMIT_NPROC', MAX_PROCESSES),
        ('RLIMIT_CORE', 0),
    ):
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS does not limit memory
            continue


def drop_capabilities(libc) -> None:
    """Gives up the rights in the new namespaces, so that the program cannot mount anything."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), 'capset')


def forbid(folder: str):
    """The audit hook of a process without namespaces."""

    def inside(path) -> bool:
        if isinstance(path, int):
            return True
        return os.path.realpath(os.fsdecode(path)).startswith(folder + os.sep)

    def hook(event, arguments):
        if event.startswith(FORBIDDEN):
            raise PermissionError(f'{event} is forbidden in a unit test')
        writes = event == 'open' and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        paths = [path for path in arguments if isinstance(path, str | bytes | os.PathLike)] if not writes else []
        paths = arguments[:1] if writes else paths if event.startswith(CHANGES) else []
        if not all(inside(path) for path in paths):
            raise PermissionError(f'{event} outside of the working folder is forbidden in a unit test')

    return hook


def run(program) -> str:
    """'passed', 'failed' or 'memory limit'. The program and its test share one namespace."""
    namespace = {'__name__': '__main__', '__builtins__': __builtins__}
    try:
        for part in ('code', 'test'):
            exec(compile(program[part], f'<{part}>', 'exec'), namespace)  # noqa: S102
    except MemoryError:
        return 'memory limit'
    except BaseException as error:  # also SystemExit before the test has ended
        namespace.clear()
        try:
            print(f'{type(error).__name__}: {error}', file=sys.stderr)
        except BaseException:  # __str__ of the program's own exception
            return 'failed'
        return 'failed'
    return 'passed'


if __name__ == '__main__':
    main()

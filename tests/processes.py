"""Processes of their own, for what a test cannot do to its own process."""

import ctypes
import errno
import multiprocessing
import os
import socket
import sys

import pytest
import torch
import yaml

needs_fork = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="this system does not fork processes"
)


def in_another_process(task, *arguments, **environment):
    """Start ``task`` in a process of its own, forked from one that has done nothing but the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["masklab.cli.app", "masklab.training.train", "pytest"])
    process = context.Process(target=_run, args=(task, arguments, environment))
    process.start()
    return process


def torchrun(processes):
    """The variables with which torchrun starts each of some processes of this machine, on a free port, in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
    shared |= {"TORCHELASTIC_RESTART_COUNT": "0"}
    shared |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _run(task, arguments, environment):
    torch.set_num_threads(1)
    os.environ.update(environment)
    sys.exit(task(*arguments))


def recipe_file(config, path):
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return str(path)


def on_small_disk(folder, size, log, words):
    """The command line, in a process of its own in which a disk of ``size`` bytes is mounted on ``folder``: of none
    it is one to read only; a disk of one byte has room for no file at all.

    Returns the exit code; what is printed is in ``log``, and ends with the files that are left on the disk.
    """
    folder.mkdir(exist_ok=True)
    process = in_another_process(_on_small_disk, str(folder), size, str(log), [str(word) for word in words])
    process.join(60)
    if process.exitcode == errno.EPERM + 64:
        pytest.skip("this system lets nobody mount a disk")
    return process.exitcode


def in_folder_without_rights(folder, log, words):
    """The command line, in a process of its own that works in a folder which it may read only.

    Returns the exit code; what is printed is in ``log``, and ends with the files that are left in the folder.
    """
    folder.mkdir(exist_ok=True)
    folder.chmod(0o555)
    process = in_another_process(_in_folder_without_rights, str(folder), str(log), [str(word) for word in words])
    process.join(120)
    folder.chmod(0o755)
    if process.exitcode == errno.EPERM + 64:
        pytest.skip("this system does not tell who may write to a folder")
    return process.exitcode


def _in_folder_without_rights(folder, log, words):
    os.chdir(folder)
    _drop_rights_of_root()
    if os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        return errno.EPERM + 64
    return _logged(folder, log, words)


def _drop_rights_of_root():
    """Give up the capabilities by which root reads and writes whatever it wants, as far as this system has them."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "capset"):
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc.capget(header, sets)
        sets[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of those in effect
        libc.capset(header, sets)


def _on_small_disk(folder, size, log, words):
    try:
        _mount(folder, size)
    except OSError:
        return errno.EPERM + 64
    return _logged(folder, log, words)


def _logged(folder, log, words):
    """The command line, with what it prints in the file ``log``."""
    from masklab.cli.app import main

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = main(words)
        sys.stdout.flush()
        left = [os.path.join(place, name) for place, folders, names in os.walk(folder) for name in (*folders, *names)]
        print("left", sorted(os.path.relpath(path, folder) for path in left), flush=True)
    return code


def _mount(folder, size):
    """Mount a file system in memory, as root of a name space of one's own."""
    user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    new_mounts, new_users, read_only = 0x20000, 0x10000000, 1
    if libc.unshare(new_mounts | new_users):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    flags = 0 if size else read_only
    if libc.mount(
        b"tmpfs", folder.encode(), b"tmpfs", flags, f"size={size or 1},nr_inodes={1 if size == 1 else 0}".encode()
    ):
        raise OSError(ctypes.get_errno(), "mount")

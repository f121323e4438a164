"""Whose fault an error of a library is: the machine's, a missing package's, or that of the input.

What a library raises says seldom what is wrong. Before such an error is reported as a fault of the
file or the method at hand, it is asked here.
"""

from __future__ import annotations

import errno
from importlib.util import find_spec

import torch

from sdbench.records.files import first_line

# Of an operating system that lacks space, rights, memory or open files.
_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
}
# torch's allocator on the CPU raises nothing more special than a RuntimeError.
_NO_MEMORY = ("can't allocate memory", "out of memory")
_NO_PEFT = "PEFT backend is required"


class MissingPackage(ValueError):
    """A package is not installed, or of a version that does not do: the message says which."""


def is_machines(error: BaseException) -> bool:
    """Whether the machine lacks memory, disk space or rights, whatever was being done."""
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def missing_module(error: BaseException) -> str:
    """What to install, where an import failed for want of a package; else nothing.

    A module that is missing in an installed package is one of another version.
    """
    package = ""
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
    if not package or _is_installed(package):
        return ""
    return f"{package} is not installed: pip install {package}"


def missing_package(error: BaseException) -> str:
    """What to install or to change, where an error is that of a package; else nothing."""
    if isinstance(error, ImportError):
        reason = f"a package is missing or of another version: {first_line(error)}"
        return missing_module(error) or reason
    if isinstance(error, ValueError) and _NO_PEFT in str(error):
        return "diffusers finds no peft that it can use: pip install --upgrade peft"
    return ""


def require_own(error: BaseException, doing: str) -> None:
    """Let an error pass that is not the fault of the input.

    Args:
        error: that a library raised.
        doing: what was being done, as a beginning of a line.

    Raises:
        BaseException: the error itself, where it is the machine's.
        MissingPackage: a package is missing.
    """
    if is_machines(error):
        raise error
    if missing := missing_package(error):
        raise MissingPackage(f"{doing}: {missing}") from error


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # None stands for it in sys.modules
        return False

import ctypes, os, socket, sys

libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, attack):
    """An attack that raises or returns False was blocked."""
    try:
        result = attack()
    except (OSError, MemoryError) as error:
        print(name, "blocked:", error, flush=True)
        return
    verdict = "blocked" if result is False else "ESCAPED"
    print(name, verdict, result, flush=True)


def call(number, *arguments):
    """A system call by number; raises its error."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

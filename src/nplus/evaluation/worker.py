"""The process that a verifiable reward runs in: a script of the standard library alone.

    python worker.py MODULE:FUNCTION MEBIBYTES

Reads a JSON object a line (`query`, `response`, `id`), and answers each with a line: `score` or
`error`. What the function prints goes to standard error.
"""

import importlib
import json
import os
import signal
import sys
import time
from contextlib import suppress

LOOK = 0.1
"""Seconds between two looks at who is still there."""


def guarded() -> None:
    """Go on in a child with a process group of its own. This process calls no function: it kills
    that group once it is told to end, or the child or the run has ended."""
    run = os.getppid()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        return
    try:
        with suppress(OSError):  # the child has done it
            os.setpgid(child, child)
        for standard in (0, 1):  # else the run would not see that the child's ends are closed
            os.close(standard)
        while os.getppid() == run and os.waitpid(child, os.WNOHANG)[0] == 0:
            time.sleep(LOOK)
    finally:
        with suppress(OSError):  # none is left
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os._exit(0)


def limit_memory(mebibytes: int) -> None:
    """Bound the address space, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))


def main() -> None:
    name, mebibytes = sys.argv[1], int(sys.argv[2])
    guarded()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path[0] = os.getcwd()  # not the folder of this script
    limit_memory(mebibytes)

    def say(**what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        module, _, function = name.partition(":")
        call = getattr(importlib.import_module(module), function)
    except BaseException as error:
        say(error=f"cannot be imported ({type(error).__name__}: {error})")
        return
    say(ready=True)
    for line in sys.stdin:
        row = json.loads(line)
        try:
            say(score=float(call(row["query"], row["response"], row["id"])))
        except MemoryError:
            say(error=f"took more than {mebibytes} MiB")
        except Exception as error:
            say(error=f"raised {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()

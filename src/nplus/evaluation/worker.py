"""The process that a verifiable reward runs in: a script of the standard library alone.

    python worker.py MODULE:FUNCTION MEBIBYTES

Reads a JSON object a line (`query`, `response`, `id`), and answers each with a line: `score` or
`error`. What the function prints goes to standard error.
"""

import importlib
import json
import os
import sys


def limit_memory(mebibytes: int) -> None:
    """Bound the address space, where the system can."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))


def main() -> None:
    name, mebibytes = sys.argv[1], int(sys.argv[2])
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

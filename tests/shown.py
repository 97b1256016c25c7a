"""What a command shows in pipes and on terminals of different kinds: a process that has imported what is slow, and asks
a child of its own for each. Prints a JSON list of [stdout, stderr], of a terminal [all, ""]."""

import json
import os
import pty
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import byol.console  # noqa: F401 (for all that it imports, which is slow; a child has its own)

ASIDE = ("NO_COLOR", "FORCE_COLOR", "CI", "BYOL_QUIET", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


def show():
    from byol.console import Terminal, grid, stderr, stdout

    with Terminal() as terminal:
        terminal.say("a line of more than forty columns that is not broken: /a/[bold]name")
        terminal.working("runs", 1, 2)
        terminal.working("runs", 2, 2)
    stderr.print(grid([("name", "value")]))
    stdout.print("done")


def child(environment, outputs):
    """A process that shows it all on two file descriptors."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        for name in ASIDE:
            os.environ.pop(name, None)
        del sys.modules["byol.console"]
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": "40", **environment})
        for ours, theirs in zip((1, 2), outputs, strict=True):
            os.dup2(theirs, ours)
        show()
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def read(descriptor):
    said = b""
    try:
        while found := os.read(descriptor, 65536):
            said += found
    except OSError:  # how Linux says that the other side of a terminal is closed
        pass
    os.close(descriptor)
    return said.decode()


def shown(environment, on_terminal):
    pairs = [pty.openpty()] if on_terminal else [os.pipe(), os.pipe()]
    writing = [pair[1] for pair in pairs]
    number = child(environment, (writing * 2)[:2])
    for each in writing:
        os.close(each)
    with ThreadPoolExecutor() as readers:
        said = list(readers.map(read, [pair[0] for pair in pairs]))
    assert os.waitpid(number, 0)[1] == 0, said
    return [*said, ""][:2]


if __name__ == "__main__":
    print(json.dumps([shown(*case) for case in json.loads(sys.argv[1])]))

"""A run of which one process hangs: it waits for ever in its sixth step, or before it; started by torchrun."""

import signal
import sys
import time
from dataclasses import replace

import kill_server

from byol import parallel
from byol.pipeline import pretrain
from byol.train import Training, TrainingStopped

if __name__ == "__main__":
    data, out, hangs, where = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    original = getattr(Training, where)
    times = 0

    def hang(self, *arguments):
        global times
        times += 1
        if times == 6 and parallel.rank() == hangs:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else the launcher waits half a minute before it kills it
            time.sleep(60)
        return original(self, *arguments)

    setattr(Training, where, hang)
    Training.measure_rate = lambda self, seconds: 1.0
    try:
        pretrain(data, out, replace(kill_server.OPTIONS, timeout=5.0, method_args={"hidden": 16, "out": 8}))
    except TrainingStopped as error:
        print(f"said by {parallel.rank()}: {error}", file=sys.stderr)
        sys.exit(error.code)

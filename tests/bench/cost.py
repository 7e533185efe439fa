"What a block of code costs this process: seconds, processor seconds, memory."

import time

from evaluation import Peak, current_gb


class Cost:
    """`with Cost() as cost: ...`, then `cost.found`.

    Processor seconds are those of all threads; others on the machine hardly touch them."""

    def __enter__(self):
        self.before, self.peak = current_gb(), Peak()
        self.peak.__enter__()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.peak.__exit__()
        self.found = {
            "seconds": wall,
            "cpu_seconds": cpu,
            "peak_gb": self.peak.gb,
            "gb_added": self.peak.gb - self.before,
        }

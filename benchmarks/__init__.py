"""How fast atss_d2 is, against what people would use instead: ``python -m benchmarks``.

Not installed with the package. Everything is a comparison within one process: contestants take
turns, so that whatever else the machine does happens to all of them.
"""

import os

# Before torch is imported: its profiler would write into the progress bar.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

"""Compares the speed of atss_d2 with what people would use instead: ``python -m benchmarks``.

Not installed with the package. All comparisons run within one process: contestants take turns, so
that other load on the machine affects all of them.
"""

import os

# Set before torch is imported: its profiler would write into the progress bar.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

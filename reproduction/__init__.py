"""Reproduces the quoted numbers on COCO: the zoo (``configs/coco``) and the paper's tables.

``python tools/reproduce.py`` is the command. Not installed with the package. Runs, their folders
and their results are those of :mod:`ablations`.
"""

import atss_d2  # noqa: F401  (must be imported first: silences deprecation warnings)

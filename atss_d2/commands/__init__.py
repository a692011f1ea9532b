"""What people type: one file per command, each with ``get_parser()`` and ``main(argv)``.

Modules here import only the standard library (and each other) at the top; everything heavy is
imported after the arguments were parsed. :mod:`atss_d2_cli` starts them.
"""

"""The commands: one file each, with ``get_parser()`` and ``main(argv)``.

Modules here import only the standard library (and each other) at the top; everything heavy is
imported after the arguments are parsed. :mod:`atss_d2_cli` starts the commands.
"""

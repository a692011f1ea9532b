"""From a person's own files to a config: reading, checking, counting, splitting, choosing.

One file per step, in this order: ``reading`` (with ``conversion``), ``checking`` (with
``image_checks`` and ``annotation_checks``), ``splitting``, ``statistics``, ``settings``,
``config_file``. ``atss_d2/commands/start_project.py`` calls them one after the other.
"""

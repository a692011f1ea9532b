"""Turns a user's own files into settings: reads, checks, splits and counts them, and chooses.

There is one file per step, in this order: ``reading`` (with ``conversion``), ``checking`` (with
``image_checks`` and ``annotation_checks``), ``splitting``, ``statistics``, ``settings``.
``atss_d2/commands/start_project.py`` runs the steps and writes the config.
"""

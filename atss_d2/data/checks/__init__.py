"""Finds what is wrong with a data set, for ``check-dataset``, ``start-project`` and training.

``findings`` lists everything that can be found. A data set is read (``json_file``), turned into
columns (``table``) and checked (``structure``, ``boxes``); its files are looked at (``probe``,
``probing``, ``cache``) and compared with it (``images``) and with each other (``copies``).
``dataset`` puts the steps together.
"""

"""Images, tiles, pictures and results with only numpy and Pillow.

This code is shared by the detector and by programs without torch. It imports neither torch nor
Detectron2 nor other parts of this package.
"""

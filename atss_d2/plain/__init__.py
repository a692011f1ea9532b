"""Images, tiles, pictures and results with numpy and Pillow alone.

What the detector and programs without torch have in common. Nothing here imports torch, Detectron2
or another part of this package.
"""

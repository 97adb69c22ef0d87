"""Heatmaps from a model, and nothing else.

Open `trace.py` first: one forward, one backward per class rank. Then `methods.py` (Eqs. 2 to 7), `tricks.py` (Eqs. 8 and 9)
and `cam.py` (Eqs. 10 and 11). May import torch, torchvision and numpy, and no other wing.
"""

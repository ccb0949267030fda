"""Figures from tables and arrays, one module per family. Nothing here knows of models.

matplotlib draws into files only, so that no display is needed.
"""

import matplotlib

matplotlib.use("Agg")

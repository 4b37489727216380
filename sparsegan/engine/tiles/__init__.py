"""Large images tile by tile: ``tiling.py`` cuts and joins, the other modules measure how far tiles must overlap."""

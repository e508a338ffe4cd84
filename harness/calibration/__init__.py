"""A model asked over calibration windows: the walk over its blocks, derivatives, level databases, views, caches."""

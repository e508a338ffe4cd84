"""Records of runs: schema, identity, provenance, trackers."""

"""What happened: schema, identity, provenance, trackers."""

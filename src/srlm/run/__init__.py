"""What lies on disk of a run, and what of it is there already."""

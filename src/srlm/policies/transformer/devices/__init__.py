"""More than one device: a model in shards, and processes that know of each other."""

"""`srlm train`: the loop of loop.py on a transformer, every stage kept in a run folder as soon as it is done."""

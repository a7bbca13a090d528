"""No run is to destroy a model quietly: records of its rounds -> go on, stop, or roll back."""

"""How the responses to a prompt are laid out for the model: as rows, as one prefix tree, or as a few."""

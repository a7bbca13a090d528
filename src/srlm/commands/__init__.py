"""What a person can ask for: one file a command, with its options and its function."""

"""Prompts that a policy writes itself, from examples, as Self-Instruct and Self-Rewarding Language Models do."""

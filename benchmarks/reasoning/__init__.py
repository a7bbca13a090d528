"""docs/reasoning.md: does self-reward improve word problems, and how do gain and collapse go with prompts?"""

"""`python -m benchmarks`: what srlm costs, against the tools people would use instead. See README.md."""

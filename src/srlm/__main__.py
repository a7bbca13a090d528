"""`python -m srlm`, as torchrun and accelerate launch call it."""

from srlm.cli import main

if __name__ == "__main__":
    main()

"""`python -m diffusional`."""

from diffusional.cli import main

if __name__ == "__main__":
    main()

"""`python -m gmvae_nb`: which commands there are."""

from .commands import print_overview

if __name__ == "__main__":
    print_overview()

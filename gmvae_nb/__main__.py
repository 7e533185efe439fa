"""`python -m gmvae_nb`: the command `gmvae`."""

from .umbrella import gmvae

if __name__ == "__main__":
    gmvae()

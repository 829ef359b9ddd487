"""`python -m nplus`."""

from nplus.cli import app

if __name__ == "__main__":
    app(prog_name="nplus")

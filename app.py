"""The studio, as `python app.py`: the flags are those of `atomdiff studio`."""

import sys

from atomdiff.cli import app

if __name__ == "__main__":
    app(["studio", *sys.argv[1:]])

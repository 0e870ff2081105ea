"""`python -m veery` is the command line."""

from veery.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())

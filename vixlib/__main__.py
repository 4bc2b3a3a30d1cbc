"""The command line, as `vix` or `python -m vixlib`: the companion's, where that is installed."""

import sys

from vixlib.errors import MissingExtra, extra


def main(arguments: list[str] | None = None) -> int:
    """Run one command; without the companion's packages one line says what to install."""
    try:
        with extra("paper"):
            from vixlib.paper import cli
    except MissingExtra as error:
        print(f"vix: {error}", file=sys.stderr)
        return 2
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

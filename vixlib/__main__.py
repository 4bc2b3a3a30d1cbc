"""The command line, as `vix` or `python -m vixlib`: the companion's, where that is installed."""

import os
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
    status = cli.main(arguments)
    if status == 130 and arguments is None:  # torch would take a second to end in good order
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""`python -m kvgen` is the command `kvgen`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C counts from the very beginning."""
    try:
        from kvgen.cli import main as command_line
    except KeyboardInterrupt:
        print("kvgen: interrupted", file=sys.stderr)  # noqa: T201 - nothing else is loaded yet
        sys.exit(130)
    command_line()


if __name__ == "__main__":
    main()

"""The command line, as ``based-ops`` and as ``python -m based_ops``."""

from __future__ import annotations

from .extras import MissingExtra, require


def main() -> None:
    """Runs the command line, or says what it lacks."""
    try:
        require("cli", "the command line")
    except MissingExtra as error:
        raise SystemExit(f"based-ops: {error}") from None
    from .cli import main as commands

    commands()


if __name__ == "__main__":
    main()

"""`tresor`: run the router, look after customers and keys, try the demo."""

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> int:
    """Run the command line; return its exit code: 0 done, 1 refused or failed, 2 wrong usage."""
    if sys.argv[1:2] == ["release"]:  # part of the base package: the ceremony needs nothing of the router
        from tresor.cli.release import run as run_release  # noqa: PLC0415 - the router does not need the ceremony

        return run_release(sys.argv[1:])
    if missing := [name for name in ("httptools", "prometheus_client", "uvloop") if find_spec(name) is None]:
        sys.stderr.write(
            f"tresor: {', '.join(missing)} not installed; the router needs: pip install 'tresor[router]'\n"
        )
        return 1
    from tresor.cli.commands import run  # noqa: PLC0415 - its imports are what was just looked for

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

"""What every job shares: one-line errors, exit statuses, arguments read strictly."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn, TypeVar

from rayecg.core.errors import RayecgError, SettingsError
from rayecg.core.settings import build

T = TypeVar("T")

DONE, FAILED, WRONG_USAGE, VIOLATED = 0, 1, 2, 3


class Arguments(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and exit with 2."""
        self.exit(WRONG_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def from_flags(kind: type[T], given: argparse.Namespace, flags: Mapping[str, str]) -> T:
    """Fill a settings dataclass from arguments.

    Parameters
    ----------
    kind
        The dataclass.
    given
        The arguments.
    flags
        Name of a field to name of the argument that says it, as in `{"batch_size": "--batch-size"}`.

    Raises
    ------
    SettingsError
        For a wrong value; it names the argument.
    """
    values = {name: getattr(given, flag[2:].replace("-", "_")) for name, flag in flags.items()}
    try:
        return build(kind, values, "arguments")
    except SettingsError as error:
        # The field's own name is nothing that the user typed.
        found = re.match(r"arguments: (?:settings: )?(\w+)(: .*)", str(error))
        if found is None or found[1] not in flags:
            raise
        raise SettingsError(f"{flags[found[1]]}{found[2]}") from None


def run_job(main: Callable[[], int]) -> NoReturn:
    """Run a job's main function and exit: 0 done, 1 failed, 2 wrong usage or settings, 3 violated.

    Errors that explain themselves are one line; others keep their traceback. Ctrl-C ends with 130.
    """
    prog = os.path.basename(sys.argv[0])
    try:
        status = main()
    except SettingsError as error:
        # One that Ray brought from a worker has that worker's traceback in its text.
        status = _say(prog, getattr(error, "cause", error), WRONG_USAGE)
    except RayecgError as error:
        status = _say(prog, getattr(error, "cause", error), FAILED)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command continues from here", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        status = FAILED
    except Exception as error:
        own = _own_error(error)
        if own is None:
            traceback.print_exc()
        status = FAILED if own is None else _say(prog, own, FAILED)
    sys.exit(status)


def _own_error(error: BaseException | None) -> RayecgError | None:
    """Find the error of ours that Ray wrapped on its way back from a worker."""
    while error is not None:
        inner = getattr(error, "cause", None) or error.__cause__ or error.__context__
        if isinstance(inner, RayecgError):
            return inner
        error = inner if isinstance(inner, BaseException) else None
    return None


def _say(prog: str, error: Exception, status: int) -> int:
    # A progress line may stand unfinished on the terminal.
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{start}{prog}: {error}", file=sys.stderr)
    return status

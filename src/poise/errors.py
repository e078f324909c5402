"""What poise raises: every message says what was checked, what is required and what was given."""


class PoiseError(Exception):
    """Base of every error that poise raises on purpose; its text is one line for the user."""


class InputError(PoiseError, ValueError):
    """An argument, a file or an image batch is not what is required."""


class TargetError(PoiseError):
    """The model under attack answered something that contradicts its declaration."""


class AccessError(PoiseError):
    """An objective or a search needs more access than the target gives."""


class BudgetError(PoiseError):
    """A query was asked for beyond a sample's budget, or beyond what a run may spend."""


class NotFittedError(PoiseError):
    """A defence that learns was used before `fit`."""


class MissingExtraError(PoiseError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'poise[{extra}]'")


class RunError(PoiseError):
    """A run folder cannot be used as asked: another run lies there, a file is damaged, a spec differs."""


def one_of(what: str, given: object, valid: list[str]) -> InputError:
    """Error for an unknown name: names the nearest valid ones, then all of them."""
    from difflib import get_close_matches

    near = get_close_matches(str(given), valid, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return InputError(
        f"{what}: must be one of the known names, got '{given}' ({hint}known: {', '.join(sorted(valid))})"
    )


def brief(error: object, limit: int = 200) -> str:
    """The text of an exception, or of a name from a file, as one short line; an exception without text is named.

    >>> brief(ValueError("first\\nsecond")), brief(EOFError()), brief("x" * 9, limit=5)
    ('first second', 'EOFError', 'xxxx…')
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"

"""What poise raises: every message says what was checked, what is required and what was given."""


class PoiseError(Exception):
    """Base of every error that poise raises on purpose; its text is one line for the user.

    >>> import poise
    >>> try:
    ...     poise.constraints.Linf(8.0)
    ... except poise.PoiseError as error:
    ...     print(error)
    Linf: eps must be in [0, 1], got 8.0 (did you mean 8/255?)
    """


class InputError(PoiseError, ValueError):
    """An argument, a file or an image batch is not what is required.

    >>> import poise
    >>> try:
    ...     poise.data.load("npz:missing.npz")
    ... except InputError as error:
    ...     print(error)
    npz:missing.npz: data must be an existing file, got 'missing.npz'
    """


class TargetError(PoiseError):
    """The model under attack answered something that contradicts its declaration.

    >>> import torch
    >>> from poise.targets import FunctionTarget
    >>> target = FunctionTarget(lambda x: x.reshape(len(x), -1), num_classes=10)
    >>> try:
    ...     target.query(torch.rand(2, 1, 2, 2), torch.arange(2))
    ... except TargetError as error:
    ...     print(error)
    FunctionTarget: answers must be (2, 10) scores for 2 images, got (2, 4)
    """


class AccessError(PoiseError):
    """An objective or a search needs more access than the target gives.

    >>> import torch, poise
    >>> from poise.targets import FunctionTarget
    >>> target = FunctionTarget(lambda x: x.reshape(len(x), -1), num_classes=4)
    >>> goal, search, ball = poise.objectives.Margin(), poise.searches.PGD(), poise.constraints.Linf(0.1)
    >>> try:
    ...     poise.attack(target, goal, search, ball, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    ... except AccessError as error:
    ...     print(error)
    attack: Margin with PGD needs access 'gradients', the target gives 'scores'
    """


class BudgetError(PoiseError):
    """A query was asked for beyond a sample's budget, or beyond what a run may spend.

    >>> import torch
    >>> from poise.targets import FunctionTarget, Purse
    >>> target = Purse(FunctionTarget(lambda x: x.reshape(len(x), -1), num_classes=4), max_queries=3)
    >>> try:
    ...     target.query(torch.rand(4, 1, 2, 2), torch.arange(4))
    ... except BudgetError as error:
    ...     print(str(error).partition(";")[0])
    Purse: 0 queries are spent and the next call needs 4 more, beyond max-queries 3
    """


class NotFittedError(PoiseError):
    """A defence that learns was used before `fit`.

    >>> import torch
    >>> from poise.defenses import TemperatureScaling
    >>> try:
    ...     TemperatureScaling()(torch.zeros(1, 3))
    ... except NotFittedError as error:
    ...     print(error)
    TemperatureScaling: must be fitted before use, call fit(logits, labels) first
    """


class MissingExtraError(PoiseError, ImportError):
    """A feature needs an optional dependency that is not installed.

    >>> print(MissingExtraError("timm: addresses", "vision"))
    timm: addresses needs the extra 'vision': pip install 'poise[vision]'
    """

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the extra '{extra}': pip install 'poise[{extra}]'")


class RunError(PoiseError):
    """A run folder cannot be used as asked: another run lies there, a file is damaged, a spec differs.

    >>> from pathlib import Path
    >>> from poise.report import read_summary
    >>> try:
    ...     read_summary(Path("runs/nothing"))
    ... except RunError as error:
    ...     print(error)
    report: runs/nothing/summary.json must be readable, got no such file (is the run finished?)
    """


def one_of(what: str, given: object, valid: list[str]) -> InputError:
    """Error for an unknown name: names the nearest valid ones, then all of them."""
    from difflib import get_close_matches

    name = brief(given)
    near = get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return InputError(f"{what}: must be one of the known names, got '{name}' ({hint}known: {', '.join(sorted(valid))})")


def brief(error: object, limit: int = 200) -> str:
    """The text of an exception, or of a name from a file, as one short line; an exception without text is named.

    Characters that a terminal would obey are shown as \ufffd.

    >>> brief(ValueError("first\\nsecond")), brief(EOFError()), brief("x" * 9, limit=5), brief("\\x1b[2J")
    ('first second', 'EOFError', 'xxxx…', '\ufffd[2J')
    """
    text = printable(" ".join(str(error).split()))
    text = text if text or isinstance(error, str) else type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def printable(text: str) -> str:
    """The text with every control character and broken piece of Unicode shown as \ufffd."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "\ufffd" for sign in text)

"""Does a post-hoc defence keep its promises? Run on ours in the tests, and usable on your own.

from poise.checks.defenses import check_defense
check_defense(MyDefense())
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from poise.defenses.base import PostHoc
from poise.errors import InputError, NotFittedError, PoiseError, one_of

_CLASSES = (2, 10, 1000)
_FLAGS = ("keeps_label", "keeps_order", "monotone", "stochastic", "differentiable", "needs_fit")
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class DefenseCheckError(PoiseError, AssertionError):
    """A defence breaks its contract; one line says which check, what was required and what was found."""


class Subject:
    """The defence under test, always as copies: unfitted, or fitted on drawn data of K classes.

    Args:
        defense: any post-hoc defence, fitted or not; it is not touched.
    """

    def __init__(self, defense: PostHoc) -> None:
        self.given = defense
        self.name = type(defense).__name__
        self._fitted: dict[int, PostHoc] = {}

    def fresh(self) -> PostHoc:
        return copy.deepcopy(self.given).unfitted()

    def fitted(self, classes: int = 10) -> PostHoc:
        """Fitted on 300 rows; one fit for each K, copied for each caller."""
        if classes not in self._fitted:
            self._fitted[classes] = self.fresh().fit(*draw(300, classes, seed=classes))
        return copy.deepcopy(self._fitted[classes])

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            raise DefenseCheckError(f"{self.name}: {message}")


def draw(n: int, classes: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Over-confident logits (n, K) and labels (n,) of an imperfect classifier, from a private generator."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(n), labels] += 3 * torch.rand(n, generator=generator, dtype=torch.float64) + 1
    return logits.to(dtype), labels


def hard_rows(classes: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """Named batches on which labels get lost: random, tied, one rounding step apart, saturated, tiny, shifted."""
    logits, _ = draw(64, classes, seed=1, dtype=torch.float64)
    plain = logits.to(dtype)
    yield "random logits", plain
    top = plain.argmax(dim=1, keepdim=True)
    other = (top + 1 + torch.arange(64)[:, None] % (classes - 1)) % classes
    high = plain.gather(1, top)
    yield "exact ties of two classes", plain.scatter(1, other, high)
    yield "all classes equal", high.expand(-1, classes).clone()
    step = high.abs() * torch.finfo(dtype).eps
    yield "ties up to one rounding step", plain.scatter(1, other, high - step)
    runner_up = plain.scatter(1, top, -torch.inf).amax(dim=1, keepdim=True)
    yield (
        "runner-up one rounding step away",
        plain.scatter(1, top, runner_up + runner_up.abs() * torch.finfo(dtype).eps),
    )
    largest = torch.finfo(dtype).max
    yield "saturated rows", plain.scatter(1, top, min(1e4, largest / 2))
    yield "rows at the end of the type's range", (logits / logits.abs().amax() * largest).to(dtype)
    yield "tiny logits", (logits * 1e-6).to(dtype)
    yield "shifted logits", (logits + 500).to(dtype)


def check_defense(defense: PostHoc, *, only: Iterable[str] | None = None) -> None:
    """Runs every check of the post-hoc contract (`poise.defenses.PostHoc`) that the defence's own promises call for.

    Args:
        defense: fitted or not; it is copied and refitted on drawn data of K = 2, 10 and 1000 classes.
        only: names from `CHECKS`, for one test per check.

    Raises:
        DefenseCheckError: an AssertionError with one line; the first promise that does not hold.

    Example:
        >>> from poise.defenses import TemperatureScaling
        >>> check_defense(TemperatureScaling())
    """
    subject = Subject(defense)
    for name in CHECKS if only is None else only:
        if name not in CHECKS:
            raise one_of("check", name, list(CHECKS))
        CHECKS[name](subject)


def _contract(subject: Subject) -> None:
    defense = subject.given
    subject.require(isinstance(defense, PostHoc), "must be a poise.defenses.PostHoc")
    for flag in _FLAGS:
        subject.require(isinstance(getattr(defense, flag), bool), f"the promise {flag} must be True or False")
    try:
        parameters = defense.hyperparameters()
        same = subject.fresh().hyperparameters() == parameters
    except (AttributeError, TypeError) as error:
        raise DefenseCheckError(
            f"{subject.name}: every constructor argument must be an attribute of the same name ({error})"
        ) from error
    subject.require(same, f"a new one from hyperparameters() must have the same, got {parameters}")
    state = defense.state_dict()
    for name in ("fitted", "fit_samples"):
        subject.require(name in state, f"the buffer '{name}' must be in the state dict")
    subject.require(
        not any(True for _ in defense.parameters()),
        "must have no parameters: what is learned is in buffers, so that training the model leaves it alone",
    )


def _unfitted(subject: Subject) -> None:
    fresh, (logits, _) = subject.fresh(), draw(4, 10)
    subject.require(bool(fresh.fitted) != fresh.needs_fit, "'fitted' of a new one must be the opposite of needs_fit")
    if not fresh.needs_fit:
        fresh(logits)
        return
    try:
        fresh(logits)
    except NotFittedError:
        return
    raise DefenseCheckError(f"{subject.name}: forward before fit must raise NotFittedError")


def _fit(subject: Subject) -> None:
    first, second = draw(300, 10, seed=1), draw(200, 10, seed=2)
    kept = [value.clone() for value in second]
    before = torch.get_rng_state()
    defense = subject.fresh()
    defense.fit(*first)
    subject.require(defense.fit(*second) is defense, "fit must return self")
    subject.require(bool(defense.fitted), "fit must set 'fitted'")
    expected = len(second[1]) if defense.needs_fit else 0
    subject.require(int(defense.fit_samples) == expected, f"fit must set 'fit_samples' to {expected}")
    subject.require(all(map(torch.equal, second, kept)), "fit must not write into its arguments")
    subject.require(torch.equal(before, torch.get_rng_state()), "fit must not touch the global random state")
    once = subject.fresh().fit(*second).state_dict()
    for name, value in defense.state_dict().items():
        subject.require(torch.equal(value, once[name]), f"a refit must forget the fit before it, but '{name}' differs")


def _bad_input(subject: Subject) -> None:
    logits, labels = draw(20, 10)
    holed = logits.index_fill(1, torch.tensor([3]), torch.nan)
    fits = {
        "an empty batch": (logits[:0], labels[:0]),
        "NaN": (holed, labels),
        "labels of one class": (logits, torch.zeros_like(labels)),
        "a label of K": (logits, labels.index_fill(0, torch.tensor([0]), 10)),
        "labels of another length": (logits, labels[:5]),
        "one class": (logits[:, :1], labels * 0),
    }
    calls: dict[str, Callable[[], object]] = {}
    if subject.given.needs_fit:
        calls = {f"fit with {what}": partial(subject.fresh().fit, *data) for what, data in fits.items()}
    defense = subject.fitted()
    for what, given in {"one row": logits[0], "integers": logits.long(), "one class": logits[:, :1]}.items():
        calls[f"forward with {what}"] = partial(defense, given)
    for what, call in calls.items():
        try:
            call()
        except InputError as error:
            subject.require("\n" not in str(error), f"{what}: the message of InputError must be one line")
        else:
            raise DefenseCheckError(f"{subject.name}: {what} must raise InputError")


def _types(subject: Subject) -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        defense = subject.fitted().to(device)
        for dtype in _TYPES:
            for n in (0, 5):
                logits = draw(n, 10, dtype=dtype)[0].to(device)
                kept = logits.clone()
                out = defense(logits)
                given = f"{tuple(out.shape)} {out.dtype} on {out.device.type}"
                same = (out.shape, out.dtype, out.device) == (logits.shape, dtype, logits.device)
                subject.require(same, f"shape, type and device must stay ({n}, 10) {dtype} on {device}, got {given}")
                subject.require(torch.equal(logits, kept), "forward must not write into its argument")


def _finite(subject: Subject) -> None:
    for classes in _CLASSES:
        defense = subject.fitted(classes)
        for dtype in _TYPES:
            for what, logits in hard_rows(classes, dtype):
                bad = int((~defense(logits).isfinite().all(dim=1)).sum())
                subject.require(
                    bad == 0, f"outputs must be finite, {bad} rows are not ({what}, K = {classes}, {dtype})"
                )


def _label(subject: Subject) -> None:
    if not subject.given.keeps_label:
        return
    for classes in _CLASSES:
        defense = subject.fitted(classes)
        for dtype in _TYPES:
            for what, logits in hard_rows(classes, dtype):
                moved = (defense(logits).argmax(dim=1) != logits.argmax(dim=1)).nonzero().flatten().tolist()
                where = f"{what}, K = {classes}, {dtype}, first: row {moved[0]}" if moved else ""
                subject.require(not moved, f"promises keeps_label, but the label of {len(moved)} rows moved ({where})")


def _order(subject: Subject) -> None:
    if not subject.given.keeps_order:
        return
    for classes in _CLASSES:
        defense = subject.fitted(classes)
        for what, logits in hard_rows(classes):
            rank = logits.argsort(dim=1, stable=True)
            rises = defense(logits).gather(1, rank).diff(dim=1)
            tied = logits.gather(1, rank).diff(dim=1) == 0
            bad = int(((rises < 0) | (tied & (rises != 0))).any(dim=1).sum())
            found = f"classes change order in {bad} rows ({what}, K = {classes})"
            subject.require(bad == 0, f"promises keeps_order, but {found}")


def _monotone(subject: Subject) -> None:
    if not subject.given.monotone:
        return
    for classes in _CLASSES:
        logits, _ = draw(2000, classes, seed=3, dtype=torch.float64)
        logits = logits * torch.logspace(-3, 1, 2000, dtype=torch.float64)[:, None]
        top, index = logits.max(dim=1, keepdim=True)
        doubt = (logits - top).scatter(1, index, -torch.inf).logsumexp(dim=1)  # ln(1/c - 1): exact where c rounds to 1
        after = subject.fitted(classes)(logits).softmax(dim=1).amax(dim=1)[doubt.argsort(descending=True)]
        fall = float((after.cummax(dim=0).values - after).amax())
        subject.require(
            fall <= 1e-9, f"promises monotone, but a row of higher confidence ends {fall:.3g} lower (K = {classes})"
        )


def _gradient(subject: Subject) -> None:
    if not subject.given.differentiable:
        return
    for classes in (2, 10):
        defense, (logits, _) = subject.fitted(classes), draw(40, classes, seed=4, dtype=torch.float64)
        generator = torch.Generator().manual_seed(5)
        weight, direction = (torch.randn(logits.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        logits.requires_grad_(True)
        out = defense(logits)
        subject.require(out.requires_grad, "promises differentiable, but the output is cut off from the logits")
        (gradient,) = torch.autograd.grad((weight * out).sum(), logits)
        subject.require(bool(gradient.isfinite().all()), f"gradients must be finite (K = {classes})")
        if defense.stochastic:
            subject.require(bool(gradient.any()), "promises differentiable, but the gradient is 0 everywhere")
            continue
        with torch.no_grad():
            step = 1e-5 * direction
            numeric = ((defense(logits + step) - defense(logits - step)) * weight).sum(dim=1) / 2e-5
        analytic = (gradient * direction).sum(dim=1)
        scale = gradient.norm(dim=1) * direction.norm(dim=1) + numeric.abs() + 1e-6
        error = float(((analytic - numeric).abs() / scale).amax())
        found = f"they differ by {error:.3g} of the gradient's size (K = {classes})"
        subject.require(error <= 1e-4, f"promises differentiable, but autograd is not the finite difference: {found}")


def _rows(subject: Subject) -> None:
    defense, (logits, _) = subject.fitted(), draw(12, 10, seed=6, dtype=torch.float64)
    if defense.stochastic:
        return
    whole = defense(logits)
    cases = {
        "alone": torch.cat([defense(row[None]) for row in logits]),
        "in reverse order": defense(logits.flip(0)).flip(0),
        "beside other rows": defense(torch.cat([logits, 100 * draw(5, 10, seed=7, dtype=torch.float64)[0]]))[:12],
        "beside a row of NaN": defense(torch.cat([torch.full((1, 10), torch.nan, dtype=torch.float64), logits]))[1:],
    }
    for what, other in cases.items():
        far = float((other - whole).abs().nan_to_num(torch.inf).amax())
        subject.require(far <= 1e-9, f"a row must not depend on other rows, but {what} it differs by {far:.3g}")


def _repeat(subject: Subject) -> None:
    defense, (logits, _) = subject.fitted(), draw(12, 10, seed=8)
    before = torch.get_rng_state()
    same = torch.equal(defense(logits), defense(logits))
    subject.require(torch.equal(before, torch.get_rng_state()), "forward must not touch the global random state")
    if defense.stochastic:
        subject.require(not same, "declares stochastic, but two calls give the same")
    else:
        subject.require(same, "does not declare stochastic, but two calls differ")


def _state(subject: Subject) -> None:
    defense, (logits, _) = subject.fitted(), draw(12, 10, seed=9)
    loaded = subject.fresh()
    loaded.load_state_dict({name: value.clone() for name, value in defense.state_dict().items()})
    try:
        pickled = pickle.loads(pickle.dumps(defense))  # noqa: S301  # bytes of our own making
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DefenseCheckError(f"{subject.name}: must pickle ({error})") from error
    copies = {"its state dict": loaded, "pickle": pickled}
    for what, other in copies.items():
        subject.require(bool(other.fitted), f"a copy through {what} must be fitted")
        if not defense.stochastic:
            subject.require(torch.equal(other(logits), defense(logits)), f"a copy through {what} must give the same")


CHECKS: dict[str, Callable[[Subject], None]] = {
    "contract": _contract,
    "unfitted": _unfitted,
    "fit": _fit,
    "bad input": _bad_input,
    "types": _types,
    "finite": _finite,
    "label": _label,
    "order": _order,
    "monotone": _monotone,
    "gradient": _gradient,
    "rows": _rows,
    "repeat": _repeat,
    "state": _state,
}
"""The checks by name, in the order in which they run."""

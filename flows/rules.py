"""Fitted rules by name: small files beside the datasets, `<store>/rules/<name>.json`; another store takes a copy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.markup import escape

from curation.rule import PUBLISHED, Rule, find_rule
from curation.step import StepConfig, StepError
from flows.engines import EngineSpec, model_folder
from flows.progress import say
from storage.store import Store, key_of
from synthesis.fingerprint import folder_digest


def with_rule(config: StepConfig, store: Store) -> StepConfig:
    """Settings whose rule is a name, with that rule's own text: what is hashed, and what the step reads."""
    rule = getattr(config, "rule", "")
    if not rule or rule in PUBLISHED or rule.lstrip().startswith("{"):
        return config
    return config.model_copy(update={"rule": read_rule(store, rule).model_dump_json(exclude_none=True)})


def rules(store: Store) -> dict[str, Rule]:
    """Every rule that can be named: the published ones, and those of the store."""
    found = sorted((store.root / "rules").glob("*.json"))
    return PUBLISHED | {path.stem: read_rule(store, path.stem) for path in found}


def read_rule(store: Store, name: str) -> Rule:
    path = store.root / "rules" / f"{name}.json"
    if not path.is_file():
        return find_rule(name)  # which says what there is
    try:
        return find_rule(path.read_text(encoding="utf-8"))
    except StepError as wrong:
        raise StepError(f"{path}: {wrong}") from None


def install(store: Store, rule: Rule) -> None:
    """Put a rule where it is found by name; one of that name before it is replaced, at once or not at all."""
    path = store.root / "rules" / f"{rule.name}.json"
    path.parent.mkdir(exist_ok=True)
    half = store.scratch() / path.name
    half.write_text(rule.model_dump_json(indent=1, exclude_none=True), encoding="utf-8")
    half.replace(path)


def retire(store: Store, name: str) -> str | None:
    """Take a rule's name from it, so that no run finds it by that: `<store>/rules/retired/<name>-<digest>.json`.

    Returns where it lies now, beside the datasets; None if there was no such rule.
    """
    path = store.root / "rules" / f"{name}.json"
    if not path.is_file():
        return None
    place = path.parent / "retired" / f"{name}-{key_of(path.read_text(encoding='utf-8'))[:12]}.json"
    place.parent.mkdir(exist_ok=True)
    path.replace(place)
    return str(place.relative_to(store.root))


@contextmanager
def told_if_old(store: Store, name: str) -> Iterator[None]:
    """Where a fit fails or is interrupted, say that the rule of its name is the one from before."""
    path = store.root / "rules" / f"{name}.json"
    before = path.read_bytes() if path.is_file() else None
    try:
        yield
    except BaseException:
        if before is not None and path.is_file() and path.read_bytes() == before:
            say(f"[yellow]the fit came to no rule: {name} is still the one from before[/yellow]")
        raise


def tell_if_of_another_model(config: StepConfig, models: Mapping[str, EngineSpec], store: Store) -> None:
    """Say on the terminal where a step's rule was fitted with another base than these models have."""
    if "base" in models and (told := of_another_model(with_rule(config, store), models["base"])):
        say(f"[yellow]{escape(told)}[/yellow]")


def of_another_model(config: StepConfig, base: EngineSpec) -> str | None:
    """Why a fitted rule says little of this base: it was fitted with another. None where it fits, or nobody told.

    What counts are the files of the model: not which engine runs it, nor in which precision.
    """
    rule = getattr(config, "rule", "")
    fitted = find_rule(rule) if rule.lstrip().startswith("{") else None
    if fitted is None or fitted.model is None or base.kind == "openai":
        return None
    digest = folder_digest(model_folder(base.model))
    if digest in fitted.model.split(":"):
        return None
    return (
        f"the rule {fitted.name} was fitted with another model ({fitted.model}) than {base.model} ({digest}), and its "
        "coefficients tell of that one; `thresher fit-rule` fits one for this"
    )

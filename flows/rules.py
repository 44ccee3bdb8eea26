"""Fitted rules by name: small files beside the datasets, `<store>/rules/<name>.json`; another store takes a copy."""

from curation.rule import PUBLISHED, Rule, find_rule
from curation.step import StepConfig, StepError
from storage.store import Store


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

"""What the writing model was trained on, for the steps that refuse what it recites.

    python -m flows.training_text --data FOLDER     makes the embedded model's file anew (models/nano/README.md)

A file `training_text.parquet` beside the weights of any model folder is taken for that model's.
"""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path

from curation.step import Step
from flows.engines import NANO, EngineSpec
from storage import training_text
from storage.store import Manifest, Store, key_of
from synthesis.recital import runs

TABLE = "training_text"
_STEP = "training-text"


def known(store: Store, step: Step, models: Mapping[str, EngineSpec], tables: Mapping[str, str]) -> dict[str, str]:
    """The tables of a step, with the training text of the model that writes where that is known and none is given."""
    file = next((f for role in step.roles if role in models and (f := beside(models[role]))), None)
    if TABLE not in step.tables or tables.get(TABLE) or file is None:
        return dict(tables)
    return {**tables, TABLE: _dataset(store, file)}


def beside(spec: EngineSpec) -> Path | None:
    """The file beside a model's weights; nothing is fetched for it."""
    if spec.kind == "openai":
        return None
    file = (NANO if spec.model == "nano" else Path(spec.model).expanduser()) / training_text.NAME
    return file if file.is_file() else None


def _dataset(store: Store, file: Path) -> str:
    key = key_of(_STEP, hashlib.sha256(file.read_bytes()).hexdigest())
    made = Manifest(f"{_STEP}-{key[:12]}", "table", _STEP, 1, {}, {}, {})
    if store.exists(made.id):
        return made.id
    frame = training_text.read(file)
    shards, counts = ((store.put_part(key, frame),),), {"rows": frame.height}
    return store.seal(Manifest(made.id, "table", _STEP, 1, {}, {}, {}, shards, {}, {}, counts))


def main() -> None:
    from training.nano.corpus import all_texts, clean_corpus
    from training.nano.labels import bank_phrases, intent_names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the sets that models/nano names.")
    parser.add_argument("--out", type=Path, default=NANO, help="Folder that the file is written into.")
    told = parser.parse_args()
    corpus, _ = clean_corpus(told.data)
    texts = [*all_texts(corpus), *bank_phrases(), *(name for names in intent_names().values() for name in names)]
    found, file = runs(texts), told.out / training_text.NAME
    training_text.write(file, found)
    print(f"{len(texts):,} texts, {len(found):,} runs, {file.stat().st_size:,} bytes in {file}")


if __name__ == "__main__":
    main()

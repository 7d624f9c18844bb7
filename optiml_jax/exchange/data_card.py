"""The card of exported training data: what it is, from where, under which licences."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import yaml

from optiml_jax.data.example import seqio_name
from optiml_jax.data.store import Store
from optiml_jax.files import atomic_path, write_json

_LAYOUTS = {
    "prompt_completion": "`prompt` and `completion` are joined as they are: the completion begins "
    "with the space that stands between them, and only it is trained on.",
    "chat": "`messages` holds the prompt as the user's turn and the target as the assistant's; "
    "plain text and dialogues have no prompt and are the assistant's alone.",
}
_ORDERS = {
    "plan": "Rows stand in the order in which the run trains on them, repeats included; `row` is "
    "the packed row that an example lies in.",
    "task": "Every example once, in one folder per task; `rates.json` has the mixing rate of each "
    "task, the probability that the next example is one of it.",
}


@dataclasses.dataclass(frozen=True)
class DataCard:
    """What a folder of exported rows is.

    Attributes:
      order, split, form, layout: as in `cli.settings.Export`.
      counts: task -> rows.
      rates: task -> mixing rate.
      store: the cache that the rows came from.
      licences: collection -> licences of its sources, for what was not fetched.
    """

    order: str
    split: str
    form: str
    layout: str
    counts: Mapping[str, int]
    rates: Mapping[str, float]
    store: Store
    licences: Mapping[str, Sequence[str]]

    def write(self, folder: pathlib.Path) -> None:
        """Writes README.md, in the form of the Hub's data cards, and for "task" rates.json."""
        if self.order == "task":
            write_json(
                folder / "rates.json", {seqio_name(n): self.rates.get(n, 0.0) for n in self.counts}
            )
        with atomic_path(folder / "README.md") as temporary:
            temporary.write_text(self.text(), "utf-8")

    def text(self) -> str:
        """The card as Markdown, after what `datasets` reads of it."""
        depth = "" if self.order == "plan" else "*/"
        files = {"split": self.split, "path": f"{depth}{self.split}-*.{self.form}"}
        head = {"configs": [{"config_name": "default", "data_files": [files]}]}
        total = sum(self.counts.values())
        return "\n".join(
            [
                "---",
                yaml.safe_dump(head, sort_keys=False).rstrip(),
                "---",
                "# Training data of an OPT-IML mixture",
                "",
                f"{total:,} rows of {len(self.counts)} tasks, split {self.split!r}. "
                + _ORDERS[self.order],
                "",
                _LAYOUTS[self.layout],
                "",
                "Licences are those of the sources, which do not speak for every data set that a "
                "source is made of. Whoever passes these rows on must see to all of them.",
                "",
                "| collection | tasks | rows | share | licences of its sources |",
                "|---|---|---|---|---|",
                *self._collections(total),
                "",
            ]
        )

    def _collections(self, total: int) -> list[str]:
        tasks: dict[str, list[str]] = collections.defaultdict(list)
        for name in self.counts:
            tasks[name.split("/", 1)[0]].append(name)
        lines = []
        for benchmark, names in sorted(tasks.items()):
            rows = sum(self.counts[name] for name in names)
            lines.append(
                f"| {benchmark} | {len(names)} | {rows:,} | {rows / total:.1%} | "
                f"{', '.join(self._licences(benchmark, names))} |"
            )
        return lines

    def _licences(self, benchmark: str, names: Sequence[str]) -> list[str]:
        infos = [self.store.task(name).info for name in names]
        fetched = {p["licence"] for info in infos for p in info.get("provenance", ())}
        known = fetched or self.licences.get(benchmark, ())
        return sorted(known) or ["not known"]

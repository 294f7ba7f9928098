"""Score models on frozen test mixtures: one row per item, intervals, and comparisons of systems."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg, subcommand

from auralign.cli.options import Flag
from auralign.cli.terminal import Progress, print_json, print_table, show_log
from auralign.errors import UsageError

Query = Literal["text", "paraphrase", "image", "audio", "combined"]


@dataclasses.dataclass(frozen=True)
class Separation:
    """Score a separator, and others against it, by a paper's definition of the metrics."""

    model: str = "mars-sep-small"
    """Name of a model, or its folder."""

    vs: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="OTHER")] = ()
    """Another model, or mixture, oracle, oracle-bands; compared item by item."""

    corpus: Annotated[Path, arg(metavar="DIR")] = Path("corpora/soundbox")
    """The corpus that the mixtures are made from."""

    lists: Annotated[UseAppendAction[tuple[str, ...]], arg(name="list", metavar="NAME")] = ()
    """Frozen mixture list: a name or a .jsonl file; by default the preset's."""

    preset: Literal["auralign", "omnisep", "audiosep", "bisep", "dcase24t9"] = "auralign"
    """Whose definition of the metrics."""

    query: Query = "text"
    """How the target is asked for; a paraphrase is wording that training never saw."""

    limit: Annotated[int, arg(metavar="N")] = 0
    """Only the first N mixtures of each list; 0 takes all."""

    seed: int = 0
    """Seed of audio examples, absent queries and the bootstrap."""

    judge: Flag = False
    """Also score with the held-out judge (slower)."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for rows.jsonl, summary.json and report.html."""

    device: str = "auto"
    """auto or cpu."""

    json: Flag = False
    """Print the summary as JSON."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Compare arms of models, several seeds each, on the same mixtures and queries; an interrupted trial goes on."""

    arms: Annotated[UseAppendAction[tuple[str, ...]], arg(name="arm", metavar="NAME=MODEL,MODEL,…")] = ()
    """An arm and its models, one a seed; differences are of each arm and those after it."""

    corpus: Annotated[Path, arg(metavar="DIR")] = Path("corpora/soundbox")
    """The corpus that the mixtures are made from."""

    lists: Annotated[UseAppendAction[tuple[str, ...]], arg(name="list", metavar="NAME")] = ()
    """Frozen mixture list: a name or a .jsonl file; by default one in-domain and one cross-domain list."""

    query: UseAppendAction[tuple[Query, ...]] = ()
    """How the target is asked for; by default text, image, audio and combined."""

    judge: Flag = False
    """Also score with the held-out judge (most of the time then goes there)."""

    judge_limit: Annotated[int, arg(metavar="N")] = 0
    """The judge listens to the first N mixtures of each list only; 0 takes all."""

    judge_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the judge; bfloat16 costs half and moved cosines by up to 0.0011, their mean by up to 0.0003."""

    limit: Annotated[int, arg(metavar="N")] = 0
    """Only the first N mixtures of each list; 0 takes all."""

    workers: int = 2
    """Processes, one thread each."""

    seed: int = 0
    """Seed of audio examples and the bootstrap."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for rows, summary.json, table.md and report.html; one with finished rows is completed."""

    json: Flag = False
    """Print the summary as JSON."""


@dataclasses.dataclass(frozen=True)
class Reward:
    """Score a reward encoder: does it rank clean above mixture above interferer, and tell close classes apart?"""

    model: str = "reward-small"
    """Name of a reward encoder, or its folder."""

    corpus: Annotated[Path, arg(metavar="DIR")] = Path("corpora/soundbox")
    """The corpus that the mixtures are made from."""

    lists: Annotated[UseAppendAction[tuple[str, ...]], arg(name="list", metavar="NAME")] = ()
    """Frozen mixture list: a name or a .jsonl file; by default two in-domain lists and a cross-domain one."""

    limit: Annotated[int, arg(metavar="N")] = 0
    """N mixtures of each list, spread evenly; 0 takes all."""

    seed: int = 0
    """Seed of example recordings and mask noise."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for rows and summary."""

    bfloat16: Flag = False
    """Compute features in bfloat16."""

    json: Flag = False
    """Print the summary as JSON."""


@dataclasses.dataclass(frozen=True)
class Enhancement:
    """Compare speech enhancers on the same noisy recordings, each also with the input; what is finished is kept."""

    arms: Annotated[UseAppendAction[tuple[str, ...]], arg(name="arm", metavar="NAME[=MODEL,MODEL,…]")] = ()
    """A system: noisy, clean, log-mmse, nsnet2, gtcrn, a model; or NAME=MODELS, one a seed. MODEL@4 takes 4 steps."""

    vs: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME")] = ()
    """Arm that the others are compared with, recording by recording; by default the input."""

    base: Annotated[str, arg(metavar="NAME")] = ""
    """Arm that the vetoes guard: which arms lost nothing against it, and which safe one is best?"""

    best_by: Annotated[str, arg(metavar="METRIC")] = "dnsmos_ovrl"
    """Metric that chooses among the safe arms."""

    lists: Annotated[UseAppendAction[tuple[str, ...]], arg(name="list", metavar="NAME")] = ()
    """Frozen list: speech-val, speech-dry, speech-reverb, speech-real; by default dry and reverb."""

    pairs: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KIND=DIR[:PART]")] = ()
    """A public set: voicebank-demand, dns2020, librimix, wham or sgmse, its folder, and which part of it."""

    speech: Annotated[Path, arg(metavar="DIR")] = Path("corpora/speech")
    """The speech corpus of the lists."""

    soundbox: Annotated[Path, arg(metavar="DIR")] = Path("corpora/soundbox")
    """The corpus that their noises come from."""

    metrics: Annotated[str, arg(metavar="NAME,NAME,…")] = ""
    """Metrics; all by default."""

    loudness: Literal["keep", "equal"] = "keep"
    """Whether DNSMOS and the speaker encoder hear outputs as they are, or all at one loudness."""

    limit: Annotated[int, arg(metavar="N")] = 0
    """N recordings of each list, spread evenly; 0 takes all."""

    seed: int = 0
    """Seed of the enhancers' noise and the bootstrap."""

    out: Annotated[Path | None, arg(aliases=["-o"], metavar="DIR")] = None
    """Folder for rows, summary.json, table.md and report.html; one with finished rows is completed."""

    rows: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of finished rows that several evaluations share; by default the output's own."""

    device: str = "auto"
    """auto, cpu or cuda."""

    json: Flag = False
    """Print the summary as JSON."""


Options = (
    Annotated[Separation, subcommand("separation")]
    | Annotated[Trial, subcommand("trial")]
    | Annotated[Reward, subcommand("reward")]
    | Annotated[Enhancement, subcommand("enhancement")]
)


def run(options: Separation | Trial | Reward | Enhancement) -> int:
    """Does what the sub-verb says; 1 when some items could not be scored because of an error."""
    show_log()
    match options:
        case Separation():
            return _separation(options)
        case Trial():
            return _trial(options)
        case Reward():
            return _reward(options)
        case Enhancement():
            return _enhancement(options)


def _separation(options: Separation) -> int:
    """Scores every mixture; 1 when some could not be scored because of an error."""
    from auralign import evaluation

    with Progress() as progress:
        result: Any = evaluation.run_separation(
            model=options.model,
            versus=options.vs,
            corpus=options.corpus,
            lists=options.lists,
            preset=options.preset,
            query=options.query,
            limit=options.limit or None,
            seed=options.seed,
            judge=options.judge,
            out=options.out,
            device=options.device,
            on_progress=progress,
        )
    if options.json:
        print_json(result.summary)
    else:
        for rows in (result.summary["rows"], result.summary["comparisons"]):
            print_table(rows, list(dict.fromkeys(key for row in rows for key in row)))
    if options.out is not None:
        print(options.out / "report.html")
    return 1 if result.failed else 0


def _trial(options: Trial) -> int:
    if options.out is None:
        raise UsageError("a trial needs a folder for its rows", where="--out", hint="add -o DIR")
    if options.workers < 1:
        raise UsageError(f"{options.workers} workers score nothing", where="--workers")
    from auralign.evaluation import trial
    from auralign.evaluation.trial_page import short_rows

    cfg = trial.TrialConfig(
        arms=tuple(map(trial.parse_arm, options.arms)),
        corpus=options.corpus,
        lists=options.lists or trial.LISTS,
        queries=options.query or trial.QUERIES,
        limit=options.limit or None,
        judge=options.judge,
        judge_limit=options.judge_limit or None,
        judge_precision=options.judge_precision,
        workers=options.workers,
        seed=options.seed,
    )
    with Progress() as progress:
        result = trial.run_trial(cfg, options.out, on_progress=progress)
    if options.json:
        print_json(result.summary)
    else:
        rows = short_rows(result.summary)
        print_table(rows, list(dict.fromkeys(key for row in rows for key in row)))
        print(options.out / "report.html")
    return 1 if result.failed else 0


def _reward(options: Reward) -> int:
    from auralign.evaluation import reward

    report = reward.run_reward(
        options.model,
        options.corpus,
        options.lists or reward.LISTS,
        limit=options.limit or None,
        seed=options.seed,
        out=options.out,
        narrow=options.bfloat16,
    )
    if options.json:
        print_json(report.summary)
    else:
        rows = [
            {
                "list": name,
                "anchor": anchor,
                "gap": block["tuned"]["gap"]["mean"],
                "untuned_gap": block["untuned"]["gap"]["mean"],
                "in_order": block["tuned"]["triple"]["mean"],
                "untuned_in_order": block["untuned"]["triple"]["mean"],
            }
            for name, parts in report.summary.items()
            for anchor, block in parts.items()
            if anchor != "pairs"
        ]
        print_table(rows, list(rows[0]))
        pairs = [{"pair": pair, **found} for pair, found in report.summary["all"]["pairs"].items()]
        print_table(pairs, list(dict.fromkeys(key for row in pairs for key in row)))
    unscored = sum(bool(row.get("reason")) for row in report.table.rows)
    return 1 if unscored else 0


def _enhancement(options: Enhancement) -> int:
    if options.out is None:
        raise UsageError("an evaluation needs a folder for its rows", where="--out", hint="add -o DIR")
    if not options.arms:
        raise UsageError("there is nothing to compare", where="--arm", hint="for instance --arm log-mmse")
    from auralign.evaluation import enhancement
    from auralign.evaluation.enhancement_items import LISTS, read_lists, read_pairs
    from auralign.evaluation.enhancement_page import difference_rows, mean_rows
    from auralign.evaluation.enhancement_systems import NOISY, parse_arms
    from auralign.runtime.device import pick

    asked = (*options.vs, *filter(None, (options.base,)))
    cfg = enhancement.EnhancementConfig(
        arms=parse_arms((NOISY, *options.arms, *asked)),
        versus=options.vs or (NOISY,),
        base=options.base,
        best_by=options.best_by,
        metrics=tuple(name.strip() for name in options.metrics.split(",") if name.strip()),
        loudness=options.loudness,
        seed=options.seed,
        device=str(pick(options.device).device),
        rows=options.rows,
    )
    limit = options.limit or None
    lists = options.lists or (() if options.pairs else LISTS)
    items = read_lists(lists, speech=options.speech, soundbox=options.soundbox, limit=limit)
    items += read_pairs(options.pairs, limit=limit)
    with Progress() as progress:
        result = enhancement.run_enhancement(cfg, items, options.out, on_progress=progress)
    if options.json:
        print_json(result.summary)
    else:
        for rows in (mean_rows(result.summary), difference_rows(result.summary), result.summary["vetoes"]):
            if rows:
                print_table(rows, list(rows[0]))
        print(options.out / "report.html")
    return 1 if result.failed else 0

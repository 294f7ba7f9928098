"""Processes of a trial, and what they make once for a corpus: features of recordings, prototypes of the judge."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from auralign.errors import AuralignError, DataError, UsageError
from auralign.evaluation.items import SoundboxItems
from auralign.evaluation.trial_queries import read_vectors, write_vectors
from auralign.evaluation.trial_score import Scored, Scorer, Setting, Work

log = logging.getLogger(__name__)

_AHEAD = 4  # mixtures that wait in front of each worker
_running: list[Scorer] = []


def start_worker(setting: Setting) -> None:
    """Load everything once in a worker process; one thread each, so that workers do not fight for cores.

    An interrupt from the keyboard reaches every process; the one that collects the rows decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _running[:] = [Scorer(setting)]


def _score(work: Work) -> Scored:
    return _running[0].score(work)


def _prototype(label: str, waves: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, " dim"]:
    return _running[0].prototype(label, waves)


def _example(clip: str) -> Float[np.ndarray, " dim"]:
    return _running[0].example(clip)


@contextmanager
def _pool(workers: int, setting: Setting) -> Iterator[ProcessPoolExecutor]:
    """Worker processes with everything loaded; waiting work is dropped when something stops the trial."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(setting,))
    try:
        yield pool
    except BrokenProcessPool as error:
        hint = "the same command goes on where it stopped; fewer --workers need less memory"
        raise AuralignError("a worker of the trial died", why=str(error), hint=hint) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def score_all(setting: Setting, works: Sequence[Work], workers: int) -> Iterator[Scored]:
    """Results as they come; with one worker in order and in this process."""
    if workers <= 1:
        scorer = Scorer(setting)
        for work in works:
            yield scorer.score(work)
        return
    with _pool(workers, setting) as pool:
        waiting: set[Future[Scored]] = set()
        for work in works:
            waiting.add(pool.submit(_score, work))
            if len(waiting) >= _AHEAD * workers:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for one in finished:
                    yield one.result()
        for one in waiting:
            yield one.result()


def prepare(setting: Setting, items: SoundboxItems, works: Sequence[Work], workers: int) -> Setting:
    """The same setting with vectors that only the corpus decides; they are kept in its cache for the next trial.

    Args:
        setting: Models, corpus, judge.
        items: The corpus.
        works: What will be scored; the recordings it asks with are what is prepared.
        workers: Processes.
    """
    manifest = hashlib.sha256((setting.corpus / "manifest.jsonl").read_bytes()).hexdigest()[:16]
    cache = setting.corpus / ".cache"
    cache.mkdir(exist_ok=True)
    examples = cache / f"examples-{manifest}.safetensors"
    plain = replace(setting, contenders=(), judge=None)
    known = read_vectors(examples) if examples.exists() else {}
    missing = sorted(_recordings(items, works) - known.keys())
    if missing:
        log.info("%d recordings that queries are made of are heard once", len(missing))
        if workers <= 1:
            scorer = Scorer(plain)
            made = [scorer.example(clip) for clip in missing]
        else:
            with _pool(workers, plain) as pool:
                made = list(pool.map(_example, missing, chunksize=8))
        write_vectors(examples, known | dict(zip(missing, made, strict=True)))
    setting = replace(setting, examples=examples if examples.exists() else None)
    if setting.judge is None:
        return setting
    prototypes = cache / f"prototypes-{setting.judge}-{manifest}.safetensors"
    if not prototypes.exists():
        log.info("the judge hears a few clean recordings of every class")
        sounds = items.prototypes()
        plain = replace(plain, judge=setting.judge)
        if workers <= 1:
            scorer = Scorer(plain)
            heard = [scorer.prototype(label, waves) for label, waves in sounds.items()]
        else:
            with _pool(workers, plain) as pool:
                heard = list(pool.map(_prototype, sounds.keys(), sounds.values()))
        write_vectors(prototypes, dict(zip(sounds, heard, strict=True)))
    return replace(setting, prototypes=prototypes)


def _recordings(items: SoundboxItems, works: Sequence[Work]) -> set[str]:
    """Clips that queries of the work are made of; what cannot be asked is found out again when it is scored."""
    found: set[str] = set()
    for work in works:
        queries = {query for asked in work.asked.values() for query in asked}
        clip = items.clips.get(work.spec.components[work.spec.target].clip)
        for query in queries:
            if clip is None:
                continue
            try:
                found |= set(items.ask(work.spec, clip.labels[0], query).clips)
            except (DataError, UsageError):
                continue
    return found

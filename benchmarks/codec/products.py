"""Figures of the matrix products: encoding, decoding, and all that a client does before it trains."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.codec.figures import TURNS, Figure, Kind, Work, take_turns, timed
from benchmarks.codec.yardsticks import Form, fewest_reductions, published, term_by_term
from lightsecagg import MaskCodec, Parameters, PrimeField, seeded_receivers
from lightsecagg.codec import SeededShares
from lightsecagg.codec.lagrange import interpolation_matrix
from lightsecagg.field import Elements
from lightsecagg.kernels import ModularMatrix
from lightsecagg.packing import pack
from lightsecagg.protocol.collecting import Answers
from lightsecagg.protocol.dealing import Dealing
from lightsecagg.protocol.messages import MaskName
from lightsecagg.protocol.wire import part_elements
from lightsecagg.randomness import BLOCK_ELEMENTS, SEED_BYTES, expand, system_entropy
from lightsecagg.sealing import PairKeys, RoundKey
from lightsecagg.spans import SpanName

DIMENSION = 1_206_590
ORDERS = {2**24 - 3: "2^24 − 3", 2**31 - 1: "2^31 − 1"}  # one float64 product, and two
BOUND_GOAL, DECODE_GOAL, OFFLINE_GOAL = 0.6, 50.0, 2.5

_OWNER = 1
_COLUMNS = 2**12  # of a sample for the yardsticks: their rows stay in cache
_MULTIPLY_ADDS = 2**21  # milliseconds of work for a yardstick
_ONE_PRODUCT_BITS = 24


@dataclass(frozen=True, slots=True)
class Size:
    """A cohort and how much faster than ``term_by_term`` it has to be encoded for."""

    parameters: Parameters
    goal: float

    @property
    def label(self) -> str:
        """For people."""
        numbers = self.parameters
        return f"N={numbers.num_clients}, U={numbers.target_survivors}, T={numbers.privacy_threshold}"


LARGE = Size(Parameters(200, 140, 100), 200)
SIZES = (LARGE, Size(Parameters(50, 35, 25), 100), Size(Parameters(10, 7, 5), 25))


class Stopwatch:
    """A listener to spans that adds up the processor seconds of each."""

    def __init__(self) -> None:
        self.seconds: dict[SpanName, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: SpanName) -> Iterator[None]:
        begin = time.thread_time()
        yield
        self.seconds[name] += time.thread_time() - begin


def encoding(size: Size, order: int) -> Iterator[Figure]:
    """Seeded encode against NumPy's forms of the paper's, and against the multiply-adds that it takes."""
    codec = MaskCodec(PrimeField(order), size.parameters)
    seeds = _seeds(codec)
    shares = codec.seeded(_OWNER, seeds)
    columns = codec.share_length(DIMENSION)
    clients = range(1, size.parameters.num_clients + 1)
    forms = _numpy_forms(interpolation_matrix(codec.field, codec.data_points, clients), order, columns)
    wanted = [*codec.mask_points, *shares.receivers]
    derive = ModularMatrix(order, interpolation_matrix(codec.field, tuple(seeds), wanted))
    products = 1 if derive.blocks[0].high is None else 2
    seconds = take_turns(
        {
            "ours": partial(_encode_seconds, shares),
            "dgemm": _bare_products(derive, columns),
            **forms,
        }
    )
    what = f"encode {size.label}, {ORDERS[order]}"
    yield from _beside_numpy(what, size.goal if products == 1 else None, seconds, forms)
    for count in range(1, products + 1):
        goal = BOUND_GOAL if products == 1 and size is LARGE else None
        bound = [count * found for found in seconds["dgemm"]]
        yardstick = f"{count} × (N−T)·U·m at dgemm's rate"
        yield Figure(what, yardstick, Kind.SHARE, goal, seconds["ours"], bound)


def _beside_numpy(
    what: str, goal: float | None, seconds: Mapping[str, list[float]], forms: Iterable[str]
) -> Iterator[Figure]:
    for name in forms:
        counts = goal if name == "term by term" else None
        yield Figure(what, f"NumPy, {name}", Kind.FASTER, counts, seconds["ours"], seconds[name])


def _seeds(codec: MaskCodec) -> dict[int, bytes]:
    receivers = seeded_receivers(_OWNER, codec.clients, codec.parameters.target_survivors)
    return {receiver: system_entropy(SEED_BYTES) for receiver in receivers}


def _encode_seconds(shares: SeededShares) -> float:
    """A whole mask tile by tile, what it takes to expand the seeds left out."""
    watch = Stopwatch()
    for _ in shares.tiles(DIMENSION, BLOCK_ELEMENTS, watch):
        pass
    return watch.seconds["encode"]


def _numpy_forms(weights: Elements, order: int, columns: int) -> dict[str, Work]:
    """NumPy's forms of the product of ``weights`` with data of ``columns``, each measured on a part of it.

    ``published`` takes a row over all columns, as it would; the others so few columns as suit them best.
    """
    rows, inputs = weights.shape
    data = np.random.default_rng(order).integers(0, order, (inputs, columns), dtype=np.uint32)
    expected = ModularMatrix(order, weights).product(data)

    def work(form: Form, kind: type[np.integer], some_rows: int, some_columns: int) -> Work:
        sample = np.ascontiguousarray(data[:, :some_columns]).astype(kind)
        run = partial(form, weights[:some_rows].astype(kind), sample, order)
        assert np.array_equal(run(), expected[:some_rows, :some_columns]), "a yardstick has to be exact"
        return timed(run, part=some_rows * some_columns / (rows * columns))

    cached = min(columns, _COLUMNS)
    few_rows = min(rows, _MULTIPLY_ADDS // (inputs * cached) + 1)
    few_columns = max(64, min(cached, 4 * _MULTIPLY_ADDS // weights.size))
    works = {
        "term by term": work(term_by_term, np.int64, few_rows, cached),
        "fewest reductions": work(fewest_reductions, np.uint64, rows, few_columns),
    }
    if order.bit_length() <= _ONE_PRODUCT_BITS:
        works["published"] = work(published, np.int64, 1, columns)
    return works


def _bare_products(derive: ModularMatrix, columns: int) -> Work:
    """One float64 product for every column, in tiles as wide as ours that are hot."""
    rows, inputs = derive.shape
    width = min(derive._tile, columns)
    tile, out = np.random.default_rng(rows).standard_normal((inputs, width)), np.empty((rows, width))
    times = 32 * _MULTIPLY_ADDS // (rows * inputs * width) + 1
    action = partial(np.matmul, derive.blocks[0].low, tile, out=out)
    return timed(action, times=times, part=width / columns)


def decoding(size: Size, order: int) -> Iterator[Figure]:
    """The server's decoding of U packed answers, matrix and unpacking included, against NumPy's products."""
    codec = MaskCodec(PrimeField(order), size.parameters)
    field, columns = codec.field, codec.share_length(DIMENSION)
    answers, numbers = Answers(codec, DIMENSION), range(1, size.parameters.target_survivors + 1)
    for number in numbers:
        answer = expand(system_entropy(SEED_BYTES), field, 0, columns)
        for index, first in enumerate(range(0, columns, part_elements(field))):
            answers.take(number, index, pack(field, answer[first : first + part_elements(field)]))
    forms = _numpy_forms(interpolation_matrix(field, numbers, codec.mask_points), order, columns)
    seconds = take_turns({"ours": timed(answers.decode), **forms})
    goal = DECODE_GOAL if order.bit_length() <= _ONE_PRODUCT_BITS else None
    yield from _beside_numpy(f"decode {size.label}, {ORDERS[order]}", goal, seconds, forms)


def offline(size: Size, order: int) -> Iterator[Figure]:
    """Expand, encode, pack and seal, against the encode in that same run; and the keys to seal with."""
    codec = MaskCodec(PrimeField(order), size.parameters)
    peers = {number: RoundKey().public for number in range(2, size.parameters.num_clients + 1)}
    totals: list[float] = []
    agreements: list[float] = []
    watches: list[Stopwatch] = []
    for _ in range(TURNS + 1):
        begin = time.thread_time()
        keys = _agree(peers)
        agreed = time.thread_time()
        watch = Stopwatch()
        dealing = Dealing(codec, MaskName(_OWNER, 1, 0), DIMENSION, keys, system_entropy, watch)
        for _ in dealing.messages(lambda: False):
            pass
        totals.append(time.thread_time() - agreed)
        agreements.append(agreed - begin)
        watches.append(watch)
    encode = [watch.seconds["encode"] for watch in watches[1:]]
    where = f"{size.label}, {ORDERS[order]}"
    goal = OFFLINE_GOAL if size is LARGE else None
    yield Figure(f"offline phase {where}", "the encode alone", Kind.COST, goal, totals[1:], encode)
    if size is LARGE:
        for step in ("expand", "seal"):
            steps = [watch.seconds[step] for watch in watches[1:]]
            yield Figure(f"  of it {step}", "the encode alone", Kind.COST, None, steps, encode)
        name = "  before it, key agreement"
        yield Figure(name, "the encode alone", Kind.COST, None, agreements[1:], encode)


def _agree(peers: dict[int, bytes]) -> dict[int, PairKeys]:
    own = RoundKey()
    return {number: own.agree(public, bytes(32), 1, _OWNER, number) for number, public in peers.items()}

"""Whether any bytes from a stranger can crash atomdiff, keep it busy, fill its memory or be run by it.

    PYTHONPATH=tests python -m hostile [--cases 100000] [--seed 0] [--check]

Sound concepts are mutated (bits, bytes, slices, lengths, values of headers, chunks with right checksums) and
given to every reader: the file, the card, the frames of QR codes, the chat text, and whole pictures in which
codes are looked for, as `atomdiff read` does. Then come those made by hand. A reader must give a
concept back or refuse in one sentence, a `ConceptError` (for a picture that cannot be decoded an
`ImageError`), within 50 ms of CPU time and 50 MB of memory beside its input. Looking for codes in pixels has
limits of its own, PICTURE_MS and PICTURE_MB: at most 40 megapixels are decoded. An audit hook tells whether
anything was unpickled, compiled, run or connected to. With --check the exit status is 1 if a target is
missed, and the last line names those.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import tracemalloc
import warnings
from pathlib import Path

from made_up import random_concept

from atomdiff.errors import ConceptError, ImageError
from atomdiff.files.safetensors_file import to_bytes
from benchmarks import report
from hostile import carriers
from hostile.campaign import LARGE_MB, PICTURE_MB, Campaign, Watch, memory, readers
from hostile.mutations import MUTATORS

BATCH = 250  # mutated cases between two looks at the memory
SHARES = {"file": 45, "card": 18, "codes": 14, "text": 22, "picture": 1}


def sound_files(count: int, seed: int) -> list[bytes]:
    """Concepts to start from, in all precisions."""
    dice = random.Random(seed)
    return [to_bytes(random_concept(dice), ("fp16", "int8", "int4", "fp32")[i % 4]) for i in range(count)]


def mutated(campaign: Campaign, cases: int, seed: int, folder: Path) -> None:
    """So many mutated cases, over all readers."""
    dice, read = random.Random(seed), readers(folder)
    names, weights = list(SHARES), list(SHARES.values())
    sound = sound_files(40, seed)
    first = 0
    while first < cases:
        reader = dice.choices(names, weights)[0]
        count = min(BATCH if reader != "picture" else BATCH // 5, cases - first)
        if dice.random() < 0.05:
            sound = sound_files(40, dice.getrandbits(32))
        batch = [MUTATORS[reader](dice.choice(sound), dice) for _ in range(count)]
        grown: list[float] = []
        with memory(grown):
            for i, data in enumerate(batch):
                campaign.judge(f"{reader} {seed}/{first + i}", reader, read[reader], data)
        _weigh(campaign, reader, f"{reader} {seed}/{first} and on", grown[0])
        first += count


def by_hand(campaign: Campaign, folder: Path) -> int:
    """The files made by hand; returns how many. Each must be refused."""
    read = readers(folder)
    dice = random.Random(7)
    sound = [to_bytes(random_concept(dice), kind) for kind in ("fp16", "int8", "int4")]
    cases = carriers.by_hand(*sound)
    for name, (reader, data) in cases.items():
        grown: list[float] = []
        with memory(grown):
            refused = campaign.judge(name, reader, read[reader], data)
        if not refused:
            campaign.fault("taken for a concept", name)
        tracemalloc.start()
        with contextlib.suppress(Exception):
            read[reader](data)
        grown.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
        _weigh(campaign, reader, name, max(grown))
    return len(cases)


def _weigh(campaign: Campaign, reader: str, name: str, grown: float) -> None:
    tally = campaign.tallies[reader]
    tally.largest = max(tally.largest, grown)
    if grown > (PICTURE_MB if reader == "picture" else LARGE_MB):
        campaign.fault("large", f"{name}: {grown:.0f} MB")


def warm_up(folder: Path) -> None:
    """Everything that is imported when it is first used, so that imports are not taken for an attack."""
    dice = random.Random(1)
    data = to_bytes(random_concept(dice))
    read = readers(folder)
    for name, mutate in MUTATORS.items():
        for _ in range(30):
            with contextlib.suppress(ConceptError, ImageError):
                read[name](mutate(data, dice))
    for reader, group in (("path", carriers.foreign), ("picture", carriers.pictures)):
        for _, hostile in group(data):
            with contextlib.suppress(Exception):
                read[reader](hostile)


def run(cases: int, seed: int) -> tuple[Campaign, int]:
    """The whole campaign, and how many files made by hand were in it."""
    campaign = Campaign(Watch())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        warm_up(folder)
        warnings.simplefilter("error")  # a warning is not a sentence: it counts as a crash
        mutated(campaign, cases, seed, folder)
        return campaign, by_hand(campaign, folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000, help="mutated files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="exit 1 if a target is missed")
    options = parser.parse_args()
    campaign, hand_made = run(options.cases, options.seed)
    rows = [
        (
            name,
            f"{tally.cases:,}",
            f"{tally.refused:,}",
            len(tally.sentences),
            f"{tally.slowest:.1f} ms",
            f"{tally.largest:.0f} MB",
        )
        for name, tally in campaign.tallies.items()
    ]
    headers = ("reader", "cases", "refused", "kinds of sentence", "slowest", "largest")
    report.show(f"Hostile input, {hand_made} made by hand ({report.machine()})", headers, rows)
    kinds = ("crash", "slow", "large", "not one sentence", "run or unpickled", "taken for a concept")
    targets = [
        report.Target(kind, len(campaign.faults.get(kind, [])), high=0, unit="cases") for kind in kinds
    ]
    targets.append(report.Target("files made by hand", hand_made, low=60))
    report.verdict(targets, options.check)


if __name__ == "__main__":
    main()

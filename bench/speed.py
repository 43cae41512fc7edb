"""Paired speed benchmark: peers answer the same cases in turns, each turn is a ratio to the first peer of the group.

    python -m bench.speed --package int8=PACKAGE --package portable=PACKAGE --checkpoint CHECKPOINT \\
        --group int8,portable,torch-bf16 --rounds 7 --json FILE

Peers: every name given with --package; torch-bf16, torch-fp32 (--checkpoint); openvino-int8, openvino-int4 and the
same with -f32 for float32 arithmetic (--openvino, the folder of bench.speed_openvino_export); llama-q8_0, llama-q4_0
(--llama, the folder of bench.speed_llama_export; text only). All peers of a group are in memory at once, each in a
process of its own. A first, untimed round warms up.
"""

import argparse
import json
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.operator_profile import operator_shares
from bench.speed_cases import CASES
from bench.speed_peers import Peer, PeerOptions, start_peer
from bench.speed_table import Timing, cosine, format_table
from runtime.planning.machine import machine_facts

PAUSE = 0.4  # seconds between runs: the last peer's idle threads may still be spinning


def measure(peers: list[Peer], cases: list[str], rounds: int) -> list[Timing]:
    """Every case, every round, every peer, in an order that changes."""
    order = random.Random(0)
    seconds: dict[tuple[str, str], list[float]] = {(case, peer.name): [] for case in cases for peer in peers}
    cosines: dict[tuple[str, str], float] = {}
    for case in cases:
        outputs = [peer.run(case)[1] for peer in peers]
        for peer, output in zip(peers, outputs, strict=True):
            cosines[case, peer.name] = cosine(outputs[0], output)
    for number in range(rounds):
        for case in cases:
            for peer in order.sample(peers, len(peers)):
                time.sleep(PAUSE)
                seconds[case, peer.name].append(peer.run(case)[0])
        print(f"round {number + 1} of {rounds}", flush=True)
    return [Timing(case, name, times, cosines[case, name]) for (case, name), times in seconds.items()]


def run_group(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Start the peers, measure, stop them, print the table."""
    packages = dict(each.split("=", 1) for each in options.package)
    python, threads = options.peer_python, options.threads
    setting = PeerOptions({name: Path(path) for name, path in packages.items()}, options.checkpoint,
                          options.openvino, options.llama, python, threads)  # fmt: skip
    peers: list[Peer] = []
    try:
        for name in names:
            peers.append(start_peer(name, setting))
            print(f"{name}: {', '.join(f'{key} {value}' for key, value in peers[-1].facts.items())}", flush=True)
        timings = measure(peers, options.cases, options.rounds)
        print(format_table(timings, names[0]), flush=True)
    finally:
        for peer in peers:
            peer.stop()
    return {"peers": {peer.name: peer.facts for peer in peers}, "timings": [asdict(timing) for timing in timings]}


def main() -> None:
    """Measure each group, or profile the first package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--package", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--group", action="append", type=lambda text: text.split(","), metavar="NAME,NAME…")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CASES), metavar="CASE,CASE…")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--openvino", type=Path, metavar="FOLDER")
    parser.add_argument("--llama", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--peer-python", type=Path, help="interpreter of the environment with torch, openvino, llama.cpp"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="time per operator of the first package, no peers")
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"unknown case {sorted(unknown)[0]}, known are {', '.join(CASES)}")
    facts = machine_facts()
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), f"\nthreads: {options.threads}\n", flush=True)
    if options.profile:
        for case in options.cases:
            print(operator_shares(Path(options.package[0].split("=", 1)[1]), CASES[case], options.threads), flush=True)
        return
    if not options.group:
        parser.error("nothing to compare: give --group NAME,NAME… or --profile")
    results = [run_group(group, options) for group in options.group]
    if options.json:
        content = {"machine": facts, "threads": options.threads, "groups": results}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What the edge costs: each layer in µs, and a lean route against a stock FastAPI route.

    make bench-edge            ARGS="--seconds 4 --rounds 3"

All routes take the same body model, verify the same token with the same cache, and answer the same
constant. The stock one is FastAPI as its documentation has it and does nothing else; ours have
every layer on. Servers run on core 0, the load on core 1; they take turns within each round, and
the figures are medians over the rounds. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from bench_orders import MANY, compare, middle
from writepath import place
from writepath.edgecost import BODY, FASTAPI, LEAN
from writepath.firing import Shots, fire, post
from writepath.place import Server


def load(server: Server, path: str, seconds: float) -> Shots:
    """One stretch of the same request again and again, as a usual client sends it."""
    headers = "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nUser-Agent: bench\r\n"
    request = post(server.port, path, server.token, json.dumps(BODY).encode(), headers)
    return fire(server.port, MANY, seconds, lambda _: request, 0)[0]


async def main(options: argparse.Namespace) -> dict[str, Any]:
    pinned = place.pin(place.LOAD_CORE)
    print("cores:", "servers on 0; load on 1" if pinned else "not pinned")
    async with place.database() as database:
        dsn = database.dsn("app")
        with place.serving("layers", dsn) as measured:
            layers: dict[str, float] = measured.facts["layers"]
        for name, cost_us in layers.items():
            print(f"  {name:20s} {cost_us:8.2f} µs")
        with (
            place.serving("stock", dsn, path=LEAN, cached=True) as stock,
            place.serving("edge", dsn) as edge,
        ):
            runs = {
                "stock": (stock, lambda: load(stock, LEAN, options.seconds)),
                "lean": (edge, lambda: load(edge, LEAN, options.seconds)),
                "our edge, FastAPI's route": (edge, lambda: load(edge, FASTAPI, options.seconds)),
            }
            found = await compare(database, runs, options.rounds)
    per_s = {name: middle(shots, lambda s: s.per_s) for name, shots in found.items()}
    return {
        "ratio_lean_over_stock": round(per_s["lean"] / per_s["stock"], 2),
        "layers": layers,
        "lean_per_s": round(per_s["lean"]),
        "stock_per_s": round(per_s["stock"]),
        "fastapi_per_s": round(per_s["our edge, FastAPI's route"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="Length of one stretch.")
    parser.add_argument("--rounds", type=int, default=3)
    print(json.dumps(asyncio.run(main(parser.parse_args()))))

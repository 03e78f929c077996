"""Compares the runs that record.py wrote: compare.py FOLDER. Ends with 1 where a test that passes with libtorch's passes
does not pass with jitquant's, or where a pass was never reached."""

import collections
import json
import pathlib
import sys

PASSES = [
    "InsertObservers",
    "InsertObserversForOnDevicePTQ",
    "InsertQuantDeQuant",
    "InsertQuantDeQuantOnDevicePTQ",
    "Finalize",
    "FinalizeOnDevicePTQ",
    "FoldConvBatchNorm",
    "DedupModuleUses",
    "FuseLinear",
    "SwapFunctionalLinear",
    "ReplicateDeQuant",
    "FuseQuantizedAddRelu",
]


def read(file):
    return json.loads(file.read_text()) if file.exists() else {}


def main():
    folder = pathlib.Path(sys.argv[1])
    total = collections.Counter()
    worse = []
    print(f"{'suite':<30}{'tests':>7}{'libtorch':>10}{'of these, jitquant':>20}")
    for stock_file in sorted(folder.glob("*.stock.json")):
        suite = stock_file.name.removesuffix(".stock.json")
        stock, ours = read(stock_file), read(folder / f"{suite}.jitquant.json")
        passing = [name for name, said in stock.items() if said == "ok"]
        different = [name for name in passing if ours.get(name) != "ok"]
        worse += [(f"{suite}: {name}", ours.get(name, "not run")) for name in different]
        row = {"tests": len(stock), "stock": len(passing), "ours": len(passing) - len(different)}
        total.update(row)
        print(f"{suite:<30}{row['tests']:>7}{row['stock']:>10}{row['ours']:>20}")
    print(f"{'all':<30}{total['tests']:>7}{total['stock']:>10}{total['ours']:>20}")

    calls_file = folder / "calls"
    calls = collections.Counter(calls_file.read_text().split() if calls_file.exists() else [])
    print("\ncalls of jitquant's passes: " + ", ".join(f"{name} {calls[name]}" for name in PASSES))
    for name, said in worse:
        print(f"\n{name}\n{said}")
    missing = [name for name in PASSES if not calls[name]]
    if missing:
        print("\nnever reached: " + ", ".join(missing))
    if worse or missing or not total["stock"]:
        sys.exit(1)


main()

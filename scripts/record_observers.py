#!/usr/bin/env python3
"""Records what torch.ao's observers give, for tests/observer_torch_ao.rs.

    python scripts/record_observers.py > tests/data/observers/torch_ao.json

Needs torch 2.13.0 and numpy. The inputs are not recorded: tests/observer_inputs/mod.rs computes the same ones, by
exact integer arithmetic followed by single f32 operations. Keep the two alike.
"""

import json
import sys
import warnings

import numpy as np
import torch
from torch.ao.quantization import observer as ao

F32 = np.float32
U64 = np.uint64


def hashes(seed, n):
    """splitmix64's output function over a counter."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, n + 1, dtype=U64) + U64(seed) * U64(1 << 32)) * U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return z ^ (z >> U64(31))


def uniform(seed, n):
    """[0, 1), 24 bits."""
    return (hashes(seed, n) >> U64(40)).astype(F32) * F32(2.0**-24)


def normal(seed, n):
    """Nearly normal, deviation 1.15, within +-4: the sum of four 16-bit parts of a hash."""
    h = hashes(seed, n)
    parts = sum(((h >> U64(16 * k)) & U64(0xFFFF)).astype(np.int64) for k in range(4))
    return (parts - 131070).astype(F32) * F32(2.0**-15)


def exp2_linear(x):
    """2^x, linear between whole x: exact in f32."""
    whole = np.floor(x)
    return np.ldexp(F32(1) + (x - whole), whole.astype(np.int32)).astype(F32)


DISTRIBUTIONS = {
    "normal": lambda s, n: normal(s, n) * F32(0.7318),
    "normal_grid": normal,
    "uniform": lambda s, n: uniform(s, n) * F32(6.25) - F32(2.5),
    "lognormal": lambda s, n: exp2_linear(normal(s, n) * F32(1.5)),
    "relu": lambda s, n: np.maximum(normal(s, n), F32(0)),
    "relu6": lambda s, n: np.minimum(np.maximum(normal(s, n) * F32(3), F32(0)), F32(6)),
    "constant": lambda s, n: np.full(n, 1.25, F32),
    "constant_negative": lambda s, n: np.full(n, -0.3, F32),
    "zero": lambda s, n: np.zeros(n, F32),
    "all_negative": lambda s, n: normal(s, n) * F32(0.25) - F32(3),
    "all_positive": lambda s, n: normal(s, n) * F32(0.25) + F32(3),
    "tiny": lambda s, n: normal(s, n) * F32(1e-6),
    "huge": lambda s, n: normal(s, n) * F32(1e6),
    "outliers": lambda s, n: np.where(hashes(s + 7, n) % U64(997) == 0, normal(s, n) * F32(60), normal(s, n)),
    "bimodal": lambda s, n: np.where(hashes(s + 7, n) % U64(2) == 0, normal(s, n) - F32(9), normal(s, n) + F32(5)),
    "few_values": lambda s, n: np.floor(normal(s, n) * F32(2)) * F32(0.5),
}

# A batch is multiplied by the plan's factor for it, so that ranges grow, stay, or shrink.
PLANS = {
    "one": [1.0],
    "stays": [1.0, 0.5, 0.75],
    "grows": [1.0, 1.5, 1.25, 4.0],
    "grows_much": [0.001, 1.0, 30.0],
    "large": [1.0, 1.3],
}


def lengths(plan):
    return [100_000, 120_001] if plan == "large" else [1500, 4099, 777, 2048]


def batches(distribution, plan):
    make = DISTRIBUTIONS[distribution]
    return [make(10 * k + 1, n) * F32(factor) for k, (n, factor) in enumerate(zip(lengths(plan), PLANS[plan]))]


DTYPES = {"u8": torch.quint8, "i8": torch.qint8}
OPTIONS = {
    "": {},
    "reduce_range": {"reduce_range": True},
    "narrow": {"i8": (-127, 127), "u8": (0, 100)},
    "narrow_reduced": {"i8": (-127, 127), "u8": (0, 127), "reduce_range": True},
    "eps": {"eps": 0.02},
}


def settings(per_channel):
    for dtype in DTYPES:
        for kind in ("affine", "symmetric"):
            for name, options in OPTIONS.items():
                if options.get("reduce_range") and (dtype, kind) == ("u8", "symmetric"):
                    continue
                keywords = {"dtype": DTYPES[dtype]}
                keywords["qscheme"] = getattr(torch, f"per_{'channel' if per_channel else 'tensor'}_{kind}")
                if dtype in options:
                    keywords["quant_min"], keywords["quant_max"] = options[dtype]
                for option in ("reduce_range", "eps"):
                    if option in options:
                        keywords[option] = options[option]
                yield f"{dtype} {kind} {name}".strip(), keywords


def number(x):
    """The shortest decimal that gives this f32 again."""
    return json.loads(str(F32(x)))


def numbers(tensor):
    return [number(x) for x in tensor.reshape(-1).numpy()]


def qparams_for_settings(cls, min_val, max_val, per_channel, **keywords):
    """The qparams of `cls` with this state, for every setting."""
    result = {}
    for name, options in settings(per_channel):
        observer = cls(**options, **keywords)
        observer.min_val, observer.max_val = min_val.clone(), max_val.clone()
        scale, zero_point = observer.calculate_qparams()
        result[name] = [numbers(scale), zero_point.reshape(-1).tolist()]
    return result


def per_tensor(cls, **keywords):
    cases = []
    for distribution in DISTRIBUTIONS:
        for plan in PLANS:
            observer = cls(**keywords)
            for batch in batches(distribution, plan):
                observer(torch.from_numpy(batch))
            case = {"distribution": distribution, "plan": plan}
            case["range"] = numbers(torch.stack([observer.min_val, observer.max_val]))
            if plan == "grows":
                case["qparams"] = qparams_for_settings(cls, observer.min_val, observer.max_val, False)
            cases.append(case)
    return cases


SHAPES = [([5, 3, 7, 9], 1), ([6, 40], 0), ([40, 6], 1), ([33, 5], -1), ([4, 3, 2, 2], 1), ([3, 70], 0)]


def per_channel(cls, **keywords):
    cases = []
    for distribution in ("normal", "all_negative", "relu", "outliers", "zero"):
        for shape, axis in SHAPES:
            observer = cls(ch_axis=axis, **keywords)
            for k, factor in enumerate(PLANS["grows"]):
                values = DISTRIBUTIONS[distribution](10 * k + 1, int(np.prod(shape))) * F32(factor)
                observer(torch.from_numpy(values).reshape(shape))
            case = {"distribution": distribution, "shape": shape, "axis": axis}
            case["min"], case["max"] = numbers(observer.min_val), numbers(observer.max_val)
            if shape == SHAPES[0][0]:
                case["qparams"] = qparams_for_settings(cls, observer.min_val, observer.max_val, True)
            cases.append(case)
    return cases


def checksum(counts):
    """Differs where counts are in other bins; exact for multiples of 1/16."""
    weights = np.arange(len(counts), dtype=np.int64) * 7919 % 1009 + 1
    return float((counts.numpy().astype(np.float64) * weights).sum())


def histogram():
    cases = []
    for distribution in DISTRIBUTIONS:
        for plan in PLANS:
            for bins in (2048, 100):
                observer = ao.HistogramObserver(bins=bins)
                for batch in batches(distribution, plan):
                    observer(torch.from_numpy(batch))
                case = {"distribution": distribution, "plan": plan, "bins": bins}
                case["range"] = numbers(torch.stack([observer.min_val, observer.max_val]))
                case["total"] = number(observer.histogram.sum())
                case["checksum"] = checksum(observer.histogram)
                low, high = observer._non_linear_param_search()
                case["best"] = numbers(torch.stack([low, high]))
                scale, zero_point = observer.calculate_qparams()
                case["scale"], case["zero_point"] = number(scale.item()), int(zero_point)
                cases.append(case)
    return cases


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    record = {
        "torch": torch.__version__,
        "min_max": per_tensor(ao.MinMaxObserver),
        "moving_average": per_tensor(ao.MovingAverageMinMaxObserver, averaging_constant=0.1),
        "per_channel": per_channel(ao.PerChannelMinMaxObserver),
        "moving_average_per_channel": per_channel(ao.MovingAveragePerChannelMinMaxObserver, averaging_constant=0.1),
        "histogram": histogram(),
    }
    # One case a line.
    def text(value):
        if not isinstance(value, list):
            return json.dumps(value)
        return "[\n" + ",\n".join(json.dumps(case) for case in value) + "\n]"

    lists = ",\n".join(f"{json.dumps(key)}: {text(value)}" for key, value in record.items())
    sys.stdout.write("{\n" + lists + "\n}\n")


if __name__ == "__main__":
    main()

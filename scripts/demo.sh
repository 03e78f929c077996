#!/usr/bin/env bash
# demo.sh: quantizes the trained digit classifier, runs the result with libtorch alone, and compares it with the
# original on digits that neither training nor calibration has seen. `make demo` builds first and then runs this.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

jitquant=${CARGO_TARGET_DIR:-target}/debug/jitquant
libtorch=${LIBTORCH:-$PWD/.libtorch/torch}
out=demo-out
mkdir -p "$out"

say() {
    printf '\n%s\n' "$*"
}

show() {
    printf '\n  $ %s\n\n' "$(basename "$1") ${*:2}"
    "$@"
}

say "1. A convolutional network was trained on 4,000 handwritten digits and saved as TorchScript: examples/digits/digits.pt.
   Its weights and everything that it computes are 32-bit floats. 500 of the training digits now run through it, while
   observers watch which range each tensor takes. Then weights and activations are rounded to 8-bit integers."
show "$jitquant" quantize examples/digits/digits.pt -o "$out/digits.int8.pt" \
    --calibrate examples/digits/calibration.npz --labels labels

say "2. The INT8 file needs no jitquant and no Python to run. Here is a C++ program of 90 lines (examples/stock/run.cpp)
   that links libtorch and nothing else; it runs the file on 16 digits."
if [ ! -x "$out/stock-run" ] || [ examples/stock/run.cpp -nt "$out/stock-run" ]; then
    "${CXX:-c++}" -std=c++20 -O1 examples/stock/run.cpp -o "$out/stock-run" \
        -isystem "$libtorch/include" -isystem "$libtorch/include/torch/csrc/api/include" \
        -L"$libtorch/lib" -Wl,-rpath,"$libtorch/lib" -Wl,--no-as-needed -ltorch_cpu -lc10
fi
# The deprecation notice of libtorch's quantized types is of no interest here.
show "$out/stock-run" "$out/digits.int8.pt" examples/digits/sixteen.npy "$out/scores.npy" \
    2> >(grep -v 'Warning: .*quantized' >&2)

say "3. How good is it? Both networks now read 1,000 digits that neither has seen."
show "$jitquant" compare examples/digits/digits.pt "$out/digits.int8.pt" \
    --data examples/digits/heldout.npz --labels labels

say "What the figures mean: 'accuracy' is the share of digits read rightly. 'top-1 agreement' is how often both networks
give the same answer. 'SQNR' compares the outputs as numbers: 20 dB is an error of a tenth, 30 dB of a thirtieth; from
about 20 dB on answers rarely change. The time is that of libtorch's own INT8 operators on this machine.

Your own model next. It has to be TorchScript: in Python, torch.jit.script(model.eval()).save(\"model.pt\"), or .trace.

  $jitquant inspect model.pt                                     what can be quantized, and what not and why
  $jitquant quantize model.pt -o model.int8.pt --calibrate data.npz
  $jitquant compare model.pt model.int8.pt --data other.npz
  $jitquant bench model.pt model.int8.pt --data other.npz

data.npz holds one array for each input of the model, the first dimension counting the samples; a folder of photographs
does as well. For transformers try --mode dynamic, which needs no data. '$jitquant quantize --help' tells the rest."

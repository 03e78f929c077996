#!/usr/bin/env bash
# Runs PyTorch's own test suites for the quantization passes twice, on libtorch's passes and on jitquant's in their
# place, and compares test by test. A test that passes with libtorch's has to pass with jitquant's.
#
#   scripts/conformity/run.sh PYTORCH [PYTHON]
#
# PYTORCH is the folder of a PyTorch checkout (or PYTORCH_SOURCE); its test/quantization/jit is used as it is. PYTHON
# has the torch that the library is built for, with expecttest and hypothesis; without it one is made in .venv-conformity.
# JITQUANT_LIBRARY is the libjitquant.so to test; without it one is built.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/scripts/conformity
pytorch=${1:-${PYTORCH_SOURCE:-}}
suites=$pytorch/test/quantization/jit
if [[ ! -f $suites/test_quantize_jit.py ]]; then
  echo "conformity: '$suites' has no test_quantize_jit.py; give the folder of a PyTorch checkout as PYTORCH_SOURCE" >&2
  exit 2
fi
suites=$(cd "$suites" && pwd)

python=${2:-$root/.venv-conformity/bin/python}
if [[ ! -x $python ]]; then
  python3 -m venv "$root/.venv-conformity"
  "$root/.venv-conformity/bin/pip" install --quiet torch==2.13.0 numpy expecttest hypothesis psutil
fi
torch=$("$python" -c 'import torch; print(torch.__path__[0])')

work=$root/target/conformity
mkdir -p "$work"
library=${JITQUANT_LIBRARY:-$root/target/release/libjitquant.so}
if [[ -z ${JITQUANT_LIBRARY:-} ]]; then
  (cd "$root" && cargo build --release --lib --no-default-features --features torch)
fi
cp "$library" "$work/libjitquant.so"
# The name that its ABI gives it.
ln -sf libjitquant.so "$work/$(readelf -dW "$library" | sed -nE 's/.*soname: \[(.*)\]/\1/p')"
# Python's libtorch stands first, so that the library, too, uses that one.
g++ -std=c++20 -O1 -fPIC -shared -fvisibility=hidden -fvisibility-inlines-hidden \
  -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include" -I"$root/include" \
  "$here/interpose.cpp" -o "$work/libinterpose.so" \
  -Wl,--no-as-needed -L"$torch/lib" -ltorch_cpu -lc10 -L"$work" -ljitquant \
  -Wl,--disable-new-dtags,-rpath,"$torch/lib:$work"

# The models are small: more threads only wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
rm -f "$work"/*.json "$work/calls"
for suite in test_fusion_passes test_deprecated_jit_quant test_ondevice_quantization test_quantize_jit; do
  echo "conformity: $suite" >&2
  # A suite whose process crashes is judged by what it wrote until then.
  "$python" "$here/record.py" "$suites/$suite.py" "$work/$suite.stock.json" &> "$work/$suite.stock.log" || true
  CONFORMITY_CALLS=$work/calls LD_PRELOAD=$work/libinterpose.so \
    "$python" "$here/record.py" "$suites/$suite.py" "$work/$suite.jitquant.json" &> "$work/$suite.jitquant.log" || true
done
"$python" "$here/compare.py" "$work"

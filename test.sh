#!/usr/bin/env bash
# Runs every test that needs no GPU. Installs what they need and is not there: LLVM 19 (Debian or Ubuntu packages; root
# or sudo) and NVIDIA's assembler and disassembler (Python packages, into .tools/).
#
#   ./test.sh            everything
#   ./test.sh NAME…      only the tests whose names contain NAME; no lints
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$*"; }

if [ -z "${LLVM_SYS_191_PREFIX:-}" ]; then
    if [ ! -x /usr/lib/llvm-19/bin/llvm-config ]; then
        step "LLVM 19"
        command -v apt-get >/dev/null || { echo "install LLVM 19 with its static libraries and set LLVM_SYS_191_PREFIX"; exit 1; }
        root=""; [ "$(id -u)" = 0 ] || root="sudo"
        $root apt-get update -q
        $root apt-get install -q -y --no-install-recommends llvm-19-dev libpolly-19-dev zlib1g-dev libzstd-dev
    fi
    export LLVM_SYS_191_PREFIX=/usr/lib/llvm-19
fi

if [ -z "${KILN_PTXAS:-}" ]; then
    tools="$PWD/.tools"
    if [ ! -x "$tools/nvidia/cu13/bin/ptxas" ]; then
        step "ptxas and nvdisasm"
        command -v python3 >/dev/null || { echo "install python3 with pip, or set KILN_PTXAS"; exit 1; }
        python3 -m pip install -q --no-deps --target "$tools" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-nvdisasm==13.2.51
    fi
    export KILN_PTXAS="$tools/nvidia/cu13/bin/ptxas"
fi

if [ $# -gt 0 ]; then
    exec cargo test --workspace --features cuda -- "$@"
fi

step "format"
cargo fmt --all --check
step "lints"
cargo clippy --workspace --all-targets --features cuda -- -D warnings
step "a program without LLVM"
cargo check -p kimi --features cuda-packed --bin kimi --examples
step "tests"
cargo test --workspace --features cuda

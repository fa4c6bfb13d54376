"""The relative error of other Kimi Delta Attention kernels against the f64 recurrence: |o - o64| / |o64| over all tokens,
and the same of the last state.

    kda_error.py          the inputs of `lab bench kda_prefill/..._b1_t1024_h32_d128`; what the bench prints as the error
                          of these two cases is the larger one of ours
    kda_error.py FILE     what `lab kda-inputs FILE` wrote: inputs of the shipped model's layers, beside our results

Needs: torch, triton, fla-core and flash-linear-attention 0.6.0; safetensors for FILE; flash_kda where it can be imported
(bounded gate, random inputs).
"""
import os
import sys
from typing import NamedTuple

os.environ.setdefault("FLA_FLASH_KDA", "0")  # fla shall run its own kernels
import numpy as np
import torch
import torch.nn.functional as F
from fla.ops.kda import chunk_kda

DEVICE = "cuda"
LOWER_BOUND = -5.0


class Inputs(NamedTuple):
    """q, k, v after the convolution, x of the decay gate [1, T, H, K], beta before the sigmoid [1, T, H]: bf16.
    a_log [H], dt_bias [H, K]: f32."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    x: torch.Tensor
    beta: torch.Tensor
    a_log: torch.Tensor
    dt_bias: torch.Tensor


def scramble(x):
    x = ((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)).astype(np.uint32)
    x = ((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)).astype(np.uint32)
    return x ^ (x >> np.uint32(16))


def random(count, seed):
    """`random` of tests/src/bench/kernels.rs."""
    start = (seed * 0x9E3779B9) & 0xFFFFFFFF
    bits = scramble(scramble((np.arange(count, dtype=np.uint64) + start).astype(np.uint32)))
    low, high = ((bits & np.uint32(0xFFFF)).astype(np.float32), (bits >> np.uint32(16)).astype(np.float32))
    x = ((low + high) * np.float32(1 / 65536) - np.float32(1)) * np.float32(2.44949)
    return torch.from_numpy(x).to(DEVICE)


def random_inputs(T=1024, H=32, K=128):
    qkv = random(T * 3 * H * K, 1).bfloat16().view(1, T, 3, H, K)
    q, k, v = (qkv[:, :, i].contiguous() for i in range(3))
    x = random(T * H * K, 2).bfloat16().view(1, T, H, K)
    beta = random(T * H, 3).bfloat16().view(1, T, H)
    a_log = torch.log(1 + 15 * torch.arange(H, device=DEVICE, dtype=torch.float32) / H)
    return Inputs(q, k, v, x, beta, a_log, random(H * K, 4).view(H, K))


def recurrence(i, bounded):
    """o [T, H, K] and the last state [H, K, V] in f64."""
    T, H, K = i.q.shape[1:]
    unit = lambda t: t * (t.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
    q64, k64, v64 = unit(i.q[0].double()) * K**-0.5, unit(i.k[0].double()), i.v[0].double()
    gate, rate = i.x[0].double() + i.dt_bias.double(), i.a_log.double().exp()[:, None]
    g = LOWER_BOUND * torch.sigmoid(rate * gate) if bounded else -rate * F.softplus(gate)
    b = torch.sigmoid(i.beta[0].double())
    state, o = torch.zeros(H, K, K, dtype=torch.float64, device=DEVICE), []
    for t in range(T):
        state = state * g[t].exp()[:, :, None]
        u = b[t][:, None] * (v64[t] - torch.einsum("hkv,hk->hv", state, k64[t]))
        state = state + k64[t][:, :, None] * u[:, None, :]
        o.append(torch.einsum("hkv,hk->hv", state, q64[t]))
    return torch.stack(o), state


def start(i):
    H, K = i.q.shape[2:]
    return torch.zeros(1, H, K, K, device=DEVICE)


def fla(i, bounded):
    """o [T, H, K] and the last state [H, K, V]."""
    options = dict(safe_gate=True, lower_bound=LOWER_BOUND) if bounded else {}
    with torch.inference_mode():
        o, state = chunk_kda(
            i.q, i.k, i.v, i.x, i.beta, A_log=i.a_log, dt_bias=i.dt_bias.flatten(), initial_state=start(i),
            output_final_state=True, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True,
            use_beta_sigmoid_in_kernel=True, state_v_first=True, **options,
        )
    return o[0], state[0].transpose(-1, -2)


def flash(kernels, i):
    """The same by flash_kda: bounded gate."""
    o, state = torch.empty_like(i.v), torch.empty_like(start(i))
    kernels.fwd(
        i.q, i.k, i.v, i.x, i.beta, i.q.shape[-1]**-0.5, o, A_log=i.a_log, dt_bias=i.dt_bias, lower_bound=LOWER_BOUND,
        initial_state=start(i), final_state=state,
    )
    return o[0], state[0].transpose(-1, -2)


def report(name, got, want):
    error = lambda a, b: ((a.double() - b).norm() / b.norm()).item()
    print(f"{name:20s} o {error(got[0], want[0]):.2e}  state {error(got[1], want[1]):.2e}")


def on_random():
    i = random_inputs()
    report("fla softplus", fla(i, False), recurrence(i, False))
    want = recurrence(i, True)
    report("fla bounded", fla(i, True), want)
    try:
        import flash_kda
    except ImportError:
        return
    report("flash_kda bounded", flash(flash_kda, i), want)


def on_replayed(file):
    from safetensors.torch import load_file

    tensors = load_file(file, device=DEVICE)
    for layer in sorted({int(name.split(".")[0]) for name in tensors}):
        get = lambda name: tensors[f"{layer}.{name}"]
        i = Inputs(*(get(name)[None] for name in ("q", "k", "v", "x", "beta")), get("a_log"), get("dt_bias"))
        want = recurrence(i, False)
        report(f"layer {layer} ours", (get("o"), get("state")), want)
        report(f"layer {layer} fla", fla(i, False), want)


if __name__ == "__main__":
    on_replayed(sys.argv[1]) if len(sys.argv) > 1 else on_random()

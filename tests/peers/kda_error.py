"""The relative error of other Kimi Delta Attention kernels on the inputs of `lab bench kda_prefill/..._b1_t1024_h32_d128`.

Needs: torch, triton, fla-core and flash-linear-attention 0.6.0; flash_kda where it can be imported (bounded gate).
Prints, against the f64 recurrence: |o - o64| / |o64| over all tokens, and the same of the last state. What `lab bench`
prints as the error of these two cases is the larger of ours.
"""
import os

os.environ.setdefault("FLA_FLASH_KDA", "0")  # fla shall run its own kernels
import numpy as np
import torch
import torch.nn.functional as F
from fla.ops.kda import chunk_kda

H, K, T, DEVICE = 32, 128, 1024, "cuda"


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


qkv = random(T * 3 * H * K, 1).bfloat16().view(1, T, 3, H, K)
q, k, v = (qkv[:, :, i].contiguous() for i in range(3))
x = random(T * H * K, 2).bfloat16().view(1, T, H, K)
beta = random(T * H, 3).bfloat16().view(1, T, H)
a_log = torch.log(1 + 15 * torch.arange(H, device=DEVICE, dtype=torch.float32) / H)
dt_bias = random(H * K, 4)


def recurrence(bounded):
    """o [T, H, K] and the last state [H, K, V] in f64."""
    unit = lambda t: t * (t.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
    q64, k64, v64 = unit(q[0].double()) * K**-0.5, unit(k[0].double()), v[0].double()
    gate, rate = x[0].double() + dt_bias.double().view(H, K), a_log.double().exp()[:, None]
    g = -5 * torch.sigmoid(rate * gate) if bounded else -rate * F.softplus(gate)
    b = torch.sigmoid(beta[0].double())
    state, o = torch.zeros(H, K, K, dtype=torch.float64, device=DEVICE), []
    for t in range(T):
        state = state * g[t].exp()[:, :, None]
        u = b[t][:, None] * (v64[t] - torch.einsum("hkv,hk->hv", state, k64[t]))
        state = state + k64[t][:, :, None] * u[:, None, :]
        o.append(torch.einsum("hkv,hk->hv", state, q64[t]))
    return torch.stack(o), state


def report(name, o, state, want):
    error = lambda a, b: ((a.double() - b).norm() / b.norm()).item()
    # The peers' states are stored with values first.
    print(f"{name:20s} o {error(o[0], want[0]):.2e}  state {error(state[0].transpose(-1, -2), want[1]):.2e}")


for bounded in (False, True):
    want, start = recurrence(bounded), torch.zeros(1, H, K, K, device=DEVICE)
    options = dict(safe_gate=True, lower_bound=-5.0) if bounded else {}
    kind = "bounded" if bounded else "softplus"
    with torch.inference_mode():
        o, state = chunk_kda(
            q, k, v, x, beta, A_log=a_log, dt_bias=dt_bias, initial_state=start, output_final_state=True,
            use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, state_v_first=True,
            **options,
        )
    report(f"fla {kind}", o, state, want)
    if bounded:
        try:
            import flash_kda
        except ImportError:
            continue
        o, state = torch.empty_like(v), torch.empty_like(start)
        flash_kda.fwd(
            q, k, v, x, beta, K**-0.5, o, A_log=a_log, dt_bias=dt_bias.view(H, K), lower_bound=-5.0,
            initial_state=start, final_state=state,
        )
        report(f"flash_kda {kind}", o, state, want)

#!/usr/bin/env python3
"""What a kernel of a step of decoding costs as a node of a graph, of the peers: `lab bench node/` is ours.

Usage:  nodes.py [--json FILE]     adds its rows to those that FILE has
Needs:  torch, fla-core; a GPU.

Many of the same kernel are captured one after the other, each with weights, states or caches of its own, 400 MB or more
together, but with the same inputs; the time is that of a replay among others, divided by their number.
"""
import json, os, sys, time

os.environ.setdefault("FLA_FLASH_KDA", "0")
import torch
import torch.nn.functional as F

dev, rows = "cuda", []
torch.manual_seed(0)
BYTES, REPLAYS = 4e8, 20
LINEAR = [(12288, 2304), (2304, 4096), (18432, 2304), (163840, 2304)]


def bf(*shape):
    return torch.randn(*shape, device=dev).to(torch.bfloat16)


def row(case, peer, bytes_, make, flops=0):
    """`make` gives one node's call."""
    count = min(max(int(-(-BYTES // bytes_)), 4), 128)
    nodes = [make() for _ in range(count)]
    nodes[0](), nodes[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for node in nodes:
            node()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(REPLAYS):
            graph.replay()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    us = sorted(times)[2] / (REPLAYS * count) * 1e6
    print(f"node/{case:40s} {peer:12s} {us:8.1f} us {bytes_ / us / 1e3:8.1f} GB/s", flush=True)
    rows.append(dict(case=f"node/{case}", peer=peer, us=us, flops=flops, bytes=bytes_, mode="graph"))


def gemm():
    for m in (1, 8, 64):
        for n, k in LINEAR:
            a = bf(m, k)

            def make():
                w = bf(n, k)
                return lambda: F.linear(a, w)

            row(f"gemm/bf16_m{m}_n{n}_k{k}", "cublas", 2 * (m * k + n * k + m * n), make, 2 * m * n * k)


def kda():
    from fla.ops.kda import fused_recurrent_kda

    H, K = 32, 128
    A, dt = torch.log(torch.empty(H, device=dev).uniform_(1, 16)), torch.randn(H * K, device=dev)
    for B in (1, 16, 128):
        q, k, v, g, beta = bf(B, 1, H, K), bf(B, 1, H, K), bf(B, 1, H, K), bf(B, 1, H, K), bf(B, 1, H)

        def make():
            h0 = torch.randn(B, H, K, K, device=dev)
            return lambda: fused_recurrent_kda(
                q, k, v, g, beta, A_log=A, dt_bias=dt, initial_state=h0, output_final_state=True, state_v_first=True,
                use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True)

        row(f"kda_decode/b{B}_h{H}_d{K}", "fla", 8 * B * H * K * K, make)


with torch.inference_mode():
    gemm()
    kda()
if "--json" in sys.argv:
    path = sys.argv[sys.argv.index("--json") + 1]
    all_rows = json.load(open(path)) if os.path.exists(path) else dict(rows=[])
    all_rows["rows"] += rows
    json.dump(all_rows, open(path, "w"), indent=1)

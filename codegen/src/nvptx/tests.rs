//! PTX of kernels built by hand assembles for both chips, without spills.

use super::tests_kernels::{argmax_and_scan, attention, bitcasts, casts, functions, gemm, memory, rmsnorm};
use super::{Ptx, Target, compile, ptxas};
use crate::ir::{DType, Kernel, Lint, Precision, Reuse};

fn ptxas_path() -> std::path::PathBuf {
    ptxas::find().expect("set KILN_PTXAS to NVIDIA's ptxas (a PyPI package has it: nvidia-cuda-nvcc)")
}

fn check(k: &Kernel, sm: u32) -> (Ptx, ptxas::Report) {
    let target = Target { sm };
    let ptx = compile(k, target).unwrap_or_else(|e| panic!("{}: {e}", k.name));
    let report = ptxas::assemble(&ptxas_path(), &ptx.text, target, None, k.loc)
        .unwrap_or_else(|e| panic!("{} for {}: {}", k.name, target.name(), e.chars().take(600).collect::<String>()));
    (ptx, report)
}

/// It assembles without findings.
pub(super) fn assembles(k: &Kernel, sm: u32) {
    assert_eq!(check(k, sm).1.findings, [], "{} for sm_{sm}", k.name);
}

pub(super) fn check_both(k: &Kernel, registers: u32) {
    for sm in [80, 90] {
        let (ptx, report) = check(k, sm);
        println!("{} sm_{sm}: {report:?}, {} bytes of shared memory", k.name, ptx.shared_bytes);
        assert!(report.registers <= registers, "{} uses {} registers", k.name, report.registers);
        assert_eq!(report.findings, [], "{} for sm_{sm}", k.name);
    }
}

#[test]
fn elementwise_functions_assemble() {
    for d in [DType::F32, DType::BF16, DType::F16] {
        check_both(&functions(d), 64);
    }
    for d in DType::ALL {
        check_both(&casts(d), 128);
    }
    // Among them bf16 as f16, which LLVM could not select when it saw the types meet.
    for d in DType::ALL.into_iter().filter(|d| *d != DType::Bool) {
        check_both(&bitcasts(d), 128);
    }
}

#[test]
fn memory_operations_assemble() {
    check_both(&memory(), 128);
}

#[test]
fn reductions_and_scans_assemble() {
    check_both(&argmax_and_scan(8, 256), 128);
    check_both(&argmax_and_scan(64, 32), 128);
    check_both(&argmax_and_scan(1, 1024), 128);
}

#[test]
fn rmsnorm_is_vectorised() {
    let k = rmsnorm(4096);
    check_both(&k, 128);
    let (ptx, _) = check(&k, 90);
    assert!(ptx.text.contains("ld.global.v4.b32") && ptx.text.contains("st.global.v4.b32"));
}

/// With every view to be evicted first.
fn used_once(mut k: Kernel) -> Kernel {
    k.params.iter_mut().for_each(|p| p.reuse = Reuse::EvictFirst);
    k
}

#[test]
fn what_is_used_once_is_evicted_first() {
    let k = used_once(rmsnorm(4096));
    check_both(&k, 128);
    let (ptx, _) = check(&k, 90);
    assert!(ptx.text.contains("ld.global.cs.v4.b32") && ptx.text.contains("st.global.cs.v4.b32"));
    let k = used_once(gemm(64, 64, 32, DType::BF16, Precision::F32));
    check_both(&k, 255);
    let copies = |sm| check(&k, sm).0.text.lines().filter(|l| l.contains("cp.async") && l.contains("[")).count();
    let hinted = |sm| check(&k, sm).0.text.matches("L2::cache_hint").count();
    assert_eq!([hinted(80), hinted(90)], [copies(80), copies(90)]);
    assert!(copies(80) > 0 && copies(90) > 0);
}

#[test]
fn products_use_tensor_cores() {
    for (d, p) in [
        (DType::BF16, Precision::F32),
        (DType::F16, Precision::F32),
        (DType::F32, Precision::Tf32),
        (DType::F32, Precision::Tf32x3),
        (DType::F8E4M3, Precision::F32),
    ] {
        let k = gemm(64, 64, 32, d, p);
        check_both(&k, 255);
        assert!(check(&k, 80).0.text.contains("mma.sync"), "{d}");
        let name = if d.size() == 2 { "wgmma.mma_async" } else { "mma.sync" };
        assert!(check(&k, 90).0.text.contains(name), "{d}");
    }
    let k = gemm(16, 32, 16, DType::F32, Precision::F32);
    check_both(&k, 128);
    let fallbacks =
        |sm| compile(&k, Target { sm }).unwrap().findings.iter().filter(|f| f.lint == Lint::Fallback).count();
    assert_eq!(fallbacks(80), 1, "the fall back is reported");
    assert_eq!(fallbacks(90), 2, "as is the one before it");
}

#[test]
fn attention_keeps_probabilities_in_registers() {
    check_both(&attention(64, 64, 64), 255);
}

/// The tiles meant for large products: operands through a ring of shared memory, accumulators in registers.
#[test]
fn large_products_are_pipelined() {
    for (m, n, k) in [(128, 128, 32), (128, 256, 32), (128, 128, 64)] {
        let kernel = gemm(m, n, k, DType::BF16, Precision::F32);
        check_both(&kernel, 255);
        let text = check(&kernel, 80).0.text;
        assert!(text.contains("cp.async.cg") && text.contains("ldmatrix"), "{m}x{n}x{k} is not pipelined");
        assert!(!text.contains("ld.shared.b16"));
        let text = check(&kernel, 90).0.text;
        assert!(text.contains("cp.async.bulk.tensor.2d") && text.contains("wgmma.mma_async"), "{m}x{n}x{k} for Hopper");
    }
    let attention = attention(64, 64, 64);
    let text = check(&attention, 80).0.text;
    assert!(text.contains("cp.async.cg") && text.contains("ldmatrix"), "attention is not pipelined");
    let text = check(&attention, 90).0.text;
    assert!(text.contains("cp.async.bulk.tensor.2d") && text.contains("wgmma.mma_async"), "attention for Hopper");
}

#[test]
fn instructions_of_tensor_cores_are_counted() {
    let count = |n: u32, dtype: DType, precision: Precision, sm: u32| {
        compile(&gemm(64, n, 64, dtype, precision), Target { sm }).unwrap().tensor_cores().to_string()
    };
    assert_eq!(count(64, DType::BF16, Precision::F32, 90), "4 wgmma, 0 mma.sync");
    // By four warps: four times 16 of K, 8 of N at a time.
    assert_eq!(count(64, DType::BF16, Precision::F32, 80), "0 wgmma, 32 mma.sync");
    assert_eq!(count(64, DType::F32, Precision::F32, 90), "0 wgmma, 0 mma.sync");
}

/// Profilers and sanitizers show the author's lines; the code is what it is without them.
#[test]
fn instructions_tell_where_they_come_from() {
    for sm in [80, 90] {
        let k = gemm(64, 64, 32, DType::BF16, Precision::F32);
        let (ptx, report) = check(&k, sm);
        let told = |line: &str| line.trim_start().starts_with(".loc") || line.trim_start().starts_with(".file");
        assert!(ptx.text.lines().any(|l| told(l) && l.contains("tests_kernels.rs\"")), "{}", ptx.text);
        // Line 0 is of what belongs to several.
        let places = ptx.text.lines().filter_map(|l| l.trim_start().strip_prefix(".loc\t1 "));
        let lines: Vec<&str> = places.filter_map(|l| l.split(' ').next()).filter(|l| *l != "0").collect();
        assert!(lines.len() >= 2 && lines.iter().all(|l| *l == k.loc.line.to_string()), "{lines:?}");
        assert!(!ptx.text.contains(".debug_info"), "no debug information but lines: {}", ptx.text);
        let without: String = ptx.text.lines().filter(|l| !told(l)).map(|l| l.to_owned() + "\n").collect();
        let bare = ptxas::assemble(&ptxas_path(), &without, Target { sm }, None, k.loc).expect("assembles");
        assert_eq!((bare.registers, &bare.findings), (report.registers, &report.findings));
    }
}

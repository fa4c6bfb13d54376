//! A pack of compiled kernels that the program is to carry in itself, if `KIMI_PACK` names one.

fn main() {
    println!("cargo::rerun-if-env-changed=KIMI_PACK");
    println!("cargo::rustc-check-cfg=cfg(embedded_pack)");
    if let Some(pack) = std::env::var_os("KIMI_PACK") {
        let path = std::fs::canonicalize(&pack).unwrap_or_else(|e| panic!("KIMI_PACK={}: {e}", pack.display()));
        println!("cargo::rerun-if-changed={}", path.display());
        println!("cargo::rustc-env=KIMI_PACK={}", path.display());
        println!("cargo::rustc-cfg=embedded_pack");
    }
}

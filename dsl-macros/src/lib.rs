//! The macros of Kiln: `#[kernel]`, `#[device]`, `#[derive(KernelArg)]`, `#[derive(Carried)]`.
//!
//! A kernel is a Rust function that is *staged*: run once, on the host, with handles in place of tiles, it appends
//! operations to tile IR. Nearly all of Rust stages itself by operator overloading and traits, and rustc is the type
//! checker. These macros rewrite the rest, and refuse what cannot be staged at the token, naming what to write instead:
//!
//! | author writes | rewritten by |
//! |---|---|
//! | the signature, options | `signature`, `function`, `tune` |
//! | `Tile<f32, 64, 128>` | `types` |
//! | `a < b`, `a == b`, `a && b` | `rewrite` |
//! | `if`, `for i in a..b`, `while` | `control`, with the carried variables found by `assigned` |
//! | `assert!`, `static_assert!`, `print!` | `macro_calls` |
//!
//! The output names only `::kiln::..` and `::core`/`::std`. Every message is in `messages`.

use proc_macro::TokenStream;

mod assigned;
mod control;
mod derive;
mod function;
mod macro_calls;
mod messages;
mod rewrite;
mod signature;
#[cfg(test)]
mod tests;
mod tune;
mod types;

/// Makes a function a kernel: a host function of the same name that returns a `Launch`.
///
/// Options: `warps` (1, 2, 4, .. 32) and `min_programs_per_sm`, as in `#[kernel(warps = 8)]`, by default the compiler's
/// choice, and `cluster`: so many neighbours along axis 0 of the grid, which is whole clusters, run at the same time and
/// share what all of them load into products, or exchange tiles (`Tile::cluster_sum`); they may be constants and
/// generic parameters. `evict_first(weight)`, or `evict_first(weight if ONCE)`, names parameters whose memory is used
/// once, so that caches give it up first; `discard(between)` those that one launch writes for another only: each byte
/// is loaded once at most, and its contents are not defined afterwards, so that caches need not write it back.
/// `settled(weight)` names those that the launch just before this one does not write, as weights: in a graph, on a
/// Hopper GPU or a later one, the kernel begins while that launch is not yet done, and waits for its end where it first
/// touches another parameter, or stores. (Where that launch does write one of them, which the launcher knows, it begins afterwards.)
/// `deny(spill, bank_conflict)` makes launches on NVIDIA GPUs fail where compiling the kernel finds such a thing, see
/// `kiln::ir::Lint`.
///
/// `tune(M, N in [(128, 256), (64, 128)])` adds a host function whose name ends in `_tuned`: it lacks these constants and
/// returns a `kiln::Tuned` launch, which takes the values that are best for its arguments (see `kiln::tune`). Lists are
/// combined, as far as a condition holds: `tune(M in [64, 128], N in [128, 256], if M * N <= 16384)`. All candidates must
/// compute the same, from a grid that may differ. Measuring them runs each several times, so a tuned kernel does not read
/// what it writes.
///
/// Parameters: `&View<T, R>` (read), `&mut Block<T, N..>` (this program's own block of an output),
/// `&mut View<T, R>` (written anywhere through `unsafe`), numbers (arrive as `Tile<T>`), and structs with
/// `#[derive(KernelArg)]`.
///
/// In the body `if`, `while` and `for i in a..b` are staged; `if` on a `bool`, `match`, and loops over anything but a
/// range (`for i in unroll(0..4)`) are decided while staging. `&&` and `||` evaluate both sides. Variables that a staged
/// `if` or loop assigns are tiles, or tuples, arrays or structs (`#[derive(Carried)]`) of tiles; a method that changes its
/// receiver is not seen to assign it, so write `(&mut x).method(..)` there.
#[proc_macro_attribute]
pub fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    function::kernel(attribute.into(), item.into()).into()
}

/// Makes a function usable from kernels: its types and body are rewritten as in [`macro@kernel`], its signature is free.
#[proc_macro_attribute]
pub fn device(attribute: TokenStream, item: TokenStream) -> TokenStream {
    function::device(attribute.into(), item.into()).into()
}

/// Makes a struct of views and scalars a kernel parameter, and defines `NameHost<'_>`, which the host passes for it.
#[proc_macro_derive(KernelArg)]
pub fn derive_kernel_arg(item: TokenStream) -> TokenStream {
    derive::kernel_arg(item.into()).into()
}

/// Lets a staged loop or branch change variables of this struct, whose fields are tiles or made of tiles.
#[proc_macro_derive(Carried)]
pub fn derive_carried(item: TokenStream) -> TokenStream {
    derive::carried(item.into()).into()
}

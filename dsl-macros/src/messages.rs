//! Every message the macros print, each with what to write instead.
//!
//! One file, so that the wording stays uniform and can be reviewed as a text: the first line says what was found and
//! that it is not staged, the `help` line names the replacement. [`Errors`] collects them, because an author who moves a
//! Rust function into a kernel wants all refusals of that function at once, not one per compile.

use std::cell::RefCell;

use proc_macro2::Span;
use quote::ToTokens;

/// What was found, and what to write instead.
pub(crate) struct Message {
    pub(crate) what: &'static str,
    pub(crate) help: &'static str,
}

const fn message(what: &'static str, help: &'static str) -> Message {
    Message { what, help }
}

// ---- control flow ----
pub(crate) const RETURN: Message = message(
    "`return` is not supported in staged code",
    "put the rest of the body into the other branch of an `if`; the value of a function is its last expression",
);
pub(crate) const BREAK: Message = message(
    "`break` is not supported in staged code",
    "write `while condition { .. }` with the exit in the condition, or mask the work with `if`",
);
pub(crate) const CONTINUE: Message =
    message("`continue` is not supported in staged code", "put the rest of the loop body into an `if`");
pub(crate) const LOOP: Message =
    message("`loop` is not supported in staged code", "write `while condition { .. }` or `for i in a..b { .. }`");
pub(crate) const LABEL: Message = message(
    "labels are not supported in staged code",
    "there is no `break` or `continue` to name it; remove the label and carry a flag in the loop's condition",
);
pub(crate) const WHILE_LET: Message = message(
    "`while let` is not supported in staged code",
    "write `while condition { .. }` on a `Tile<bool>`, or `for x in unroll(iterator) { .. }` for a compile-time iterator",
);
pub(crate) const LET_CHAIN: Message = message(
    "an `if` that mixes `let` with conditions is not supported in staged code",
    "nest the two: `if let .. { if .. { } }`",
);
pub(crate) const LET_ELSE: Message = message(
    "`let .. else` is not supported in staged code",
    "its `else` would have to leave the function; write `if let .. { .. } else { .. }` or `match`",
);
pub(crate) const LET_UNINITIALISED: Message = message(
    "a variable without a first value is not supported in staged code",
    "give it one (`let mut x = zeros();`), or take it from the branches: `let x = if c { a } else { b };`",
);
pub(crate) const TRY: Message = message(
    "`?` is not supported in staged code",
    "a kernel has no error to return; use `static_assert!(condition, \"text\")` or `assert!(condition, \"text\")`",
);
pub(crate) const ASYNC: Message = message(
    "`async` is not supported in staged code",
    "write an ordinary block; asynchronous copies are arranged by `.stages(n)` on a loop",
);
pub(crate) const AWAIT: Message = message(
    "`.await` is not supported in staged code",
    "write the call alone; asynchronous copies are arranged by `.stages(n)` on a loop",
);
pub(crate) const YIELD: Message =
    message("`yield` is not supported in staged code", "store into an output (`out.store(..)`) instead");
pub(crate) const TRY_BLOCK: Message = message(
    "`try` blocks are not supported in staged code",
    "a kernel has no error to return; use `assert!(condition, \"text\")`",
);

// ---- for ----
pub(crate) const RANGE_INCLUSIVE: Message =
    message("`a..=b` is not supported as the range of a loop", "write the exclusive end: `a..b + 1`");
pub(crate) const RANGE_NO_END: Message =
    message("a loop needs an end: `a..` is not supported", "write `a..b`, or `while condition { .. }`");
pub(crate) const RANGE_NO_START: Message = message("a loop needs a start: `..b` is not supported", "write `0..b`");
pub(crate) const RANGE_ITERATOR: Message = message(
    "`for` over a range is one loop on the device and has no iterator methods",
    "compute the index inside the body, or write `for i in unroll(..)` if the range is known at compile time",
);
pub(crate) const FOR_PATTERN: Message =
    message("the pattern of a loop over a range is one name", "write `for i in a..b`, or `for _ in a..b`");
pub(crate) const UNROLL_ARITY: Message =
    message("`unroll` takes one argument", "write `for i in unroll(0..4)` or `for x in unroll(tiles)`");

// ---- macros ----
pub(crate) const PANIC: Message = message(
    "a panic cannot be staged",
    "write `assert!(condition, \"text\")` for a check on the device, `static_assert!(condition, \"text\")` for one while compiling",
);
pub(crate) const VEC: Message =
    message("`vec!` is not supported in staged code", "write an array: `[value; N]` with a constant length");
pub(crate) const FORMAT: Message =
    message("text cannot be built on the device", "write `print!(\"text {}\", value)` to see a value");
pub(crate) const ASSERT_EQ: Message =
    message("`assert_eq!` and `assert_ne!` are not supported in staged code", "write `assert!(a == b, \"text\")`");
pub(crate) const DEBUG_ASSERT: Message =
    message("`debug_assert!` is not supported in staged code", "write `assert!(condition, \"text\")`");
pub(crate) const ASM: Message = message(
    "inline assembly is not supported in staged code",
    "write it with tile operations; a missing instruction belongs into a back end",
);
pub(crate) const UNKNOWN_MACRO: Message = message(
    "this macro cannot be staged",
    "call a `#[device] fn`; of macros only `static_assert!`, `assert!`, `print!`, `println!`, `matches!` and the \
     compile-time text macros are understood",
);
pub(crate) const ASSERT_ARGUMENTS: Message = message(
    "an assertion takes a condition and a text",
    "write `assert!(condition, \"text\")`, without further arguments",
);
pub(crate) const PRINT_TEXT: Message = message("`print!` begins with a text", "write `print!(\"x = {}\", x)`");
pub(crate) const PRINT_PLACEHOLDER: Message =
    message("`print!` knows the placeholders `{}` and `{name}` only", "remove what follows the colon: `{}`");
pub(crate) const PRINT_COUNT: Message =
    message("the number of placeholders and of values differs", "write one `{}` for every value");

// ---- signature ----
pub(crate) const KERNEL_SELF: Message = message(
    "a kernel has no `self`",
    "make it a free function and pass the fields as parameters, or as a struct with `#[derive(KernelArg)]`",
);
pub(crate) const KERNEL_RETURN: Message = message(
    "a kernel returns nothing",
    "write results through a `&mut Block<T, N..>` parameter; calling the kernel on the host returns the `Launch`",
);
pub(crate) const KERNEL_ASYNC: Message =
    message("a kernel is not `async`", "remove `async`; `Launch::run` enqueues and does not wait");
pub(crate) const KERNEL_UNSAFE: Message = message(
    "a kernel is not `unsafe fn`",
    "remove `unsafe` here and put `unsafe { .. }` around the accesses that need it",
);
pub(crate) const KERNEL_EXTERN: Message = message("a kernel has no ABI of its own", "remove `extern`");
pub(crate) const KERNEL_CONST: Message = message("a staged function is not `const fn`", "remove `const`");
pub(crate) const KERNEL_VARIADIC: Message =
    message("a staged function has a fixed number of parameters", "name each parameter, or pass a struct");
pub(crate) const KERNEL_LIFETIME: Message = message(
    "a kernel has no lifetime parameters",
    "remove it; references in the signature say read (`&`) or write (`&mut`), not how long",
);
pub(crate) const PARAMETER_PATTERN: Message =
    message("a kernel parameter is one name", "write `name: Type` (or `mut name: f32`) and take it apart in the body");
pub(crate) const PARAMETER_IMPL: Message =
    message("`impl Trait` cannot be a kernel parameter", "write a generic parameter: `fn k<T: Float>(x: &View<T, 1>)`");
pub(crate) const PARAMETER_SHARED_BLOCK: Message = message(
    "`&Block` cannot be a kernel parameter: a block is what this program writes",
    "write `&View<T, R>` to read, `&mut Block<T, N..>` to write",
);
pub(crate) const PARAMETER_BLOCK_VALUE: Message =
    message("a block is not passed by value", "write `&mut Block<T, N..>`");
pub(crate) const PARAMETER_VIEW_VALUE: Message = message(
    "a view is not passed by value",
    "write `&View<T, R>` to read, `&mut View<T, R>` to write anywhere through `unsafe`",
);
pub(crate) const PARAMETER_TILE: Message = message(
    "a tile cannot be a kernel parameter: tiles exist only inside a kernel",
    "write `&View<T, R>` and load it, or a scalar (`alpha: f32`), which arrives as `Tile<f32>`",
);
pub(crate) const PARAMETER_SCALAR_REFERENCE: Message =
    message("a scalar is passed by value", "remove the `&`: `alpha: f32`");
pub(crate) const PARAMETER_MUT_OTHER: Message = message(
    "only blocks and views are written",
    "write `&mut Block<T, N..>` for this program's own block, `&mut View<T, R>` for anywhere through `unsafe`",
);
pub(crate) const PARAMETER_SLICE: Message = message(
    "slices, arrays, pointers and tuples cannot be kernel parameters",
    "write `&View<T, R>` for memory, a struct with `#[derive(KernelArg)]` for several arguments",
);
pub(crate) const ITEM_NOT_FN: Message =
    message("`#[kernel]` and `#[device]` stand on functions", "put the attribute on each `fn`");
pub(crate) const DEVICE_OPTIONS: Message =
    message("`#[device]` has no options", "write `#[device]`; options belong to the kernel: `#[kernel(warps = 4)]`");
pub(crate) const OPTION_UNKNOWN: Message = message(
    "unknown kernel option",
    "the options are `warps`, `min_programs_per_sm`, `cluster`, `evict_first`, `discard`, `settled`, `deny` and `tune`: \
     `#[kernel(warps = 4, deny(spill))]`",
);
pub(crate) const OPTION_TWICE: Message = message("this option is given twice", "keep one of them");
pub(crate) const OPTION_WARPS: Message = message("the number of warps is 1, 2, 4, 8, 16 or 32", "write `warps = 4`");
pub(crate) const OPTION_DENY: Message = message("`deny` takes a list of lints", "write `deny(spill, bank_conflict)`");
pub(crate) const OPTION_EVICT_FIRST: Message = message(
    "`evict_first` takes a list of parameters",
    "write `evict_first(weight)`, or `evict_first(weight if ONCE)`",
);
pub(crate) const OPTION_DISCARD: Message =
    message("`discard` takes a list of parameters", "write `discard(between)`, or `discard(between if LAST)`");
pub(crate) const OPTION_SETTLED: Message =
    message("`settled` takes a list of parameters", "write `settled(weight)`, or `settled(weight if FIXED)`");
pub(crate) const HINT_UNKNOWN: Message = message("no parameter of this name", "name views or blocks of this kernel");
pub(crate) const LINT_UNKNOWN: Message = message(
    "unknown lint of kernels",
    "the lints are `spill`, `wgmma_serialized`, `setmaxnreg_ignored`, `bank_conflict`, `uncoalesced`, `fallback` and \
     `assembler`",
);
pub(crate) const TUNE_FORM: Message = message(
    "`tune` takes names of constants, each list of names with its list of values",
    "write `tune(M, N in [(128, 256), (64, 128)])`, or `tune(M in [64, 128], N in [128, 256], if M * N <= 16384)` for the \
     combinations of which a condition holds",
);
pub(crate) const TUNE_UNKNOWN: Message = message(
    "the kernel has no such constant",
    "name `const` generic parameters of the kernel: `fn k<const N: usize>(..)`",
);
pub(crate) const TUNE_ARITY: Message = message(
    "a candidate has one value for each name",
    "write `M, N in [(128, 256), (64, 128)]`, and without parentheses for one name: `N in [128, 256]`",
);
pub(crate) const TUNE_EMPTY: Message =
    message("there is nothing to choose among", "list the values to try: `N in [128, 256]`");

// ---- types ----
pub(crate) const EXTENT_POWER_OF_TWO: Message = message(
    "the extent of a tile is a power of two",
    "round it up; loads outside a view are masked, so a larger tile reads nothing else",
);
pub(crate) const EXTENT_RANK: Message = message(
    "a tile has at most 4 dimensions",
    "merge some: `Tile<f32, 2, 4, 8, 64>` has as much as `Tile<f32, 8, 8, 64>`",
);

// ---- derive ----
pub(crate) const DERIVE_NOT_STRUCT: Message = message(
    "`KernelArg` can be derived for structs with named fields",
    "write `struct Name { field: View<T, R>, scale: Scalar<f32> }`",
);
pub(crate) const DERIVE_EMPTY: Message =
    message("a kernel argument has at least one field", "add a `View<T, R>` or a `Scalar<T>`");
pub(crate) const DERIVE_LIFETIME: Message = message(
    "a kernel argument has no lifetime parameters",
    "hold `View<T, R>` by value; the references are in the generated host struct",
);
pub(crate) const DERIVE_REFERENCE: Message = message(
    "a field of a kernel argument is not a reference",
    "write `View<T, R>` to read; what is written is a parameter of its own (`&mut Block<T, N..>`)",
);

/// Errors of one item, reported together.
#[derive(Default)]
pub(crate) struct Errors(RefCell<Option<syn::Error>>);

impl Errors {
    pub(crate) fn push(&self, error: syn::Error) {
        let mut slot = self.0.borrow_mut();
        match slot.as_mut() {
            Some(all) => all.combine(error),
            None => *slot = Some(error),
        }
    }

    /// Reports `message` at one span.
    pub(crate) fn at(&self, span: Span, message: &Message) {
        self.push(syn::Error::new(span, text(message)));
    }

    /// Reports `message` over all tokens of `tokens`.
    pub(crate) fn over(&self, tokens: impl ToTokens, message: &Message) {
        self.push(syn::Error::new_spanned(tokens, text(message)));
    }

    pub(crate) fn take(&self) -> Option<syn::Error> {
        self.0.borrow_mut().take()
    }
}

fn text(message: &Message) -> String {
    format!("{}\n\nhelp: {}", message.what, message.help)
}

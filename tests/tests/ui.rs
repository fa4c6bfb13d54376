//! What a mistake in a kernel looks like to its author: every file of `ui/` must fail to compile with the text beside it.
//!
//! `TRYBUILD=overwrite cargo test -p kiln-tests --test ui` writes the texts anew; read them before committing. A message
//! must stand at the author's token and name what to write instead, and nothing of the expansion may leak into it.

#[test]
fn mistakes_are_explained() {
    trybuild::TestCases::new().compile_fail("ui/*.rs");
}

//! Lines of a test's own text, which errors name.

/// Of the only line of `text` that ends with the comment `mark`, from 1.
///
/// # Panics
/// If there is none.
pub fn line_of(text: &str, mark: &str) -> usize {
    let end = format!("// {mark}");
    text.lines().position(|line| line.ends_with(&end)).expect("the line is marked") + 1
}

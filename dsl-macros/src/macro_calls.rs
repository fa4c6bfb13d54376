//! Macros inside staged bodies.
//!
//! A macro's tokens are opaque until it is expanded, so code inside one would escape the rewriting. Only macros whose
//! meaning is known are let through: assertions and printing become staged operations, texts and `matches!` stay Rust's.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Expr, ExprLit, Lit, LitStr, Macro, Token};

use crate::messages;
use crate::rewrite::{Rewriter, rewritten};

/// What stands for the macro call after rewriting.
pub(crate) fn lower(rewriter: &mut Rewriter, call: &Macro) -> TokenStream {
    let span = call.path.span();
    let name = call.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default();
    let message = match name.as_str() {
        "static_assert" | "assert" => return assertion(rewriter, call, name == "static_assert"),
        "print" | "println" => return print(rewriter, call),
        "matches" | "concat" | "stringify" | "line" | "column" | "file" | "cfg" | "env" | "include_str" => {
            return call.to_token_stream();
        }
        "panic" | "unreachable" | "todo" | "unimplemented" => &messages::PANIC,
        "vec" => &messages::VEC,
        "format" | "write" | "writeln" | "format_args" | "eprintln" | "eprint" | "dbg" => &messages::FORMAT,
        "assert_eq" | "assert_ne" => &messages::ASSERT_EQ,
        "debug_assert" | "debug_assert_eq" | "debug_assert_ne" => &messages::DEBUG_ASSERT,
        "asm" | "global_asm" => &messages::ASM,
        _ => &messages::UNKNOWN_MACRO,
    };
    rewriter.errors.at(span, message);
    quote_spanned!(span=> ::core::unreachable!())
}

fn arguments(rewriter: &Rewriter, call: &Macro) -> Option<Vec<Expr>> {
    match Punctuated::<Expr, Token![,]>::parse_terminated.parse2(call.tokens.clone()) {
        Ok(arguments) => Some(arguments.into_iter().collect()),
        Err(error) => {
            rewriter.errors.push(error);
            None
        }
    }
}

fn text(expr: &Expr) -> Option<&LitStr> {
    match expr {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text),
        _ => None,
    }
}

fn assertion(rewriter: &mut Rewriter, call: &Macro, compile_time: bool) -> TokenStream {
    let span = call.path.span();
    let Some(mut arguments) = arguments(rewriter, call) else {
        return quote_spanned!(span=> ());
    };
    let message = match &arguments[..] {
        // As Rust's own `assert!`: the condition is its text.
        [condition] => LitStr::new(&condition.to_token_stream().to_string(), condition.span()).to_token_stream(),
        [_, message] => message.to_token_stream(),
        _ => {
            rewriter.errors.over(&call.tokens, &messages::ASSERT_ARGUMENTS);
            if arguments.is_empty() {
                rewriter.errors.at(span, &messages::ASSERT_ARGUMENTS);
            }
            return quote_spanned!(span=> ());
        }
    };
    let condition = rewritten(rewriter, &mut arguments[0]);
    let function = Ident::new(if compile_time { "static_assert" } else { "assert_" }, span);
    quote_spanned!(span=> ::kiln::stage::#function(#condition, #message))
}

fn print(rewriter: &mut Rewriter, call: &Macro) -> TokenStream {
    let span = call.path.span();
    let Some(mut arguments) = arguments(rewriter, call) else {
        return quote_spanned!(span=> ());
    };
    let Some(format) = arguments.first().and_then(text).cloned() else {
        rewriter.errors.at(span, &messages::PRINT_TEXT);
        return quote_spanned!(span=> ());
    };
    let positional: Vec<_> = arguments.iter_mut().skip(1).map(|e| rewritten(rewriter, e)).collect();
    match placeholders(&format.value(), format.span(), positional) {
        Ok((normalised, values)) => {
            let normalised = LitStr::new(&normalised, format.span());
            quote_spanned! {span=>
                ::kiln::stage::print_(#normalised, &[#(::kiln::stage::print_value(#values)),*])
            }
        }
        Err(message) => {
            rewriter.errors.at(format.span(), message);
            quote_spanned!(span=> ())
        }
    }
}

/// The text with every placeholder as `{}`, and the values in its order: `{name}` takes the variable of that name.
fn placeholders(
    format: &str,
    span: Span,
    positional: Vec<TokenStream>,
) -> Result<(String, Vec<TokenStream>), &'static messages::Message> {
    let (mut normalised, mut values) = (String::new(), vec![]);
    let mut positional = positional.into_iter();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            // Doubled braces stay doubled: they are escapes in the stored text as well.
            '{' | '}' if rest.peek() == Some(&c) => {
                rest.next();
                normalised.extend([c, c]);
            }
            '{' => {
                let inside: String = rest.by_ref().take_while(|&c| c != '}').collect();
                normalised.push_str("{}");
                if inside.is_empty() {
                    values.push(positional.next().ok_or(&messages::PRINT_COUNT)?);
                } else {
                    let name: Ident = syn::parse_str(&inside).map_err(|_| &messages::PRINT_PLACEHOLDER)?;
                    values.push(Ident::new(&name.to_string(), span).into_token_stream());
                }
            }
            '}' => return Err(&messages::PRINT_PLACEHOLDER),
            c => normalised.push(c),
        }
    }
    match positional.next() {
        None => Ok((normalised, values)),
        Some(_) => Err(&messages::PRINT_COUNT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quote::quote;

    fn split(format: &str, positional: Vec<TokenStream>) -> Result<(String, Vec<String>), &'static str> {
        placeholders(format, Span::call_site(), positional)
            .map(|(text, values)| (text, values.iter().map(|v| v.to_string()).collect()))
            .map_err(|m| m.what)
    }

    #[test]
    fn placeholders_in_order() {
        let (text, values) = split("a {} b {x} {{c}}", vec![quote!(f(1))]).unwrap();
        assert_eq!(text, "a {} b {} {{c}}");
        assert_eq!(values, ["f (1)", "x"]);
    }

    #[test]
    fn placeholders_refused() {
        assert_eq!(split("{:?}", vec![quote!(x)]), Err(messages::PRINT_PLACEHOLDER.what));
        assert_eq!(split("{}", vec![]), Err(messages::PRINT_COUNT.what));
        assert_eq!(split("", vec![quote!(x)]), Err(messages::PRINT_COUNT.what));
    }
}

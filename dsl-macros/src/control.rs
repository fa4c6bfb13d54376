//! `if`, `for` and `while` on tiles.
//!
//! Each becomes one call that takes the carried places by value and a closure that stages the region(s):
//!
//! ```text
//! if c { x = a; 1 } else { 2 }       { let (carried, value) = ::kiln::stage::if_(c, (x,), |then, carried| {
//!                                          (x,) = carried;
//!                                          let value = if then { x = a; 1 } else { 2 };
//!                                          ((x,), value)
//!                                      });
//!                                      (x,) = carried; value }
//! for i in a..b { s += i }           let carried = ::kiln::stage::for_(::kiln::stage::range(a, b), (s,), |i, carried| ..)
//! while c { s += 1 }                 let carried = ::kiln::stage::while_((s,), |body, carried| ..)
//! ```
//!
//! Why one closure for both branches (and for condition and body of `while`): each stores into `&mut` outputs, and two
//! closures that live at once cannot both borrow them. Why the closure assigns the *outer* place instead of shadowing it:
//! a place may be a field or behind a reference, and the author's own names keep their meaning in every error of rustc.
//!
//! A loop over anything but a range is Rust's own loop, run while staging: that is unrolling.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::visit_mut::VisitMut;
use syn::{BinOp, Expr, ExprForLoop, ExprIf, ExprRange, ExprWhile, Pat, RangeLimits};

use crate::assigned::{Part, Place, places};
use crate::messages;
use crate::rewrite::{Rewriter, rewritten};

/// Tuples have at most this many elements before they are nested, as the library implements its traits for few arities.
const TUPLE: usize = 8;

/// `(a, b, c,)`; nested where there are many. Serves as value and as the left side of an assignment.
fn tuple(places: &[Place]) -> TokenStream {
    if places.len() <= TUPLE {
        return quote!((#(#places,)*));
    }
    let (first, rest) = (tuple(&places[..TUPLE]), tuple(&places[TUPLE..]));
    quote!((#first, #rest,))
}

/// `(a, b, c,) = value;`, nothing where nothing is carried.
fn assign(places: &[Place], value: &Ident, span: Span) -> TokenStream {
    if places.is_empty() {
        return quote_spanned!(span=> let () = #value;);
    }
    let tuple = tuple(places);
    quote_spanned!(span=> #tuple = #value;)
}

/// A name that the author cannot mean.
fn hidden(name: &str, span: Span) -> Ident {
    Ident::new(name, Span::mixed_site().located_at(span))
}

fn holds_let(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) => {
            matches!(binary.op, BinOp::And(_)) && (holds_let(&binary.left) || holds_let(&binary.right))
        }
        _ => false,
    }
}

/// `None`: it stays Rust's own `if let`.
pub(crate) fn lower_if(rewriter: &mut Rewriter, branch: &mut ExprIf) -> Option<TokenStream> {
    let span = branch.if_token.span;
    if holds_let(&branch.cond) {
        match &mut *branch.cond {
            Expr::Let(binding) => rewriter.visit_expr_let_mut(binding),
            chain => rewriter.errors.over(chain, &messages::LET_CHAIN),
        }
        rewriter.visit_block_mut(&mut branch.then_branch);
        if let Some((_, otherwise)) = &mut branch.else_branch {
            // A staged `else if` comes back as verbatim tokens, which syn prints within braces.
            rewriter.visit_expr_mut(otherwise);
        }
        return None;
    }

    let otherwise = branch.else_branch.as_ref().map(|(_, e)| Part::Expr(e));
    let carried = places([Part::Block(&branch.then_branch)].into_iter().chain(otherwise), rewriter.parameters);

    let condition = rewritten(rewriter, &mut branch.cond);
    rewriter.visit_block_mut(&mut branch.then_branch);
    let then_branch = &branch.then_branch;
    let otherwise = branch.else_branch.as_mut().map(|(keyword, otherwise)| {
        let tokens = rewritten(rewriter, otherwise);
        match **otherwise {
            Expr::Block(_) => quote!(#keyword #tokens),
            _ => quote!(#keyword { #tokens }),
        }
    });

    let (then, values, value) = (hidden("then", span), hidden("carried", span), hidden("value", span));
    let (old, enter, leave) = (tuple(&carried), assign(&carried, &values, span), assign(&carried, &values, span));
    Some(quote_spanned! {span=> {
        let (#values, #value) = ::kiln::stage::if_(#condition, #old, |#then: bool, #values| {
            #enter
            let #value = if #then #then_branch #otherwise;
            (#old, #value)
        });
        #leave
        #value
    }})
}

/// `None`: it stays Rust's own loop, unrolled by running it.
pub(crate) fn lower_for(rewriter: &mut Rewriter, looped: &mut ExprForLoop) -> Option<TokenStream> {
    if let Some(label) = looped.label.take() {
        rewriter.errors.over(label, &messages::LABEL);
    }
    let span = looped.for_token.span;
    if let Some(inner) = unrolled(rewriter, &mut looped.expr) {
        *looped.expr = inner;
        rewriter.visit_expr_mut(&mut looped.expr);
        rewriter.visit_pat_mut(&mut looped.pat);
        rewriter.visit_block_mut(&mut looped.body);
        return None;
    }
    let one_name = match &*looped.pat {
        Pat::Ident(name) => name.by_ref.is_none() && name.subpat.is_none(),
        Pat::Wild(_) => true,
        _ => false,
    };
    if !one_name && is_range(&looped.expr) {
        rewriter.errors.over(&looped.pat, &messages::FOR_PATTERN);
    }
    let Some(range) = staged_range(rewriter, &mut looped.expr) else {
        rewriter.visit_expr_mut(&mut looped.expr);
        rewriter.visit_pat_mut(&mut looped.pat);
        rewriter.visit_block_mut(&mut looped.body);
        return None;
    };
    let pattern = &looped.pat;
    let carried = places([Part::Body(pattern, &looped.body)], rewriter.parameters);
    rewriter.visit_block_mut(&mut looped.body);
    let body = &looped.body;
    let values = hidden("carried", span);
    let (old, enter, leave) = (tuple(&carried), assign(&carried, &values, span), assign(&carried, &values, span));
    Some(quote_spanned! {span=> {
        let #values = ::kiln::stage::for_(#range, #old, |#pattern, #values| {
            #enter
            #body
            #old
        });
        #leave
    }})
}

pub(crate) fn lower_while(rewriter: &mut Rewriter, looped: &mut ExprWhile) -> TokenStream {
    let span = looped.while_token.span;
    if let Some(label) = looped.label.take() {
        rewriter.errors.over(label, &messages::LABEL);
    }
    if holds_let(&looped.cond) {
        rewriter.errors.over(&looped.cond, &messages::WHILE_LET);
        rewriter.visit_block_mut(&mut looped.body);
        return quote_spanned!(span=> {});
    }
    let carried = places([Part::Expr(&looped.cond), Part::Block(&looped.body)], rewriter.parameters);
    let condition = rewritten(rewriter, &mut looped.cond);
    rewriter.visit_block_mut(&mut looped.body);
    let looped_body = &looped.body;
    let (body, values, holds) = (hidden("body", span), hidden("carried", span), hidden("holds", span));
    let (old, enter, leave) = (tuple(&carried), assign(&carried, &values, span), assign(&carried, &values, span));
    quote_spanned! {span=> {
        let #values = ::kiln::stage::while_(#old, |#body: bool, #values| {
            #enter
            let #holds = if #body {
                #looped_body
                ::core::option::Option::None
            } else {
                ::core::option::Option::Some(#condition)
            };
            (#holds, #old)
        });
        #leave
    }}
}

/// The argument of `unroll(..)`.
fn unrolled(rewriter: &Rewriter, expr: &mut Expr) -> Option<Expr> {
    let Expr::Call(call) = expr else { return None };
    let Expr::Path(function) = &*call.func else { return None };
    if function.path.segments.last()?.ident != "unroll" {
        return None;
    }
    if call.args.len() != 1 {
        rewriter.errors.over(&*call, &messages::UNROLL_ARITY);
    }
    call.args.first().cloned()
}

fn is_range(expr: &Expr) -> bool {
    match expr {
        Expr::Range(_) => true,
        Expr::Paren(inner) => is_range(&inner.expr),
        Expr::Group(inner) => is_range(&inner.expr),
        Expr::MethodCall(call) => is_range(&call.receiver),
        _ => false,
    }
}

/// `a..b` with hints behind it, as a call of `::kiln::stage::range`; `None` if no range leads the expression.
fn staged_range(rewriter: &mut Rewriter, expr: &mut Expr) -> Option<TokenStream> {
    match expr {
        Expr::Range(range) => Some(bounds(rewriter, range)),
        Expr::Paren(inner) => staged_range(rewriter, &mut inner.expr),
        Expr::Group(inner) => staged_range(rewriter, &mut inner.expr),
        Expr::MethodCall(call) => {
            let receiver = staged_range(rewriter, &mut call.receiver)?;
            const ITERATOR: [&str; 10] =
                ["rev", "map", "zip", "enumerate", "filter", "chain", "skip", "take", "into_iter", "flat_map"];
            if ITERATOR.iter().any(|name| call.method == name) {
                rewriter.errors.at(call.method.span(), &messages::RANGE_ITERATOR);
                return Some(receiver);
            }
            let (dot, method, turbofish) = (&call.dot_token, call.method.clone(), call.turbofish.clone());
            let arguments: Vec<_> = call.args.iter_mut().map(|a| rewritten(rewriter, a)).collect();
            let mut tokens = quote_spanned!(method.span()=> (#(#arguments),*));
            tokens = quote!(#receiver #dot #method #turbofish #tokens);
            Some(tokens)
        }
        _ => None,
    }
}

fn bounds(rewriter: &mut Rewriter, range: &mut ExprRange) -> TokenStream {
    let span = match &range.limits {
        RangeLimits::HalfOpen(dots) => dots.spans[0],
        RangeLimits::Closed(dots) => dots.spans[0],
    };
    if let RangeLimits::Closed(_) = range.limits {
        rewriter.errors.over(range.limits, &messages::RANGE_INCLUSIVE);
    } else if range.end.is_none() {
        rewriter.errors.over(range.limits, &messages::RANGE_NO_END);
    }
    if range.start.is_none() {
        rewriter.errors.over(range.limits, &messages::RANGE_NO_START);
    }
    let start = range.start.as_mut().map(|e| rewritten(rewriter, e)).unwrap_or_else(|| 0i32.to_token_stream());
    let end = range.end.as_mut().map(|e| rewritten(rewriter, e)).unwrap_or_else(|| 0i32.to_token_stream());
    quote_spanned!(span=> ::kiln::stage::range(#start, #end))
}

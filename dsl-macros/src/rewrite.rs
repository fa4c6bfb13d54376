//! The body of a staged function: what Rust cannot overload becomes a call into `::kiln::stage`, the rest stays.
//!
//! The walk goes from the outside in, because the carried variables of a region are read off the author's code, before
//! anything inside it is rewritten. Rewritten expressions are put back as verbatim tokens, so nothing is visited twice.
//!
//! Invariants:
//! - Every generated token carries the span of the author's token it stands for (`<`, `if`, `for`, ..), so rustc's
//!   errors and `#[track_caller]` locations are the author's. Names that the macro invents are hygienic.
//! - Constants (array lengths, generic arguments, `const` blocks) and nested items are Rust's own and stay untouched.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    BinOp, Expr, ExprBinary, ExprClosure, ExprRepeat, GenericArgument, Item, Local, PathSegment, Stmt, TypeArray, UnOp,
};

use crate::assigned::Parameters;
use crate::messages::{self, Errors, Message};
use crate::types::TypeNames;
use crate::{control, macro_calls};

pub(crate) struct Rewriter<'a> {
    pub(crate) errors: &'a Errors,
    pub(crate) names: &'a TypeNames,
    pub(crate) parameters: &'a Parameters,
}

impl Rewriter<'_> {
    fn refuse(&self, expr: &mut Expr, span: proc_macro2::Span, message: &Message) {
        self.errors.at(span, message);
        // Keeps rustc from adding its own view of the same construct.
        *expr = Expr::Verbatim(quote_spanned!(span=> ::core::unreachable!()));
    }

    /// `a < b` and `a && b`.
    fn binary(&mut self, binary: &mut ExprBinary) -> Option<TokenStream> {
        let span = binary.op.span();
        let (mirrored, function) = match binary.op {
            BinOp::Lt(_) => (quote_spanned!(span=> gt), quote_spanned!(span=> lt)),
            BinOp::Le(_) => (quote_spanned!(span=> ge), quote_spanned!(span=> le)),
            BinOp::Gt(_) => (quote_spanned!(span=> lt), quote_spanned!(span=> gt)),
            BinOp::Ge(_) => (quote_spanned!(span=> le), quote_spanned!(span=> ge)),
            BinOp::Eq(_) => (quote_spanned!(span=> eq), quote_spanned!(span=> eq)),
            BinOp::Ne(_) => (quote_spanned!(span=> ne), quote_spanned!(span=> ne)),
            BinOp::And(_) => (quote_spanned!(span=> and), quote_spanned!(span=> and)),
            BinOp::Or(_) => (quote_spanned!(span=> or), quote_spanned!(span=> or)),
            _ => return None,
        };
        // A number on the left has no type that knows tiles; mirrored, the tile leads: `0 < n` is `n > 0`.
        let mirror = is_literal(&binary.left) && !is_literal(&binary.right);
        visit_mut::visit_expr_binary_mut(self, binary);
        let (left, right) = (&binary.left, &binary.right);
        Some(if mirror {
            quote_spanned!(span=> ::kiln::stage::#mirrored(#right, #left))
        } else {
            quote_spanned!(span=> ::kiln::stage::#function(#left, #right))
        })
    }
}

fn is_literal(expr: &Expr) -> bool {
    match expr {
        Expr::Lit(_) => true,
        Expr::Unary(unary) => matches!(unary.op, UnOp::Neg(_)) && is_literal(&unary.expr),
        Expr::Paren(inner) => is_literal(&inner.expr),
        _ => false,
    }
}

impl VisitMut for Rewriter<'_> {
    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        match expr {
            // Attributes (`#[cfg(..)] if ..`) stay in front of what replaces their expression.
            Expr::If(branch) => {
                if let Some(tokens) = control::lower_if(self, branch) {
                    let attributes = &branch.attrs;
                    *expr = Expr::Verbatim(quote!(#(#attributes)* #tokens));
                }
            }
            Expr::ForLoop(looped) => {
                if let Some(tokens) = control::lower_for(self, looped) {
                    let attributes = &looped.attrs;
                    *expr = Expr::Verbatim(quote!(#(#attributes)* #tokens));
                }
            }
            Expr::While(looped) => {
                let tokens = control::lower_while(self, looped);
                let attributes = &looped.attrs;
                *expr = Expr::Verbatim(quote!(#(#attributes)* #tokens));
            }
            Expr::Binary(binary) => match self.binary(binary) {
                Some(tokens) => *expr = Expr::Verbatim(tokens),
                None => visit_mut::visit_expr_binary_mut(self, binary),
            },
            Expr::Macro(call) => {
                let tokens = macro_calls::lower(self, &call.mac);
                *expr = Expr::Verbatim(tokens);
            }
            Expr::Loop(looped) => {
                self.errors.at(looped.loop_token.span, &messages::LOOP);
                // The body may hold more to report.
                self.visit_block_mut(&mut looped.body);
                *expr = Expr::Verbatim(quote!(::core::unreachable!()));
            }
            Expr::Block(block) if block.label.is_some() => {
                self.errors.over(&block.label, &messages::LABEL);
                self.visit_block_mut(&mut block.block);
                *expr = Expr::Verbatim(quote!(::core::unreachable!()));
            }
            Expr::Break(e) => {
                let span = e.break_token.span;
                self.refuse(expr, span, &messages::BREAK);
            }
            Expr::Continue(e) => {
                let span = e.continue_token.span;
                self.refuse(expr, span, &messages::CONTINUE);
            }
            Expr::Return(e) => {
                let span = e.return_token.span;
                self.refuse(expr, span, &messages::RETURN);
            }
            Expr::Try(e) => {
                let span = e.question_token.span();
                self.visit_expr_mut(&mut e.expr);
                self.refuse(expr, span, &messages::TRY);
            }
            Expr::TryBlock(e) => {
                let span = e.try_token.span;
                self.refuse(expr, span, &messages::TRY_BLOCK);
            }
            Expr::Async(e) => {
                let span = e.async_token.span;
                self.refuse(expr, span, &messages::ASYNC);
            }
            Expr::Await(e) => {
                let span = e.await_token.span;
                self.refuse(expr, span, &messages::AWAIT);
            }
            Expr::Yield(e) => {
                let span = e.yield_token.span;
                self.refuse(expr, span, &messages::YIELD);
            }
            Expr::Const(_) => {}
            _ => visit_mut::visit_expr_mut(self, expr),
        }
    }

    fn visit_expr_closure_mut(&mut self, closure: &mut ExprClosure) {
        if let Some(keyword) = &closure.asyncness {
            self.errors.at(keyword.span, &messages::ASYNC);
        }
        visit_mut::visit_expr_closure_mut(self, closure);
    }

    fn visit_expr_repeat_mut(&mut self, repeat: &mut ExprRepeat) {
        self.visit_expr_mut(&mut repeat.expr);
    }

    fn visit_type_array_mut(&mut self, array: &mut TypeArray) {
        self.visit_type_mut(&mut array.elem);
    }

    fn visit_generic_argument_mut(&mut self, argument: &mut GenericArgument) {
        if !matches!(argument, GenericArgument::Const(_) | GenericArgument::AssocConst(_)) {
            visit_mut::visit_generic_argument_mut(self, argument);
        }
    }

    fn visit_path_segment_mut(&mut self, segment: &mut PathSegment) {
        visit_mut::visit_path_segment_mut(self, segment);
        self.names.rewrite_segment(segment, self.errors);
    }

    fn visit_local_mut(&mut self, local: &mut Local) {
        match &local.init {
            None => self.errors.over(&local.pat, &messages::LET_UNINITIALISED),
            Some(init) => {
                if let Some((keyword, _)) = &init.diverge {
                    self.errors.at(keyword.span, &messages::LET_ELSE);
                }
            }
        }
        // A diverging block was refused as a whole; its `return` would be a second message about one mistake.
        if let Some(init) = &mut local.init {
            init.diverge = None;
        }
        visit_mut::visit_local_mut(self, local);
    }

    fn visit_stmt_mut(&mut self, stmt: &mut Stmt) {
        if let Stmt::Macro(call) = stmt {
            let tokens = macro_calls::lower(self, &call.mac);
            let semicolon = call.semi_token;
            let attributes = std::mem::take(&mut call.attrs);
            *stmt = Stmt::Expr(Expr::Verbatim(quote!(#(#attributes)* #tokens)), semicolon);
            return;
        }
        visit_mut::visit_stmt_mut(self, stmt);
    }

    fn visit_item_mut(&mut self, _: &mut Item) {}
}

/// Tokens of an expression after rewriting.
pub(crate) fn rewritten(rewriter: &mut Rewriter, expr: &mut Expr) -> TokenStream {
    rewriter.visit_expr_mut(expr);
    expr.to_token_stream()
}

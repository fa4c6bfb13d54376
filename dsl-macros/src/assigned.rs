//! Which variables a piece of code changes: they become the carried values of its IR region.
//!
//! In SSA a loop or a branch cannot change an outer variable; it takes the old values in and hands the new ones out. This
//! module finds the *places* a block assigns to and does not declare itself: `x`, `*accumulator`, `state.sum`. An indexed
//! place (`tiles[i] = ..`) counts as its base, since the index need not be known here.
//!
//! Counted as changes: `=`, `+=` and its kin, destructuring assignment, `&mut place`, and any mention of a parameter
//! `p: &mut Tile<..>` (handing it on to a function reborrows it without a token that says so).
//! Not counted: names declared inside the block (scopes are followed: `let`, patterns, closure parameters), and
//! parameters that are memory (`&mut View`, `&mut Block`), which are not values.
//!
//! Invariant: no place in the result is a part of another one.

use std::collections::HashSet;

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::visit::{self, Visit};
use syn::{
    Arm, BinOp, Block, Expr, ExprClosure, ExprForLoop, ExprIf, ExprLet, ExprWhile, Item, Local, Member, Pat, UnOp,
};

/// What the signature says about names that are references.
#[derive(Default, Clone)]
pub(crate) struct Parameters {
    /// Views and blocks: never carried.
    pub(crate) memory: HashSet<String>,
    /// `p: &mut Tile<..>` (or tuples and arrays of tiles): a mention of `p` may change `*p`.
    pub(crate) tile_references: HashSet<String>,
}

/// A place expression that a region assigns to.
pub(crate) struct Place {
    root: String,
    /// The fields below the root. Dereferences are left out: `(*s).x` and `s.x` are the same place.
    fields: Vec<String>,
    tokens: TokenStream,
}

impl Place {
    fn contains(&self, other: &Place) -> bool {
        self.root == other.root && other.fields.starts_with(&self.fields)
    }
}

impl ToTokens for Place {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        self.tokens.to_tokens(tokens);
    }
}

/// The outer places that any of `parts` assigns to, in the order of their first assignment.
pub(crate) fn places<'a>(parts: impl IntoIterator<Item = Part<'a>>, parameters: &Parameters) -> Vec<Place> {
    let mut finder = Finder { parameters, scopes: vec![], found: vec![] };
    for part in parts {
        finder.scoped(|finder| {
            if let Part::Body(pattern, block) = part {
                finder.declare(pattern);
                finder.visit_block(block);
            } else if let Part::Expr(expr) = part {
                finder.visit_expr(expr);
            } else if let Part::Block(block) = part {
                finder.visit_block(block);
            }
        });
    }
    finder.found
}

/// A part of a region.
pub(crate) enum Part<'a> {
    Block(&'a Block),
    Expr(&'a Expr),
    /// A loop body and the pattern that is bound around it.
    Body(&'a Pat, &'a Block),
}

struct Finder<'a> {
    parameters: &'a Parameters,
    scopes: Vec<HashSet<String>>,
    found: Vec<Place>,
}

impl Finder<'_> {
    fn scoped(&mut self, inside: impl FnOnce(&mut Self)) {
        self.scopes.push(HashSet::new());
        inside(self);
        self.scopes.pop();
    }

    fn declare(&mut self, pattern: &Pat) {
        struct Names<'a>(&'a mut HashSet<String>);
        impl<'ast> Visit<'ast> for Names<'_> {
            fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
                self.0.insert(pattern.ident.to_string());
                visit::visit_pat_ident(self, pattern);
            }
            // Names inside a pattern's expressions (guards, constants) are uses.
            fn visit_expr(&mut self, _: &'ast Expr) {}
        }
        if let Some(scope) = self.scopes.last_mut() {
            Names(scope).visit_pat(pattern);
        }
    }

    fn is_declared_inside(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.contains(name))
    }

    fn record(&mut self, place: Place) {
        if self.is_declared_inside(&place.root) || self.parameters.memory.contains(&place.root) {
            return;
        }
        if self.found.iter().any(|known| known.contains(&place)) {
            return;
        }
        self.found.retain(|known| !place.contains(known));
        self.found.push(place);
    }

    /// Records the places on the left of an assignment, which may be a pattern of places.
    fn record_target(&mut self, target: &Expr) {
        match target {
            Expr::Tuple(tuple) => tuple.elems.iter().for_each(|e| self.record_target(e)),
            Expr::Array(array) => array.elems.iter().for_each(|e| self.record_target(e)),
            Expr::Call(call) => call.args.iter().for_each(|e| self.record_target(e)),
            Expr::Struct(structure) => structure.fields.iter().for_each(|f| self.record_target(&f.expr)),
            _ => {
                if let Some(place) = place_of(target) {
                    self.record(place);
                }
            }
        }
    }
}

/// The longest place in front of an index; `None` if the expression is a temporary.
fn place_of(expr: &Expr) -> Option<Place> {
    match expr {
        Expr::Path(path) => {
            let name = path.path.get_ident()?;
            Some(Place { root: name.to_string(), fields: vec![], tokens: name.to_token_stream() })
        }
        Expr::Field(field) => {
            // `tiles[i].x`: the index ends the place.
            let base = place_of(&field.base)?;
            if through_index(&field.base) {
                return Some(base);
            }
            let Place { root, mut fields, tokens } = base;
            let (member, dot) = (&field.member, &field.dot_token);
            fields.push(match member {
                Member::Named(name) => name.to_string(),
                Member::Unnamed(index) => index.index.to_string(),
            });
            Some(Place { root, fields, tokens: quote!(#tokens #dot #member) })
        }
        Expr::Unary(unary) if matches!(unary.op, UnOp::Deref(_)) => {
            let base = place_of(&unary.expr)?;
            if through_index(&unary.expr) {
                return Some(base);
            }
            let (Place { root, fields, tokens }, star) = (base, &unary.op);
            Some(Place { root, fields, tokens: quote!((#star #tokens)) })
        }
        Expr::Index(index) => place_of(&index.expr),
        Expr::Paren(inner) => place_of(&inner.expr),
        Expr::Group(inner) => place_of(&inner.expr),
        _ => None,
    }
}

fn through_index(expr: &Expr) -> bool {
    match expr {
        Expr::Index(_) => true,
        Expr::Field(field) => through_index(&field.base),
        Expr::Unary(unary) => through_index(&unary.expr),
        Expr::Paren(inner) => through_index(&inner.expr),
        Expr::Group(inner) => through_index(&inner.expr),
        _ => false,
    }
}

fn assigns(op: &BinOp) -> bool {
    use BinOp::*;
    matches!(
        op,
        AddAssign(_)
            | SubAssign(_)
            | MulAssign(_)
            | DivAssign(_)
            | RemAssign(_)
            | BitXorAssign(_)
            | BitAndAssign(_)
            | BitOrAssign(_)
            | ShlAssign(_)
            | ShrAssign(_)
    )
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_block(&mut self, block: &'ast Block) {
        self.scoped(|finder| visit::visit_block(finder, block));
    }

    fn visit_local(&mut self, local: &'ast Local) {
        // The initialiser still sees the outer name: `let x = { x = f(x); x };`.
        if let Some(init) = &local.init {
            self.visit_expr(&init.expr);
        }
        self.declare(&local.pat);
    }

    fn visit_expr_closure(&mut self, closure: &'ast ExprClosure) {
        self.scoped(|finder| {
            closure.inputs.iter().for_each(|input| finder.declare(input));
            finder.visit_expr(&closure.body);
        });
    }

    fn visit_expr_for_loop(&mut self, looped: &'ast ExprForLoop) {
        self.visit_expr(&looped.expr);
        self.scoped(|finder| {
            finder.declare(&looped.pat);
            finder.visit_block(&looped.body);
        });
    }

    fn visit_expr_if(&mut self, branch: &'ast ExprIf) {
        self.scoped(|finder| {
            finder.visit_expr(&branch.cond);
            finder.visit_block(&branch.then_branch);
        });
        if let Some((_, otherwise)) = &branch.else_branch {
            self.visit_expr(otherwise);
        }
    }

    fn visit_expr_while(&mut self, looped: &'ast ExprWhile) {
        self.scoped(|finder| {
            finder.visit_expr(&looped.cond);
            finder.visit_block(&looped.body);
        });
    }

    fn visit_arm(&mut self, arm: &'ast Arm) {
        self.scoped(|finder| {
            finder.declare(&arm.pat);
            visit::visit_arm(finder, arm);
        });
    }

    fn visit_expr_let(&mut self, binding: &'ast ExprLet) {
        self.visit_expr(&binding.expr);
        self.declare(&binding.pat);
    }

    fn visit_expr(&mut self, expr: &'ast Expr) {
        match expr {
            Expr::Assign(assign) => self.record_target(&assign.left),
            Expr::Binary(binary) if assigns(&binary.op) => self.record_target(&binary.left),
            Expr::Reference(reference) if reference.mutability.is_some() => {
                if let Some(place) = place_of(&reference.expr) {
                    self.record(place);
                }
            }
            Expr::Path(path) => {
                if let Some(name) = path.path.get_ident()
                    && self.parameters.tile_references.contains(&name.to_string())
                {
                    self.record(Place { root: name.to_string(), fields: vec![], tokens: quote!((*#name)) });
                }
            }
            _ => {}
        }
        visit::visit_expr(self, expr);
    }

    fn visit_item(&mut self, _: &'ast Item) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(block: &str) -> Vec<String> {
        let block: Block = syn::parse_str(block).unwrap();
        let parameters = Parameters { memory: ["out".to_string()].into(), tile_references: ["acc".to_string()].into() };
        places([Part::Block(&block)], &parameters)
            .iter()
            .map(|p| p.to_token_stream().to_string().replace(' ', ""))
            .collect()
    }

    #[test]
    fn assignments_of_every_form() {
        assert_eq!(
            found("{ a = 1; b += 2; (c, [d, _], S { x: e, .. }) = f(); g(&mut h); }"),
            ["a", "b", "c", "d", "e", "h"]
        );
    }

    #[test]
    fn shadowing_ends_with_its_scope() {
        assert_eq!(found("{ { let mut x = 0; x = 1; } x = 2; }"), ["x"]);
        assert_eq!(found("{ let mut x = 0; x = 1; { x = 2; } }"), Vec::<String>::new());
        assert_eq!(found("{ x = 1; let mut x = 0; x = 2; }"), ["x"]);
        assert_eq!(found("{ let x = { x = 1; x }; }"), ["x"]);
    }

    #[test]
    fn patterns_declare() {
        assert_eq!(found("{ for mut i in unroll(0..4) { i = 1; j = 2; } }"), ["j"]);
        assert_eq!(found("{ if let Some(mut a) = o { a = 1; } else { a = 2; } }"), ["a"]);
        assert_eq!(found("{ match o { Some(mut a) if { b = 1; true } => a = 1, None => c = 2, } }"), ["b", "c"]);
        assert_eq!(found("{ let f = |mut a, b| { a = b; c = a; }; }"), ["c"]);
    }

    #[test]
    fn a_place_covers_its_parts() {
        assert_eq!(found("{ s.a = 1; s.b.c = 2; s.b = 3; }"), ["s.a", "s.b"]);
        assert_eq!(found("{ s.a = 1; s = t; s.b = 1; }"), ["s"]);
        assert_eq!(found("{ self.a[i].x = 1; t[0] += 1; }"), ["self.a", "t"]);
    }

    #[test]
    fn references_to_tiles_and_memory() {
        assert_eq!(found("{ *acc += x; }"), ["(*acc)"]);
        assert_eq!(found("{ helper(acc); }"), ["(*acc)"]);
        assert_eq!(found("{ helper(&mut out); out.store(x); }"), Vec::<String>::new());
    }
}

//! `Tile<f32, 64, 128>` as Rust can say it.
//!
//! Rust has no variadic const generics, so the vocabulary keys a tile by one shape type: `Tile<f32, D2<64, 128>>`. Authors
//! write the extents, and this module folds them into `D1`..`D4` wherever a type can stand: signatures, annotations,
//! turbofish, paths such as `Tile::<f32, 8>::zeros()`. A single extra argument is ambiguous (`Tile<T, N>`: is `N` an
//! extent or a shape?) and is told apart by what the name is declared to be.
//!
//! Invariant: only segments named `Tile` or `Block` change; literal extents that are no power of two never reach rustc.

use std::collections::HashSet;

use proc_macro2::Ident;
use quote::{format_ident, quote_spanned};
use syn::{AngleBracketedGenericArguments, Expr, GenericArgument, Generics, Lit, PathArguments, PathSegment, Type};

use crate::messages::{self, Errors};

/// Names whose meaning decides between an extent and a shape.
#[derive(Default)]
pub(crate) struct TypeNames {
    type_parameters: HashSet<String>,
    const_parameters: HashSet<String>,
}

impl TypeNames {
    pub(crate) fn of(generics: &Generics) -> Self {
        TypeNames {
            type_parameters: generics.type_params().map(|p| p.ident.to_string()).collect(),
            const_parameters: generics.const_params().map(|p| p.ident.to_string()).collect(),
        }
    }

    /// Whether a lone second argument is a shape type rather than an extent.
    fn is_shape(&self, argument: &GenericArgument) -> bool {
        let GenericArgument::Type(ty) = argument else {
            return false;
        };
        match ty {
            Type::Path(path) => {
                if path.qself.is_some() || path.path.segments.len() > 1 {
                    // A qualified constant needs braces in this position, so this is a type.
                    return true;
                }
                let segment = &path.path.segments[0];
                if !segment.arguments.is_none() {
                    return true;
                }
                let name = segment.ident.to_string();
                if self.const_parameters.contains(&name) {
                    return false;
                }
                // Constants are written in capitals, types are not.
                self.type_parameters.contains(&name) || name == "D0" || name.chars().any(char::is_lowercase)
            }
            _ => true,
        }
    }

    /// Rewrites one path segment; its generic arguments are already rewritten.
    pub(crate) fn rewrite_segment(&self, segment: &mut PathSegment, errors: &Errors) {
        let PathArguments::AngleBracketed(arguments) = &mut segment.arguments else {
            return;
        };
        if is_dimensions(&segment.ident) {
            check_extents(arguments.args.iter(), errors);
        }
        if segment.ident == "Tile" || segment.ident == "Block" {
            self.fold_extents(&segment.ident, arguments, errors);
        }
    }

    fn fold_extents(&self, name: &Ident, arguments: &mut AngleBracketedGenericArguments, errors: &Errors) {
        let extents: Vec<_> = arguments.args.iter().skip(1).cloned().collect();
        if extents.is_empty() || (extents.len() == 1 && self.is_shape(&extents[0])) {
            return;
        }
        if extents.len() > 4 {
            errors.over(&extents[4], &messages::EXTENT_RANK);
            return;
        }
        check_extents(extents.iter(), errors);
        let dimensions = format_ident!("D{}", extents.len());
        let shape = quote_spanned!(name.span()=> ::kiln::#dimensions<#(#extents),*>);
        let element = arguments.args[0].clone();
        arguments.args.clear();
        arguments.args.push(element);
        arguments.args.push(GenericArgument::Type(Type::Verbatim(shape)));
    }
}

fn is_dimensions(ident: &Ident) -> bool {
    ["D1", "D2", "D3", "D4"].iter().any(|d| ident == d)
}

fn check_extents<'a>(extents: impl Iterator<Item = &'a GenericArgument>, errors: &Errors) {
    for extent in extents {
        if let GenericArgument::Const(Expr::Lit(literal)) = extent
            && let Lit::Int(int) = &literal.lit
            && let Ok(value) = int.base10_parse::<u64>()
            && !value.is_power_of_two()
        {
            errors.at(int.span(), &messages::EXTENT_POWER_OF_TWO);
        }
    }
}

/// The name of the last segment of a path type: `View` of `kiln::View<f32, 1>`.
pub(crate) fn last_name(ty: &Type) -> Option<&Ident> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|s| &s.ident),
        Type::Paren(inner) => last_name(&inner.elem),
        Type::Group(inner) => last_name(&inner.elem),
        _ => None,
    }
}

//! `tune(M, N in [(128, 256), (64, 128)], K in [32, 64], if M * K <= 8192)`: the instances of a kernel to choose among.
//!
//! The lists' combinations for which the condition holds are the candidates. Beside the host function of the kernel
//! stands one whose name ends in `_tuned`, which lacks the constants that are chosen and returns a `Tuned`. Where the
//! signature names them, it has the first candidate's values: what the host passes does not depend on them.

use proc_macro2::{Group, Ident, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{ConstParam, Expr, GenericParam, Generics, Token, WhereClause, bracketed};

use crate::messages::{self, Errors};
use crate::signature::with_host_lifetime;

/// The constants to choose, and the candidates' values of each.
pub(crate) struct Space {
    names: Vec<Ident>,
    /// At least one.
    candidates: Vec<Vec<Expr>>,
    condition: Option<Expr>,
}

/// `M, N in [(128, 256), (64, 128)]`
struct List {
    names: Vec<Ident>,
    values: Punctuated<Expr, Token![,]>,
}

impl Parse for List {
    fn parse(input: ParseStream) -> syn::Result<List> {
        let mut names = vec![input.parse()?];
        while !input.peek(Token![in]) {
            input.parse::<Token![,]>()?;
            names.push(input.parse()?);
        }
        input.parse::<Token![in]>()?;
        let values;
        bracketed!(values in input);
        Ok(List { names, values: Punctuated::parse_terminated(&values)? })
    }
}

fn lists(input: ParseStream) -> syn::Result<(Vec<List>, Option<Expr>)> {
    let mut lists = vec![input.parse()?];
    while !input.is_empty() {
        input.parse::<Token![,]>()?;
        if input.peek(Token![if]) {
            input.parse::<Token![if]>()?;
            let condition = input.parse()?;
            return Ok((lists, Some(condition)));
        }
        if !input.is_empty() {
            lists.push(input.parse()?);
        }
    }
    Ok((lists, None))
}

/// A list's values, each with one expression per name.
fn rows(list: &List, errors: &Errors) -> Vec<Vec<Expr>> {
    let row = |value: &Expr| {
        let row = match value {
            Expr::Tuple(tuple) => tuple.elems.iter().cloned().collect(),
            Expr::Paren(one) => vec![(*one.expr).clone()],
            one => vec![one.clone()],
        };
        if row.len() != list.names.len() {
            errors.over(value, &messages::TUNE_ARITY);
        }
        row
    };
    list.values.iter().map(row).collect()
}

impl Space {
    /// The space, if it makes sense for a kernel with these generics; what does not is reported.
    pub(crate) fn parse(option: &Ident, lists: TokenStream, generics: &Generics, errors: &Errors) -> Option<Space> {
        let own = Errors::default();
        let space = Space::parse_into(option, lists, generics, &own);
        match own.take() {
            Some(error) => {
                errors.push(error);
                None
            }
            None => Some(space),
        }
    }

    fn parse_into(option: &Ident, tokens: TokenStream, generics: &Generics, errors: &Errors) -> Space {
        let mut space = Space { names: vec![], candidates: vec![vec![]], condition: None };
        if tokens.is_empty() {
            errors.over(option, &messages::TUNE_FORM);
            return space;
        }
        let (lists, condition) = match lists.parse2(tokens) {
            Ok(parsed) => parsed,
            Err(error) => {
                errors.at(error.span(), &messages::TUNE_FORM);
                return space;
            }
        };
        space.condition = condition;
        for list in &lists {
            for name in &list.names {
                if !generics.const_params().any(|constant| constant.ident == *name) {
                    errors.over(name, &messages::TUNE_UNKNOWN);
                }
                if space.names.contains(name) {
                    errors.over(name, &messages::OPTION_TWICE);
                }
                space.names.push(name.clone());
            }
            let rows = rows(list, errors);
            if rows.is_empty() {
                errors.over(&list.names[0], &messages::TUNE_EMPTY);
            }
            let combined = |start: &Vec<Expr>| rows.iter().map(|row| [&start[..], row].concat()).collect::<Vec<_>>();
            space.candidates = space.candidates.iter().flat_map(combined).collect();
        }
        space
    }

    fn chosen(&self, parameter: &GenericParam) -> Option<usize> {
        let GenericParam::Const(ConstParam { ident, .. }) = parameter else { return None };
        self.names.iter().position(|name| name == ident)
    }

    /// `::<T, 128, 256, BAND>` for a candidate.
    fn turbofish(&self, generics: &Generics, values: &[Expr]) -> TokenStream {
        let arguments = generics.params.iter().filter_map(|parameter| match (self.chosen(parameter), parameter) {
            (Some(number), _) => Some(braced(&values[number])),
            (None, GenericParam::Type(p)) => Some(p.ident.to_token_stream()),
            (None, GenericParam::Const(p)) => Some(p.ident.to_token_stream()),
            (None, GenericParam::Lifetime(_)) => None,
        });
        quote!(::<#(#arguments),*>)
    }

    /// The generics that are left.
    fn rest(&self, generics: &Generics) -> Generics {
        let mut rest = generics.clone();
        rest.params = generics.params.iter().filter(|parameter| self.chosen(parameter).is_none()).cloned().collect();
        rest
    }

    /// `tokens` with the first candidate's values in the place of the constants.
    fn with_first(&self, tokens: impl ToTokens) -> TokenStream {
        let first = &self.candidates[0];
        let replaced = |token| match token {
            TokenTree::Group(group) => {
                let mut inside = Group::new(group.delimiter(), self.with_first(group.stream()));
                inside.set_span(group.span());
                TokenTree::Group(inside).into()
            }
            TokenTree::Ident(ident) => match self.names.iter().position(|name| *name == ident) {
                Some(number) => braced(&first[number]),
                None => ident.into_token_stream(),
            },
            other => other.into(),
        };
        tokens.into_token_stream().into_iter().flat_map(replaced).collect()
    }

    /// The head of the host function `NAME_tuned`.
    pub(crate) fn head(&self, name: &Ident, generics: &Generics, hosts: &[TokenStream]) -> TokenStream {
        let tuned = format_ident!("{}_tuned", name);
        let rest = with_host_lifetime(&self.rest(generics));
        let (rest, _, where_clause): (_, _, Option<&WhereClause>) = rest.split_for_impl();
        let (rest, where_clause) = (self.with_first(rest), self.with_first(where_clause));
        let hosts = hosts.iter().map(|host| self.with_first(host));
        let count = self.names.len();
        quote!(fn #tuned #rest (#(#hosts),*) -> ::kiln::Tuned<'kiln, #count> #where_clause)
    }

    /// Its body: `stage` is the function that stages the kernel, `parameters` are the names of its arguments.
    pub(crate) fn body(&self, name: &Ident, stage: &Ident, generics: &Generics, parameters: &[&Ident]) -> TokenStream {
        let text = crate::signature::name_text(name);
        let first = self.turbofish(generics, &self.candidates[0]);
        let names = self.names.iter().map(Ident::to_string);
        let rest = self.rest(generics);
        let arguments = rest.params.iter().filter_map(|parameter| match parameter {
            GenericParam::Type(p) => Some(&p.ident).map(|ty| quote!(::kiln::stage::type_text::<#ty>())),
            GenericParam::Const(p) => Some(&p.ident).map(|n| quote!(::std::string::ToString::to_string(&#n))),
            GenericParam::Lifetime(_) => None,
        });
        let pushed = self.candidates.iter().map(|values| {
            let turbofish = self.turbofish(generics, values);
            let push = quote! {
                tuned.push([#((#values) as usize),*], ::kiln::Source::new(#text, #stage #turbofish, #stage #turbofish));
            };
            let Some(condition) = &self.condition else { return push };
            let constants = generics.const_params().filter_map(|constant| {
                let number = self.names.iter().position(|name| *name == constant.ident)?;
                let (name, ty, value) = (&constant.ident, &constant.ty, &values[number]);
                Some(quote!(const #name: #ty = #value;))
            });
            quote!(if { #(#constants)* #condition } { #push })
        });
        quote! {
            let launch = #name #first (#(#parameters),*);
            let kernel = || ::kiln::stage::instance_text(#text, &[#(#arguments),*]);
            let mut tuned = ::kiln::Tuned::new(launch, kernel, [#(#names),*]);
            #(#pushed)*
            tuned
        }
    }
}

/// A value as a generic argument.
fn braced(value: &Expr) -> TokenStream {
    match value {
        Expr::Lit(literal) => literal.to_token_stream(),
        value => {
            let mut group = Group::new(proc_macro2::Delimiter::Brace, value.to_token_stream());
            group.set_span(value.span());
            TokenTree::Group(group).into()
        }
    }
}

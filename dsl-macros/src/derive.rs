//! `#[derive(KernelArg)]` and `#[derive(Carried)]`: structs as arguments, and as loop variables.
//!
//! An argument struct holds views and scalars as the kernel sees them. Its host side is a second struct, `NameHost`, with
//! the same fields as the host has them (`&Tensor`, numbers); the arguments are flattened and named `parameter.field`.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit_mut::VisitMut;
use syn::{Data, DeriveInput, Fields, FieldsNamed, Type};

use crate::assigned::Parameters;
use crate::messages::{self, Errors};
use crate::rewrite::Rewriter;
use crate::signature::{host_name, make_static, name_text, with_host_lifetime};
use crate::types::TypeNames;

pub(crate) fn kernel_arg(item: TokenStream) -> TokenStream {
    let mut input: DeriveInput = match syn::parse2(item) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let errors = Errors::default();
    check(&mut input, &errors);
    if let Some(error) = errors.take() {
        return error.into_compile_error();
    }
    make_static(&mut input.generics);
    let Some(fields) = named(&input) else {
        return TokenStream::new();
    };
    let (name, vis) = (&input.ident, &input.vis);
    let host = host_name(name);
    let names: Vec<_> = fields.named.iter().filter_map(|f| f.ident.as_ref()).collect();
    let types: Vec<_> = fields.named.iter().map(|f| &f.ty).collect();
    let docs = fields.named.iter().map(|f| f.attrs.iter().filter(|a| a.path().is_ident("doc")).collect::<Vec<_>>());
    let host_types = types.iter().map(|ty| quote_spanned!(ty.span()=> <#ty as ::kiln::KernelArg>::Host<'kiln>));

    let host_generics = with_host_lifetime(&input.generics);
    let (declared_generics, host_arguments, _) = host_generics.split_for_impl();
    let (generics, arguments, where_clause) = input.generics.split_for_impl();
    let hidden = |name| Ident::new(name, Span::mixed_site());
    let (params, prefix, value, launch) = (hidden("params"), hidden("prefix"), hidden("host"), hidden("launch"));
    let suffixes: Vec<_> = names.iter().map(|n| format!(".{}", name_text(n))).collect();
    let declared = names.iter().zip(&types).zip(&suffixes).map(|((field, ty), suffix)| {
        quote_spanned! {ty.span()=>
            #field: <#ty as ::kiln::KernelArg>::declare(#params, &::std::format!("{}{}", #prefix, #suffix))
        }
    });
    let bound = names.iter().zip(&types).zip(&suffixes).map(|((field, ty), suffix)| {
        quote_spanned! {ty.span()=>
            <#ty as ::kiln::KernelArg>::bind(#value.#field, &::std::format!("{}{}", #prefix, #suffix), #launch);
        }
    });
    let doc = format!("What the host passes for a [`{name}`].");
    quote! {
        #[doc = #doc]
        #vis struct #host #declared_generics #where_clause {
            #(#(#docs)* pub #names: #host_types,)*
        }

        #[automatically_derived]
        impl #generics ::kiln::KernelArg for #name #arguments #where_clause {
            type Host<'kiln> = #host #host_arguments;
            type Staged = Self;
            fn declare(#params: &mut ::kiln::stage::Params, #prefix: &str) -> Self {
                #name { #(#declared),* }
            }
            fn bind<'kiln>(#value: Self::Host<'kiln>, #prefix: &str, #launch: &mut ::kiln::Launch<'kiln>) {
                #(#bound)*
            }
        }
    }
}

pub(crate) fn carried(item: TokenStream) -> TokenStream {
    let mut input: DeriveInput = match syn::parse2(item) {
        Ok(input) => input,
        Err(error) => return error.into_compile_error(),
    };
    let errors = Errors::default();
    check(&mut input, &errors);
    if let Some(error) = errors.take() {
        return error.into_compile_error();
    }
    let Some(fields) = named(&input) else {
        return TokenStream::new();
    };
    let name = &input.ident;
    let names: Vec<_> = fields.named.iter().filter_map(|f| f.ident.as_ref()).collect();
    let types: Vec<_> = fields.named.iter().map(|f| &f.ty).collect();
    let (generics, arguments, where_clause) = input.generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #generics ::kiln::stage::Carried for #name #arguments #where_clause {
            fn flatten(&self, out: &mut ::std::vec::Vec<::kiln::ir::ValueId>) {
                #(<#types as ::kiln::stage::Carried>::flatten(&self.#names, out);)*
            }
            fn rebuild(values: &mut dyn ::core::iter::Iterator<Item = ::kiln::ir::ValueId>) -> Self {
                #name { #(#names: <#types as ::kiln::stage::Carried>::rebuild(values)),* }
            }
        }
    }
}

fn named(input: &DeriveInput) -> Option<&FieldsNamed> {
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => Some(fields),
            _ => None,
        },
        _ => None,
    }
}

/// Refuses what is no struct of values; also folds tile extents, though a struct's own definition cannot use them.
fn check(input: &mut DeriveInput, errors: &Errors) {
    for lifetime in input.generics.lifetimes() {
        errors.over(lifetime, &messages::DERIVE_LIFETIME);
    }
    match named(input) {
        None => errors.over(&input.ident, &messages::DERIVE_NOT_STRUCT),
        Some(fields) if fields.named.is_empty() => errors.over(&input.ident, &messages::DERIVE_EMPTY),
        Some(fields) => {
            for field in &fields.named {
                if matches!(field.ty, Type::Reference(_)) {
                    errors.over(&field.ty, &messages::DERIVE_REFERENCE);
                }
            }
        }
    }
    let names = TypeNames::of(&input.generics);
    let parameters = Parameters::default();
    let mut rewriter = Rewriter { errors, names: &names, parameters: &parameters };
    if let Data::Struct(data) = &mut input.data {
        data.fields.iter_mut().for_each(|field| rewriter.visit_type_mut(&mut field.ty));
    }
}

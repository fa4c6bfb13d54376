//! A kernel's signature: which parameters there are, and what each is on the host and inside.
//!
//! The reference in front of a type says what the kernel does with it: `&View` reads, `&mut Block` writes this program's
//! own block, `&mut View` writes anywhere through `unsafe`; numbers and structs of arguments come by value (structs also
//! by `&`). What can be judged from tokens is judged here, at the token; the rest is the trait `KernelArg`'s to say.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Attribute, FnArg, GenericParam, Generics, Lifetime, Pat, ReturnType, Safety, Signature, Token, Type, TypeParamBound,
};

use crate::assigned::Parameters;
use crate::messages::{self, Errors};
use crate::types::last_name;

pub(crate) enum Passing {
    Value,
    /// With the author's `&`.
    Shared(Token![&]),
    /// With the author's `&` and `mut`.
    Mutable(Token![&], Token![mut]),
}

pub(crate) struct Parameter {
    /// `#[cfg(..)]`, `#[allow(..)]`.
    attributes: Vec<Attribute>,
    pub(crate) name: Ident,
    /// `mut name: f32`.
    pub(crate) mutability: Option<Token![mut]>,
    pub(crate) passing: Passing,
    /// The type without its reference.
    pub(crate) ty: Type,
}

impl Parameter {
    /// The type that implements `KernelArg`.
    fn argument(&self) -> TokenStream {
        let ty = &self.ty;
        match self.passing {
            Passing::Mutable(..) => quote_spanned!(ty.span()=> ::kiln::stage::Mut<#ty>),
            _ => ty.to_token_stream(),
        }
    }

    /// `x: <View<T, 1> as KernelArg>::Host<'kiln>`.
    pub(crate) fn host(&self) -> TokenStream {
        let (attributes, name, argument) = (&self.attributes, &self.name, self.argument());
        quote_spanned!(self.ty.span()=> #(#attributes)* #name: <#argument as ::kiln::KernelArg>::Host<'kiln>)
    }

    /// The statements that declare the parameter and bind its name inside the kernel.
    pub(crate) fn declare(&self, params: &Ident) -> TokenStream {
        let (name, ty, argument, mutability) = (&self.name, &self.ty, self.argument(), &self.mutability);
        let text = name_text(name);
        let declared = quote_spanned!(self.ty.span()=> <#argument as ::kiln::KernelArg>::declare(#params, #text));
        // Hygienic: only the reference has the author's name.
        let storage = Ident::new("storage", proc_macro2::Span::mixed_site());
        // The annotation is the author's own, so that rustc's suggestions about it are ones that he can follow.
        let attributes = &self.attributes;
        match &self.passing {
            Passing::Value => quote!(#(#attributes)* let #mutability #name = #declared;),
            Passing::Shared(and) => {
                quote!(#(#attributes)* let #storage = #declared; #(#attributes)* let #mutability #name: #and #ty = &#storage;)
            }
            Passing::Mutable(and, keyword) => {
                quote!(#(#attributes)* let mut #storage = #declared; #(#attributes)* let #mutability #name: #and #keyword #ty = &mut #storage;)
            }
        }
    }

    /// The statement that hands the host's argument to the launch.
    pub(crate) fn bind(&self, launch: &Ident) -> TokenStream {
        let (attributes, name, argument) = (&self.attributes, &self.name, self.argument());
        let text = name_text(name);
        quote_spanned!(self.ty.span()=> #(#attributes)* <#argument as ::kiln::KernelArg>::bind(#name, #text, &mut #launch);)
    }
}

pub(crate) fn name_text(name: &Ident) -> String {
    name.to_string().trim_start_matches("r#").to_string()
}

/// The parameters of a kernel; refused ones are reported and left out.
pub(crate) fn kernel_parameters(signature: &Signature, errors: &Errors) -> Vec<Parameter> {
    common(signature, errors);
    if let Safety::Unsafe(keyword) = &signature.safety {
        errors.at(keyword.span, &messages::KERNEL_UNSAFE);
    }
    if let ReturnType::Type(_, ty) = &signature.output {
        errors.over(ty, &messages::KERNEL_RETURN);
    }
    for lifetime in signature.generics.lifetimes() {
        errors.over(lifetime, &messages::KERNEL_LIFETIME);
    }
    signature.inputs.iter().filter_map(|input| parameter(input, errors)).collect()
}

/// What neither kernels nor device functions can be.
pub(crate) fn common(signature: &Signature, errors: &Errors) {
    if let Some(keyword) = &signature.asyncness {
        errors.at(keyword.span, &messages::KERNEL_ASYNC);
    }
    if let Some(keyword) = &signature.constness {
        errors.at(keyword.span, &messages::KERNEL_CONST);
    }
    if let Some(abi) = &signature.abi {
        errors.over(abi, &messages::KERNEL_EXTERN);
    }
    if let Some(variadic) = &signature.variadic {
        errors.over(variadic, &messages::KERNEL_VARIADIC);
    }
}

fn parameter(input: &FnArg, errors: &Errors) -> Option<Parameter> {
    let typed = match input {
        FnArg::Receiver(receiver) => {
            errors.over(receiver, &messages::KERNEL_SELF);
            return None;
        }
        FnArg::Typed(typed) => typed,
    };
    let (name, mutability) = match &*typed.pat {
        Pat::Ident(pattern) if pattern.by_ref.is_none() && pattern.subpat.is_none() => {
            (pattern.ident.clone(), pattern.mutability)
        }
        pattern => {
            errors.over(pattern, &messages::PARAMETER_PATTERN);
            return None;
        }
    };
    let (passing, ty) = match &*typed.ty {
        Type::Reference(reference) => {
            if let Some(lifetime) = &reference.lifetime {
                errors.over(lifetime, &messages::KERNEL_LIFETIME);
            }
            let passing = match reference.mutability {
                Some(keyword) => Passing::Mutable(reference.and_token, keyword),
                None => Passing::Shared(reference.and_token),
            };
            (passing, (*reference.elem).clone())
        }
        ty => (Passing::Value, ty.clone()),
    };
    match judge(&passing, &ty) {
        Some(message) => {
            errors.over(&typed.ty, message);
            None
        }
        None => Some(Parameter { attributes: typed.attrs.clone(), name, mutability, passing, ty }),
    }
}

/// What is wrong with a parameter of this type.
fn judge(passing: &Passing, ty: &Type) -> Option<&'static messages::Message> {
    match ty {
        Type::ImplTrait(_) => return Some(&messages::PARAMETER_IMPL),
        Type::Path(_) | Type::Paren(_) | Type::Group(_) | Type::Macro(_) => {}
        _ => return Some(&messages::PARAMETER_SLICE),
    }
    let name = last_name(ty).map(|n| n.to_string()).unwrap_or_default();
    let is_scalar = matches!(
        name.as_str(),
        "bool" | "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "f16" | "bf16" | "f32" | "f64"
    );
    match (passing, name.as_str()) {
        (_, "Tile") => Some(&messages::PARAMETER_TILE),
        (Passing::Shared(..), "Block") => Some(&messages::PARAMETER_SHARED_BLOCK),
        (Passing::Value, "Block") => Some(&messages::PARAMETER_BLOCK_VALUE),
        (Passing::Value, "View") => Some(&messages::PARAMETER_VIEW_VALUE),
        (Passing::Shared(..) | Passing::Mutable(..), _) if is_scalar => Some(&messages::PARAMETER_SCALAR_REFERENCE),
        (Passing::Mutable(..), "Block" | "View") => None,
        (Passing::Mutable(..), _) => Some(&messages::PARAMETER_MUT_OTHER),
        _ => None,
    }
}

/// What the names of the signature mean for carried variables.
pub(crate) fn carried_parameters(signature: &Signature) -> Parameters {
    let mut parameters = Parameters::default();
    for input in &signature.inputs {
        let FnArg::Typed(typed) = input else { continue };
        let (Pat::Ident(pattern), Type::Reference(reference)) = (&*typed.pat, &*typed.ty) else { continue };
        let name = pattern.ident.to_string();
        let is_memory = last_name(&reference.elem).is_some_and(|n| n == "View" || n == "Block");
        if is_memory || reference.mutability.is_none() {
            parameters.memory.insert(name);
        } else if matches!(*reference.elem, Type::Array(_) | Type::Tuple(_))
            || last_name(&reference.elem).is_some_and(|n| n == "Tile" || n == "Scalar")
        {
            parameters.tile_references.insert(name);
        }
    }
    parameters
}

/// Type parameters outlive the launch: the cache is keyed by the type of the staging function.
pub(crate) fn make_static(generics: &mut Generics) {
    for parameter in generics.type_params_mut() {
        let is_static =
            |bound: &TypeParamBound| matches!(bound, TypeParamBound::Lifetime(lifetime) if lifetime.ident == "static");
        if !parameter.bounds.iter().any(is_static) {
            // Where rustc would add a bound of its own.
            let span = parameter.bounds.last().map_or_else(proc_macro2::Span::call_site, |bound| bound.span());
            parameter.bounds.push(TypeParamBound::Lifetime(Lifetime::new("'static", span)));
        }
        parameter.colon_token.get_or_insert_default();
    }
}

/// `::<T, N>`, for naming an item of the same generics.
pub(crate) fn turbofish(generics: &Generics) -> TokenStream {
    let arguments = generics.params.iter().filter_map(|parameter| match parameter {
        GenericParam::Type(p) => Some(&p.ident),
        GenericParam::Const(p) => Some(&p.ident),
        GenericParam::Lifetime(_) => None,
    });
    quote!(::<#(#arguments),*>)
}

/// The generics with the host lifetime in front.
pub(crate) fn with_host_lifetime(generics: &Generics) -> Generics {
    let mut generics = generics.clone();
    let lifetime = Lifetime::new("'kiln", proc_macro2::Span::call_site());
    generics.params.insert(0, GenericParam::Lifetime(syn::LifetimeParam::new(lifetime)));
    generics.lt_token.get_or_insert_default();
    generics.gt_token.get_or_insert_default();
    generics
}

/// `GateHost` for `Gate`.
pub(crate) fn host_name(name: &Ident) -> Ident {
    format_ident!("{}Host", name)
}

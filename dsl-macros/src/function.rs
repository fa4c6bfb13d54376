//! `#[kernel]` and `#[device]`.
//!
//! A kernel becomes two functions: the host function of the same name, which binds arguments to a `Launch`, and inside it
//! `__stage`, which runs the rewritten body once per set of generic arguments and returns tile IR. Its type names those
//! arguments, so it is the cache's key. With `tune` a second host function is there (see `tune`), and the staging function
//! stands beside both. A device function stays one function with its types and body rewritten.
//!
//! A device function is *not* `#[track_caller]`: the operations in it should name their own line, and closures (the
//! regions of its loops) would not inherit it, so that half of the body would be attributed to the caller.
//!
//! If anything is refused, the errors come with a function of the same signature, so that callers do not fail as well.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::token::Paren;
use syn::visit_mut::VisitMut;
use syn::{Attribute, Expr, Generics, ItemFn, Lit, Token, parenthesized};

use crate::messages::{self, Errors, Message};
use crate::rewrite::Rewriter;
use crate::signature::{self, Parameter, carried_parameters, kernel_parameters, make_static};
use crate::tune::Space;
use crate::types::TypeNames;

/// Lints that the expansion would trip over: it assigns carried values back whether or not they are read again, and its
/// blocks replace syntax that needed none.
const ALLOW: &str = "unused_assignments, unused_parens, unused_braces, unreachable_code, clippy::all";

fn allow() -> TokenStream {
    let lints: TokenStream = ALLOW.parse().expect("a list of lints");
    quote!(#[allow(#lints)])
}

/// `warps = 4, min_programs_per_sm = 2, cluster = 2, evict_first(weight), discard(between),
/// settled(weight), deny(spill), tune(N in [64, 128])`.
#[derive(Default)]
struct Options {
    warps: Option<Expr>,
    min_programs_per_sm: Option<Expr>,
    cluster: Option<Expr>,
    /// Variants of `Lint`.
    deny: Option<Vec<Ident>>,
    /// Names of parameters, each perhaps with a condition, by the name of the hint.
    hints: Vec<(Ident, Vec<Named>)>,
    tune: Option<Space>,
}

enum Setting {
    /// `= value`
    Value(Expr),
    /// `(name, name if condition)`
    Names(Punctuated<Named, Token![,]>),
    /// What stands in the parentheses of `tune`.
    Tune(TokenStream),
}

/// `name`, `name if condition`.
struct Named {
    name: Ident,
    condition: Option<Expr>,
}

impl Parse for Named {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let name = input.parse()?;
        let condition = if input.parse::<Option<Token![if]>>()?.is_some() { Some(input.parse()?) } else { None };
        Ok(Named { name, condition })
    }
}

struct OptionList(Vec<(Ident, Setting)>);

impl Parse for OptionList {
    fn parse(input: ParseStream) -> syn::Result<Self> {
        let mut options = vec![];
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            let setting = if (name == "deny" || hint(&name).is_some()) && input.peek(Paren) {
                let names;
                parenthesized!(names in input);
                Setting::Names(Punctuated::parse_terminated(&names)?)
            } else if name == "tune" && input.peek(Paren) {
                let lists;
                parenthesized!(lists in input);
                Setting::Tune(lists.parse()?)
            } else {
                input.parse::<Token![=]>()?;
                Setting::Value(input.parse()?)
            };
            options.push((name, setting));
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(OptionList(options))
    }
}

/// What `deny` knows: the name, and the variant of `::kiln::ir::Lint`.
const LINTS: [(&str, &str); 7] = [
    ("spill", "Spill"),
    ("wgmma_serialized", "WgmmaSerialized"),
    ("setmaxnreg_ignored", "SetmaxnregIgnored"),
    ("bank_conflict", "BankConflict"),
    ("uncoalesced", "Uncoalesced"),
    ("fallback", "Fallback"),
    ("assembler", "Assembler"),
];

/// Hints about what parameters show: the name, the variant of `::kiln::stage::Hint`, and what is said where no list
/// follows.
const HINTS: [(&str, &str, &Message); 3] = [
    ("evict_first", "EvictFirst", &messages::OPTION_EVICT_FIRST),
    ("discard", "Discard", &messages::OPTION_DISCARD),
    ("settled", "Settled", &messages::OPTION_SETTLED),
];

/// The variant and the message of a hint.
fn hint(name: &Ident) -> Option<(&'static str, &'static Message)> {
    HINTS.iter().find(|h| name == h.0).map(|h| (h.1, h.2))
}

/// The variant that `name` means; an unknown name is reported, and a condition, which lints have not.
fn lint(Named { name, condition }: &Named, errors: &Errors) -> Option<Ident> {
    if let Some(condition) = condition {
        errors.over(condition, &messages::OPTION_DENY);
    }
    let known = LINTS.iter().find(|(known, _)| name == known);
    if known.is_none() {
        errors.over(name, &messages::LINT_UNKNOWN);
    }
    known.map(|(_, variant)| Ident::new(variant, name.span()))
}

impl Options {
    fn parse(attribute: TokenStream, generics: &Generics, errors: &Errors) -> Options {
        let mut options = Options::default();
        let list = match syn::parse2::<OptionList>(attribute) {
            Ok(list) => list.0,
            Err(error) => {
                errors.push(error);
                vec![]
            }
        };
        for (name, setting) in list {
            let value = match setting {
                Setting::Names(names) => {
                    let twice = if name == "deny" {
                        options.deny.replace(names.iter().filter_map(|n| lint(n, errors)).collect()).is_some()
                    } else {
                        let twice = options.hints.iter().any(|(hint, _)| name == *hint);
                        options.hints.push((name.clone(), names.into_iter().collect()));
                        twice
                    };
                    if twice {
                        errors.over(&name, &messages::OPTION_TWICE);
                    }
                    continue;
                }
                Setting::Tune(lists) => {
                    if options.tune.is_some() {
                        errors.over(&name, &messages::OPTION_TWICE);
                    }
                    options.tune = Space::parse(&name, lists, generics, errors);
                    continue;
                }
                Setting::Value(value) => value,
            };
            let slot = match name.to_string().as_str() {
                "warps" => {
                    if let Expr::Lit(literal) = &value
                        && let Lit::Int(int) = &literal.lit
                        && !int.base10_parse::<u32>().is_ok_and(|n| n.is_power_of_two() && n <= 32)
                    {
                        errors.over(&value, &messages::OPTION_WARPS);
                    }
                    &mut options.warps
                }
                "min_programs_per_sm" => &mut options.min_programs_per_sm,
                "cluster" => &mut options.cluster,
                "deny" => {
                    errors.over(&value, &messages::OPTION_DENY);
                    continue;
                }
                "tune" => {
                    errors.over(&name, &messages::TUNE_FORM);
                    continue;
                }
                _ => {
                    match hint(&name) {
                        Some((_, form)) => errors.over(&value, form),
                        None => errors.over(&name, &messages::OPTION_UNKNOWN),
                    }
                    continue;
                }
            };
            if slot.is_some() {
                errors.over(&name, &messages::OPTION_TWICE);
            }
            *slot = Some(value);
        }
        options
    }

    /// Reports names that no parameter has.
    fn check(&self, parameters: &[Parameter], errors: &Errors) {
        for name in self.hints.iter().flat_map(|(_, names)| names) {
            if !parameters.iter().any(|p| p.name == name.name) {
                errors.over(&name.name, &messages::HINT_UNKNOWN);
            }
        }
    }
}

impl ToTokens for Options {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let default: Expr = syn::parse_quote!(0);
        let warps = self.warps.as_ref().unwrap_or(&default);
        let programs = self.min_programs_per_sm.as_ref().unwrap_or(&default);
        let cluster = self.cluster.as_ref().unwrap_or(&default);
        let deny = self.deny.iter().flatten().map(|lint| quote!(::kiln::ir::Lint::#lint));
        let hints = self.hints.iter().flat_map(|(kind, names)| names.iter().map(move |name| (kind, name)));
        let hints = hints.map(|(kind, Named { name, condition })| {
            let (variant, _) = hint(kind).expect("only known hints are kept");
            let (variant, name) = (Ident::new(variant, kind.span()), signature::name_text(name));
            let condition = condition.clone().unwrap_or(syn::parse_quote!(true));
            quote!((#name, ::kiln::stage::Hint::#variant, #condition))
        });
        let tuned = self.tune.is_some();
        tokens.extend(quote!(::kiln::stage::Options {
            warps: #warps,
            min_programs_per_sm: #programs,
            cluster: #cluster,
            deny: &[#(#deny),*],
            hints: &[#(#hints),*],
            tuned: #tuned,
        }));
    }
}

fn parse_function(item: TokenStream) -> syn::Result<ItemFn> {
    syn::parse2(item.clone()).map_err(|error| match syn::parse2::<syn::Item>(item) {
        // It is a function, so the mistake is inside it.
        Err(_) => error,
        Ok(other) => {
            let errors = Errors::default();
            let first = other.to_token_stream().into_iter().next();
            errors.over(first, &messages::ITEM_NOT_FN);
            errors.take().unwrap_or(error)
        }
    })
}

/// Whether an attribute of a kernel holds for its staging function, too.
fn is_shared(attribute: &Attribute) -> bool {
    ["allow", "expect", "warn", "deny", "forbid", "cfg"].iter().any(|name| attribute.path().is_ident(name))
}

pub(crate) fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let mut function = match parse_function(item) {
        Ok(function) => function,
        Err(error) => return error.into_compile_error(),
    };
    let errors = Errors::default();
    let options = Options::parse(attribute, &function.sig.generics, &errors);
    let mut parameters = kernel_parameters(&function.sig, &errors);
    options.check(&parameters, &errors);
    let (names, carried) = (TypeNames::of(&function.sig.generics), carried_parameters(&function.sig));
    let mut rewriter = Rewriter { errors: &errors, names: &names, parameters: &carried };
    rewriter.visit_generics_mut(&mut function.sig.generics);
    parameters.iter_mut().for_each(|parameter| rewriter.visit_type_mut(&mut parameter.ty));
    rewriter.visit_block_mut(&mut function.block);
    make_static(&mut function.sig.generics);

    let ItemFn { attrs, vis, sig, block, .. } = &function;
    let (name, fn_token) = (&sig.ident, &sig.fn_token);
    let text = signature::name_text(name);
    let host_generics = signature::with_host_lifetime(&sig.generics);
    let (host_generics, _, where_clause) = host_generics.split_for_impl();
    let hosts: Vec<TokenStream> = parameters.iter().map(|p| p.host()).collect();
    let doc = format!(
        "Called on the host, `{text}` takes tensors and numbers and returns the `Launch` that runs the kernel: \
         `{text}(..).grid(..).run()?`."
    );
    let allowed = quote!(#[allow(clippy::too_many_arguments, clippy::multiple_bound_locations)]);
    let head = quote! {
        #(#attrs)*
        #[doc = ""]
        #[doc = #doc]
        #allowed
        #vis #fn_token #name #host_generics (#(#hosts),*) -> ::kiln::Launch<'kiln> #where_clause
    };
    let tuned_head = options.tune.as_ref().map(|space| {
        let attrs = attrs.iter().filter(|a| !a.path().is_ident("doc"));
        let doc = format!("[`{text}`] with the constants chosen that suit the arguments, see `kiln::Tuned`.");
        let head = space.head(name, &sig.generics, &hosts);
        quote!(#(#attrs)* #[doc = #doc] #allowed #vis #head)
    });
    if let Some(error) = errors.take() {
        let error = error.into_compile_error();
        let stub =
            |head: TokenStream| quote!(#[allow(unused_variables, unused_imports)] #head { ::core::unreachable!() });
        let stubs = std::iter::once(head).chain(tuned_head).map(stub);
        return quote!(#error #(#stubs)*);
    }

    let hidden = |name| Ident::new(name, Span::mixed_site());
    let (params, launch) = (hidden("params"), hidden("launch"));
    let declared = parameters.iter().map(|p| p.declare(&params));
    let bound = parameters.iter().map(|p| p.bind(&launch));
    let (stage_generics, _, _) = sig.generics.split_for_impl();
    let turbofish = signature::turbofish(&sig.generics);
    let (allow, shared) = (allow(), attrs.iter().filter(|a| is_shared(a)));
    let stage = match &options.tune {
        None => hidden("__stage"),
        // Of the module's, so that both host functions see it.
        Some(_) => format_ident!("__stage_{text}"),
    };
    let staging = quote! {
        #(#shared)*
        #allow
        fn #stage #stage_generics () -> ::core::result::Result<::kiln::ir::Kernel, ::kiln::Error> #where_clause {
            ::kiln::stage::build(#text, #options, |#params| {
                #(#declared)*
                #block
            })
        }
    };
    let (inside, beside) = if options.tune.is_some() { (None, Some(staging)) } else { (Some(staging), None) };
    let tuned = options.tune.as_ref().zip(tuned_head).map(|(space, head)| {
        let names: Vec<&Ident> = parameters.iter().map(|p| &p.name).collect();
        let body = space.body(name, &stage, &sig.generics, &names);
        quote!(#head { #body })
    });
    quote! {
        #head {
            #inside
            let mut #launch = ::kiln::Launch::new(::kiln::Source::new(#text, #stage #turbofish, #stage #turbofish));
            #(#bound)*
            #launch
        }
        #beside
        #tuned
    }
}

pub(crate) fn device(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let mut function = match parse_function(item) {
        Ok(function) => function,
        Err(error) => return error.into_compile_error(),
    };
    let errors = Errors::default();
    if !attribute.is_empty() {
        errors.over(attribute, &messages::DEVICE_OPTIONS);
    }
    signature::common(&function.sig, &errors);
    let (names, carried) = (TypeNames::of(&function.sig.generics), carried_parameters(&function.sig));
    let mut rewriter = Rewriter { errors: &errors, names: &names, parameters: &carried };
    rewriter.visit_signature_mut(&mut function.sig);
    rewriter.visit_block_mut(&mut function.block);
    let allow = allow();
    match errors.take() {
        None => quote!(#allow #function),
        Some(error) => {
            let error = error.into_compile_error();
            let ItemFn { attrs, vis, sig, .. } = &function;
            quote! {
                #error
                #(#attrs)*
                #[allow(unused_variables, unused_imports, unused_mut)]
                #vis #sig { ::core::unreachable!() }
            }
        }
    }
}

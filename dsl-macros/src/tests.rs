//! Expansion at the level of tokens: what rustc sees, and what is refused. The macros against the real library are tested
//! in `tests/`.

use proc_macro2::TokenStream;
use quote::quote;

use crate::{derive, function};

/// The tokens without any spaces.
fn flat(tokens: TokenStream) -> String {
    tokens.to_string().split_whitespace().collect()
}

/// The rewritten body of a kernel without parameters.
fn body(body: TokenStream) -> String {
    let expanded = flat(function::device(TokenStream::new(), quote!(fn f() { #body })));
    let start = expanded.find("fnf(){").expect("a function") + "fnf(){".len();
    expanded[start..expanded.len() - 1].to_string()
}

/// The messages that a function is refused with: the first line of each.
fn refusals(tokens: TokenStream) -> Vec<String> {
    let file: syn::File = syn::parse2(tokens).expect("expansions parse");
    file.items
        .iter()
        .filter_map(|item| match item {
            syn::Item::Macro(item) if item.mac.path.segments.last()?.ident == "compile_error" => {
                let text: syn::LitStr = item.mac.parse_body().ok()?;
                text.value().lines().next().map(str::to_string)
            }
            _ => None,
        })
        .collect()
}

fn refused(item: TokenStream) -> Vec<String> {
    refusals(function::kernel(TokenStream::new(), item))
}

#[test]
fn kernel_becomes_host_function_and_staging_function() {
    let expanded = flat(function::kernel(
        quote!(warps = 8, cluster = C, evict_first(x if N > 4), discard(out), settled(x), deny(spill)),
        quote! {
            /// Adds.
            pub fn add<T: Float, const N: usize>(x: &View<T, 1>, out: &mut Block<T, N>, mut alpha: f32) { out.store(x.load(0)); }
        },
    ));
    for part in [
        "pubfnadd<'kiln,T:Float+'static,constN:usize>(",
        "x:<View<T,1>as::kiln::KernelArg>::Host<'kiln>,",
        "out:<::kiln::stage::Mut<Block<T,::kiln::D1<N>>>as::kiln::KernelArg>::Host<'kiln>,",
        "alpha:<f32as::kiln::KernelArg>::Host<'kiln>)->::kiln::Launch<'kiln>",
        "fn__stage<T:Float+'static,constN:usize>()->::core::result::Result<::kiln::ir::Kernel,::kiln::Error>",
        "::kiln::stage::build(\"add\",::kiln::stage::Options{warps:8,min_programs_per_sm:0,cluster:C,deny:&[::kiln::ir::Lint::Spill],hints:&[(\"x\",::kiln::stage::Hint::EvictFirst,N>4),(\"out\",::kiln::stage::Hint::Discard,true),(\"x\",::kiln::stage::Hint::Settled,true)],tuned:false,},|params|{",
        "letstorage=<View<T,1>as::kiln::KernelArg>::declare(params,\"x\");letx:&View<T,1>=&storage;",
        "letout:&mutBlock<T,::kiln::D1<N>>=&mutstorage;",
        "letmutalpha=<f32as::kiln::KernelArg>::declare(params,\"alpha\");",
        "::kiln::Source::new(\"add\",__stage::<T,N>,__stage::<T,N>)",
        "<f32as::kiln::KernelArg>::bind(alpha,\"alpha\",&mutlaunch);",
    ] {
        assert!(expanded.contains(part), "{part}\nis missing from\n{expanded}");
    }
    syn::parse_str::<syn::File>(
        &function::kernel(
            TokenStream::new(),
            quote!(
                fn empty() {}
            ),
        )
        .to_string(),
    )
    .unwrap();
}

#[test]
fn tuned_kernels_get_a_second_host_function() {
    let expanded = flat(function::kernel(
        quote!(tune(M, N in [(8, 4 + 4), (16, 1)], P in [1, 2], if M > N)),
        quote! {
            /// Text.
            #[cfg(all())]
            pub fn f<T: Float, const M: usize, const B: usize, const N: usize, const P: u8>(x: &mut Block<T, M, N>)
            where
                Is<{ M > 1 }>: True,
            {
            }
        },
    ));
    for part in [
        "pubfnf<'kiln,T:Float+'static,constM:usize,constB:usize,constN:usize,constP:u8>(",
        "->::kiln::Launch<'kiln>whereIs<{M>1}>:True,{letmutlaunch",
        "#[cfg(all())]#[allow(",
        "fn__stage_f<T:Float+'static,constM:usize,constB:usize,constN:usize,constP:u8>()",
        "deny:&[],hints:&[],tuned:true,}",
        "#[cfg(all())]#[doc=\"[`f`]with",
        "pubfnf_tuned<'kiln,T:Float+'static,constB:usize>(",
        "x:<::kiln::stage::Mut<Block<T,::kiln::D2<8,{4+4}>>>as::kiln::KernelArg>::Host<'kiln>)",
        "->::kiln::Tuned<'kiln,3usize>whereIs<{8>1}>:True,{",
        "letlaunch=f::<T,8,B,{4+4},1>(x);",
        "::kiln::stage::instance_text(\"f\",&[::kiln::stage::type_text::<T>(),::std::string::ToString::to_string(&B)])",
        "[\"M\",\"N\",\"P\"]",
        "if{constM:usize=8;constN:usize=4+4;constP:u8=2;M>N}{tuned.push([(8)asusize,(4+4)asusize,(2)asusize],",
        "::kiln::Source::new(\"f\",__stage_f::<T,16,B,1,1>,__stage_f::<T,16,B,1,1>));",
    ] {
        assert!(expanded.contains(part), "{part}\nis missing from\n{expanded}");
    }
    assert_eq!(expanded.matches("tuned.push").count(), 4);
}

#[test]
fn extents_fold_into_shapes() {
    assert_eq!(body(quote!(let a: Tile<f32, 4, N> = Tile::<f32, 8>::zeros();)), {
        "leta:Tile<f32,::kiln::D2<4,N>>=Tile::<f32,::kiln::D1<8>>::zeros();"
    });
    assert_eq!(body(quote!(f::<Tile<_, 1, 2, 4, 8>>();)), "f::<Tile<_,::kiln::D4<1,2,4,8>>>();");
    assert_eq!(body(quote!(let a: (Tile<f32>, Tile<f32, D2<4, 8>>, Tile<f32, _>);)), {
        // Uninitialised, so refused; only here to show that shapes stay.
        "::core::unreachable!()"
    });
    let signature = flat(function::device(
        TokenStream::new(),
        quote!(
            fn f<S: Shape, const N: usize>(
                a: Tile<f32, S>,
                b: &mut Tile<f32, N>,
                c: kiln::Tile<f32, { 4 * 4 }>,
            ) -> [Tile<f32, N, N>; 2] {
            }
        ),
    ));
    for part in [
        "a:Tile<f32,S>",
        "b:&mutTile<f32,::kiln::D1<N>>",
        "c:kiln::Tile<f32,::kiln::D1<{4*4}>>",
        "[Tile<f32,::kiln::D2<N,N>>;2]",
    ] {
        assert!(signature.contains(part), "{part}\nis missing from\n{signature}");
    }
}

#[test]
fn comparisons_become_calls() {
    assert_eq!(body(quote!(a < b && c != d)), "::kiln::stage::and(::kiln::stage::lt(a,b),::kiln::stage::ne(c,d))");
    assert_eq!(body(quote!(0 < n || -1.0 == x)), "::kiln::stage::or(::kiln::stage::gt(n,0),::kiln::stage::eq(x,-1.0))");
    assert_eq!(body(quote!(x.map(|v| v >= 0))), "x.map(|v|::kiln::stage::ge(v,0))");
    assert_eq!(body(quote!([0; (N < 4) as usize])), "[0;(N<4)asusize]", "constants are Rust's own");
}

#[test]
fn if_carries_what_its_branches_assign() {
    assert_eq!(
        body(quote!(if c {
            x = 1;
        } else if d {
            *y += 2;
        })),
        "{let(carried,value)=::kiln::stage::if_(c,(x,(*y),),|then:bool,carried|{(x,(*y),)=carried;\
         letvalue=ifthen{x=1;}else{{let(carried,value)=::kiln::stage::if_(d,((*y),),|then:bool,carried|{((*y),)=carried;\
         letvalue=ifthen{*y+=2;};(((*y),),value)});((*y),)=carried;value}};((x,(*y),),value)});(x,(*y),)=carried;value}"
    );
    assert_eq!(
        body(quote!(let z = if c { 1 } else { 2 };)),
        "letz={let(carried,value)=::kiln::stage::if_(c,(),|then:bool,carried|{let()=carried;\
         letvalue=ifthen{1}else{2};((),value)});let()=carried;value};"
    );
}

#[test]
fn attributes_stay() {
    assert!(body(quote!(#[cfg(never)] if c { f(); } g();)).starts_with("#[cfg(never)]{let(carried,value)"));
    assert!(body(quote!(#[cfg(never)] for i in 0..n { f(); } g();)).starts_with("#[cfg(never)]{letcarried"));
    assert_eq!(body(quote!(#[cfg(never)] print!("x");)), "#[cfg(never)]::kiln::stage::print_(\"x\",&[]);");
    let expanded = flat(function::kernel(
        TokenStream::new(),
        quote!(
            fn k(#[cfg(never)] x: &View<f32, 1>) {}
        ),
    ));
    assert_eq!(expanded.matches("#[cfg(never)]").count(), 4, "{expanded}");
}

#[test]
fn if_let_stays() {
    assert_eq!(
        body(quote!(if let Some(b) = bias {
            x = x + b;
        } else {
            x = 0;
        })),
        "ifletSome(b)=bias{x=x+b;}else{x=0;}"
    );
}

#[test]
fn for_over_a_range_is_staged() {
    assert_eq!(
        body(quote!(for i in (0..n).step_by(4).stages(3) {
            s += i;
            let mut t = 0;
            t += 1;
        })),
        "{letcarried=::kiln::stage::for_(::kiln::stage::range(0,n).step_by(4).stages(3),(s,),|i,carried|{\
         (s,)=carried;{s+=i;letmutt=0;t+=1;}(s,)});(s,)=carried;}"
    );
}

#[test]
fn for_over_anything_else_is_unrolled() {
    assert_eq!(
        body(quote!(for i in unroll(0..4) {
            s += i;
        })),
        "foriin0..4{s+=i;}"
    );
    assert_eq!(
        body(quote!(for (i, x) in tiles.iter().enumerate() {
            s += x;
        })),
        "for(i,x)intiles.iter().enumerate(){s+=x;}"
    );
}

#[test]
fn while_stages_condition_and_body_with_one_closure() {
    assert_eq!(
        body(quote!(while i < n {
            i += 1;
        })),
        "{letcarried=::kiln::stage::while_((i,),|body:bool,carried|{(i,)=carried;letholds=ifbody{{i+=1;}\
         ::core::option::Option::None}else{::core::option::Option::Some(::kiln::stage::lt(i,n))};(holds,(i,))});(i,)=carried;}"
    );
}

#[test]
fn many_carried_values_nest() {
    let assigned = (0..10).map(|i| quote::format_ident!("v{i}")).map(|v| quote!(#v = 0;));
    let expanded = body(quote!(for _ in 0..n { #(#assigned)* }));
    assert!(expanded.contains("((v0,v1,v2,v3,v4,v5,v6,v7,),(v8,v9,),)=carried;"), "{expanded}");
}

#[test]
fn macros_that_are_understood() {
    assert_eq!(
        body(quote!(static_assert!(N <= 4, "N");)),
        "::kiln::stage::static_assert(::kiln::stage::le(N,4),\"N\");"
    );
    assert_eq!(body(quote!(assert!(x > 0);)), "::kiln::stage::assert_(::kiln::stage::gt(x,0),\"x>0\");");
    assert_eq!(
        body(quote!(print!("x {x} {}", a < b);)),
        "::kiln::stage::print_(\"x{}{}\",&[::kiln::stage::print_value(x),::kiln::stage::print_value(::kiln::stage::lt(a,b))]);"
    );
}

#[test]
fn refusals_come_all_at_once() {
    let messages = refused(quote! {
        fn k(x: &Block<f32, 8>, (a, b): f32) -> f32 {
            let t: Tile<f32, 3> = zeros();
            loop { break; }
            for i in 0..=4 { continue; }
            return x?;
        }
    });
    let expected = [
        "the extent of a tile is a power of two",
        "`break` is not supported in staged code",
        "`loop` is not supported in staged code",
        "`continue` is not supported in staged code",
        "`a..=b` is not supported as the range of a loop",
        "`return` is not supported in staged code",
        "a kernel returns nothing",
        "`&Block` cannot be a kernel parameter: a block is what this program writes",
        "a kernel parameter is one name",
    ];
    for message in expected {
        assert!(messages.iter().any(|m| m == message), "{message}\nis missing from {messages:#?}");
    }
    assert_eq!(messages.len(), expected.len(), "{messages:#?}");
}

#[test]
fn parameters_that_are_refused() {
    let cases = [
        (
            quote!(
                fn k(&self) {}
            ),
            "a kernel has no `self`",
        ),
        (
            quote!(
                fn k(x: View<f32, 1>) {}
            ),
            "a view is not passed by value",
        ),
        (
            quote!(
                fn k(x: Tile<f32, 8>) {}
            ),
            "a tile cannot be a kernel parameter: tiles exist only inside a kernel",
        ),
        (
            quote!(
                fn k(x: Block<f32, 8>) {}
            ),
            "a block is not passed by value",
        ),
        (
            quote!(
                fn k(x: &f32) {}
            ),
            "a scalar is passed by value",
        ),
        (
            quote!(
                fn k(x: &mut Gate) {}
            ),
            "only blocks and views are written",
        ),
        (
            quote!(
                fn k(x: &[f32]) {}
            ),
            "slices, arrays, pointers and tuples cannot be kernel parameters",
        ),
        (
            quote!(
                fn k(x: impl Float) {}
            ),
            "`impl Trait` cannot be a kernel parameter",
        ),
        (
            quote!(
                fn k<'a>(x: &View<f32, 1>) {}
            ),
            "a kernel has no lifetime parameters",
        ),
        (
            quote!(
                fn k(x: &'static View<f32, 1>) {}
            ),
            "a kernel has no lifetime parameters",
        ),
        (
            quote!(
                async fn k() {}
            ),
            "a kernel is not `async`",
        ),
        (
            quote!(
                unsafe fn k() {}
            ),
            "a kernel is not `unsafe fn`",
        ),
        (
            quote!(
                extern "C" fn k() {}
            ),
            "a kernel has no ABI of its own",
        ),
        (
            quote!(
                const fn k() {}
            ),
            "a staged function is not `const fn`",
        ),
        (
            quote!(
                struct K;
            ),
            "`#[kernel]` and `#[device]` stand on functions",
        ),
    ];
    for (item, message) in cases {
        assert_eq!(refused(item.clone()), [message], "{item}");
    }
}

#[test]
fn options_that_are_refused() {
    let message = |options| {
        refusals(function::kernel(
            options,
            quote!(
                fn k() {}
            ),
        ))
    };
    assert_eq!(message(quote!(warps = 3)), ["the number of warps is 1, 2, 4, 8, 16 or 32"]);
    assert_eq!(message(quote!(warps = 4, warps = 8)), ["this option is given twice"]);
    assert_eq!(message(quote!(threads = 4)), ["unknown kernel option"]);
    assert_eq!(message(quote!(warps)).len(), 1);
    assert_eq!(message(quote!(deny(spills, spill, banks))), ["unknown lint of kernels"; 2]);
    assert_eq!(message(quote!(deny(spill), deny(fallback))), ["this option is given twice"]);
    assert_eq!(message(quote!(deny = spill)), ["`deny` takes a list of lints"]);
    assert_eq!(message(quote!(evict_first(a, b))), ["no parameter of this name"; 2]);
    assert_eq!(message(quote!(deny(spill if true))), ["`deny` takes a list of lints"]);
    assert_eq!(message(quote!(evict_first = 1)), ["`evict_first` takes a list of parameters"]);
    assert_eq!(message(quote!(discard = 1)), ["`discard` takes a list of parameters"]);
    assert_eq!(message(quote!(settled = 1)), ["`settled` takes a list of parameters"]);
    assert_eq!(message(quote!(discard(), discard())), ["this option is given twice"]);
    assert_eq!(message(quote!(deny())), Vec::<String>::new());
    assert_eq!(message(quote!(warps = W, min_programs_per_sm = 2)), Vec::<String>::new());
    assert_eq!(
        refusals(function::device(
            quote!(warps = 4),
            quote!(
                fn f() {}
            )
        )),
        ["`#[device]` has no options"]
    );
}

#[test]
fn a_refused_function_keeps_its_signature() {
    let expanded = flat(function::kernel(
        TokenStream::new(),
        quote!(
            fn k(x: &View<f32, 1>) {
                loop {}
            }
        ),
    ));
    assert!(expanded.ends_with("->::kiln::Launch<'kiln>{::core::unreachable!()}"), "{expanded}");
}

#[test]
fn derive_makes_the_host_struct() {
    let expanded = flat(derive::kernel_arg(quote! {
        pub struct Gate<T: Float> { a_log: View<f32, 1>, x: View<T, 2>, scale: Scalar<f32> }
    }));
    for part in [
        "pubstructGateHost<'kiln,T:Float+'static>{puba_log:<View<f32,1>as::kiln::KernelArg>::Host<'kiln>,",
        "pubscale:<Scalar<f32>as::kiln::KernelArg>::Host<'kiln>,}",
        "impl<T:Float+'static>::kiln::KernelArgforGate<T>{typeHost<'kiln>=GateHost<'kiln,T>;typeStaged=Self;",
        "a_log:<View<f32,1>as::kiln::KernelArg>::declare(params,&::std::format!(\"{}{}\",prefix,\".a_log\"))",
        "<View<T,2>as::kiln::KernelArg>::bind(host.x,&::std::format!(\"{}{}\",prefix,\".x\"),launch);",
    ] {
        assert!(expanded.contains(part), "{part}\nis missing from\n{expanded}");
    }
    assert_eq!(
        refusals(derive::kernel_arg(quote!(
            enum E {}
        ))),
        ["`KernelArg` can be derived for structs with named fields"]
    );
    assert_eq!(
        refusals(derive::kernel_arg(quote!(
            struct S {
                x: &'static View<f32, 1>,
            }
        )))
        .len(),
        1
    );
}

//! Derive for fetch structures.

use proc_macro::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Fields, GenericParam, Ident, Type, parse_macro_input};

/// Makes a generic struct of fetches give the same struct of their results.
///
/// `#[derive(Fetch)] struct Step<T> { loss: T, accuracy: T }` makes a `Step<Tensor>` give a
/// `Step<HostTensor>`. Every field is of a type parameter, or of something made of them that is a fetch
/// itself, such as `Vec<T>`.
#[proc_macro_derive(Fetch)]
pub fn derive_fetch(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

fn expand(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let params = type_params(input)?;
    let (fields, types) = fields(input)?;
    let name = &input.ident;
    let convoke = quote!(::convoke);
    let output = quote!(#name<#(<#params as #convoke::Fetch>::Output),*>);
    let from: Vec<Ident> = fields.iter().map(|f| format_ident!("take_{f}")).collect();
    Ok(quote! {
        impl<#(#params: #convoke::Fetch),*> #convoke::Fetch for #name<#(#params),*> {
            type Output = #output;

            fn collect(&self, list: &mut #convoke::FetchList) {
                #(<#types as #convoke::Fetch>::collect(&self.#fields, list);)*
            }

            fn take(
                &self,
                results: &mut #convoke::FetchResults,
            ) -> #convoke::Result<Self::Output> {
                #(let #from = <#types as #convoke::Fetch>::take(&self.#fields, results)?;)*
                Ok(#name { #(#fields: #from),* })
            }
        }
    })
}

fn type_params(input: &DeriveInput) -> syn::Result<Vec<&Ident>> {
    fn of(param: &GenericParam) -> syn::Result<&Ident> {
        match param {
            GenericParam::Type(param) => Ok(&param.ident),
            other => {
                Err(syn::Error::new_spanned(other, "Fetch is derived for type parameters only"))
            }
        }
    }
    let params: Vec<&Ident> = input.generics.params.iter().map(of).collect::<syn::Result<_>>()?;
    if params.is_empty() {
        let message =
            "a fetch structure needs a type parameter, as in `struct Step<T> { loss: T }`";
        return Err(syn::Error::new_spanned(&input.ident, message));
    }
    Ok(params)
}

fn fields(input: &DeriveInput) -> syn::Result<(Vec<&Ident>, Vec<&Type>)> {
    let Data::Struct(data) = &input.data else {
        return Err(syn::Error::new_spanned(&input.ident, "Fetch is derived for structs only"));
    };
    let Fields::Named(named) = &data.fields else {
        let message =
            "Fetch is derived for structs with named fields only; tuples are fetches already";
        return Err(syn::Error::new_spanned(&input.ident, message));
    };
    let fields = named.named.iter();
    Ok(fields.filter_map(|f| Some((f.ident.as_ref()?, &f.ty))).unzip())
}

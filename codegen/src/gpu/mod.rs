//! From tile IR to what a GPU thread does: where each element of a tile lives ([`layout`]), which facts make accesses
//! wide ([`facts`]), how products are computed ([`mma`]), and which layouts every value exists in ([`assign`]).

pub mod assign;
#[cfg(test)]
mod assign_tests;
pub mod facts;
pub mod layout;
pub mod mma;
pub mod pipeline;

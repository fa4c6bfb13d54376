//! From tile IR to what a GPU thread does: where each element of a tile lives ([`layout`]).

pub mod layout;

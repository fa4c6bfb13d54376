//! Variables that loops and branches carry: anything made of tiles.

use crate::lang::{Element, Shape, Tile};
use kiln_codegen::ir::ValueId;

/// A value made of tiles, which a staged `for`, `while` or `if` can carry.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot change inside a staged loop or branch",
    label = "only tiles, and tuples, arrays and structs of tiles, are carried",
    note = "a compile-time value can change in `for … in unroll(…)`; or make it a tile: `let mut x: Tile<i32> = full(0.0)`"
)]
pub trait Carried: Sized {
    /// Appends the tiles in a fixed order.
    fn flatten(&self, out: &mut Vec<ValueId>);
    /// Rebuilds the value from tiles in that order.
    fn rebuild(values: &mut dyn Iterator<Item = ValueId>) -> Self;
}

impl<T: Element, S: Shape> Carried for Tile<T, S> {
    fn flatten(&self, out: &mut Vec<ValueId>) {
        out.push(self.id());
    }
    fn rebuild(values: &mut dyn Iterator<Item = ValueId>) -> Self {
        Tile::from_id(values.next().expect("as many values as were flattened"))
    }
}

impl<C: Carried, const N: usize> Carried for [C; N] {
    fn flatten(&self, out: &mut Vec<ValueId>) {
        self.iter().for_each(|c| c.flatten(out));
    }
    fn rebuild(values: &mut dyn Iterator<Item = ValueId>) -> Self {
        std::array::from_fn(|_| C::rebuild(values))
    }
}

macro_rules! tuples {
    ($($($t:ident)*;)*) => {$(
        impl<$($t: Carried),*> Carried for ($($t,)*) {
            #[allow(non_snake_case, unused_variables)]
            fn flatten(&self, out: &mut Vec<ValueId>) {
                let ($($t,)*) = self;
                $($t.flatten(out);)*
            }
            #[allow(unused_variables, clippy::unused_unit)]
            fn rebuild(values: &mut dyn Iterator<Item = ValueId>) -> Self {
                ($($t::rebuild(values),)*)
            }
        }
    )*};
}
tuples! {
    ;
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
    A B C D E F G H I;
    A B C D E F G H I J;
    A B C D E F G H I J K;
    A B C D E F G H I J K L;
}

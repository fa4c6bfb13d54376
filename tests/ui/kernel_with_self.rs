use kiln::prelude::*;

struct S;
impl S {
    #[kernel]
    fn k(&self, x: &View<f32, 1>) {}
}

fn main() {}

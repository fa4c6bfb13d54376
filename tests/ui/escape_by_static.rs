//! A tile means nothing outside the staging of its kernel: it cannot be kept or sent.

use kiln::prelude::*;

use std::sync::Mutex;
static KEPT: Mutex<Option<Tile<f32>>> = Mutex::new(None);

#[kernel]
fn k(x: &View<f32, 1>) {
    *KEPT.lock().unwrap() = Some(x.get(0));
}

fn main() {}

//! Linear maps and subspaces over F2.
//!
//! A vector is a `u32` whose bits are its coordinates; addition is exclusive or. A map is kept as the images of the
//! unit vectors, its *basis vectors*, so that applying it is a handful of exclusive ors. Spaces here have at most 32
//! dimensions, which bounds every algorithm below by a thousand word operations.

/// A linear map: bit i of the argument contributes `bases[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct F2Map {
    bases: Vec<u32>,
    out_bits: u32,
}

impl F2Map {
    /// The map with these images of the unit vectors, into the space of `out_bits` dimensions.
    ///
    /// # Panics
    /// If a basis vector does not fit `out_bits`, or there are more than 32 of them.
    pub fn new(bases: Vec<u32>, out_bits: u32) -> F2Map {
        assert!(bases.len() <= 32 && out_bits <= 32, "at most 32 dimensions");
        assert!(bases.iter().all(|&b| u64::from(b) < 1 << out_bits), "a basis vector outside the codomain");
        F2Map { bases, out_bits }
    }

    pub fn identity(bits: u32) -> F2Map {
        F2Map::new((0..bits).map(|i| 1 << i).collect(), bits)
    }

    pub fn zero(in_bits: u32, out_bits: u32) -> F2Map {
        F2Map::new(vec![0; in_bits as usize], out_bits)
    }

    pub fn bases(&self) -> &[u32] {
        &self.bases
    }

    pub fn in_bits(&self) -> u32 {
        self.bases.len() as u32
    }

    pub fn out_bits(&self) -> u32 {
        self.out_bits
    }

    pub fn apply(&self, x: u32) -> u32 {
        apply(&self.bases, x)
    }

    /// `self` after `inner`: x ↦ self(inner(x)).
    ///
    /// # Panics
    /// If the codomain of `inner` has more dimensions than the domain of `self`.
    pub fn compose(&self, inner: &F2Map) -> F2Map {
        assert!(inner.out_bits <= self.in_bits(), "the maps do not fit together");
        F2Map { bases: inner.bases.iter().map(|&b| self.apply(b)).collect(), out_bits: self.out_bits }
    }

    /// The sum of subspaces as a map: the arguments' bits side by side, those of `self` low.
    pub fn beside(&self, high: &F2Map) -> F2Map {
        let bases = self.bases.iter().chain(&high.bases).copied().collect();
        F2Map::new(bases, self.out_bits.max(high.out_bits))
    }

    pub fn image(&self) -> Span {
        let mut s = Span::new();
        for (i, &b) in self.bases.iter().enumerate() {
            s.insert(b, 1 << i);
        }
        s
    }

    pub fn rank(&self) -> u32 {
        self.image().dim()
    }

    pub fn is_surjective(&self) -> bool {
        self.rank() == self.out_bits
    }

    pub fn is_injective(&self) -> bool {
        self.rank() == self.in_bits()
    }

    /// A basis of the arguments that map to zero.
    pub fn kernel(&self) -> Vec<u32> {
        let mut s = Span::new();
        let mut kernel = Vec::new();
        for (i, &b) in self.bases.iter().enumerate() {
            let (rest, by) = s.reduce(b);
            if rest == 0 {
                kernel.push(by ^ (1 << i));
            } else {
                s.insert(b, 1 << i);
            }
        }
        kernel
    }

    /// Some x with self(x) = y, built from the lowest independent bits; `None` if y is not reached.
    pub fn solve(&self, y: u32) -> Option<u32> {
        self.image().solve(y)
    }

    /// A right inverse of a surjective map, the inverse of a bijective one: self(inverse(y)) = y. Of the arguments
    /// that map to y it takes the one that uses only the lowest independent bits. `None` if not surjective.
    pub fn inverse(&self) -> Option<F2Map> {
        let image = self.image();
        let bases: Option<Vec<u32>> = (0..self.out_bits).map(|i| image.solve(1 << i)).collect();
        Some(F2Map::new(bases?, self.in_bits()))
    }
}

/// The exclusive or of the basis vectors that `x` selects.
pub fn apply(bases: &[u32], mut x: u32) -> u32 {
    let mut y = 0;
    while x != 0 {
        y ^= bases[x.trailing_zeros() as usize];
        x &= x - 1;
    }
    y
}

/// A subspace, kept in echelon form, that remembers how each of its vectors was made: every inserted vector carries a
/// *label*, and a vector of the span is answered with the sum of labels that makes it.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// (vector, label), leading bits distinct.
    rows: Vec<(u32, u32)>,
}

impl Span {
    pub fn new() -> Span {
        Span::default()
    }

    /// The span of `vectors`, the i-th labelled by bit i.
    pub fn of(vectors: &[u32]) -> Span {
        let mut s = Span::new();
        for (i, &v) in vectors.iter().enumerate() {
            s.insert(v, 1 << i);
        }
        s
    }

    /// Adds a vector; false if it was in the span already (the span, and its answers, then stay as they are).
    pub fn insert(&mut self, v: u32, label: u32) -> bool {
        let (rest, by) = self.reduce(v);
        if rest != 0 {
            self.rows.push((rest, by ^ label));
            self.rows.sort_by_key(|r| std::cmp::Reverse(r.0));
        }
        rest != 0
    }

    /// What remains of `v` after the span's vectors were taken out (zero if it lies in the span) and the labels of
    /// those taken out.
    pub fn reduce(&self, mut v: u32) -> (u32, u32) {
        let mut by = 0;
        for &(row, label) in &self.rows {
            if (v >> row.ilog2()) & 1 == 1 {
                v ^= row;
                by ^= label;
            }
        }
        (v, by)
    }

    pub fn contains(&self, v: u32) -> bool {
        self.reduce(v).0 == 0
    }

    /// The labels whose vectors sum to `v`; `None` outside the span.
    pub fn solve(&self, v: u32) -> Option<u32> {
        let (rest, by) = self.reduce(v);
        (rest == 0).then_some(by)
    }

    pub fn dim(&self) -> u32 {
        self.rows.len() as u32
    }

    /// A basis, in echelon form.
    pub fn basis(&self) -> impl Iterator<Item = u32> {
        self.rows.iter().map(|r| r.0)
    }

    /// A basis of the intersection (Zassenhaus: a combination of vectors of both that vanishes names a common one).
    pub fn intersection(&self, other: &Span) -> Vec<u32> {
        let mut sum = Span::new();
        for v in self.basis() {
            sum.insert(v, v);
        }
        let mut common = Vec::new();
        for v in other.basis() {
            // The part of v made by vectors of `self`, once the earlier ones of `other` are discounted (label 0).
            let (rest, from_self) = sum.reduce(v);
            if rest == 0 {
                common.push(from_self);
            } else {
                sum.insert(v, 0);
            }
        }
        common
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Rng;
    use super::*;

    fn random_map(rng: &mut Rng) -> F2Map {
        let (n, m) = (rng.below(7), rng.below(7));
        F2Map::new((0..n).map(|_| rng.below(1 << m)).collect(), m)
    }

    #[test]
    fn maps_agree_with_enumeration() {
        let mut rng = Rng::new(1);
        for _ in 0..2000 {
            let f = random_map(&mut rng);
            let domain = 0..1u32 << f.in_bits();
            let mut seen = vec![0u32; 1 << f.out_bits()];
            for x in domain.clone() {
                seen[f.apply(x) as usize] += 1;
                for y in domain.clone() {
                    assert_eq!(f.apply(x ^ y), f.apply(x) ^ f.apply(y));
                }
            }
            assert_eq!(f.is_surjective(), seen.iter().all(|&c| c > 0));
            assert_eq!(f.is_injective(), seen.iter().all(|&c| c <= 1));
            assert_eq!(1 << f.rank(), seen.iter().filter(|&&c| c > 0).count());
            assert_eq!(1 << f.kernel().len(), seen[0]);
            assert_eq!(Span::of(&f.kernel()).dim() as usize, f.kernel().len());
            for (y, &count) in seen.iter().enumerate() {
                match f.solve(y as u32) {
                    Some(x) => assert_eq!(f.apply(x), y as u32),
                    None => assert_eq!(count, 0),
                }
            }
            if let Some(g) = f.inverse() {
                assert!((0..1 << f.out_bits()).all(|y| f.apply(g.apply(y)) == y));
            } else {
                assert!(!f.is_surjective());
            }
        }
    }

    #[test]
    fn composition_agrees_with_application() {
        let mut rng = Rng::new(2);
        for _ in 0..500 {
            let (a, b) = (random_map(&mut rng), random_map(&mut rng));
            if a.out_bits() <= b.in_bits() {
                let c = b.compose(&a);
                assert!((0..1 << a.in_bits()).all(|x| c.apply(x) == b.apply(a.apply(x))));
            }
        }
    }

    #[test]
    fn intersections_agree_with_enumeration() {
        let mut rng = Rng::new(3);
        for _ in 0..2000 {
            let draw = |rng: &mut Rng| Span::of(&(0..rng.below(6)).map(|_| rng.below(64)).collect::<Vec<_>>());
            let (a, b) = (draw(&mut rng), draw(&mut rng));
            let common = Span::of(&a.intersection(&b));
            for v in 0..64 {
                assert_eq!(common.contains(v), a.contains(v) && b.contains(v));
            }
        }
    }
}

//! Compiled kernels as bytes, for packs and the cache.

use crate::device::cuda::Image;
use kiln_codegen::ir::{DType, Finding, Lint};
use kiln_codegen::nvptx::{TensorCores, TensorMap, Transfer};

impl Image {
    /// As bytes: each field with its length before it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![];
        let mut field = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        field(&self.threads.to_le_bytes());
        field(&self.shared_bytes.to_le_bytes());
        field(&[self.meets.into()]);
        field(&self.settled.iter().map(|&s| s.into()).collect::<Vec<u8>>());
        let TensorCores { wgmma, mma } = self.tensor_cores;
        field([wgmma, mma].map(u32::to_le_bytes).as_flattened());
        field(self.entry.as_bytes());
        field(&self.code);
        field(&self.maps.iter().flat_map(encode_map).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
        for Finding { lint, place, message } in &self.findings {
            [lint.name(), place, message].iter().for_each(|text| field(text.as_bytes()));
        }
        out
    }

    /// The inverse; `None` if the bytes are something else.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Image> {
        let mut fields = vec![];
        while !bytes.is_empty() {
            let (len, rest) = bytes.split_first_chunk::<8>()?;
            // Checked against what remains before anything is made of it.
            let (field, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
            fields.push(field);
            bytes = rest;
        }
        let [threads, shared_bytes, meets, settled, products, entry, code, maps, findings @ ..] = &fields[..] else {
            return None;
        };
        let ([wgmma, mma], []) = products.as_chunks::<4>() else { return None };
        let tensor_cores = TensorCores { wgmma: u32::from_le_bytes(*wgmma), mma: u32::from_le_bytes(*mma) };
        let (findings, []) = findings.as_chunks::<3>() else { return None };
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).ok();
        let finding = |[lint, place, message]: &[&[u8]; 3]| {
            Some(Finding { lint: Lint::from_name(&text(lint)?)?, place: text(place)?, message: text(message)? })
        };
        Some(Image {
            threads: u32::from_le_bytes((*threads).try_into().ok()?),
            shared_bytes: u32::from_le_bytes((*shared_bytes).try_into().ok()?),
            meets: match meets {
                [meets] => truth(meets)?,
                _ => return None,
            },
            settled: settled.iter().map(truth).collect::<Option<_>>()?,
            tensor_cores,
            time: None,
            entry: text(entry)?,
            code: code.to_vec(),
            maps: decode_maps(maps)?,
            findings: findings.iter().map(finding).collect::<Option<_>>()?,
        })
    }
}

fn truth(byte: &u8) -> Option<bool> {
    [false, true].get(usize::from(*byte)).copied()
}

/// Slot, element size, swizzle, transfer, rank, extents.
fn encode_map(map: &TensorMap) -> Vec<u32> {
    let transfer = transfers().position(|t| t == map.transfer).expect("all are listed");
    let head = [map.slot, map.size, map.swizzle, transfer, map.extents.len()].map(|n| n as u32);
    head.iter().chain(&map.extents).copied().collect()
}

/// All that there are, by number.
fn transfers() -> impl Iterator<Item = Transfer> {
    [Transfer::Bits, Transfer::Tf32].into_iter().chain(DType::ALL.map(Transfer::Add))
}

fn decode_maps(bytes: &[u8]) -> Option<Vec<TensorMap>> {
    let (words, rest) = bytes.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|w| u32::from_le_bytes(*w)).collect();
    let (mut words, mut maps) = (&words[..], vec![]);
    while let Some((&[slot, size, swizzle, transfer, rank], rest)) = words.split_first_chunk::<5>() {
        let (extents, rest) = rest.split_at_checked(rank as usize)?;
        let [slot, size, swizzle] = [slot, size, swizzle].map(|n| n as usize);
        let transfer = transfers().nth(transfer as usize)?;
        maps.push(TensorMap { slot, size, extents: extents.to_vec(), swizzle, transfer });
        words = rest;
    }
    (words.is_empty() && rest.is_empty()).then_some(maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_round_trip_and_damage_is_noticed() {
        let image = Image {
            code: vec![1, 2, 0, 255],
            entry: "kiln_add".into(),
            threads: 128,
            shared_bytes: 4096,
            meets: true,
            settled: vec![true, false],
            tensor_cores: TensorCores { wgmma: 4, mma: 1 },
            time: None,
            maps: [Transfer::Tf32, Transfer::Add(DType::F32)]
                .map(|transfer| TensorMap { slot: 3, size: 4, extents: vec![1, 128, 32], swizzle: 128, transfer })
                .to_vec(),
            findings: vec![
                Finding { lint: Lint::Fallback, place: "a.rs:1:2".into(), message: "slow".into() },
                Finding { lint: Lint::Spill, place: String::new(), message: String::new() },
            ],
        };
        let bytes = image.encode();
        assert_eq!(Image::decode(&bytes), Some(image));
        for cut in 1..40 {
            let decoded = Image::decode(&bytes[..cut]);
            assert!(decoded.is_none(), "{cut}");
        }
        assert_eq!(Image::decode(&[0xff; 40]), None);
    }
}

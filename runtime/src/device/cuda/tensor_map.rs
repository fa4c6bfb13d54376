//! Tensor maps: what the tensor memory accelerator is told of a view.
//!
//! Encoded from the launch slots, once for a prepared launch, otherwise at each: the driver's encoder touches no device
//! and takes well under a microsecond.

use super::{Context, explain};
use crate::{Error, Result};
use cudarc::driver::sys::{self, CUresult, CUtensorMapDataType as Type};
use kiln_codegen::ir::DType;
use kiln_codegen::nvptx::{TensorMap, Transfer};
use std::ffi::c_void;

/// The map of a view, from the values of its launch slots.
pub(super) fn encode(map: &TensorMap, slots: &[u64], context: &Context) -> Result<sys::CUtensorMap> {
    let rank = map.extents.len();
    let (address, rest) = (slots[map.slot], &slots[map.slot + 1..]);
    let (extents, strides) = (&rest[..rank], &rest[rank..2 * rank]);
    // A view without elements reads as zeros, but a map needs one element at least.
    let empty = extents.contains(&0);
    let (address, extents) = if empty { (context.zeros, &[1; 5][..rank]) } else { (address, extents) };
    // The hardware counts dimensions from the contiguous one.
    let backwards = |i: usize| rank - 1 - i;
    let dims: [u64; 5] = std::array::from_fn(|i| if i < rank { extents[backwards(i)] } else { 1 });
    let steps: [u64; 5] =
        std::array::from_fn(|i| if i + 1 < rank { strides[backwards(i + 1)] * map.size as u64 } else { 0 });
    let window: [u32; 5] = std::array::from_fn(|i| if i < rank { map.extents[backwards(i)] } else { 1 });
    let every = [1u32; 5];
    let (kind, swizzle) = (
        match (map.transfer, map.size) {
            // Rounds what it copies.
            (Transfer::Tf32, _) => Type::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
            (Transfer::Add(DType::F32), _) => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            (Transfer::Add(DType::F16), _) => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            (Transfer::Add(DType::BF16), _) => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            // Of two's complement sums are the same with and without a sign.
            (_, 1) => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            (_, 2) => Type::CU_TENSOR_MAP_DATA_TYPE_UINT16,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_UINT32,
        },
        match map.swizzle {
            128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            16 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        },
    );
    let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: the pointers are to locals of at least `rank` elements; the address is not looked at.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut encoded,
            kind,
            rank as u32,
            std::ptr::with_exposed_provenance_mut::<c_void>(address as usize),
            dims.as_ptr(),
            steps.as_ptr(),
            window.as_ptr(),
            every.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    match code {
        CUresult::CUDA_SUCCESS => Ok(encoded),
        code => Err(Error::Run {
            device: context.device(),
            message: format!(
                "cuTensorMapEncodeTiled failed: {} (address {address:#x}, extents {extents:?}, strides {strides:?}, \
                 window {:?})",
                explain(code),
                map.extents
            ),
        }),
    }
}

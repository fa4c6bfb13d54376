//! Tensors of a checkpoint, memory-mapped from safetensors.
//!
//! A checkpoint is one `model.safetensors`, or several files that `model.safetensors.index.json` lists.  Opening one
//! reads and checks the headers only: every length is compared with the bytes that are there before anything is
//! allocated or indexed, tensors of a file may not overlap, and each must have exactly the bytes that its shape and
//! dtype ask for.  After that, a tensor's bytes are a slice of the mapping; nothing is copied until
//! [`Tensor::to_f32`] or the caller does it.
//!
//! The files must not be changed while they are open: the mapping would change too.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use rustc_hash::FxHashMap;
use serde::Deserialize;

/// The safetensors format limits a header to this many bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Why a checkpoint's tensors cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file could not be opened, read or mapped.
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The folder has neither a single file nor an index.
    #[error("{path} holds neither model.safetensors nor model.safetensors.index.json", path = path.display())]
    NoWeights { path: PathBuf },
    /// The file's header or the index contradicts itself or the file's size.
    #[error("{path}: {reason}", path = path.display())]
    Corrupt { path: PathBuf, reason: String },
    /// No tensor has this name.
    #[error("tensor `{name}` is missing from the checkpoint")]
    MissingTensor { name: String },
    /// The tensor has other dimensions than the config asks for.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    /// The tensor's dtype cannot serve as what it is wanted for.
    #[error("tensor `{name}` is {found:?}, expected {expected}")]
    Dtype { name: String, found: Dtype, expected: &'static str },
}

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum Dtype {
    BF16,
    F16,
    F32,
    F64,
    I32,
    I64,
    U8,
    I8,
    BOOL,
    U16,
    I16,
    U32,
    U64,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 | Dtype::BOOL | Dtype::F8E4M3 | Dtype::F8E5M2 => 1,
            Dtype::BF16 | Dtype::F16 | Dtype::U16 | Dtype::I16 => 2,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
        }
    }

    /// Can it be read as floating-point weights?
    pub fn is_weight(self) -> bool {
        matches!(self, Dtype::BF16 | Dtype::F16 | Dtype::F32)
    }
}

/// A tensor as it lies in the file: row-major, little-endian.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name, for errors.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions as stored.
    pub shape: &'a [usize],
    /// Exactly `dtype.size() * product(shape)` bytes.  They need not be aligned for the element type.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements widened to f32 (exact for the three weight types).
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] unless it is bf16, f16 or f32.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        match self.dtype {
            Dtype::BF16 => Ok(elements(self.bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F16 => Ok(elements(self.bytes, |b| f16::from_le_bytes(b).to_f32())),
            Dtype::F32 => Ok(elements(self.bytes, f32::from_le_bytes)),
            _ => Err(self.wrong("BF16, F16 or F32")),
        }
    }

    /// The elements as f64; takes F64 as well as the weight types.
    pub fn to_f64(&self) -> Result<Vec<f64>, WeightsError> {
        match self.dtype {
            Dtype::F64 => Ok(elements(self.bytes, f64::from_le_bytes)),
            _ => Ok(self.to_f32()?.into_iter().map(f64::from).collect()),
        }
    }

    /// The elements of an I32 tensor.
    pub fn to_i32(&self) -> Result<Vec<i32>, WeightsError> {
        match self.dtype {
            Dtype::I32 => Ok(elements(self.bytes, i32::from_le_bytes)),
            _ => Err(self.wrong("I32")),
        }
    }

    fn wrong(&self, expected: &'static str) -> WeightsError {
        WeightsError::Dtype { name: self.name.into(), found: self.dtype, expected }
    }
}

fn elements<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}

/// Where a tensor lies.
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the file.
    range: std::ops::Range<usize>,
}

/// All tensors of a checkpoint.
pub struct Weights {
    files: Vec<Mmap>,
    tensors: FxHashMap<String, Entry>,
}

impl Weights {
    /// Opens the tensors of a checkpoint folder.
    pub fn open(folder: &Path) -> Result<Weights, WeightsError> {
        let index = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        if single.is_file() {
            Weights::open_file(&single)
        } else if index.is_file() {
            Weights::open_index(folder, &index)
        } else {
            Err(WeightsError::NoWeights { path: folder.into() })
        }
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Weights, WeightsError> {
        let (map, tensors) = open_shard(path, 0)?;
        Ok(Weights { files: vec![map], tensors: tensors.into_iter().collect() })
    }

    fn open_index(folder: &Path, index: &Path) -> Result<Weights, WeightsError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let corrupt = |reason: String| WeightsError::Corrupt { path: index.into(), reason };
        let text =
            std::fs::read_to_string(index).map_err(|source| WeightsError::Read { path: index.into(), source })?;
        let Index { weight_map } = serde_json::from_str(&text).map_err(|e| corrupt(e.to_string()))?;

        let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in &weight_map {
            // A shard lies beside its index; a path that leads elsewhere is not a checkpoint's.
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(corrupt(format!(
                    "tensor `{tensor}` is said to be in {file:?}, which is not a plain file name"
                )));
            }
            wanted.entry(file).or_default().push(tensor);
        }
        let mut weights = Weights { files: Vec::new(), tensors: FxHashMap::default() };
        for (file, names) in wanted {
            let (map, mut found) = open_shard(&folder.join(file), weights.files.len())?;
            weights.files.push(map);
            for name in names {
                let entry = found
                    .remove(name)
                    .ok_or_else(|| corrupt(format!("tensor `{name}` is said to be in {file}, but is not")))?;
                weights.tensors.insert(name.to_owned(), entry);
            }
        }
        Ok(weights)
    }

    /// Names of all tensors, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors together.
    pub fn total_bytes(&self) -> usize {
        self.tensors.values().map(|entry| entry.range.len()).sum()
    }

    /// The tensor with this name, whatever its shape and dtype.
    pub fn find(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, entry) = self.tensors.get_key_value(name)?;
        let bytes = &self.files[entry.file][entry.range.clone()];
        Some(Tensor { name, dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    /// The weight with this name and shape.  Dimensions of 1 are not compared: checkpoints store a depthwise
    /// convolution as `[channels, 1, taps]` or `[channels, taps]` and `A_log` as `[1, 1, heads, 1]` or `[heads]`.
    ///
    /// # Errors
    /// It is missing, has another shape, or is none of bf16, f16 and f32.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, WeightsError> {
        let tensor = self.find(name).ok_or_else(|| WeightsError::MissingTensor { name: name.into() })?;
        let same = |a: &[usize], b: &[usize]| a.iter().filter(|d| **d != 1).eq(b.iter().filter(|d| **d != 1));
        if !same(tensor.shape, shape) {
            return Err(WeightsError::Shape { name: name.into(), found: tensor.shape.into(), expected: shape.into() });
        }
        if !tensor.dtype.is_weight() {
            return Err(tensor.wrong("BF16, F16 or F32"));
        }
        Ok(tensor)
    }

    /// [`Weights::tensor`], widened to f32.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        self.tensor(name, shape)?.to_f32()
    }
}

/// Maps one file and checks its header.
fn open_shard(path: &Path, file: usize) -> Result<(Mmap, BTreeMap<String, Entry>), WeightsError> {
    let read = |source| WeightsError::Read { path: path.into(), source };
    let handle = File::open(path).map_err(read)?;
    // SAFETY: the mapping is read-only and the module's contract (stated at its top) is that checkpoint files are not
    // changed while they are open; nothing here writes to them.
    let map = unsafe { Mmap::map(&handle) }.map_err(read)?;
    let tensors = parse_header(&map, file).map_err(|reason| WeightsError::Corrupt { path: path.into(), reason })?;
    Ok((map, tensors))
}

/// The tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data that it describes.
fn parse_header(bytes: &[u8], file: usize) -> Result<BTreeMap<String, Entry>, String> {
    #[derive(Deserialize)]
    struct Stored {
        dtype: Dtype,
        shape: Vec<u64>,
        data_offsets: (u64, u64),
    }
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| {
        format!(
            "truncated: a safetensors file starts with 8 bytes of header length, this one has {} bytes",
            bytes.len()
        )
    })?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER || length > rest.len() as u64 {
        return Err(format!(
            "truncated or not safetensors: the header should have {length} bytes, {} follow (the limit is {MAX_HEADER})",
            rest.len()
        ));
    }
    let (header, data) = rest.split_at(length as usize);
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|e| format!("the header is not a JSON object: {e}"))?;

    let data_at = 8 + length as usize;
    let mut tensors = BTreeMap::new();
    for (name, value) in header {
        if name == "__metadata__" {
            continue;
        }
        let Stored { dtype, shape, data_offsets: (from, to) } =
            serde_json::from_value(value).map_err(|e| format!("tensor `{name}`: {e}"))?;
        if from > to || to > data.len() as u64 {
            return Err(format!(
                "truncated: tensor `{name}` lies at bytes {from}..{to} of the data, of which there are {}",
                data.len()
            ));
        }
        let wants = shape.iter().try_fold(dtype.size() as u64, |n, d| n.checked_mul(*d));
        if wants != Some(to - from) {
            return Err(format!("tensor `{name}`: {dtype:?} of shape {shape:?} does not take {} bytes", to - from));
        }
        let shape = shape.into_iter().map(|d| d as usize).collect();
        let range = data_at + from as usize..data_at + to as usize;
        tensors.insert(name, Entry { file, dtype, shape, range });
    }

    let mut order: Vec<_> = tensors.iter().filter(|(_, entry)| !entry.range.is_empty()).collect();
    order.sort_by_key(|(_, entry)| entry.range.start);
    for pair in order.windows(2) {
        let ((a, first), (b, second)) = (pair[0], pair[1]);
        if first.range.end > second.range.start {
            return Err(format!("tensors `{a}` and `{b}` overlap"));
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..data).map(|i| i as u8));
        bytes
    }

    fn reason(bytes: &[u8]) -> String {
        parse_header(bytes, 0).err().expect("the file should be refused")
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kimi-weights-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn refuses_corrupt_files() {
        let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert!(parse_header(&file(one, 8), 0).is_ok());
        assert!(reason(&file(one, 7)).contains("truncated: tensor `a`"));
        assert!(reason(&[1, 2, 3]).contains("truncated"));
        assert!(reason(&u64::MAX.to_le_bytes()).contains("header should have"));
        assert!(reason(&file("not json", 0)).contains("not a JSON object"));
        assert!(
            reason(&file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8)).contains("does not take 8")
        );
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#;
        assert!(reason(&file(huge, 0)).contains("does not take 0"));
        let backwards = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#;
        assert!(reason(&file(backwards, 8)).contains("truncated"));
        assert!(reason(&file(r#"{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, 8)).contains("F99"));
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(reason(&file(overlap, 12)).contains("`a` and `b` overlap"));
    }

    #[test]
    fn gives_tensors_by_name_and_shape() {
        let folder = scratch("by-name");
        let header = r#"{"a":{"dtype":"BF16","shape":[1,2,1],"data_offsets":[0,4]},"i":{"dtype":"I32","shape":[1],"data_offsets":[4,8]}}"#;
        let mut bytes = file(header, 0);
        bytes.extend(bf16::from_f32(1.5).to_le_bytes());
        bytes.extend(bf16::from_f32(-2.0).to_le_bytes());
        bytes.extend(7i32.to_le_bytes());
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
        let weights = Weights::open(&folder).unwrap();
        assert_eq!(weights.floats("a", &[2]).unwrap(), [1.5, -2.0]);
        let shape = weights.floats("a", &[3]).unwrap_err().to_string();
        assert!(shape.contains("`a`") && shape.contains("[3]"), "{shape}");
        assert!(weights.floats("b", &[2]).unwrap_err().to_string().contains("`b` is missing"));
        assert!(weights.floats("i", &[1]).unwrap_err().to_string().contains("I32"));
        assert_eq!(weights.find("i").unwrap().to_i32().unwrap(), [7]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn opens_shards_through_the_index() {
        let folder = scratch("shards");
        for (name, shard) in [("x", "one.safetensors"), ("y", "two.safetensors")] {
            let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}}}"#);
            std::fs::write(folder.join(shard), file(&header, 3)).unwrap();
        }
        let index = folder.join("model.safetensors.index.json");
        let with = |map: &str| {
            std::fs::write(&index, format!(r#"{{"metadata":{{}},"weight_map":{map}}}"#)).unwrap();
            Weights::open(&folder)
        };
        let weights = with(r#"{"x":"one.safetensors","y":"two.safetensors"}"#).unwrap();
        assert_eq!(weights.find("y").unwrap().bytes, [0, 1, 2]);
        assert_eq!(weights.total_bytes(), 6);
        let error = |map| with(map).err().unwrap().to_string();
        assert!(error(r#"{"x":"two.safetensors"}"#).contains("`x` is said to be in two.safetensors"));
        assert!(error(r#"{"x":"three.safetensors"}"#).contains("three.safetensors"));
        assert!(error(r#"{"x":"../one.safetensors"}"#).contains("plain file name"));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(Weights::open(&folder).err().unwrap().to_string().contains("neither"));
    }

    #[test]
    fn the_shipped_checkpoint_opens() {
        let weights = Weights::open(&crate::shipped_model()).unwrap();
        assert_eq!(weights.tensor("lm_head.weight", &[4096, 256]).unwrap().dtype, Dtype::BF16);
        assert_eq!(weights.floats("model.layers.0.self_attn.A_log", &[4]).unwrap().len(), 4);
    }
}

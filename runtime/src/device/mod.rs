//! Places where tensors live and kernels run.
//!
//! A [`Device`] is a name, free to copy; what stands behind it (a driver, a stream) is made at first use. `Storage` is
//! a piece of one device's memory and the only thing that knows how bytes get in and out of it, so that `Tensor` is the
//! same everywhere.
//!
//! Order: what is done through one device happens in the order in which it was asked for. On the CPU and the
//! interpreter a call returns when the work is done; on CUDA it returns when the work is queued, and whatever brings
//! bytes to the host waits for it: at once, or (`Tensor::fetch`) when the host wants them.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod interpret;

use crate::{Error, Result, knobs};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use cpu::{Held, HostMemory, start_threads};
pub(crate) use interpret::InterpretMemory;

/// A place where tensors live and kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// Cranelift's code on this machine's cores.
    Cpu,
    /// The interpreter: slow, and checks everything.
    Interpret,
    /// An NVIDIA GPU, by its number.
    Cuda(u32),
}

impl Device {
    /// `KILN_DEVICE` if it is set; otherwise the first GPU if this build and this machine have one; otherwise the CPU.
    ///
    /// # Errors
    /// If `KILN_DEVICE` names a device that is not there.
    pub fn auto() -> Result<Device> {
        match knobs::knobs().device.as_deref() {
            None | Some("auto") => Ok(if Device::Cuda(0).check().is_ok() { Device::Cuda(0) } else { Device::Cpu }),
            Some(name) => Device::parse(name),
        }
    }

    /// A device by name: `auto`, `cpu`, `interpret`, `cuda` or `cuda:N`.
    ///
    /// # Errors
    /// If the name is none of these, or the device is not there.
    pub fn parse(name: &str) -> Result<Device> {
        let device = match name {
            "auto" => return Device::auto(),
            "cpu" => Device::Cpu,
            "interpret" => Device::Interpret,
            "cuda" => Device::Cuda(0),
            _ => match name.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(n)) => Device::Cuda(n),
                _ => return Err(Error::UnknownDevice { name: name.into() }),
            },
        };
        device.check()?;
        Ok(device)
    }

    /// Whether work can be given to this device; the error says why not.
    pub fn check(self) -> Result<()> {
        match self {
            Device::Cpu | Device::Interpret => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => cuda::Context::get(n).map(drop),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.not_built()),
        }
    }

    /// A line about the device for people: its model and what it can do.
    pub fn describe(self) -> Result<String> {
        match self {
            Device::Cpu => {
                start_threads();
                Ok(format!("cpu, {} threads", rayon::current_num_threads()))
            }
            Device::Interpret => Ok("interpreter".into()),
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => Ok(cuda::Context::get(n)?.describe()),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.not_built()),
        }
    }

    /// The model of the device, as its driver names it.
    ///
    /// # Errors
    /// If the device is not there.
    pub fn model(self) -> Result<String> {
        match self {
            Device::Cpu | Device::Interpret => Ok(self.to_string()),
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => Ok(cuda::Context::get(n)?.name.clone()),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.not_built()),
        }
    }

    /// Whether work that is asked for now would run at once: not into a graph, nor beside other work of this thread.
    pub(crate) fn can_be_timed(self) -> bool {
        match self {
            Device::Cpu => true,
            Device::Interpret => false,
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => cuda::Context::get(n).is_ok_and(|context| context.is_undivided()),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => false,
        }
    }

    /// How many programs run side by side for sure: a GPU's multiprocessors, the CPU's threads, 1 on the interpreter.
    ///
    /// # Errors
    /// If the device is not there.
    pub fn multiprocessors(self) -> Result<usize> {
        match self {
            Device::Cpu => {
                start_threads();
                Ok(rayon::current_num_threads())
            }
            Device::Interpret => Ok(1),
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => Ok(cuda::Context::get(n)?.multiprocessors as usize),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.not_built()),
        }
    }

    /// Whether programs of a cluster can exchange tiles there ([`Tile::cluster_sum`](crate::Tile::cluster_sum)): of
    /// GPUs, on Hopper.
    ///
    /// # Errors
    /// If the device is not there.
    pub fn has_clusters(self) -> Result<bool> {
        match self {
            Device::Cpu | Device::Interpret => Ok(true),
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => Ok(cuda::Context::get(n)?.capability == (9, 0)),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.not_built()),
        }
    }

    /// Asks for the work of both closures, in this order; a GPU may do the two side by side. Neither may touch what the
    /// other writes, except that the second may wait for the first's signals ([`View::wait`](crate::View::wait)).
    ///
    /// # Errors
    /// The first that a closure reports, or the device.
    pub fn beside(self, first: impl FnOnce() -> Result<()>, second: impl FnOnce() -> Result<()>) -> Result<()> {
        match self {
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => cuda::Context::get(n)?.beside(first, second),
            _ => {
                first()?;
                second()
            }
        }
    }

    /// Waits until everything asked of the device is done. On CUDA this is where a failure inside a kernel shows.
    pub fn synchronize(self) -> Result<()> {
        match self {
            Device::Cpu | Device::Interpret => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => cuda::Context::get(n)?.synchronize(),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.not_built()),
        }
    }

    #[cfg(not(feature = "cuda"))]
    pub(crate) fn not_built(self) -> Error {
        Error::Unavailable {
            device: self,
            reason: "this program was built without the feature `cuda`: build it with `--features cuda`".into(),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Interpret => f.write_str("interpret"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;
    fn from_str(name: &str) -> Result<Device> {
        Device::parse(name)
    }
}

static WAITS: AtomicU64 = AtomicU64::new(0);

/// How often this process has waited for a GPU so far: copies to the host, and [`Device::synchronize`].
pub fn waits() -> u64 {
    WAITS.load(Ordering::Relaxed)
}

/// Counts a wait for a GPU.
#[cfg(feature = "cuda")]
pub(crate) fn count_wait() {
    WAITS.fetch_add(1, Ordering::Relaxed);
}

/// What fresh memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// All bits 0.
    Zero,
    /// Nothing in particular: the interpreter refuses to read it, and with `KILN_POISON` the others find this byte.
    Uninit { poison: u8 },
}

/// A piece of one device's memory. Offsets and lengths are in bytes and are inside it: `Tensor` sees to that.
pub(crate) enum Storage {
    Cpu(HostMemory),
    Interpret(InterpretMemory),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Memory),
}

impl Storage {
    pub(crate) fn allocate(device: Device, bytes: usize, fill: Fill) -> Result<Arc<Storage>> {
        match device {
            Device::Cpu => Ok(Arc::new(Storage::Cpu(HostMemory::allocate(bytes, fill)?))),
            Device::Interpret => Ok(Arc::new(Storage::Interpret(InterpretMemory::allocate(bytes, fill)?))),
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => cuda::Memory::allocate(cuda::Context::get(n)?, bytes, fill),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(device.not_built()),
        }
    }

    pub(crate) fn device(&self) -> Device {
        match self {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Interpret(_) => Device::Interpret,
            #[cfg(feature = "cuda")]
            Storage::Cuda(m) => m.device(),
        }
    }

    /// Where the memory starts, in the device's addresses; the interpreter has none.
    pub(crate) fn address(&self) -> u64 {
        match self {
            Storage::Cpu(m) => m.address(),
            Storage::Interpret(_) => 0,
            #[cfg(feature = "cuda")]
            Storage::Cuda(m) => m.address(),
        }
    }

    /// Brings bytes to the host, after everything asked of the device before.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        match self {
            Storage::Cpu(m) => m.read(offset, out),
            Storage::Interpret(m) => m.read(offset, out),
            #[cfg(feature = "cuda")]
            Storage::Cuda(m) => m.read(offset, out),
        }
    }

    /// Begins to bring bytes to the host, as they are when what was asked of the device before is done.
    pub(crate) fn fetch(&self, offset: usize, len: usize) -> Result<Fetching> {
        match self {
            #[cfg(feature = "cuda")]
            Storage::Cuda(m) if len > 0 => Ok(Fetching::Cuda(m.fetch(offset, len)?)),
            _ => {
                let mut bytes = vec![0; len];
                self.read(offset, &mut bytes)?;
                Ok(Fetching::Done(bytes))
            }
        }
    }

    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        match self {
            Storage::Cpu(m) => m.write(offset, data),
            Storage::Interpret(m) => m.write(offset, data),
            #[cfg(feature = "cuda")]
            Storage::Cuda(m) => m.write(offset, data),
        }
    }

    /// Copies pieces `(to, from, bytes)`; the two memories may be of different devices, or one.
    pub(crate) fn copy(
        self: &Arc<Storage>,
        from: &Arc<Storage>,
        pieces: impl Iterator<Item = (usize, usize, usize)>,
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let (Storage::Cuda(to), Storage::Cuda(at)) = (&**self, &**from)
            && to.device() == at.device()
        {
            return to.copy(at, pieces, [self, from]);
        }
        if let (Storage::Interpret(to), Storage::Interpret(from)) = (&**self, &**from) {
            return to.copy(from, pieces);
        }
        let mut bytes = vec![];
        for (to, at, len) in pieces {
            bytes.resize(len, 0);
            from.read(at, &mut bytes)?;
            self.write(to, &bytes)?;
        }
        Ok(())
    }
}

/// Bytes on their way to the host.
pub(crate) enum Fetching {
    Done(Vec<u8>),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Fetch),
}

impl Fetching {
    /// The bytes, once they are there.
    pub(crate) fn wait(self) -> Result<Vec<u8>> {
        match self {
            Fetching::Done(bytes) => Ok(bytes),
            #[cfg(feature = "cuda")]
            Fetching::Cuda(fetch) => fetch.wait(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print() {
        for d in [Device::Cpu, Device::Interpret] {
            assert_eq!(Device::parse(&d.to_string()).unwrap(), d);
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(matches!(Device::parse(bad), Err(Error::UnknownDevice { .. })), "{bad}");
        }
    }

    /// Asking for a GPU that is not there says why, with or without the feature.
    #[test]
    fn an_absent_gpu_is_an_error_with_a_reason() {
        if let Err(e) = Device::parse("cuda:63") {
            let text = e.to_string();
            assert!(text.contains("cuda:63") && text.len() > 40, "{text}");
        }
        Device::auto().unwrap();
    }
}

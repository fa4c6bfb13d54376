//! What a device answers when it is asked for more than there is, and that it works on afterwards.

use super::Trial;
use kiln::{DType, Device, Error, Tensor, bf16};

/// More than any machine has, and less than sizes may be.
const TOO_MUCH: usize = 1 << 45;

/// A refused allocation names device and sizes, takes nothing with it, and the next that fits succeeds.
pub(super) fn out_of_memory(trial: &mut Trial) -> anyhow::Result<()> {
    // Hosts promise memory that they have not got, up to a point.
    let bytes = if matches!(trial.device, Device::Cuda(_)) { TOO_MUCH } else { TOO_MUCH << 14 };
    let refused = Tensor::uninit(&[bytes], DType::U8, trial.device);
    trial.expect("more than there is is refused", refused.is_err_and(|e| names_sizes(&e, trial.device, bytes)));
    if matches!(trial.device, Device::Cuda(_)) {
        exhaust(trial)?;
    }
    super::dense::linear::<bf16, bf16>(trial)
}

/// Whether an error says what was asked of whom, and on a GPU what there is.
fn names_sizes(error: &Error, device: Device, asked: usize) -> bool {
    let text = error.to_string();
    matches!(error, Error::OutOfMemory { bytes, .. } if *bytes == asked)
        && text.contains(&format!("out of memory on {device}: {asked} bytes"))
        && (!matches!(device, Device::Cuda(_)) || text.contains("bytes are free"))
}

/// Takes all memory of a GPU in pieces, is refused the next one, and gets most of it again in one piece.
fn exhaust(trial: &mut Trial) -> anyhow::Result<()> {
    const PIECE: usize = 1 << 30;
    let mut pieces = vec![];
    let error = loop {
        match Tensor::uninit(&[PIECE], DType::U8, trial.device) {
            Ok(piece) => pieces.push(piece),
            Err(error) => break error,
        }
        anyhow::ensure!(pieces.len() < 4096, "memory without end");
    };
    trial.expect("full memory is an error with sizes", names_sizes(&error, trial.device, PIECE));
    // What is there still works, and so does whatever needs little.
    if let Some(piece) = pieces.last_mut() {
        piece.write_bytes(&vec![7; PIECE])?;
        let end = piece.narrow(0, PIECE - 3, 3)?.to_vec::<u8>()?;
        trial.expect("tensors that are there work on", end == [7; 3]);
    }
    let most = pieces.len() * PIECE / 8 * 7;
    drop(pieces);
    let again = Tensor::uninit(&[most], DType::U8, trial.device);
    trial.expect("what was given back is one piece again", again.is_ok());
    Ok(())
}

/// A GPU that the machine lacks is an error that names it and says what there is.
pub(super) fn absent(trial: &mut Trial) -> anyhow::Result<()> {
    let device = Device::Cuda(4000);
    for (what, result) in [
        ("by name", Device::parse("cuda:4000").map(drop)),
        ("to allocate", Tensor::zeros(&[1], DType::F32, device).map(drop)),
        ("to copy to", Tensor::zeros(&[1], DType::F32, trial.device)?.to_device(device).map(drop)),
        ("to wait for", device.synchronize()),
    ] {
        let says_why = |e: Error| {
            let text = e.to_string();
            matches!(e, Error::Unavailable { .. }) && text.contains("cuda:4000 is not available: ") && text.len() > 60
        };
        trial.expect(what, result.is_err_and(says_why));
    }
    Ok(())
}

//! What `lab tune` measures: linear layers of many rows, and of 8-bit floats, whose tile sizes are chosen by table.

use super::{random, random_narrow};
use anyhow::Context;
use kiln::tune::{Measured, Table, measure};
use kiln::{Device, bf16};
use kimi::engine::{self, Want};
use kimi::model::ops::Ops;
use std::path::Path;

/// Linear layers of Kimi-Linear-48B-A3B as the loader fuses them, and two that are square: outputs, inputs, whether the
/// result is added to the residual stream, in f32.
const LAYERS: [(usize, usize, bool); 14] = [
    (12288, 2304, false), // KDA: q, k, v
    (288, 2304, false),   // KDA: down to the heads' width, β
    (4096, 128, false),   // KDA: decay, gate
    (2304, 4096, true),   // out
    (6144, 2304, false),  // MLA: q
    (576, 2304, false),   // MLA: latent
    (8192, 512, false),   // MLA: keys and values
    (18432, 2304, false), // dense: gate and up
    (2304, 9216, true),   // dense: down
    (2048, 2304, false),  // shared expert: gate and up
    (2304, 1024, true),   // shared expert: down
    (2304, 4096, false),  // what the benchmark times
    (4096, 4096, false),
    (8192, 8192, false),
];
const ROWS: [usize; 9] = [96, 128, 256, 512, 1024, 2048, 3072, 4096, 8192];
/// Prompts of the shipped model.
const PROMPTS: [usize; 5] = [96, 300, 512, 1024, 2048];

/// Measures the candidates of every case whose name (`linear/m512_n12288_k2304`, `kimi-tiny/t512`) contains `filter`,
/// prints what was found, and puts it into the table in a file, which is made if it is not there.
///
/// # Errors
/// If a launch fails, or the file cannot be written.
pub fn run(device: Device, filter: Option<&str>, samples: usize, path: &Path) -> anyhow::Result<usize> {
    let mut table = Table::parse(&std::fs::read_to_string(path).unwrap_or_default());
    let mut buckets = 0;
    let mut case = |name: String, measured: &dyn Fn() -> anyhow::Result<Vec<Measured>>| {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            return Ok(());
        }
        for measured in measured().context(name)? {
            println!("{measured}");
            table.insert(&measured);
            buckets += 1;
        }
        // Kept up to date, so that a run that is cut off leaves what it has.
        std::fs::write(path, table.to_string()).with_context(|| format!("writing {}", path.display()))
    };
    for m in ROWS {
        for (n, k, f32) in LAYERS {
            let name = format!("linear{}/m{m}_n{n}_k{k}", if f32 { "_f32" } else { "" });
            case(name, &|| linear(Ops::new(device), [m, n, k], f32, samples))?;
            if !f32 {
                let name = format!("linear_scaled/m{m}_n{n}_k{k}");
                case(name, &|| linear_scaled(Ops::new(device), [m, n, k], samples))?;
            }
        }
    }
    for tokens in PROMPTS {
        case(format!("kimi-tiny/t{tokens}"), &|| prompt(device, tokens, samples))?;
    }
    Ok(buckets)
}

/// Measures what the shipped model launches for a prompt.
fn prompt(device: Device, tokens: usize, samples: usize) -> anyhow::Result<Vec<Measured>> {
    let device = device.to_string().parse().map_err(anyhow::Error::msg)?;
    let mut engine = engine::open(&kimi::shipped_model(), device, &mut |_, _| {})?;
    let session = engine.open_session()?;
    let found = measure(samples, || engine.append(session, &vec![1; tokens], Want::Last).map(drop))?;
    Ok(found)
}

/// Measures the launches of y `[m, n]` = x `[m, k]` · w `[n, k]`ᵀ.
fn linear(ops: Ops<bf16, bf16>, [m, n, k]: [usize; 3], f32: bool, samples: usize) -> anyhow::Result<Vec<Measured>> {
    let x = random::<bf16>(ops.device, &[m, k], 1.0, 1)?;
    let w = random::<bf16>(ops.device, &[n, k], 1.0, 2)?;
    let found = measure(samples, || if f32 { ops.linear_parts(&x, &w) } else { ops.linear::<bf16>(&x, &w) }.map(drop))?;
    Ok(found)
}

/// [`linear`] of 8-bit floats with a scale for each row of both operands.
fn linear_scaled(ops: Ops<bf16, bf16>, [m, n, k]: [usize; 3], samples: usize) -> anyhow::Result<Vec<Measured>> {
    let (x, w) = (random_narrow(ops.device, [m, k], 1)?, random_narrow(ops.device, [n, k], 2)?);
    let (x_scale, w_scale) = (random::<f32>(ops.device, &[m], 1.0, 3)?, random::<f32>(ops.device, &[n], 1.0, 4)?);
    let found = measure(samples, || ops.linear_scaled::<bf16>(&x, &x_scale, &w, &w_scale).map(drop))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is measured are the model's launches.
    #[test]
    fn linear_layers_are_measured_by_tile() {
        let ops = Ops::<bf16, bf16>::new(Device::Cpu).with_gpu_tiles();
        let buckets = |shape, f32| {
            let found = linear(ops, shape, f32, 1).unwrap();
            for measured in &found {
                assert!(
                    measured.candidates.len() >= 4 && measured.candidates.iter().all(|c| c.1.is_ok()),
                    "{measured}"
                );
            }
            found.into_iter().map(|measured| measured.bucket).collect::<Vec<_>>()
        };
        let bucket =
            |y: &str, shapes: &str| format!("cpu | linear_tiles<bf16, bf16, bf16, {y}, 64, 16, true> | {shapes}");
        assert_eq!(buckets([70, 40, 24], false), [bucket("bf16", "72x24u 40x24u 72x40u")]);
        assert_eq!(buckets([65, 32, 16], true), [bucket("f32", "72x16 32x16 72x32")]);
        let scaled = linear_scaled(ops, [64, 32, 16], 1).unwrap();
        assert_eq!(scaled[0].bucket, "cpu | linear_scaled<bf16, 16> | 64x16 32x16 64 32 64x32");
    }

    /// On a device without choices nothing is found, and a table stays what it was.
    #[test]
    fn a_table_keeps_what_was_not_measured() {
        let path = std::env::temp_dir().join(format!("kiln-lab-tune-{}", std::process::id()));
        std::fs::write(&path, "gpu | k | 8 | N=1 | 1.0 us\n").unwrap();
        assert_eq!(run(Device::Cpu, Some("kimi-tiny/t96"), 1, &path).unwrap(), 0);
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept.contains("\ngpu | k | 8 | N=1 | 1.0 us\n"), "{kept}");
        std::fs::remove_file(path).unwrap();
    }
}

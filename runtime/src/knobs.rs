//! Every environment variable that Kiln reads.
//!
//! One file, so that "what can I set?" has one answer and a variable has one meaning. Values are read once, at first
//! use; a value that cannot be understood is reported on standard error and ignored, so that no setting can turn a
//! working program into a failing one.
//!
//! | variable | value | meaning |
//! |---|---|---|
//! | `KILN_DEVICE` | `cpu`, `interpret`, `cuda[:N]` | what `Device::auto()` chooses |
//! | `KILN_DUMP` | `stage[,kernel][;…]` | print `tile`, `tile-opt`, `llvm`, `ptx`, `report` or `all` of kernels whose name contains `kernel` |
//! | `KILN_DUMP_DIR` | a directory | where dumps go; standard error without it |
//! | `KILN_DENY` | `off` | run kernels on GPUs despite findings that they deny |
//! | `KILN_CACHE` | `off` | do not read or write compiled kernels on disk |
//! | `KILN_CACHE_DIR` | a directory | where compiled kernels and `tuned.txt` are kept; default `$XDG_CACHE_HOME/kiln` or `~/.cache/kiln` |
//! | `KILN_AUTOTUNE` | `off`, `cached`, `full` | tuned launches run the author's instance, the best known (default), or measure |
//! | `KILN_PACK` | a file | where compiled kernels are looked for first; default `kernels.pack` beside the program |
//! | `KILN_RECORD` | a file | add every kernel that runs on a GPU to this pack |
//! | `KILN_THREADS` | a number | threads of the CPU device; default all cores |
//! | `KILN_PTXAS` | a path, or `off` | the assembler to use; `off`: the driver's; default `ptxas` on `PATH`, else the driver's |
//! | `KILN_POISON` | `0`, `1` | fill uninitialised tensors with NaN bits; default in debug builds only |

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A point of the pipeline whose text can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Tile IR as staged.
    Tile,
    /// Tile IR after the passes.
    TileOpt,
    /// LLVM IR.
    Llvm,
    /// PTX.
    Ptx,
    /// What a kernel takes of the GPU, and what is slow in it.
    Report,
}

impl Stage {
    /// The name in `KILN_DUMP`, and the extension of a dumped file.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Tile => "tile",
            Stage::TileOpt => "tile-opt",
            Stage::Llvm => "llvm",
            Stage::Ptx => "ptx",
            Stage::Report => "report",
        }
    }

    fn from_name(name: &str) -> Option<Stage> {
        let all = [Stage::Tile, Stage::TileOpt, Stage::Llvm, Stage::Ptx, Stage::Report];
        all.into_iter().find(|s| s.name() == name)
    }
}

/// One request of `KILN_DUMP`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dump {
    /// `None`: every stage.
    stage: Option<Stage>,
    /// `None`: every kernel.
    kernel: Option<String>,
}

/// The assembler that turns PTX into machine code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assembler {
    /// The driver's compiler.
    Driver,
    /// A `ptxas` program.
    Ptxas(PathBuf),
}

/// Which instance a tuned launch takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Autotune {
    /// The one that its author would take.
    Off,
    /// The one that is known to be best, or else the author's.
    Cached,
    /// The one that is known to be best, if need be by measuring now.
    Full,
}

/// All settings.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// `KILN_DEVICE`, not yet parsed.
    pub device: Option<String>,
    /// `None`: the disk cache is off.
    pub cache_dir: Option<PathBuf>,
    /// `None`: the pack beside the program.
    pub pack: Option<PathBuf>,
    pub record: Option<PathBuf>,
    /// `None`: one thread per core.
    pub threads: Option<usize>,
    pub assembler: Assembler,
    pub poison: bool,
    /// Whether what a kernel denies is an error.
    pub deny: bool,
    pub autotune: Autotune,
    dump_dir: Option<PathBuf>,
    dumps: Vec<Dump>,
}

/// The settings of this process.
pub fn knobs() -> &'static Knobs {
    static KNOBS: OnceLock<Knobs> = OnceLock::new();
    KNOBS.get_or_init(|| Knobs::from_lookup(|name| std::env::var(name).ok().filter(|v| !v.is_empty())))
}

impl Knobs {
    /// Settings from any source of variables, so that tests need not change the process's environment.
    fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Knobs {
        let cache_dir = match get("KILN_CACHE").as_deref() {
            Some("off" | "0") => None,
            other => {
                if let Some(v) = other.filter(|v| !matches!(*v, "on" | "1")) {
                    ignored("KILN_CACHE", v, "`on` or `off`");
                }
                get("KILN_CACHE_DIR")
                    .map(PathBuf::from)
                    .or_else(|| get("XDG_CACHE_HOME").map(|d| Path::new(&d).join("kiln")))
                    .or_else(|| get("HOME").map(|d| Path::new(&d).join(".cache/kiln")))
            }
        };
        let threads = get("KILN_THREADS").and_then(|v| match v.parse() {
            Ok(n) if n > 0 => Some(n),
            _ => {
                ignored("KILN_THREADS", &v, "a number above 0");
                None
            }
        });
        let assembler = match get("KILN_PTXAS").as_deref() {
            Some("off" | "0") => Assembler::Driver,
            Some(path) => Assembler::Ptxas(path.into()),
            None => get("PATH").and_then(|p| find_on_path("ptxas", &p)).map_or(Assembler::Driver, Assembler::Ptxas),
        };
        let poison = match get("KILN_POISON").as_deref() {
            Some("1" | "on") => true,
            Some("0" | "off") => false,
            other => {
                if let Some(v) = other {
                    ignored("KILN_POISON", v, "`0` or `1`");
                }
                cfg!(debug_assertions)
            }
        };
        let deny = match get("KILN_DENY").as_deref() {
            Some("off" | "0") => false,
            other => {
                if let Some(v) = other.filter(|v| !matches!(*v, "on" | "1")) {
                    ignored("KILN_DENY", v, "`on` or `off`");
                }
                true
            }
        };
        let autotune = match get("KILN_AUTOTUNE").as_deref() {
            Some("off" | "0") => Autotune::Off,
            Some("full") => Autotune::Full,
            other => {
                if let Some(v) = other.filter(|v| *v != "cached") {
                    ignored("KILN_AUTOTUNE", v, "`off`, `cached` or `full`");
                }
                Autotune::Cached
            }
        };
        Knobs {
            device: get("KILN_DEVICE"),
            cache_dir,
            pack: get("KILN_PACK").map(PathBuf::from),
            record: get("KILN_RECORD").map(PathBuf::from),
            threads,
            assembler,
            poison,
            deny,
            autotune,
            dump_dir: get("KILN_DUMP_DIR").map(PathBuf::from),
            dumps: get("KILN_DUMP").map(|v| parse_dumps(&v)).unwrap_or_default(),
        }
    }

    /// Whether this stage of this kernel is to be printed: ask before computing a costly text.
    pub fn dumps(&self, stage: Stage, kernel: &str) -> bool {
        self.dumps
            .iter()
            .any(|d| d.stage.is_none_or(|s| s == stage) && d.kernel.as_deref().is_none_or(|k| kernel.contains(k)))
    }

    /// Prints a stage's text if it was asked for. `variant` tells apart the specialisations of one kernel.
    pub fn dump(&self, stage: Stage, kernel: &str, variant: &str, text: impl FnOnce() -> String) {
        if !self.dumps(stage, kernel) {
            return;
        }
        let text = text();
        match &self.dump_dir {
            None => eprintln!("// {}: {kernel} {variant}\n{text}", stage.name()),
            Some(dir) => {
                let name: String =
                    kernel.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '-' }).collect();
                let path =
                    dir.join(format!("{name}{}{variant}.{}", if variant.is_empty() { "" } else { "-" }, stage.name()));
                if let Err(e) = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&path, text)) {
                    eprintln!("kiln: cannot dump to {}: {e}", path.display());
                }
            }
        }
    }
}

fn ignored(name: &str, value: &str, expected: &str) {
    eprintln!("kiln: {name}={value} is ignored: expected {expected}");
}

fn parse_dumps(value: &str) -> Vec<Dump> {
    let mut dumps = vec![];
    for part in value.split(';').map(str::trim).filter(|p| !p.is_empty()) {
        let (stage, kernel) = match part.split_once(',') {
            Some((s, k)) => (s.trim(), Some(k.trim().to_string())),
            None => (part, None),
        };
        match Stage::from_name(stage) {
            Some(s) => dumps.push(Dump { stage: Some(s), kernel }),
            None if stage == "all" => dumps.push(Dump { stage: None, kernel }),
            None => ignored(
                "KILN_DUMP",
                part,
                "a stage (tile, tile-opt, llvm, ptx, report, all), then optionally `,kernel`",
            ),
        }
    }
    dumps
}

fn find_on_path(program: &str, path: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|d| d.join(program)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)]) -> Knobs {
        Knobs::from_lookup(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn dump_selects_stage_and_kernel() {
        let k = with(&[("KILN_DUMP", "ptx,softmax; tile")]);
        assert!(k.dumps(Stage::Ptx, "row_softmax"));
        assert!(!k.dumps(Stage::Ptx, "matmul"));
        assert!(k.dumps(Stage::Tile, "matmul"));
        assert!(!k.dumps(Stage::TileOpt, "matmul"));
        assert!(with(&[("KILN_DUMP", "all")]).dumps(Stage::Llvm, "x"));
        assert!(!with(&[("KILN_DUMP", "nonsense")]).dumps(Stage::Llvm, "x"));
    }

    #[test]
    fn bad_values_fall_back() {
        let k = with(&[("KILN_THREADS", "none"), ("KILN_POISON", "maybe"), ("HOME", "/h")]);
        assert_eq!(k.threads, None);
        assert_eq!(k.poison, cfg!(debug_assertions));
        assert!(k.deny && with(&[("KILN_DENY", "maybe")]).deny && !with(&[("KILN_DENY", "off")]).deny);
        assert_eq!(k.cache_dir, Some(PathBuf::from("/h/.cache/kiln")));
        let autotune = |value| with(&[("KILN_AUTOTUNE", value)]).autotune;
        assert_eq!(["off", "full", "cached", "on"].map(autotune), {
            use Autotune::*;
            [Off, Full, Cached, Cached]
        });
    }

    #[test]
    fn cache_directory_and_off() {
        assert_eq!(with(&[("KILN_CACHE", "off"), ("KILN_CACHE_DIR", "/c")]).cache_dir, None);
        assert_eq!(with(&[("KILN_CACHE_DIR", "/c"), ("HOME", "/h")]).cache_dir, Some("/c".into()));
    }

    #[test]
    fn assembler_choice() {
        assert_eq!(with(&[("KILN_PTXAS", "off"), ("PATH", "/bin")]).assembler, Assembler::Driver);
        assert_eq!(with(&[("KILN_PTXAS", "/opt/ptxas")]).assembler, Assembler::Ptxas("/opt/ptxas".into()));
    }
}

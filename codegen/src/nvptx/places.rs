//! Where in the source instructions come from, as LLVM's notes ("metadata"): it makes `.file` and `.loc` of them, which
//! profilers, sanitizers and the assembler's findings show, and nothing else.

use crate::ir::Loc;
use std::fmt::Write;

/// The number of the first note; those of the kernel have lower ones. Before the places come the kernel, the unit, the
/// version and the kernel's type.
const FIRST: usize = 100;

/// The places from which instructions come.
#[derive(Default)]
pub struct Places {
    /// Each once.
    known: Vec<Loc>,
    /// What instructions end with now.
    here: String,
}

impl Places {
    /// The next instructions come from there.
    pub fn move_to(&mut self, place: Loc) {
        self.here.clear();
        if !place.file.is_empty() {
            let known = self.known.iter().position(|p| *p == place);
            let number = known.unwrap_or_else(|| {
                self.known.push(place);
                self.known.len() - 1
            });
            self.here = format!(", !dbg !{}", FIRST + 4 + number);
        }
    }

    /// What an instruction ends with.
    pub fn here(&self) -> &str {
        &self.here
    }

    /// What the kernel's definition ends with.
    pub fn kernel(&self) -> String {
        if self.known.is_empty() { String::new() } else { format!(" !dbg !{FIRST}") }
    }

    /// The notes at the end of the module, for a kernel of this name.
    pub fn notes(&self, name: &str, out: &mut String) {
        let Some(first) = self.known.first() else { return };
        let mut files: Vec<&str> = vec![first.file];
        files.extend(self.known.iter().map(|p| p.file).filter(|f| *f != first.file));
        files[1..].sort_unstable();
        files.dedup();
        // After the places a file and its scope for each.
        let file = |f: &str| {
            FIRST + 4 + self.known.len() + 2 * files.iter().position(|g| *g == f).expect("the file of a place")
        };
        let mut note = |number: usize, text: String| writeln!(out, "!{number} = {text}").expect("writing to a string");
        let (kernel, unit, version, types) = (FIRST, FIRST + 1, FIRST + 2, FIRST + 3);
        let main = file(first.file);
        note(
            kernel,
            format!(
                "distinct !DISubprogram(name: \"{name}\", scope: !{main}, file: !{main}, line: {}, type: !{types}, \
                 unit: !{unit}, spFlags: DISPFlagDefinition | DISPFlagOptimized)",
                first.line
            ),
        );
        note(
            unit,
            format!(
                "distinct !DICompileUnit(language: DW_LANG_Rust, file: !{main}, isOptimized: true, emissionKind: \
                 DebugDirectivesOnly)"
            ),
        );
        note(version, "!{i32 2, !\"Debug Info Version\", i32 3}".into());
        note(types, "!DISubroutineType(types: !{null})".into());
        for (i, place) in self.known.iter().enumerate() {
            let (line, column, scope) = (place.line, place.column, file(place.file) + 1);
            note(FIRST + 4 + i, format!("!DILocation(line: {line}, column: {column}, scope: !{scope})"));
        }
        for f in &files {
            let (number, escaped) = (file(f), f.replace('\\', "\\5C").replace('"', "\\22"));
            note(number, format!("!DIFile(filename: \"{escaped}\", directory: \"\")"));
            note(number + 1, format!("!DILexicalBlockFile(scope: !{kernel}, file: !{number}, discriminator: 0)"));
        }
        let _ = writeln!(out, "!llvm.dbg.cu = !{{!{unit}}}\n!llvm.module.flags = !{{!{version}}}");
    }
}

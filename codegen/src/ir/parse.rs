//! Reads the text form (see [`super::text`]); `//` starts a comment that ends with the line.
//!
//! The parser checks syntax and that names are defined before they are used; types are the verifier's business, so
//! that a test can write a kernel that the verifier must refuse. File names in locations live as long as the program:
//! [`Loc`] holds them as rustc does, and only tools parse.

use super::text::is_word;
use super::*;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::str::FromStr;

/// Where and why a text is not a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub expected: String,
    pub found: String,
}

impl FromStr for Kernel {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Kernel, ParseError> {
        parse(text)
    }
}

/// Reads one kernel; nothing but space and comments may follow it.
pub fn parse(text: &str) -> Result<Kernel, ParseError> {
    let kernel = Kernel::new("", Loc::default());
    let mut p = Parser { text, at: 0, kernel, scopes: vec![HashMap::new()], files: HashSet::new() };
    p.parse_kernel()?;
    p.space();
    if p.at < text.len() {
        return p.fail("the end of the text");
    }
    Ok(p.kernel)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    kernel: Kernel,
    scopes: Vec<HashMap<&'a str, ValueId>>,
    files: HashSet<&'static str>,
}

type Result<T, E = ParseError> = std::result::Result<T, E>;

/// `%name: type`.
type TypedName<'a> = (&'a str, Type);

// -- tokens ------------------------------------------------------------------------------------------------------------

impl<'a> Parser<'a> {
    fn space(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            self.at += rest.len() - rest.trim_start().len();
            if !self.text[self.at..].starts_with("//") {
                return;
            }
            self.at += self.text[self.at..].find('\n').unwrap_or(self.text.len() - self.at);
        }
    }

    fn rest(&mut self) -> &'a str {
        self.space();
        &self.text[self.at..]
    }

    fn fail<T>(&mut self, expected: impl Into<String>) -> Result<T> {
        let rest = self.rest();
        let word = rest.split([' ', '\n', ',', ')', '(', ']']).next().unwrap_or("");
        let found = match (rest.is_empty(), word.is_empty()) {
            (true, _) => "the end of the text".into(),
            (_, true) => format!("`{}`", rest.chars().next().unwrap_or(' ')),
            _ => format!("`{word}`"),
        };
        self.fail_found(expected, found)
    }

    fn fail_found<T>(&self, expected: impl Into<String>, found: String) -> Result<T> {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = self.at - before.rfind('\n').map_or(0, |i| i + 1) + 1;
        Err(ParseError { line, column, expected: expected.into(), found })
    }

    /// Takes `token` if it comes next; a token that is a word must not be the start of a longer one.
    fn accept(&mut self, token: &str) -> bool {
        let Some(after) = self.rest().strip_prefix(token) else { return false };
        if is_word(token) && after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
            return false;
        }
        self.at += token.len();
        true
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        if self.accept(token) { Ok(()) } else { self.fail(format!("`{token}`")) }
    }

    fn take_while(&mut self, f: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !f(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn word(&mut self, what: &str) -> Result<&'a str> {
        let start = self.at;
        let word = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        if is_word(word) {
            return Ok(word);
        }
        self.at = start;
        self.fail(what)
    }

    fn number<T: FromStr>(&mut self, what: &str) -> Result<T> {
        let start = self.at;
        match self.take_while(|c| c.is_ascii_digit()).parse() {
            Ok(n) => Ok(n),
            Err(_) => {
                self.at = start;
                self.fail(what)
            }
        }
    }

    /// A string as Rust's `{:?}` writes it.
    fn string(&mut self) -> Result<String> {
        if !self.rest().starts_with('"') {
            return self.fail("a string");
        }
        let (start, mut out) = (self.at, String::new());
        let mut chars = self.text[start + 1..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at = start + 1 + i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some('t') => out.push('\t'),
                    Some('r') => out.push('\r'),
                    Some('0') => out.push('\0'),
                    Some('u') => {
                        let code: String = chars.by_ref().map(|(_, c)| c).take_while(|&c| c != '}').collect();
                        let code = u32::from_str_radix(code.trim_start_matches('{'), 16).ok();
                        match code.and_then(char::from_u32) {
                            Some(c) => out.push(c),
                            None => return self.fail("a character's code after `\\u`"),
                        }
                    }
                    Some(c) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        self.fail_found("the string's closing quote", "the end of the text".into())
    }

    fn name(&mut self, what: &str) -> Result<String> {
        if self.rest().starts_with('"') { self.string() } else { Ok(self.word(what)?.to_string()) }
    }

    /// `[item, item]`.
    fn list<T>(&mut self, open: &str, close: &str, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.expect(open)?;
        let mut items = vec![];
        while !self.accept(close) {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }
}

// -- types, values, locations ------------------------------------------------------------------------------------------

impl<'a> Parser<'a> {
    fn dtype(&mut self) -> Result<DType> {
        let start = self.at;
        match DType::from_name(self.word("an element type")?) {
            Some(d) => Ok(d),
            None => {
                self.at = start;
                self.fail("an element type")
            }
        }
    }

    fn shape(&mut self) -> Result<Shape> {
        let mut extents = vec![self.number("an extent")?];
        while self.text[self.at..].starts_with('x') {
            self.at += 1;
            extents.push(self.number("an extent")?);
        }
        if extents.len() > MAX_RANK {
            return self.fail(format!("at most {MAX_RANK} extents before this"));
        }
        Ok(Shape::new(&extents))
    }

    fn ty(&mut self) -> Result<Type> {
        if self.accept("channel") {
            return Ok(Type::Channel);
        }
        if self.accept("slot") {
            return Ok(Type::Slot);
        }
        if self.accept("view") {
            self.expect("<")?;
            let dtype = self.dtype()?;
            self.expect(",")?;
            let rank: u8 = self.number("a rank")?;
            if rank as usize > MAX_RANK {
                return self.fail(format!("a rank of at most {MAX_RANK} before this"));
            }
            self.expect(">")?;
            return Ok(Type::View(dtype, rank));
        }
        let dtype = self.dtype()?;
        if !self.accept("<") {
            return Ok(Type::scalar(dtype));
        }
        let shape = self.shape()?;
        self.expect(">")?;
        Ok(Type::Tile(dtype, shape))
    }

    fn value_name(&mut self) -> Result<&'a str> {
        self.expect("%")?;
        let name = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        if name.is_empty() { self.fail("a value's name after `%`") } else { Ok(name) }
    }

    /// A use.
    fn value(&mut self) -> Result<ValueId> {
        let start = self.at;
        let name = self.value_name()?;
        match self.scopes.iter().rev().find_map(|s| s.get(name)) {
            Some(&v) => Ok(v),
            None => {
                self.at = start;
                self.fail("a value that is defined before and visible here")
            }
        }
    }

    fn values(&mut self) -> Result<Vec<ValueId>> {
        let mut values = vec![];
        // On this line: the next one may start with the name of its result.
        if self.text[self.at..].trim_start_matches(' ').starts_with('%') {
            values.push(self.value()?);
            while self.accept(",") {
                values.push(self.value()?);
            }
        }
        Ok(values)
    }

    /// `%name: type`.
    fn typed_name(&mut self) -> Result<TypedName<'a>> {
        let name = self.value_name()?;
        self.expect(":")?;
        Ok((name, self.ty()?))
    }

    fn define(&mut self, name: &'a str, value: ValueId) -> Result<()> {
        let scope = self.scopes.last_mut().expect("the outermost scope is never closed");
        if scope.insert(name, value).is_some() {
            return self.fail_found("a name that is not defined yet", format!("`%{name}` again"));
        }
        Ok(())
    }

    fn loc(&mut self) -> Result<Loc> {
        if !self.accept("at") {
            return Ok(Loc::default());
        }
        let file = self.string()?;
        let file = match self.files.get(file.as_str()) {
            Some(&known) => known,
            None => {
                let leaked: &'static str = Box::leak(file.into_boxed_str());
                self.files.insert(leaked);
                leaked
            }
        };
        self.expect(":")?;
        let line = self.number("a line")?;
        self.expect(":")?;
        Ok(Loc { file, line, column: self.number("a column")? })
    }

    fn bits(&mut self, dtype: DType) -> Result<Bits> {
        let start = self.at;
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        let bits = match (text, text.strip_prefix("0x")) {
            ("true", _) => Some(Bits(1)),
            ("false", _) => Some(Bits(0)),
            (_, Some(hex)) => u64::from_str_radix(hex, 16).ok().map(Bits),
            _ if dtype.is_float() => text.parse().ok().map(|v| Bits::from_f64(dtype, v)),
            _ => text.parse().ok().map(|v: i128| Bits::from_i64(dtype, v as i64)),
        };
        match bits {
            Some(bits) => Ok(bits),
            None => {
                self.at = start;
                self.fail(format!("a constant of {dtype}"))
            }
        }
    }
}

// -- kernel and regions ------------------------------------------------------------------------------------------------

impl<'a> Parser<'a> {
    fn parse_kernel(&mut self) -> Result<()> {
        self.expect("kernel")?;
        self.kernel.name = self.name("the kernel's name")?;
        let facts = self.list("(", ")", Self::param)?;
        let slots = self.kernel.slots();
        for (param, facts) in facts.into_iter().enumerate() {
            for (slot, fact) in facts {
                let is = |s: &Slot| s.param as usize == param && text::slot_name(s.kind) == slot;
                match slots.iter().position(is) {
                    Some(index) => {
                        self.kernel.facts.resize(slots.len(), Fact::Unknown);
                        self.kernel.facts[index] = fact;
                    }
                    None => return self.fail_found("a slot of the parameter", format!("`{slot}`")),
                }
            }
        }
        loop {
            if self.accept("warps") {
                self.kernel.options.warps = self.number("a number of warps")?;
            } else if self.accept("min_programs_per_sm") {
                self.kernel.options.min_programs_per_sm = self.number("a number of programs")?;
            } else if self.accept("cluster") {
                self.kernel.options.cluster = self.number("a number of programs")?;
            } else if self.accept("deny") {
                self.kernel.options.deny = Lints::of(&self.list("[", "]", |p| p.named("a lint", Lint::from_name))?);
            } else {
                break;
            }
        }
        self.kernel.loc = self.loc()?;
        self.ops(self.kernel.body)
    }

    fn param(&mut self) -> Result<Vec<(&'a str, Fact)>> {
        let id = self.value_name()?;
        let name = if self.rest().starts_with('"') { self.string()? } else { id.to_string() };
        self.expect(":")?;
        let access = if self.accept("write") { Access::Write } else { Access::Read };
        let reuse = match () {
            () if self.accept("evict_first") => Reuse::EvictFirst,
            () if self.accept("discard") => Reuse::Discard,
            () => Reuse::Unknown,
        };
        let settled = self.accept("settled");
        let ty = self.ty()?;
        let block = match self.accept("block") {
            true if self.accept("scalar") => Some(Shape::SCALAR),
            true => Some({
                self.space();
                self.shape()?
            }),
            false => None,
        };
        let value = self.kernel.add_param(name, ty, access, block);
        let param = self.kernel.params.last_mut().expect("just added");
        (param.reuse, param.settled) = (reuse, settled);
        self.define(id, value)?;
        if !self.rest().starts_with('[') {
            return Ok(vec![]);
        }
        self.list("[", "]", |p| {
            let slot = p.word("a slot")?;
            if p.accept("=") {
                p.expect("1")?;
                return Ok((slot, Fact::One));
            }
            p.expect("%")?;
            p.expect("16")?;
            Ok((slot, Fact::Multiple16))
        })
    }

    /// A region's operations, in braces.
    fn ops(&mut self, region: RegionId) -> Result<()> {
        self.expect("{")?;
        self.scopes.push(HashMap::new());
        while !self.accept("}") {
            let op = self.op()?;
            self.kernel.regions[region.index()].ops.push(op);
        }
        self.scopes.pop();
        Ok(())
    }

    /// A region whose arguments have been read already.
    fn region(&mut self, args: &[TypedName<'a>]) -> Result<RegionId> {
        let types: Vec<Type> = args.iter().map(|a| a.1).collect();
        let region = self.kernel.new_region(&types);
        self.scopes.push(HashMap::new());
        for (i, &(name, _)) in args.iter().enumerate() {
            self.define(name, self.kernel.region(region).args[i])?;
        }
        self.ops(region)?;
        self.scopes.pop();
        Ok(region)
    }

    /// `(%a: T = %init, …)`.
    fn carried(&mut self) -> Result<(Vec<TypedName<'a>>, Vec<ValueId>)> {
        let pairs = self.list("(", ")", |p| {
            let arg = p.typed_name()?;
            p.expect("=")?;
            Ok((arg, p.value()?))
        })?;
        Ok(pairs.into_iter().unzip())
    }
}

// -- operations --------------------------------------------------------------------------------------------------------

/// What an operation's line says before its regions.
struct Line {
    kind: OpKind,
    operands: Vec<ValueId>,
    loc: Loc,
    regions: Vec<RegionId>,
}

impl<'a> Parser<'a> {
    fn op(&mut self) -> Result<OpId> {
        let mut results = vec![];
        if self.rest().starts_with('%') {
            results.push(self.typed_name()?);
            while self.accept(",") {
                results.push(self.typed_name()?);
            }
            self.expect("=")?;
        }
        let types: Vec<Type> = results.iter().map(|r| r.1).collect();
        let line = self.line(&types)?;
        let op = self.kernel.new_op(line.kind, &line.operands, &types, &line.regions, line.loc);
        for (i, &(name, _)) in results.iter().enumerate() {
            self.define(name, self.kernel.op(op).results[i])?;
        }
        Ok(op)
    }

    fn line(&mut self, results: &[Type]) -> Result<Line> {
        let start = self.at;
        let mnemonic = self.word("an operation")?;
        let plain = |p: &mut Self, kind| {
            let operands = p.values()?;
            Ok(Line { kind, operands, loc: p.loc()?, regions: vec![] })
        };
        match mnemonic {
            "const" => {
                let dtype = match results.first() {
                    Some(Type::Tile(dtype, _)) => *dtype,
                    _ => DType::U64,
                };
                let bits = self.bits(dtype)?;
                plain(self, OpKind::Const(bits))
            }
            "iota" => {
                let axis = self.axis()?;
                plain(self, OpKind::Iota { axis })
            }
            "program_id" => {
                let axis = self.number("an axis")?;
                plain(self, OpKind::ProgramId { axis })
            }
            "num_programs" => {
                let axis = self.number("an axis")?;
                plain(self, OpKind::NumPrograms { axis })
            }
            "fma" => plain(self, OpKind::Fma),
            "select" => plain(self, OpKind::Select),
            "cast" => plain(self, OpKind::Cast),
            "bitcast" => plain(self, OpKind::Bitcast),
            "broadcast" => plain(self, OpKind::Broadcast),
            "reshape" => plain(self, OpKind::Reshape),
            "transpose" => {
                let axes: Vec<u8> = self.list("[", "]", |p| p.number("an axis"))?;
                let mut perm = [0, 1, 2, 3];
                self.fill(&mut perm, &axes)?;
                plain(self, OpKind::Transpose { perm })
            }
            "slice" => {
                let starts: Vec<u32> = self.list("[", "]", |p| p.number("an offset"))?;
                let mut offsets = [0; MAX_RANK];
                self.fill(&mut offsets, &starts)?;
                plain(self, OpKind::Slice { offsets })
            }
            "join" => {
                let axis = self.axis()?;
                plain(self, OpKind::Join { axis })
            }
            "reduce" => {
                let combine = self.named("a combination", Combine::from_name)?;
                let axis = self.axis()?;
                let line = plain(self, OpKind::Reduce { axis, combine })?;
                self.combine_region(combine, line)
            }
            "scan" => {
                let combine = self.named("a combination", Combine::from_name)?;
                let axis = self.axis()?;
                let reverse = self.accept("reverse");
                let line = plain(self, OpKind::Scan { axis, combine, reverse })?;
                self.combine_region(combine, line)
            }
            "cluster_reduce" => {
                let combine = self.named("a combination", Combine::from_name)?;
                plain(self, OpKind::ClusterReduce(combine))
            }
            "grid_sync" => plain(self, OpKind::GridSync),
            "dot" => {
                let given = !self.rest().starts_with('%');
                let precision = if given { self.named("a precision", Precision::from_name)? } else { Precision::F32 };
                plain(self, OpKind::Dot(precision))
            }
            "dim" | "view_select" | "view_narrow" => {
                let dim = self.number("a dimension")?;
                plain(
                    self,
                    match mnemonic {
                        "dim" => OpKind::Dim { dim },
                        "view_select" => OpKind::ViewSelect { dim },
                        _ => OpKind::ViewNarrow { dim },
                    },
                )
            }
            "load" | "gather" | "store" | "store_add" | "scatter" | "atomic" | "signal" | "wait" => {
                self.access(mnemonic)
            }
            "for" => self.for_loop(),
            "while" => self.while_loop(),
            "if" => {
                let operands = self.values()?;
                let loc = self.loc()?;
                let then = self.region(&[])?;
                self.expect("else")?;
                let otherwise = self.region(&[])?;
                Ok(Line { kind: OpKind::If, operands, loc, regions: vec![then, otherwise] })
            }
            "yield" => plain(self, OpKind::Yield),
            "channel" => {
                let slots = self.number("a number of slots")?;
                self.expect("of")?;
                let message = self.list("(", ")", Self::ty)?.into();
                plain(self, OpKind::Channel { slots, message })
            }
            "roles" => self.roles(),
            "send" => plain(self, OpKind::Send),
            "receive" => plain(self, OpKind::Receive),
            "release" => plain(self, OpKind::Release),
            "assert" => {
                let operands = self.values_until_string()?;
                let message = self.string()?;
                Ok(Line { kind: OpKind::Assert { message }, operands, loc: self.loc()?, regions: vec![] })
            }
            "print" => {
                let message = self.string()?;
                self.accept(",");
                plain(self, OpKind::Print { message })
            }
            name => match (UnaryOp::from_name(name), BinaryOp::from_name(name), CmpOp::from_name(name)) {
                (Some(op), _, _) => plain(self, OpKind::Unary(op)),
                (_, Some(op), _) => plain(self, OpKind::Binary(op)),
                (_, _, Some(op)) => plain(self, OpKind::Compare(op)),
                _ => {
                    self.at = start;
                    self.fail("an operation")
                }
            },
        }
    }

    fn axis(&mut self) -> Result<u8> {
        self.expect("axis")?;
        self.number("an axis")
    }

    fn named<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let start = self.at;
        match find(self.word(what)?) {
            Some(t) => Ok(t),
            None => {
                self.at = start;
                self.fail(what)
            }
        }
    }

    fn fill<T: Copy>(&mut self, into: &mut [T; MAX_RANK], from: &[T]) -> Result<()> {
        if from.len() > MAX_RANK {
            return self.fail(format!("at most {MAX_RANK} entries before this"));
        }
        into[..from.len()].copy_from_slice(from);
        Ok(())
    }

    fn values_until_string(&mut self) -> Result<Vec<ValueId>> {
        let mut values = vec![];
        while self.rest().starts_with('%') {
            values.push(self.value()?);
            self.expect(",")?;
        }
        Ok(values)
    }

    fn combine_region(&mut self, combine: Combine, mut line: Line) -> Result<Line> {
        if combine == Combine::Region {
            let args = self.list("(", ")", Self::typed_name)?;
            line.regions.push(self.region(&args)?);
        }
        Ok(line)
    }

    fn access(&mut self, mnemonic: &str) -> Result<Line> {
        let atomic = if mnemonic == "atomic" { Some(self.named("an atomic", AtomicOp::from_name)?) } else { None };
        let view = self.value()?;
        let coords = self.list("[", "]", Self::value)?;
        let mut operands = vec![view];
        if matches!(mnemonic, "store" | "store_add" | "scatter" | "atomic" | "signal" | "wait") {
            self.expect(",")?;
            operands.push(self.value()?);
        }
        operands.extend(coords);
        // On this line: the next one may be an `if`.
        let here = self.text[self.at..].trim_start_matches(' ').starts_with("if ");
        let masked = here && matches!(mnemonic, "gather" | "scatter" | "atomic") && self.accept("if");
        if masked {
            operands.push(self.value()?);
        }
        let has_other = (mnemonic == "load" && self.accept("else")) || (mnemonic == "gather" && masked);
        if has_other {
            if mnemonic == "gather" {
                self.expect("else")?;
            }
            operands.push(self.value()?);
        }
        let kind = match (mnemonic, atomic) {
            ("load", _) => OpKind::Load { has_other },
            ("gather", _) => OpKind::Gather { masked },
            ("store", _) => OpKind::Store,
            ("store_add", _) => OpKind::StoreAdd,
            ("signal", _) => OpKind::Signal,
            ("wait", _) => OpKind::Wait,
            (_, Some(op)) => OpKind::Atomic { op, masked },
            _ => OpKind::Scatter { masked },
        };
        Ok(Line { kind, operands, loc: self.loc()?, regions: vec![] })
    }

    fn for_loop(&mut self) -> Result<Line> {
        let mut args = vec![self.typed_name()?];
        self.expect("=")?;
        let mut operands = vec![self.value()?];
        self.expect("to")?;
        operands.push(self.value()?);
        self.expect("step")?;
        operands.push(self.value()?);
        let stages = if self.accept("stages") { self.number("a number of stages")? } else { 0 };
        if self.accept("carrying") {
            let (names, inits) = self.carried()?;
            args.extend(names);
            operands.extend(inits);
        }
        let loc = self.loc()?;
        let body = self.region(&args)?;
        Ok(Line { kind: OpKind::For { stages }, operands, loc, regions: vec![body] })
    }

    fn roles(&mut self) -> Result<Line> {
        let loc = self.loc()?;
        let (mut roles, mut regions) = (SmallVec::new(), vec![]);
        while self.accept("role") {
            let warps = if self.accept("warps") { self.number("a number of warps")? } else { 0 };
            let registers = if self.accept("registers") { self.number("a number of registers")? } else { 0 };
            roles.push(Role { warps, registers });
            regions.push(self.region(&[])?);
        }
        Ok(Line { kind: OpKind::Roles(roles), operands: vec![], loc, regions })
    }

    fn while_loop(&mut self) -> Result<Line> {
        let (args, operands) = self.carried()?;
        let loc = self.loc()?;
        let condition = self.region(&args)?;
        self.expect("do")?;
        let args = self.list("(", ")", Self::typed_name)?;
        let body = self.region(&args)?;
        Ok(Line { kind: OpKind::While, operands, loc, regions: vec![condition, body] })
    }
}
